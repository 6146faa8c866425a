"""Shortcut models (Frans et al. 2024): a flow that is told how large a step is, and takes few of them.

    latent = take_steps(noise, step_sizes(3, num_sizes=7), predict)     # steps of 1/2, 1/4, 1/4
    conditions |= told(size)                                            # what the network is told of it

Sizes are 1, 1/2, 1/4, …, and 0: the flow itself, whose steps are infinitely small. A size enters the network
as latent consistency models have their guidance enter (Luo et al. 2023): features that are added to those of
the time, through a layer that is zero at first. `training.export` copies this text into the file that ships.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

SIZE_FEATURES = 256
"""`time_cond_proj_dim` of the network, as latent consistency models have it."""
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Latents [b, c, t, f], times [b] of 0..1000 and step sizes [b] -> the mean velocity [b, c, t, f]."""


def step_sizes(steps: int, num_sizes: int) -> list[float]:
    """Sizes of `steps` steps from 1 to 0, each of the `num_sizes` that were trained: 1, 1/2, 1/4, ….

    The larger ones first, so that each begins at a multiple of itself, where it was trained.
    `ValueError` for more steps than the smallest size has room for.

    >>> step_sizes(3, 7)
    [0.5, 0.25, 0.25]
    """
    most = 2 ** (num_sizes - 1)
    if not 1 <= steps <= most:
        raise ValueError(f"steps={steps}: this shortcut model takes 1 to {most} steps")
    # 2^k steps of size 1 / 2^k; of those, as many are halved as are missing
    fewer = 2 ** (steps.bit_length() - 1)
    num_halved = steps - fewer
    return [1 / fewer] * (fewer - num_halved) + [0.5 / fewer] * (2 * num_halved)


def told(size: Tensor) -> dict[str, Tensor]:
    """The named argument of a network for step sizes [b]: features [b, SIZE_FEATURES]."""
    return {"timestep_cond": get_timestep_embedding(1000 * size, SIZE_FEATURES)}


def take_steps(
    noise: Tensor,
    sizes: Sequence[float],
    velocity: Velocity,
    progress: Callable[[Any], Iterable[float]] = iter,
) -> Tensor:
    """Latents [b, c, t, f] from `noise`: x - size velocity(x, time, size) for each size (algorithm 2)."""
    latent = noise
    time = 1.0
    for size in progress(sizes):
        times = torch.full((len(noise),), 1000 * time, device=noise.device)
        latent = latent - size * velocity(latent, times, torch.full_like(times, size))
        # powers of two: exact
        time -= size
    return latent
