"""The moving average of the weights, in fp32: what a run ships. Each rank averages the fragments it saves.

    ema = Ema(owned_by(fragments_of(engine, stage), …), warmed_up(0.999))
    ema.update(step)                                    # no rank talks to another
    with averaged(ema, engines, fragments, stage): ...  # the engines compute with the averages; all ranks

Decay 0 keeps plain weights. A power function's profile (training.run.profiles) is another decay. How they are
stored and read back is training.checkpoints.parts's.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from training.checkpoints.fragments import Fragment, owned_by, publish

Decay = Callable[[int], float]
"""Of optimiser step 1, 2, …: how much of the average so far remains."""


def warmed_up(decay: float) -> Decay:
    """A constant that is reached as (1 + step) / (10 + step), so that the random start is forgotten.

    TensorFlow's ExponentialMovingAverage with num_updates.
    """
    return lambda step: min(decay, (1 + step) / (10 + step))


class Ema:
    """`tensors`: flat fp32, one for each fragment."""

    def __init__(self, fragments: list[Fragment], decay: Decay):
        self.fragments = fragments
        self.decay = decay
        self.tensors = [fragment.values("master").clone() for fragment in fragments]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step 1, 2, …"""
        # at ZeRO 3 a rank of a small model may own nothing, and torch refuses empty lists
        if self.tensors:
            live = [fragment.values("master") for fragment in self.fragments]
            torch._foreach_lerp_(self.tensors, live, 1 - self.decay(step))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the averages with the live weights, with memory for one fragment more.

        Twice leaves every bit as it was.
        """
        for average, fragment in zip(self.tensors, self.fragments, strict=True):
            live = fragment.values("master")
            copy = live.clone()
            live.copy_(average)
            average.copy_(copy)


@contextlib.contextmanager
def averaged(ema: Ema, engines: list[Any], fragments: list[Fragment], stage: int) -> Iterator[None]:
    """The engines compute with the averages within the block, and with the live weights, bit for bit, after
    it. All ranks take part.

    After an exception the weights stay averaged: such a rank ends, and its state is read from a checkpoint.
    """
    _exchange(ema, engines, fragments, stage)
    yield
    _exchange(ema, engines, fragments, stage)


def _exchange(ema: Ema, engines: list[Any], fragments: list[Fragment], stage: int) -> None:
    ema.swap()
    # at ZeRO 0 each rank averages a share of what all of them hold
    if stage == 0:
        world = dist.get_world_size()
        for rank in range(world):
            for fragment in owned_by(fragments, stage, rank, world):
                dist.broadcast(fragment.values("master"), rank)
    for engine in engines:
        # at ZeRO 3 a whole parameter kept from the last forward pass would be used again as it was
        if stage == 3:
            engine.optimizer.empty_partition_cache()
        publish(engine, stage)
