"""What of a model is trained: all, what `train_only` names, or adapters; the rest is frozen: no gradient, no
moments, no average.

    choose_trained(model, config)             # before the engines: `lora`, `train_only`
    values = frozen_values(model)             # on the host, fp32, for the checkpoints
    fill_frozen(model, values, stage)         # what a checkpoint holds of them; all ranks

Frozen weights are in every checkpoint, as they were at the start, so that a run that resumes needs nothing
but its checkpoint.
"""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.load import UserError
from training.pretrained import ADAPTERS
from training.recipes.recipe import Geometry
from training.run.lora import inject, is_adapter, merge, plain_name, remove, save_adapters
from training.run.sides import Side
from training.settings import TrainConfig

NUM_SUGGESTIONS = 3


def choose_trained(model: nn.Module, config: TrainConfig) -> None:
    """Puts adapters into the network, by `lora`, and freezes all but these and what `train_only` names.
    Without either, what the recipe trains stays so.

    `UserError` for a pattern that matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in config.train_only:
        check_matches("train_only", pattern, names)
    if config.lora.rank:
        inject(network_of(model, config), config.lora)
    if not (config.lora.rank or config.train_only):
        return
    for name, parameter in model.named_parameters():
        is_named = any(fnmatchcase(plain_name(name), pattern) for pattern in config.train_only)
        parameter.requires_grad_(is_named or is_adapter(name))


def network_of(model: nn.Module, config: TrainConfig) -> nn.Module:
    """What adapters go into: the network of a pipeline, else what the first optimiser steps."""
    children = dict(model.named_children())
    names = (config.module.PARTS.network, *config.optimisers[0].children)
    return next((children[name] for name in names if name in children), model)


def finished_state(
    state: dict[str, Tensor], config: TrainConfig, geometry: Geometry, folder: Path
) -> dict[str, Tensor]:
    """The weights of a finished model under the names that its recipe knows: with the adapters merged, or
    without them, and these in `folder`/lora.
    """
    if not config.lora.rank:
        return state
    model = config.module.build_model(config.section, geometry)
    network = network_of(model, config)
    inject(network, config.lora)
    model.load_state_dict(state)
    if config.lora.merge:
        merge(network)
    else:
        save_adapters(network, config.lora, folder / ADAPTERS)
        remove(network)
    return model.state_dict()


def check_matches(setting: str, pattern: str, names: list[str]) -> None:
    """`UserError`, with the nearest names, where a shell pattern matches none of `names`."""
    if any(fnmatchcase(name, pattern) for name in names):
        return
    nearest = difflib.get_close_matches(pattern, names, NUM_SUGGESTIONS, cutoff=0.0)
    raise UserError(
        f"{setting}={pattern}: matches none of {len(names)} names; the nearest are {', '.join(nearest)}; "
        "a star stands for any letters"
    )


def check_each_side(sides: Iterable[nn.Module]) -> None:
    """`UserError` where an optimiser has nothing to train."""
    for side in sides:
        if not any(parameter.requires_grad for parameter in side.parameters()):
            children = ", ".join(side.optimiser.children) if isinstance(side, Side) else "the model"
            raise UserError(
                f"train_only: leaves nothing to train of {children}, which has an optimiser of its own; "
                "name some of it, too"
            )


def frozen_values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the frozen parameters, by name, on the host: the engines may compute with rounded ones."""
    return {
        name: parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }


@torch.no_grad()
def fill_frozen(model: nn.Module, values: dict[str, Tensor], stage: int) -> None:
    """Sets frozen parameters on all ranks, which call this together."""
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        if stage == 3:
            _fill_divided(parameters[name], value)
        else:
            parameters[name].copy_(value)


def _fill_divided(parameter: nn.Parameter, value: Tensor) -> None:
    """At ZeRO 3 each rank holds a part: gathered, set on rank 0, divided again."""
    # here: it must not be imported before the process is prepared
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if dist.get_rank() == 0:
            parameter.copy_(value)
