"""Shares and their intervals: bounded, seeded, by media."""

import numpy as np

from training.judge import Attributes
from training.score import NUM_DERANGEMENTS, derangement, score

TRUTHS: list[Attributes] = [
    {"timbre": index % 5, "f0_hz": 100.0 + 20 * (index % 7), "rate_hz": 2.0 + index % 3}
    for index in range(60)
]
MEDIA = [f"m{index // 5}" for index in range(60)]


def test_intervals_hold_the_scores() -> None:
    half = [truth if index % 2 else TRUTHS[(index + 7) % 60] for index, truth in enumerate(TRUTHS)]
    scores, intervals = score(half, TRUTHS, TRUTHS, MEDIA, seed=0)
    again = score(half, TRUTHS, TRUTHS, MEDIA, seed=0)
    assert (scores, intervals) == again, "seeded"
    assert scores["timbre"]["real"] == 1.0 and intervals["timbre"]["real"] == [1.0, 1.0]
    for attribute, shares in scores.items():
        assert (
            set(shares)
            == set(intervals[attribute])
            == {"generated", "real", "chance", "shuffled", "closed", "shuffled_closed"}
        )
        assert all(low <= shares[name] <= high for name, (low, high) in intervals[attribute].items())
    low, high = intervals["timbre"]["generated"]
    assert 0 < high - low < 0.5


def test_intervals_are_wider_where_clips_of_a_medium_are_alike() -> None:
    """Twelve media of which each is wholly right or wholly wrong say less than sixty clips that are so by
    themselves.
    """
    wrong: Attributes = {"timbre": 9, "f0_hz": 9.0, "rate_hz": 99.0}
    by_media = [TRUTHS[index] if index // 5 % 2 else wrong for index in range(60)]
    by_clip = [TRUTHS[index] if index % 2 else wrong for index in range(60)]
    widths = []
    for heard in (by_media, by_clip):
        low, high = score(heard, TRUTHS, TRUTHS, MEDIA, seed=0)[1]["timbre"]["generated"]
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_one_medium_has_scores_and_no_intervals() -> None:
    scores, intervals = score(TRUTHS, TRUTHS, TRUTHS, ["m"] * 60, seed=0)
    assert scores["f0"]["generated"] == 1.0 and intervals == {}


def test_a_derangement_meets_no_clip_of_the_same_medium() -> None:
    uneven = ["a"] * 4 + ["b"] * 3 + ["c"] + ["d"] * 2
    for media in (MEDIA, uneven, ["a", "b"]):
        for index in range(NUM_DERANGEMENTS):
            exchanged = derangement(media, 3, index)
            assert sorted(exchanged) == list(range(len(media)))
            assert all(media[index_of_clip] != media[met] for index_of_clip, met in enumerate(exchanged))
    for media in (["a"] * 7, ["a"] * 6 + ["b"], ["a", "a"]):
        assert (derangement(media, 0) != np.arange(len(media))).all()
    assert not np.array_equal(derangement(MEDIA, 0, 0), derangement(MEDIA, 0, 1))
