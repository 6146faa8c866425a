"""Intervals of figures, by a bootstrap over media, whose clips resemble each other.

    drawn = draw_media(media, seed=0)                  # [times, clips], how often each clip is drawn
    low, high = interval(means(drawn, values))         # of a mean over clips
    interval(resampled, around=value)                  # of what resampling itself moves

Seeded: the same media and seed give the same draws on every machine. A single medium gives no interval.
"""

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLED = 1000
PERCENTILES = (2.5, 97.5)
DIGITS = 6  # of figures


def draw_media(media: Sequence[str], seed: int, times: int = NUM_RESAMPLED) -> np.ndarray:
    """int [times, num_clips]: how often each clip is drawn, as often as its medium. [0, num_clips] for one
    medium: drawn again and again it gives no interval.
    """
    names, medium_of = np.unique(np.asarray(media), return_inverse=True)
    if len(names) < 2:
        return np.zeros((0, len(media)), int)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), times)
    counts: np.ndarray = drawn[:, medium_of]
    return counts


def means(drawn: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of each draw the mean of `values` [num_clips], [times]."""
    averages: np.ndarray = (drawn @ values) / drawn.sum(1)
    return averages


def interval(resampled: np.ndarray, around: float | None = None) -> list[float] | None:
    """95 % of `resampled` [times]; None for none.

    `around`: shifted so that their mean is there. Drawn again, a sample has fewer distinct members, which by
    itself moves a distance of distributions.
    """
    if not len(resampled):
        return None
    shift = 0.0 if around is None else around - float(resampled.mean())
    low, high = np.percentile(resampled, PERCENTILES) + shift
    return [round(float(low), DIGITS), round(float(high), DIGITS)]
