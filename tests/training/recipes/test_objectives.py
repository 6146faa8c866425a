"""The objectives: one process, three predictions of it, each of which means the same latents; times and weights."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from training.data.randomness import SampleKey, keyed_rng
from training.recipes.objectives import (
    OBJECTIVES,
    TIMES,
    clean_of,
    coefficients,
    draw_time,
    min_snr,
    mix,
    snr,
    target,
    timesteps,
)

TIME = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999])
CLEAN, NOISE = torch.randn(2, 5, 3, 4, 2, generator=torch.Generator().manual_seed(0))
AUDIOLDM = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_right_prediction_means_the_clean_latents(objective: str) -> None:
    mixed = mix(objective, CLEAN, NOISE, TIME)
    right = target(objective, CLEAN, NOISE, TIME)
    # of eps at the last times an error is 80 times as large in x
    assert torch.allclose(clean_of(objective, mixed, right, TIME), CLEAN, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_eps_and_v_are_those_of_audioldms_scheduler(prediction: str) -> None:
    objective = {"epsilon": "eps", "v_prediction": "v"}[prediction]
    steps = timesteps(objective, TIME).long()
    stock = AUDIOLDM.add_noise(CLEAN, NOISE, steps)
    assert torch.allclose(mix(objective, CLEAN, NOISE, TIME), stock, atol=1e-5)
    wanted = NOISE if objective == "eps" else AUDIOLDM.get_velocity(CLEAN, NOISE, steps)
    assert torch.allclose(target(objective, CLEAN, NOISE, TIME), wanted, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_ratio_of_signal_to_noise_falls_from_all_to_nothing(objective: str) -> None:
    alpha, sigma = coefficients(objective, TIME)
    assert torch.allclose(snr(objective, TIME), (alpha / sigma).square())
    assert (snr(objective, TIME).diff() < 0).all()
    assert snr(objective, TIME)[0] > 300 and snr(objective, TIME)[-1] < 0.002
    if objective != "flow":
        assert torch.allclose(alpha.square() + sigma.square(), torch.ones(5))
        kept = AUDIOLDM.alphas_cumprod[timesteps(objective, TIME).long()]
        assert torch.allclose(alpha.square(), kept, rtol=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_an_error_of_the_clean_latents_alike_for_every_prediction(gamma: float) -> None:
    """Hang et al. 2023, eq. 8 and section 3.4: eps min(SNR, gamma) / SNR, v min(SNR, gamma) / (SNR + 1)."""
    ratio = snr("eps", TIME)
    assert torch.allclose(min_snr("eps", TIME, gamma), ratio.clamp(max=gamma) / ratio, rtol=1e-4)
    assert torch.allclose(min_snr("v", TIME, gamma), ratio.clamp(max=gamma) / (ratio + 1), rtol=1e-4)
    for objective in OBJECTIVES:
        mixed = mix(objective, CLEAN, NOISE, TIME)
        off = target(objective, CLEAN, NOISE, TIME) + 0.1
        error = (clean_of(objective, mixed, off, TIME) - CLEAN).square().mean((1, 2, 3))
        weighed = min_snr(objective, TIME, gamma) * 0.1**2
        assert torch.allclose(weighed, snr(objective, TIME).clamp(max=gamma) * error, rtol=0.02, atol=1e-7)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_times_are_drawn_as_named(objective: str, times: str) -> None:
    drawn = np.array(
        [
            draw_time(objective, times, 0.5, 1.0, keyed_rng(SampleKey(0, 0, index), "time"))
            for index in range(4000)
        ]
    )
    assert 0 <= drawn.min() and drawn.max() < 1
    if times == "uniform":
        assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    else:
        logits = np.log(drawn / (1 - drawn))
        assert (logits.mean(), logits.std()) == (pytest.approx(0.5, abs=0.05), pytest.approx(1, abs=0.05))
    whole = np.abs(drawn * 1000 - np.round(drawn * 1000)).max() < 1e-9
    assert whole == (objective != "flow")


def test_every_discrete_time_is_the_step_it_was_drawn_as() -> None:
    times = torch.tensor([step / 1000 for step in range(1000)])
    assert timesteps("eps", times).tolist() == list(range(1000))
