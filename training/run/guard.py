"""A guard against overfitting: the averaged weights of the best validation are kept, and a run that gets no
better for a while ends (early stopping; Prechelt 1998).

    guard = Guard.of(config)
    guard.heed(step, losses, ema.tensors, buffers)     # after each validation; alike on all ranks
    if guard.is_over: ...                              # `patience` validations without a gain

Its state is in every checkpoint: a resumed run decides as an unbroken one. It measures nothing
(training.run.validate does), and writes nothing.
"""

import math
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from training.checkpoints.parts import Kept, copied
from training.checkpoints.store import GuardState
from training.settings import TrainConfig


class Outcome(TypedDict, total=False):
    """How a guarded run ended: the step whose weights are the model, how many validations brought no gain,
    and why it ended.
    """

    shipped_step: int
    waited: int
    reason: str


@dataclass
class Guard:
    """`best_step` 0: nothing was measured yet. `waited`: validations since the best one.

    `kept`: the averages of this rank's fragments at the best step, and on rank 0 the buffers; None where they
    are not kept.
    """

    keeps: bool
    patience: int
    every: int
    best_step: int = 0
    best_loss: float = math.inf
    waited: int = 0
    kept: Kept | None = None

    @staticmethod
    def of(config: TrainConfig) -> "Guard":
        return Guard(config.keep_best, config.patience, config.validate_every)

    @property
    def is_on(self) -> bool:
        return self.keeps or self.patience > 0

    @property
    def is_over(self) -> bool:
        return 0 < self.patience <= self.waited

    def heed(
        self, step: int, losses: dict[str, float], average: list[Tensor], buffers: dict[str, Tensor]
    ) -> None:
        """Takes note of a validation: of the averaged weights where the run has such, as these ship.

        Nothing was measured if all items are holes. A loss that is NaN is no gain.
        """
        loss = losses.get("ema_loss", losses.get("loss"))
        if loss is None:
            return
        if loss < self.best_loss:
            self.best_step = step
            self.best_loss = loss
            self.waited = 0
            if self.keeps:
                held = {name: copied(value) for name, value in buffers.items()}
                self.kept = Kept([copied(tensor) for tensor in average], held)
        elif step % self.every == 0:
            # the last step of a run that is prolonged later is measured out of turn
            self.waited += 1

    @property
    def state(self) -> GuardState:
        """For a checkpoint; empty before the first measurement."""
        if not self.best_step:
            return {}
        return {"best_step": self.best_step, "best_loss": self.best_loss, "waited": self.waited}

    def restore(self, state: GuardState, kept: Kept | None) -> None:
        """As it was when a checkpoint was made.

        From the start where the checkpoint has no state, or no weights and these are kept from now on.
        """
        is_known = bool(state) and (kept is not None or not self.keeps)
        self.best_step = state["best_step"] if is_known else 0
        self.best_loss = state["best_loss"] if is_known else math.inf
        self.waited = state["waited"] if is_known else 0
        self.kept = kept if is_known and self.keeps else None

    def outcome(self, last_step: int) -> Outcome:
        """Of a run that ended at `last_step`; empty without a guard."""
        if not self.is_on:
            return {}
        shipped = self.best_step if self.kept else last_step
        return {"shipped_step": shipped, "waited": self.waited, "reason": self._reason(last_step, shipped)}

    def _reason(self, last_step: int, shipped_step: int) -> str:
        why = f"all {last_step} steps are done"
        if self.is_over:
            why = f"stopped at step {last_step}: no gain in {self.waited} validations (patience)"
        if not self.best_step:
            return why
        best = f"the best validation loss was {self.best_loss:.5f} at step {self.best_step}"
        return f"{why}; {best}; shipped are the weights of step {shipped_step}"
