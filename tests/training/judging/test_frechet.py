"""Frechet distance against scipy's root of a matrix, and the halves that its floor is of."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from training.judging.frechet import floor, frechet, halves, resampled


def textbook(first: np.ndarray, second: np.ndarray) -> float:
    """As pytorch-fid computes it."""
    difference = first.mean(0) - second.mean(0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1])
    return float(difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def features(count: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) + rng.standard_normal(dim)
    ).astype(np.float32)


@pytest.mark.parametrize(("first", "second", "dim"), [(60, 80, 6), (12, 15, 20), (30, 8, 12)])
def test_it_is_scipys_with_more_and_with_fewer_sounds_than_features(
    first: int, second: int, dim: int
) -> None:
    one, other = features(first, dim, 0), features(second, dim, 1)
    # with fewer, scipy's root of a singular matrix is right to about 1e-4
    assert frechet(one, other) == pytest.approx(textbook(one, other), rel=2e-4)
    assert frechet(one, other) == pytest.approx(frechet(other, one), rel=1e-9)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6 * float(np.square(one).sum()))


def test_by_hand_in_one_dimension() -> None:
    # variances 2 and 8 of means 2 and 5: 9 + (sqrt(2) - sqrt(8))^2
    one = np.array([[1.0], [3.0]])
    other = np.array([[3.0], [7.0]])
    assert frechet(one, other) == pytest.approx(9 + 2)


def test_drawing_a_row_twice_is_having_it_twice() -> None:
    one, other = features(6, 3, 0), features(6, 3, 1)
    counts = np.array([2, 0, 1, 1, 0, 2])
    rows = np.repeat(np.arange(6), counts)
    assert frechet(one, other, counts) == pytest.approx(frechet(one[rows], other[rows]))
    assert resampled(one, other, np.stack([counts, np.ones(6, int)]))[1] == pytest.approx(frechet(one, other))


def test_halves_are_of_whole_media_and_seeded() -> None:
    media = ["a"] * 3 + ["b"] * 2 + ["c", "d", "e"]
    first = halves(media, seed=0)
    assert 0 < first.sum() < len(media)
    for name in set(media):
        assert (
            len({bool(is_first) for is_first, medium in zip(first, media, strict=True) if medium == name})
            == 1
        )
    assert (halves(media, 0) == first).all()
    assert any((halves(media, 0, index) != first).any() for index in range(1, 5))
    # a set against itself is far nearer than two sets are
    own = features(40, 4, 0)
    measured = floor(own, [str(number) for number in range(40)], 0)
    assert measured is not None and measured < 0.2 * frechet(own, features(40, 4, 1))
    assert floor(own[:3], ["a", "b", "c"], 0) is None
