"""What a diffusion network learns to predict, as pure functions of clean latents x, noise n and time t.

    mixed = mix("v", clean, noise, time)                     # [b, c, t, f]: x_t
    error = (predicted - target("v", clean, noise, time)).square().mean((1, 2, 3))
    loss = error * min_snr("v", time, gamma=5.0)             # [b]

x_t = alpha x + sigma n, time 0 is clean and 1 is noise.

| objective | alpha, sigma | prediction | source |
|---|---|---|---|
| flow | 1 - t, t | n - x | Liu et al. 2022, eq. 1 |
| eps | sqrt(a), sqrt(1 - a) | n | Ho et al. 2020, eq. 14 |
| v | sqrt(a), sqrt(1 - a) | alpha n - sigma x | Salimans and Ho 2022, appendix D |

`a` is the product of 1 - beta up to the timestep k = 1000 t, with AudioLDM's betas; k is whole: 0 to 999.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from training.pipeline.sampling import BETA_END, BETA_START, NUM_TIMESTEPS

Objective = Literal["flow", "eps", "v"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
TIMES = ("uniform", "logit_normal")


def draw_time(
    objective: str, times: str, mean: float, spread: float, generator: np.random.Generator
) -> float:
    """A time of 0..1: uniform, or the logistic of a normal variable (Esser et al. 2024, eq. 19).

    Of eps and v it is a whole thousandth, 0 to 0.999.
    """
    if times == "uniform":
        time = float(generator.random())
    else:
        time = float(1 / (1 + np.exp(-(mean + spread * generator.standard_normal()))))
    if objective == "flow":
        return time
    return min(int(time * NUM_TIMESTEPS), NUM_TIMESTEPS - 1) / NUM_TIMESTEPS


def timesteps(objective: str, time: Tensor) -> Tensor:
    """What the network is told of the time [b], 0 to 1000; whole numbers for eps and v."""
    return time * NUM_TIMESTEPS if objective == "flow" else (time * NUM_TIMESTEPS).round()


def coefficients(objective: str, time: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma, float32 [b] each."""
    if objective == "flow":
        return 1 - time, time
    # in float64: a product of a thousand factors
    roots = torch.linspace(
        BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS, dtype=torch.float64, device=time.device
    )
    kept = (1 - roots.square()).cumprod(0)[timesteps(objective, time).long()]
    return kept.sqrt().float(), (1 - kept).sqrt().float()


def mix(objective: str, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t [b, c, t, f] at times [b]."""
    if objective == "flow":
        return torch.lerp(clean, noise, _wide(time))
    alpha, sigma = coefficients(objective, time)
    return _wide(alpha) * clean + _wide(sigma) * noise


def target(objective: str, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """What the network should predict of x_t [b, c, t, f]."""
    if objective == "flow":
        return noise - clean  # the derivative of x_t by t
    if objective == "eps":
        return noise
    alpha, sigma = coefficients(objective, time)
    return _wide(alpha) * noise - _wide(sigma) * clean


def clean_of(objective: str, mixed: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
    """The latents x [b, c, t, f] that a prediction at x_t means."""
    alpha, sigma = coefficients(objective, time)
    if objective == "flow":
        return mixed - _wide(sigma) * prediction
    if objective == "eps":
        return (mixed - _wide(sigma) * prediction) / _wide(alpha)
    return _wide(alpha) * mixed - _wide(sigma) * prediction


def snr(objective: str, time: Tensor) -> Tensor:
    """The ratio of signal to noise [b], alpha^2 / sigma^2; infinite at a flow's time 0."""
    alpha, sigma = coefficients(objective, time)
    return (alpha / sigma).square()


def min_snr(objective: str, time: Tensor, gamma: float) -> Tensor:
    """The weight [b] of a prediction's loss: of an error of x, min(SNR, gamma) (Hang et al. 2023, eq. 8).

    An error of x is sigma / alpha times one of eps, sigma times one of v, t times one of a flow.
    """
    alpha, sigma = coefficients(objective, time)
    in_clean = sigma / alpha if objective == "eps" else sigma
    return snr(objective, time).clamp(max=gamma) * in_clean.square()


def _wide(values: Tensor) -> Tensor:
    """[b] -> [b, 1, 1, 1]."""
    return values[:, None, None, None]
