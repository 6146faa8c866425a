"""What a run does and how far it is, as plain data: `Plan` goes from the driver to the workers, `Progress`
from step to step.
"""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

from cluster.dataset import Snapshot
from cluster.learnt import LearntFrom
from training.recipes.recipe import Geometry
from training.settings import TrainConfig


class Origin(TypedDict):
    """Where the first weights of a run are from; `sha256` of their names and values.

    `learnt_from`: what they had learnt from; `sources`: what they themselves began with.
    """

    init_from: str
    sha256: str
    license: str
    learnt_from: NotRequired[list[LearntFrom]]
    sources: NotRequired[list[str]]


@dataclass(frozen=True)
class Plan:
    """What the driver hands to every worker.

    `snapshots`: pinned, that of `data` first. `attempt`: a name for this start. `origin`: of the first
    weights; None for random ones.
    """

    config: TrainConfig
    snapshots: list[Snapshot]
    geometry: Geometry
    attempt: str
    origin: Origin | None = None

    @property
    def stop_name(self) -> str:
        """The object that the driver writes to request a stop from the workers."""
        return f"STOP-{self.attempt}"


@dataclass(frozen=True)
class Progress:
    """How far a run is: steps made, and steps' worth of samples left out by rollbacks."""

    step: int = 0
    skipped: int = 0

    def position(self, config: TrainConfig) -> int:
        """Of the next sample."""
        return (self.step + self.skipped) * config.global_batch
