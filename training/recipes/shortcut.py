"""Few steps: a flow that also learns what steps of 1, 1/2, 1/4, … lead to (Frans et al. 2024).

    time, size = draw_step(key, config)                          # size 0: a sample that learns the flow
    target = two_halves(velocity, mixed, time, size)             # what one step of `size` should be

Of most samples, a network learns the flow as ever, told a size of 0. Of the others, one step of `size` should
lead where two of half the size do (eq. 5): these are made by the network itself, without gradients. The
half steps of the smallest size are the flow's, guided, so that guidance is in all larger ones and costs
nothing later (section 4.2). Unlike the paper, they are made by the weights as they are, not by their
average: under ZeRO no rank has the average whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.load import UserError, at_least
from training.data.randomness import SampleKey, keyed_rng
from training.pipeline.codec import Conditions
from training.pipeline.step_sizes import told
from training.recipes.conditions import PRESENT
from training.recipes.recipe import Batch

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Latents [b, c, t, f], times [b] of 0..1 and step sizes [b] -> velocity [b, c, t, f]."""
Predicted = Callable[[Tensor, Tensor, Conditions], Tensor]
"""Latents, times and conditions with the step size -> what the network gives."""
SHORTCUT = "shortcut"
"""The objective, and what a saved model calls what it states of it."""


@dataclass
class ShortcutConfig:
    """The paper's: a quarter, 7 sizes (its 128 smallest steps are the halves of the last)."""

    share: float = 0.25  # of the samples that learn a step
    sizes: int = 7  # of steps: 1, 1/2, …, 1 / most, for 1 to most = 2^(sizes - 1) steps
    guidance: float = 2.0  # in all steps; 1 = none

    @property
    def smallest(self) -> float:
        """The smallest step size that is trained."""
        return 2.0 ** (1 - self.sizes)


def check_shortcut(config: ShortcutConfig, min_snr: float, has_null: bool) -> None:
    """`UserError` for settings that cannot be trained with. `has_null`: any condition is dropped."""
    section = "diffusion.shortcut."
    if not 0 < config.share < 1:
        raise UserError(f"{section}share={config.share}: give more than 0, less than 1 (the paper's: 0.25)")
    if not 2 <= config.sizes <= 10:
        raise UserError(f"{section}sizes={config.sizes}: give 2 to 10 (the paper's: 7)")
    at_least(config, 0, "guidance", section=section)
    if config.guidance != 1 and not has_null:
        raise UserError(
            f"{section}guidance={config.guidance}: with condition_dropout=0 there is no null embedding to "
            f"lead away from; give {section}guidance=1, or a condition_dropout"
        )
    if min_snr:
        raise UserError(
            f"diffusion.min_snr={min_snr}: has no meaning for steps; leave it out with objective=shortcut"
        )


def draw_step(key: SampleKey, config: ShortcutConfig) -> tuple[float, float] | None:
    """The time at which a step begins, a multiple of its size, and the size; None: it learns the flow.

    Each size is as likely, as in the paper.
    """
    generator = keyed_rng(key, "shortcut")
    if generator.random() >= config.share:
        return None
    size = 2.0 ** -int(generator.integers(config.sizes))
    return size * int(generator.integers(1, round(1 / size) + 1)), size


def two_halves(velocity: Velocity, mixed: Tensor, time: Tensor, size: Tensor, smallest: float) -> Tensor:
    """The velocity [b, c, t, f] of one step that leads where two of half the size do (eq. 5).

    From `mixed` at `time` [b] on; halves of the `smallest` size are the flow's, told a size of 0.
    """
    half = size / 2
    known = torch.where(half < smallest, 0.0, half)
    first = velocity(mixed, time, known)
    middle = mixed - half[:, None, None, None] * first
    second = velocity(middle, time - half, known)
    return (first + second) / 2


def guided_velocity(
    predicted: Predicted, conditions: Conditions, free: Conditions | None, guidance: float
) -> Velocity:
    """What `predicted` gives under `conditions`, told a step size; the flow, `guidance` times off `free`.

    None: without guidance. The flow alone: larger steps learn from it and have it in them.
    """

    def velocity(latent: Tensor, time: Tensor, size: Tensor) -> Tensor:
        given = conditions | told(size)
        if free is None:
            return predicted(latent, time, given)
        of_flow = _which(size == 0)
        also = free | told(size)
        # one pass: under ZeRO 3 every rank must make as many, whatever its samples learn
        both = {name: torch.cat([values, also[name][of_flow]]) for name, values in given.items()}
        latents = torch.cat([latent, latent[of_flow]])
        made = predicted(latents, torch.cat([time, time[of_flow]]), both)
        guided = torch.lerp(made[len(latent) :], made[of_flow], guidance)
        return made[: len(latent)].index_copy(0, of_flow, guided)

    return velocity


def _which(mask: Tensor) -> Tensor:
    """Indices at which a mask [b] holds; of one without values (meta), as if everywhere."""
    return torch.arange(len(mask), device=mask.device) if mask.is_meta else mask.nonzero()[:, 0]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # how many samples learn a step differs
@torch.no_grad()
def with_steps(
    wanted: Tensor,
    mixed: Tensor,
    batch: Batch,
    config: ShortcutConfig,
    sequences: Sequence[str],
    conditions_of: Callable[[Batch], Conditions],
    predicted: Predicted,
) -> Tensor:
    """`wanted` [b, c, t, f], where `size` of the batch is above 0 what two half steps lead to.

    `sequences`: those that are dropped at times, and that no guidance leads towards. Costs two passes
    without gradients of the samples that learn a step.
    """
    chosen = _which(batch["size"] > 0)
    if not len(chosen):
        # under ZeRO 3 every rank must make as many passes
        chosen = chosen.new_zeros(1)
    few = {name: values[chosen] for name, values in batch.items()}
    free = None
    if config.guidance != 1:
        absent = {f"{name}{PRESENT}": torch.zeros_like(few[f"{name}{PRESENT}"]) for name in sequences}
        free = conditions_of({**few, "drop": torch.ones_like(few["drop"]), **absent})
    velocity = guided_velocity(predicted, conditions_of(few), free, config.guidance)
    steps = two_halves(velocity, mixed[chosen], few["time"], few["size"], config.smallest)
    is_step = few["size"][:, None, None, None] > 0
    return wanted.index_copy(0, chosen, torch.where(is_step, steps, wanted[chosen]))
