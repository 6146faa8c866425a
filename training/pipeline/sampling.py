"""From noise to latents: schedulers of diffusers by a sampler's name, and the loop around any of them.

    scheduler = build_scheduler("dpmsolver", "eps")            # of a sampler and an objective
    latent = integrate(scheduler, noise, 25, predict)          # predict(latent, time) -> [b, c, t, f]

What a network predicts (training.recipes.objectives) decides which schedulers fit; which one a folder has is
its `_class_name`. `training.export` copies this text into the file that ships.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

NUM_TIMESTEPS = 1000
# AudioLDM's betas: square roots at even distances (its published schedulers, and its training code)
BETA_START = 0.0015
BETA_END = 0.0195
PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "flow"}
SAMPLERS: dict[str, dict[str, type[Any]]] = {
    # of flow, DDIM without noise is Euler
    "ddim": {"eps": DDIMScheduler, "v": DDIMScheduler},
    "euler": {
        "eps": EulerDiscreteScheduler,
        "v": EulerDiscreteScheduler,
        "flow": FlowMatchEulerDiscreteScheduler,
    },
    "dpmsolver": dict.fromkeys(("eps", "v", "flow"), DPMSolverMultistepScheduler),
    "unipc": dict.fromkeys(("eps", "v", "flow"), UniPCMultistepScheduler),
}
"""Sampler -> objective -> class. Song et al. 2021; Karras et al. 2022; Lu et al. 2022; Zhao et al. 2023."""
Predict = Callable[[Tensor, Tensor], Tensor]
"""Latents [b, c, t, f] and one time of 0..1000 -> what the network was trained to predict [b, c, t, f]."""


def build_scheduler(sampler: str, objective: str) -> Any:
    """The scheduler of `SAMPLERS` for what a network predicts. `ValueError` where there is none."""
    classes = SAMPLERS.get(sampler)
    if classes is None:
        raise ValueError(f"sampler={sampler}: give one of {', '.join(SAMPLERS)}")
    if objective not in classes:
        fitting = ", ".join(name for name, known in SAMPLERS.items() if objective in known)
        raise ValueError(f"sampler={sampler}: cannot sample a model of objective {objective}; give {fitting}")
    kind = classes[objective]
    if kind is FlowMatchEulerDiscreteScheduler:
        return kind(num_train_timesteps=NUM_TIMESTEPS)
    (prediction_type,) = (name for name, known in PREDICTION_TYPES.items() if known == objective)
    settings: dict[str, Any] = {"num_train_timesteps": NUM_TIMESTEPS, "prediction_type": prediction_type}
    if objective == "flow":
        return kind(use_flow_sigmas=True, **settings)
    settings |= {"beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "scaled_linear"}
    if kind is DDIMScheduler:
        settings["clip_sample"] = False  # latents have no range
    # trailing: the first evaluation is at pure noise for any number of steps (Lin et al. 2024, table 2)
    return kind(timestep_spacing="trailing", **settings)


def objective_of(scheduler: Any) -> str:
    """What a network predicts whose scheduler this is: eps, v or flow. `ValueError` for another one."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return "flow"
    prediction_type = getattr(scheduler.config, "prediction_type", "flow_prediction")
    if prediction_type not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise ValueError(f"prediction_type={prediction_type} of a {type(scheduler).__name__}: need {known}")
    return PREDICTION_TYPES[prediction_type]


def integrate(
    scheduler: Any,
    noise: Tensor,
    steps: int,
    predict: Predict,
    progress: Callable[[Tensor], Iterable[Tensor]] = iter,
) -> Tensor:
    """Latents [b, c, t, f] from `noise` of spread 1, with one evaluation of `predict` per step."""
    set_times(scheduler, steps, noise.device)
    # Euler of eps and v integrates noise that is as wide as its largest sigma, and scales what a network sees
    latent = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    scale = getattr(scheduler, "scale_model_input", lambda latent, time: latent)
    for time in progress(scheduler.timesteps):
        prediction = predict(scale(latent, time), time)
        latent = scheduler.step(prediction, time, latent).prev_sample
    return latent


def set_times(scheduler: Any, steps: int, device: torch.device) -> None:
    """Evaluates a flow at 1, 1 - 1/steps, …, 1/steps; eps and v where the scheduler's spacing says.

    The default of diffusers for flows spends the last evaluation at 0.001, where there is nothing left to
    change.
    """
    takes_sigmas = "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
    if takes_sigmas and objective_of(scheduler) == "flow":
        scheduler.set_timesteps(sigmas=1 - np.arange(steps) / steps, device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
