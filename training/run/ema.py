"""The moving average of the weights, in fp32: what a run ships. Each rank averages what its optimiser works
on.

    ema = Ema(mine(held(engine, stage), …), decay=0.999)
    ema.update(step)                               # no rank talks to another
    with averaged(ema, engine, held, stage): ...   # the engine computes with the averages; all ranks

Decay 0 keeps plain weights. How it is stored and read back is training.checkpoints.parts's.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from training.checkpoints.fragments import Fragment, mine, publish


class Ema:
    """`tensors`: flat fp32, one for each fragment."""

    def __init__(self, fragments: list[Fragment], decay: float):
        self.fragments, self.decay = fragments, decay
        self.tensors = [fragment.values("master").clone() for fragment in fragments]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step 1, 2, …; the decay warms up as (1 + step) / (10 + step), so that the start is
        forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        if self.tensors:
            torch._foreach_lerp_(
                self.tensors, [fragment.values("master") for fragment in self.fragments], 1 - decay
            )

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the averages with the live weights, with memory for one fragment more.

        Twice leaves every bit as it was.
        """
        for average, fragment in zip(self.tensors, self.fragments, strict=True):
            live = fragment.values("master")
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)


@contextlib.contextmanager
def averaged(ema: Ema, engine: Any, held: list[Fragment], stage: int) -> Iterator[None]:
    """The engine computes with the averages within the block, and with the live weights, bit for bit, after
    it.

    All ranks take part. After an exception the weights stay averaged: such a rank ends, and its state is read
    from a checkpoint.
    """
    _exchange(ema, engine, held, stage)
    yield
    _exchange(ema, engine, held, stage)


def _exchange(ema: Ema, engine: Any, held: list[Fragment], stage: int) -> None:
    ema.swap()
    if stage == 0:  # each rank averages a share of what all of them hold
        for rank in range(dist.get_world_size()):
            for fragment in mine(held, stage, rank, dist.get_world_size()):
                dist.broadcast(fragment.values("master"), rank)
    if stage == 3:  # a whole parameter kept from the last forward pass would be used again as it was
        engine.optimizer.empty_partition_cache()
    publish(engine, stage)
