"""Mean and spread of latents and embeddings: merged over the commits of a dataset, and taken out.

    mean, spread = merge_moments([commit.statistics for commit in commits], "image")
    whitened = whiten(embedding, {"image_mean": mean, "image_std": spread})

precompute leaves their sums in each commit, so that nothing is read again for them.
"""

import numpy as np

from cluster.jsonl import JsonObject
from training.recipes.recipe import Geometry

LEAST_SPREAD = 1e-4  # of embeddings and latents; less is rounding
FLOAT16_STEP = 2.0**-11  # relative: the precision in which both are stored


def merge_moments(statistics: list[JsonObject], name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel from the sums that each commit carries.

    The deviation of what never varied is 1, as StandardScaler of scikit-learn has it: divided by a spread
    that is only rounding, a new picture that wakes a dead unit up would be hundreds of deviations off.
    """
    count = sum(commit[f"{name}_count"] for commit in statistics)
    total = np.sum([commit[f"{name}_sum"] for commit in statistics], axis=0)
    squares = np.sum([commit[f"{name}_sumsq"] for commit in statistics], axis=0)
    mean = total / count
    variance = squares / count - mean**2
    constant = variance <= np.maximum(LEAST_SPREAD, FLOAT16_STEP * np.abs(mean)) ** 2
    return mean.tolist(), np.sqrt(np.where(constant, 1.0, variance)).tolist()


def whiten(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Each dimension of an embedding to mean 0 and spread 1, float32 [d]."""
    mean = np.array(geometry["image_mean"], np.float32)
    std = np.array(geometry["image_std"], np.float32)
    whitened: np.ndarray = (image - mean) / std
    return whitened
