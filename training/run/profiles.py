"""Averages of the weights under power functions of time, whose width is chosen after the training.

    profile = Ema(owned, power_decay(0.05))                 # kept beside the run's plain average
    weights = mixing_weights(stored, Profile(30_000, 0.08)) # of each stored profile, to give another one

Karras et al. 2024 ("Analyzing and improving the training dynamics of diffusion models"), section 3: a profile
weighs step t of T by t^gamma. Its width is given as sigma_rel, the deviation of that weight as a share of T:
.05 is a narrow one, .1 a wide one. Profiles of two widths that were stored every so often span those of many
other widths and ends: whoever has them chooses the best one for a score without training again.
"""

from typing import NamedTuple

import numpy as np

from training.run.ema import Decay

WIDEST = 0.28  # of gamma = 0, where all steps weigh alike: 12^-0.5


class Profile(NamedTuple):
    """An average over the steps 1 to `step`, of relative width `sigma_rel`."""

    step: int
    sigma_rel: float


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a relative width (Karras et al. 2024, appendix C.1).

    With density (gamma + 1) t^gamma on 0..1 the variance is (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    >>> round(gamma_of(0.05), 2), round(gamma_of(0.1), 2)
    (16.97, 6.94)
    """
    precision = sigma_rel**-2
    # the equation above, solved for gamma: one of three roots is positive
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


def power_decay(sigma_rel: float) -> Decay:
    """(1 - 1 / step)^(gamma + 1) (equation 127): of step 1 nothing of the random start remains."""
    exponent = gamma_of(sigma_rel) + 1
    return lambda step: float((1 - 1 / step) ** exponent)


def mixing_weights(stored: list[Profile], wanted: Profile) -> np.ndarray:
    """float64 [len(stored)]: their sum so weighted is the nearest to `wanted`, in the least squares of their
    densities over time (Karras et al. 2024, section 3.2).

    `ValueError` where none reaches to the end of `wanted`: what came after it is in none.
    """
    if not any(profile.step >= wanted.step for profile in stored):
        newest = max((profile.step for profile in stored), default=0)
        raise ValueError(f"step={wanted.step}: the newest stored average is of step {newest}")
    overlaps = np.empty((len(stored), len(stored)))
    for row, one in enumerate(stored):
        overlaps[row] = [overlap(one, other) for other in stored]
    target = np.array([overlap(one, wanted) for one in stored])
    # nearly parallel profiles make the matrix nearly singular: lstsq leaves those directions out
    weights: np.ndarray = np.linalg.lstsq(overlaps, target, rcond=1e-12)[0]
    # an average of weights must not shrink them, as the nearest one of few stored ones would
    weights /= weights.sum()
    return weights


def overlap(one: Profile, other: Profile) -> float:
    """The integral of the product of two densities p(t) = (gamma + 1) t^gamma / step^(gamma + 1), t <= step.

    Times the later step, which is common to all: so that numbers stay near 1.
    """
    first, second = sorted((one, other))
    first_gamma = gamma_of(first.sigma_rel)
    second_gamma = gamma_of(second.sigma_rel)
    factor = (first_gamma + 1) * (second_gamma + 1) / (first_gamma + second_gamma + 1)
    return float(factor * (first.step / second.step) ** second_gamma / second.step)
