"""Averages of any width, from those of two widths that were stored now and then."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.run.profiles import WIDEST, Profile, gamma_of, mixing_weights, overlap, power_decay

STEPS = 1200
EVERY = 60
WIDTHS = st.floats(0.03, 0.25)


def tracked(sigma_rel: float, walk: np.ndarray) -> np.ndarray:
    """The average after each step, [steps, d]."""
    decay = power_decay(sigma_rel)
    averages = np.empty_like(walk)
    average = np.full(walk.shape[1], 1e9)  # a random start that must be forgotten
    for index, live in enumerate(walk):
        kept = decay(index + 1)
        average = kept * average + (1 - kept) * live
        averages[index] = average
    return averages


@settings(deadline=None, max_examples=30)
@given(WIDTHS)
def test_the_deviation_of_a_profile_is_its_width(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    time = (np.arange(100_000) + 0.5) / 100_000
    density = (gamma + 1) * time**gamma / 100_000
    mean = (density * time).sum()
    assert (density * (time - mean) ** 2).sum() ** 0.5 == pytest.approx(sigma_rel, rel=1e-3)


@settings(deadline=None, max_examples=30)
@given(WIDTHS, WIDTHS, st.integers(1, 500), st.integers(1, 500))
def test_overlaps_are_integrals(one: float, other: float, first: int, second: int) -> None:
    time = (np.arange(200_000) + 0.5) * min(first, second) / 200_000
    product = np.ones_like(time)
    for sigma_rel, step in ((one, first), (other, second)):
        gamma = gamma_of(sigma_rel)
        product *= (gamma + 1) / step * (time / step) ** gamma
    integral = product.sum() * min(first, second) / 200_000
    assert overlap(Profile(first, one), Profile(second, other)) == pytest.approx(
        integral, rel=1e-3, abs=1e-12
    )


def test_a_decay_gives_the_weights_of_its_power_function() -> None:
    sigma_rel = 0.1
    impulses = np.eye(STEPS)
    weights = tracked(sigma_rel, impulses)[-1]
    exponent = gamma_of(sigma_rel) + 1
    edges = (np.arange(STEPS + 1) / STEPS) ** exponent
    assert weights == pytest.approx(np.diff(edges), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(WIDTHS, st.integers(0, 10))
def test_any_width_comes_from_two(sigma_rel: float, seed: int) -> None:
    walk = np.random.default_rng(seed).standard_normal((STEPS, 40)).cumsum(0)
    stored = [Profile(step, width) for width in (0.05, 0.1) for step in range(EVERY, STEPS + 1, EVERY)]
    histories = {width: tracked(width, walk) for width in (0.05, 0.1)}
    weights = mixing_weights(stored, Profile(STEPS, sigma_rel))
    mixed = sum(
        weight * histories[each.sigma_rel][each.step - 1]
        for weight, each in zip(weights, stored, strict=True)
    )
    wanted = tracked(sigma_rel, walk)[-1]
    distance_to_live = np.linalg.norm(wanted - walk[-1])
    assert weights.sum() == pytest.approx(1)
    assert np.linalg.norm(mixed - wanted) < 0.08 * distance_to_live


def test_a_stored_one_is_itself() -> None:
    stored = [Profile(step, width) for width in (0.05, 0.1) for step in (100, 200, 300)]
    weights = mixing_weights(stored, stored[4])
    assert weights == pytest.approx(np.eye(6)[4], abs=1e-6)


def test_what_comes_after_the_newest_is_refused() -> None:
    with pytest.raises(ValueError, match="step=300: the newest stored average is of step 200"):
        mixing_weights([Profile(200, 0.05)], Profile(300, 0.05))


def test_no_profile_is_wider_than_all_steps_alike() -> None:
    assert gamma_of(WIDEST) > 0
    assert gamma_of(12**-0.5) == pytest.approx(0, abs=1e-9)
