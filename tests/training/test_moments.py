"""Sums of units: they add up to the statistics of all samples."""

import numpy as np
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from cluster.shards import Row
from training.data.npy import to_npy
from training.moments import moments_of
from training.recipes import diffusion


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 10**6))
@effort(deadline=None, max_examples=25)
def test_moments_merge_to_those_of_all_samples_however_they_are_share_out(
    sizes: list[int], seed: int
) -> None:
    dice = np.random.default_rng(seed)
    units = [
        dice.normal(dice.normal(0, 3), dice.uniform(0.5, 2), (n, 2, 3, 2, 2)).astype(np.float32)
        for n in sizes
    ]
    found = [moments_of([row_of(latent) for latent in latents]) for latents in units]
    drawn = np.concatenate(units).astype(np.float64)
    mean = drawn[:, 0].mean((0, 2, 3))
    spread = np.sqrt((drawn[:, 0] ** 2 + drawn[:, 1] ** 2).mean((0, 2, 3)) - mean**2)
    assert np.allclose(diffusion.merge_moments(found, "latent"), [mean, spread], rtol=1e-6, atol=1e-6)
    images = drawn[:, 0, 0].reshape(len(drawn), -1)
    spread = np.where(images.var(0) > 1e-8, images.std(0), 1)
    assert np.allclose(diffusion.merge_moments(found, "image"), [images.mean(0), spread], atol=1e-5)


def row_of(latent: np.ndarray) -> Row:
    """A training sample; its embedding is a part of its latent."""
    members = {"latent.npy": to_npy(latent), "image.npy": to_npy(latent[0, 0].reshape(-1))}
    return Row("item", "key", columns={"split": "train"}, members=members)
