"""Frechet distance of two sets of features (Dowson and Landau 1982; Heusel et al. 2017, equation 6).

    distance = frechet(generated, reference)           # [n, d], [m, d] -> |difference of means|^2 + …
    halves(media, seed)                                # the two halves of a set, for its floor

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with unbiased covariances

It falls as n grows, whatever the sounds: compare only figures of the same n, and with the floor.
"""

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLED = 100  # each is a decomposition
NUM_SPLITS = 5


def frechet(first: np.ndarray, second: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Of features [n, d] and [m, d]. `counts` [n]: how often each row of both is drawn, where n = m.

    The trace of the root is the sum of the singular values of A B', where A'A and B'B are the covariances:
    no root of a matrix that is not symmetric, and no imaginary rest of rounding.
    """
    first_mean, first_factor = _moments(first, counts)
    second_mean, second_factor = _moments(second, counts)
    difference = first_mean - second_mean
    overlap = np.linalg.svd(first_factor @ second_factor.T, compute_uv=False).sum()
    spread = np.square(first_factor).sum() + np.square(second_factor).sum()
    return float(difference @ difference + spread - 2 * overlap)


def resampled(first: np.ndarray, second: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The distance of each draw of pairs (`drawn` int [times, n]), [times]."""
    return np.array([frechet(first, second, counts) for counts in drawn])


def floor(features: np.ndarray, media: Sequence[str], seed: int) -> float | None:
    """Of two halves of one set, the mean over NUM_SPLITS; None where a half would have less than two."""
    distances: list[float] = []
    for index in range(NUM_SPLITS):
        half = halves(media, seed, index)
        if min(half.sum(), (~half).sum()) < 2:
            return None
        distances.append(frechet(features[half], features[~half]))
    return float(np.mean(distances))


def halves(media: Sequence[str], seed: int, index: int = 0) -> np.ndarray:
    """bool [n]: which are in the first half, whole media alone: clips of one medium resemble each other."""
    names, medium_of = np.unique(np.asarray(media), return_inverse=True)
    order = np.random.default_rng([seed, index]).permutation(len(names))
    counts = np.bincount(medium_of)[order]
    # media in random order, until half of the clips are taken
    taken = order[np.cumsum(counts) <= max(len(media) // 2, counts[0])]
    is_first: np.ndarray = np.isin(medium_of, taken)
    return is_first


def _moments(features: np.ndarray, counts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d], and a factor A [min(n, d), d] of the covariance A'A."""
    values = features.astype(np.float64)
    weights = np.ones(len(values)) if counts is None else counts.astype(np.float64)
    mean = weights @ values / weights.sum()
    scaled = np.sqrt(weights / (weights.sum() - 1))[:, None] * (values - mean)
    # the triangle of a QR decomposition has the same A'A in d rows
    factor = np.linalg.qr(scaled, mode="r") if len(scaled) > scaled.shape[1] else scaled
    return mean, np.asarray(factor)
