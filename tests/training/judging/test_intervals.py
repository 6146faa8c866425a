"""Intervals: seeded, over whole media, and around what was measured."""

import numpy as np
import pytest

from training.judging.intervals import draw_media, interval, means

MEDIA = ["a", "a", "b", "c", "c", "c"]


def test_the_seed_decides_the_draws_and_media_are_drawn_as_a_whole() -> None:
    drawn = draw_media(MEDIA, seed=3)
    assert (drawn == draw_media(MEDIA, seed=3)).all() and (drawn != draw_media(MEDIA, seed=4)).any()
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 3] == drawn[:, 5]).all()
    # three media are drawn each time
    assert (drawn[:, 0] + drawn[:, 2] + drawn[:, 3] == 3).all()


def test_an_interval_of_a_mean_is_as_wide_as_its_error() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    media = [str(number) for number in range(400)]
    bounds = interval(means(draw_media(media, 0), values))
    assert bounds is not None
    low, high = bounds
    # 1.96 standard errors each way
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15) and low < values.mean() < high


def test_one_medium_has_no_interval() -> None:
    assert interval(means(draw_media(["a", "a"], 0), np.ones(2))) is None


def test_a_distance_that_resampling_itself_moves_is_put_back() -> None:
    resampled = np.array([10.0, 11.0, 12.0])
    assert interval(resampled, around=3.0) == pytest.approx([2.05, 3.95])
