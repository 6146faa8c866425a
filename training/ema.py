"""The moving average of the weights, in fp32: what a run ships. Each rank averages what its optimiser works on.

    ema = Ema(mine(held(engine, stage), …), decay=0.999)
    ema.update(step)                               # no rank talks to another

Decay 0 keeps plain weights. How it is stored and read back is training.parts's.
"""

import torch

from training.fragments import Fragment


class Ema:
    """`tensors`: flat fp32, one for each fragment."""

    def __init__(self, fragments: list[Fragment], decay: float):
        self.fragments, self.decay = fragments, decay
        self.tensors = [fragment.values("master").clone() for fragment in fragments]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step 1, 2, …; the decay warms up as (1 + step) / (10 + step), so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if self.tensors:
            torch._foreach_lerp_(self.tensors, [fragment.values("master") for fragment in self.fragments], 1 - decay)
