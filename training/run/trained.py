"""What of a model is trained, by name; all else is frozen: no gradient, no moments, no average.

    choose_trained(model, config)             # before the engines: `train_only`
    values = frozen_values(model)             # on the host, fp32, for the checkpoints
    fill_frozen(model, values, stage)         # what a checkpoint holds of them; all ranks

Frozen weights are in every checkpoint, as they were at the start, so that a run that resumes needs nothing
but its checkpoint.
"""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.load import UserError
from training.run.sides import Side
from training.settings import TrainConfig

NUM_SUGGESTIONS = 3


def choose_trained(model: nn.Module, config: TrainConfig) -> None:
    """Freezes what no pattern of `train_only` names; without any, what the recipe trains stays so.

    `UserError` for a pattern that matches nothing.
    """
    if not config.train_only:
        return
    parameters = dict(model.named_parameters())
    for pattern in config.train_only:
        check_matches("train_only", pattern, list(parameters))
    for name, parameter in parameters.items():
        is_chosen = any(fnmatchcase(name, pattern) for pattern in config.train_only)
        parameter.requires_grad_(is_chosen)


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
