"""Statistics of latents and embeddings: what never varied is not blown up."""

from typing import Any

import numpy as np
import pytest

from training.recipes.moments import merge_moments, whiten


def moments(values: np.ndarray) -> dict[str, Any]:
    return {
        "image_count": len(values),
        "image_sum": values.sum(0).tolist(),
        "image_sumsq": (values**2).sum(0).tolist(),
    }


@pytest.mark.parametrize("level", [0.0, 1e-5, 0.7, -300.0])
def test_what_never_varied_is_divided_by_one(level: float) -> None:
    values = np.random.default_rng(0).normal(2, 3, (500, 2)).astype(np.float16).astype(float)
    values[:, 1] = np.float16(level)
    mean, spread = merge_moments([moments(values[:200]), moments(values[200:])], "image")
    assert spread[1] == 1
    assert spread[0] == pytest.approx(values[:, 0].std(), rel=1e-6)
    new = whiten(np.array([2, level + 0.05], np.float32), {"image_mean": mean, "image_std": spread})
    assert new[1] == pytest.approx(0.05, abs=1e-3)


def test_rounding_to_float16_is_no_variation() -> None:
    dice = np.random.default_rng(0)
    values = np.where(
        dice.random((500, 1)) < 0.5, np.float16(1), np.nextafter(np.float16(1), np.float16(2))
    ).astype(float)
    assert merge_moments([moments(values)], "image")[1] == [1]


def test_a_small_spread_that_is_one_is_kept() -> None:
    values = np.random.default_rng(0).normal(0, 1e-3, (500, 1))
    assert merge_moments([moments(values)], "image")[1] == pytest.approx([values.std()])
