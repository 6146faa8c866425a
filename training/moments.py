"""Sums over the samples of a unit of latents, from which a training has mean and spread of the whole dataset.

statistics = moments_of(rows)      # into the unit's commit; training.recipes.diffusion merges them
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cluster.shards import Row, Status
from training.data.heldout import HELD_OUT
from training.data.npy import read_npy
from training.sequences import AUDIOMAE_MEMBER


@dataclass
class Moments:
    """Count, sum and sum of squares of arrays, per channel or dimension.

    Sums in float64: of commits they add up to the whole dataset's, whatever order they come in.
    """

    count: int = 0
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def add(self, total: np.ndarray, squares: np.ndarray, count: int) -> None:
        self.count += count
        self.total = total + self.total
        self.squares = squares + self.squares

    def sums(self, name: str) -> dict[str, list[float]]:
        """As JSON; nothing where nothing was added."""
        if not self.count:
            return {}
        return {
            f"{name}_sum": np.asarray(self.total).tolist(),
            f"{name}_sumsq": np.asarray(self.squares).tolist(),
        }


def moments_of(rows: list[Row]) -> Mapping[str, object]:
    """The statistics of a commit: moments per latent channel and embedding dimension, over its training
    samples.
    """
    latent = Moments()
    image = Moments()
    shape: dict[str, list[int]] = {}
    for row in rows:
        if row.status != Status.KEPT or row.columns["split"] in HELD_OUT:
            continue
        moments = read_npy(row.members["latent.npy"]).astype(np.float64)
        mean = moments[0]
        # of samples drawn from the moments: E[x^2] = mean^2 + variance
        squares = mean**2 + moments[1] ** 2
        shape["latent_shape"] = list(moments.shape[1:])
        latent.add(mean.sum((1, 2)), squares.sum((1, 2)), mean[0].size)
        embedding = read_npy(row.members["image.npy"]).astype(np.float64)
        image.add(embedding, embedding**2, 1)
        if AUDIOMAE_MEMBER in row.members:
            shape["audiomae_shape"] = list(read_npy(row.members[AUDIOMAE_MEMBER]).shape)
    counts = {"latent_count": latent.count, "image_count": image.count}
    return {**counts, **shape, **latent.sums("latent"), **image.sums("image")}
