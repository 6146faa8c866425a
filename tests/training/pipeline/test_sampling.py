"""Samplers: each leads a perfect prediction to the latents, whatever it predicts, in any number of steps."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from training.pipeline.sampling import SAMPLERS, build_scheduler, integrate, objective_of
from training.recipes.objectives import coefficients, mix, target

PAIRS = [(sampler, objective) for sampler, known in SAMPLERS.items() for objective in known]
CLEAN, NOISE = torch.randn(2, 2, 3, 4, 2, generator=torch.Generator().manual_seed(0))


def perfect(objective: str, seen: list[float]) -> object:
    """What a network would predict that knows the latents."""

    def predict(latent: Tensor, time: Tensor) -> Tensor:
        seen.append(float(time))
        times = (time.float() / 1000).expand(len(latent)).clamp(1e-6, 1 - 1e-6)
        alpha, sigma = (values[:, None, None, None] for values in coefficients(objective, times))
        noise = (latent - alpha * CLEAN) / sigma
        return target(objective, CLEAN, noise, times)

    return predict


@pytest.mark.parametrize("steps", [1, 2, 4, 25])
@pytest.mark.parametrize("sampler,objective", PAIRS)
def test_a_perfect_prediction_leads_to_the_latents(sampler: str, objective: str, steps: int) -> None:
    seen: list[float] = []
    scheduler = build_scheduler(sampler, objective)
    latent = integrate(scheduler, NOISE, steps, perfect(objective, seen))  # type: ignore[arg-type]
    assert torch.allclose(latent, CLEAN, atol=2e-2)
    # one evaluation a step, the first of pure noise
    assert len(seen) == steps and seen[0] >= 998


@pytest.mark.parametrize("sampler,objective", PAIRS)
def test_what_a_network_sees_has_the_spread_it_was_trained_with(sampler: str, objective: str) -> None:
    spreads: list[tuple[float, float]] = []
    oracle = perfect(objective, [])

    def predict(latent: Tensor, time: Tensor) -> Tensor:
        times = (time.float() / 1000).expand(len(latent))
        spreads.append((float(latent.std()), float(mix(objective, CLEAN, NOISE, times).std())))
        return oracle(latent, time)  # type: ignore[operator]

    integrate(build_scheduler(sampler, objective), NOISE, 8, predict)
    assert all(seen == pytest.approx(trained, rel=0.05) for seen, trained in spreads)


@pytest.mark.parametrize("sampler,objective", PAIRS)
def test_a_saved_scheduler_says_what_its_network_predicts(sampler: str, objective: str) -> None:
    assert objective_of(build_scheduler(sampler, objective)) == objective


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="sampler=heun: give one of ddim, euler, dpmsolver, unipc"):
        build_scheduler("heun", "flow")
    with pytest.raises(ValueError, match="sampler=ddim: cannot sample .* objective flow; give euler, dpm"):
        build_scheduler("ddim", "flow")
    with pytest.raises(ValueError, match="prediction_type=sample of a DDIMScheduler: need epsilon"):
        objective_of(DDIMScheduler(prediction_type="sample"))


def test_a_flows_solver_without_a_grid_of_ours_keeps_its_own() -> None:
    scheduler = FlowMatchHeunDiscreteScheduler()
    assert objective_of(scheduler) == "flow"
    latent = integrate(scheduler, NOISE, 4, perfect("flow", []))  # type: ignore[arg-type]
    assert torch.allclose(latent, CLEAN, atol=2e-2)
