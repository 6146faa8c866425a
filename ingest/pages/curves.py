"""Losses of training runs, as numbers for the template of the report.

    loss_curve(Path("runs/x"))       # lines, 400 wide and 160 high
    resumption_of(Path("runs/x"))    # a run that was killed and went on; None where none was

Read from metrics.jsonl, validation.jsonl, events.jsonl and run.json, which every run has. Sizes are those of
the SVG view boxes in story.html.j2. Nothing here knows HTML.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.jsonl import JsonObject, read_lines
from configs.load import UserError

WIDTH = 400
HEIGHT = 160
WIDE = 800
# the highest value is drawn so far below the box's edge, where the template has its label
HEADROOM = 10
MEAN_STEPS = 25  # over which the loss is smoothed
MAX_POINTS = 800  # more than that are not seen on 400 pixels
EVENTS = ("killed", "resumed")
STEPS_BEFORE = 30  # of what is shown of a resumption
STEPS_AFTER = 50


@dataclass(frozen=True)
class EventMark:
    """What happened to the run at a step, and where that is on the curve."""

    x: float
    name: str
    step: int


@dataclass(frozen=True)
class ValidationPoint:
    """The loss of held-out samples at a step, by the weights as they were then."""

    x: float
    y: float
    step: int
    loss: float


@dataclass(frozen=True)
class LossCurve:
    """`raw` and `smooth`: SVG polylines of the loss over `steps` steps, from `bottom` to `top`; `first`,
    `last`: its means at both ends. `name`: of the folder; `recipe`: "" where the run does not say.
    """

    name: str
    recipe: str
    steps: int
    first: float
    last: float
    top: float
    bottom: float
    raw: str
    smooth: str
    marks: list[EventMark]
    validation: list[ValidationPoint]


@dataclass(frozen=True)
class Resumption:
    """A run that was killed and went on from a checkpoint.

    `raw`: SVG polyline of the loss around it, over `steps_shown`; `killed_x`, `resumed_x`: where; `lost`:
    polyline of what the killed workers computed after the checkpoint, "" where nothing tells;
    `largest_difference`: of those losses to the ones of the same steps after resuming. `seconds`: from the
    kill to the first worker's start.
    """

    recipe: str
    killed: int
    resumed: int
    final: int
    num_workers: int
    seconds: float | None
    steps_shown: tuple[int, int]
    top: float
    bottom: float
    raw: str
    lost: str
    killed_x: float
    resumed_x: float
    largest_difference: float | None


def loss_curve(folder: Path) -> LossCurve:
    """Loss per step, with the events (killed, resumed) and validations at their steps.

    A line that a crash cut off is left out. `UserError` where there is no step at all.
    """
    lines = _metrics(folder)
    losses = np.array([line["loss"] for line in lines])
    steps = np.array([line["step"] for line in lines])
    # the mean needs as many values before the first and after the last
    half = MEAN_STEPS // 2
    padded = np.pad(losses, (half, half), mode="edge")
    smooth = np.convolve(padded, np.ones(MEAN_STEPS) / MEAN_STEPS, mode="valid")
    validations = [line for line in read_lines(folder / "validation.jsonl") if _is_number(line.get("loss"))]
    # the quantile, not the maximum: one spike would press the curve flat
    top = float(np.quantile(losses, 0.995))
    # losses with adversaries go below 0
    bottom = min(0.0, float(losses.min()))
    last_step = int(steps[-1])
    scale = _Scale(0, last_step, bottom, top, WIDTH)
    events = [line for line in read_lines(folder / "events.jsonl") if line.get("event") in EVENTS]
    return LossCurve(
        name=folder.name,
        recipe=_recipe_of(folder),
        steps=last_step,
        first=float(losses[:MEAN_STEPS].mean()),
        last=float(losses[-MEAN_STEPS:].mean()),
        top=top,
        bottom=bottom,
        raw=scale.polyline(steps, losses),
        smooth=scale.polyline(steps, smooth[: len(steps)]),
        marks=[EventMark(scale.x(event["step"]), event["event"], event["step"]) for event in events],
        validation=[
            ValidationPoint(scale.x(line["step"]), scale.y(line["loss"]), line["step"], line["loss"])
            for line in validations
        ],
    )


def resumption_of(folder: Path) -> Resumption | None:
    """The last kill of a run after which it resumed."""
    events = read_lines(folder / "events.jsonl")
    kills = [index for index, event in enumerate(events) if event.get("event") == "killed"]
    after = events[kills[-1] :] if kills else []
    resumed = next((event for event in after if event.get("event") == "resumed"), None)
    if resumed is None:
        return None
    killed = after[0]
    lines = _metrics(folder)
    low = max(1, resumed["step"] - STEPS_BEFORE)
    high = killed["step"] + STEPS_AFTER
    shown = [line for line in lines if low <= line["step"] <= high]
    lost = {int(step): float(loss) for step, loss in killed.get("lost", {}).items()}
    again = {line["step"]: line["loss"] for line in lines}
    both = [(loss, again[step]) for step, loss in lost.items() if step in again]
    losses = [*(line["loss"] for line in shown), *lost.values()]
    bottom, top = (min(losses), max(losses)) if losses else (0.0, 1.0)
    scale = _Scale(low, high, bottom, top, WIDE)
    return Resumption(
        recipe=_recipe_of(folder),
        killed=killed["step"],
        resumed=resumed["step"],
        final=lines[-1]["step"],
        num_workers=len(resumed.get("pids", [])),
        seconds=resumed["time"] - killed["time"] if {"time"} <= resumed.keys() & killed.keys() else None,
        steps_shown=(low, high),
        top=top,
        bottom=bottom,
        raw=scale.polyline([line["step"] for line in shown], [line["loss"] for line in shown]),
        lost=scale.polyline(list(lost), list(lost.values())),
        killed_x=scale.x(killed["step"]),
        resumed_x=scale.x(resumed["step"]),
        largest_difference=max((abs(before - now) for before, now in both), default=None),
    )


@dataclass(frozen=True)
class _Scale:
    """From steps and losses to a view box of `width` times `HEIGHT`."""

    first: float
    last: float
    bottom: float
    top: float
    width: float

    def x(self, step: float) -> float:
        return round(self.width * (step - self.first) / max(self.last - self.first, 1), 1)

    def y(self, loss: float) -> float:
        """Values above are cut off just over the top."""
        share = (loss - self.bottom) / (self.top - self.bottom) if self.top > self.bottom else 0.5
        return round(HEIGHT - (HEIGHT - HEADROOM) * min(share, 1.05), 1)

    def polyline(self, steps: list[int] | np.ndarray, losses: list[float] | np.ndarray) -> str:
        stride = max(1, len(steps) // MAX_POINTS)
        points = zip(steps[::stride], losses[::stride], strict=True)
        return " ".join(f"{self.x(float(step))},{self.y(float(loss))}" for step, loss in points)


def _metrics(folder: Path) -> list[JsonObject]:
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line.get("loss") is not None]
    if not lines:
        raise UserError(f"run={folder}: no metrics.jsonl with a step in it; is this a run folder?")
    return lines


def _recipe_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / "run.json").read_text())["config"]["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
