"""Which items a measurement takes depends on their keys alone."""

import numpy as np

from training.data.choice import choose, seed_of

KEYS = [f"key{index:03d}" for index in range(100)]
CLIPS = np.array([f"youtube_{media}_{start:05d}" for media in range(20) for start in range(20)])


def holes(*indexes: int) -> np.ndarray:
    mask = np.zeros(len(KEYS), bool)
    mask[list(indexes)] = True
    return mask


def test_a_removed_item_changes_no_other_choice() -> None:
    chosen = choose(KEYS, holes(), 10)
    assert choose(KEYS, holes(chosen[0]), 10) == chosen


def test_enough_items_are_no_holes() -> None:
    chosen = choose(KEYS, holes(), 3)
    replaced = choose(KEYS, holes(*chosen), 3, at_least=2)
    assert replaced[:3] == chosen and len(replaced) == 5


def test_nothing_is_chosen_of_holes_alone() -> None:
    assert choose(KEYS, np.ones(len(KEYS), bool), 3) == []


def test_what_is_chosen_depends_on_keys_alone() -> None:
    no_hole = np.zeros(len(CLIPS), bool)
    chosen = choose(CLIPS, no_hole, 50)
    assert chosen == sorted(chosen) and len(set(chosen)) == 50
    assert len({CLIPS[item].split("_")[1] for item in chosen}) > 12, "spread over the media"
    some = no_hole.copy()
    some[chosen[::2]] = True
    assert choose(CLIPS, some, 50) == chosen, "a take-down moves nothing"
    order = np.random.default_rng(0).permutation(len(CLIPS))
    assert {CLIPS[order][item] for item in choose(CLIPS[order], no_hole, 50)} == {
        CLIPS[item] for item in chosen
    }


def test_choosing_from_few_or_no_hole() -> None:
    no_hole = np.zeros(3, bool)
    assert choose(CLIPS[:3], no_hole, 10) == [0, 1, 2]
    assert choose(CLIPS[:3], ~no_hole, 10) == [] == choose(CLIPS[:0], no_hole[:0], 10)
    removed = no_hole.copy()
    removed[choose(CLIPS[:3], no_hole, 1)] = True
    taken = choose(CLIPS[:3], removed, 1)
    assert len(taken) == 2 and not removed[taken[-1]]


def test_seeds_of_items_differ_and_stay() -> None:
    seeds = {seed_of(seed, key) for seed in range(3) for key in CLIPS}
    assert len(seeds) == 3 * len(CLIPS) and max(seeds) < 2**63 and seed_of(0, "a") == seed_of(0, "a")
