"""Candidate pairs: every pair that is near shares a bucket, and a crowd costs no quadratic work."""

import itertools

import numpy as np
import pytest

from ingest.dedup import neighbours
from ingest.dedup.neighbours import candidate_pairs, in_crowds, pairs_within


def random_prints(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 63, (count, 5), np.uint64)


def flipped(prints: np.ndarray, column: int, bits: list[int]) -> np.ndarray:
    copy = prints.copy()
    for bit in bits:
        copy[column] ^= np.uint64(1 << bit)
    return copy


def all_pairs(prints: np.ndarray) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for low, high in candidate_pairs(prints):
        pairs += zip(low.tolist(), high.tolist(), strict=True)
    return pairs


@pytest.mark.parametrize("seed", range(20))
def test_prints_a_few_bits_apart_are_a_pair(seed: int) -> None:
    """6 bits of the image and 7 of the shape: what ingest.curate promises to find."""
    rng = np.random.default_rng(seed)
    prints = random_prints(50)
    near = flipped(prints[7], 0, rng.choice(64, 6, replace=False).tolist())
    near = flipped(near, 1, rng.choice(64, 4, replace=False).tolist())
    near = flipped(near, 2, rng.choice(64, 3, replace=False).tolist())
    assert (7, 50) in all_pairs(np.vstack([prints, near]))


def test_other_prints_are_no_pair() -> None:
    assert all_pairs(random_prints(500)) == []


def test_the_lower_index_comes_first() -> None:
    prints = np.repeat(random_prints(3), 4, axis=0)[np.random.default_rng(1).permutation(12)]
    pairs = all_pairs(prints)
    assert pairs and all(low < high for low, high in pairs)


def test_no_prints_have_no_pairs() -> None:
    assert all_pairs(random_prints(0)) == []


def test_pairs_within_a_bucket_are_all_pairs_of_it() -> None:
    buckets = np.array([1, 1, 1, 4, 5, 5])
    indices = np.array([10, 11, 12, 13, 14, 15])
    pairs = [
        tuple(pair) for low, high in pairs_within(buckets, indices) for pair in np.column_stack([low, high])
    ]
    assert sorted(pairs) == [*itertools.combinations((10, 11, 12), 2), (14, 15)]


def test_a_crowd_is_a_bucket_of_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CROWD", 2)
    assert in_crowds(np.array([1, 1, 3, 3, 3, 4])).tolist() == [False, False, True, True, True, False]


def test_a_crowd_is_divided_by_the_change_of_its_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CROWD", 4)
    prints = np.repeat(random_prints(1), 40, axis=0)
    prints[:, 3:] = random_prints(40)[:, 3:]
    prints[39, 3:] = prints[0, 3:]
    assert set(all_pairs(prints)) == {(0, 39)}
