"""Retrieval by hand: ranks, ties, and clips of one medium, which do not compete."""

import numpy as np
import pytest

from training.judging.retrieval import TIE, cosines, hits, ranks


def unit(degrees: list[float]) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1)


def test_by_hand() -> None:
    pictures = unit([0, 40, 90])
    sounds = unit([5, 10, 60])
    media = ["a", "b", "c"]
    # the third picture's own sound is nearest; the second's is 30 degrees off, another one 20
    assert ranks(pictures, sounds, media, media).tolist() == [1, 2, 1]
    assert hits(pictures, sounds, media, media, 1).tolist() == [1, 0, 1]
    assert hits(pictures, sounds, media, media, 2).tolist() == [1, 1, 1]
    # the way back: the second sound is nearer to the first picture
    assert ranks(sounds, pictures, media, media).tolist() == [1, 2, 2]
    assert cosines(pictures, sounds) == pytest.approx(np.cos(np.radians([5, 30, 30])))


def test_a_partner_of_another_medium_is_the_own_one_all_the_same() -> None:
    """As in exchanged pairs: it is no competitor of itself."""
    vectors = unit([0, 90])
    assert ranks(vectors, vectors, ["a", "b"], ["c", "d"]).tolist() == [1, 1]


def test_clips_of_the_same_medium_do_not_compete() -> None:
    vectors = unit([0, 0.001, 90])
    assert ranks(vectors, unit([3, 0, 90]), ["a", "a", "b"], ["a", "a", "b"]).tolist() == [1, 1, 1]
    assert ranks(vectors, unit([3, 0, 90]), ["a", "c", "b"], ["a", "c", "b"])[0] == 2


def test_equal_ones_share_a_place_and_rounding_moves_nothing() -> None:
    pictures = unit([0, 90, 91])
    media = ["a", "b", "c"]
    twins = unit([0, 90, 90])
    found = hits(pictures, twins, media, media, 1)
    # of two equal sounds each is the first by half
    assert found[:2] == pytest.approx([1, 0.5]) and found[2] == pytest.approx(0.5)
    noise = np.random.default_rng(0).uniform(-1e-6, 1e-6, twins.shape)
    assert hits(pictures, twins + noise, media, media, 1) == pytest.approx(found, abs=1e-6 / TIE)


def test_random_vectors_find_their_partners_by_chance() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((200, 16)) for _ in range(2))
    first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (first, second))
    media = [str(number) for number in range(200)]
    assert hits(first, second, media, media, 10).mean() == pytest.approx(10 / 200, abs=0.04)
