"""The page of compared runs: curves of loss and validation over each other, and the table; without scripts.

    html = page_of(compare(["out/runs/a", "out/runs/b"], RunsConfig()))
    rows = rows_of(compared)                   # [("loss", ["0.38", "0.41"]), …]: the table, also a terminal's
    write_page("out/compared.html", html)      # or s3://…

One file that needs nothing else. Names come from paths: they are escaped.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from cluster.storage import open_store
from configs.load import UserError
from configs.terminal import printable
from training.runs import MEAN_STEPS, Comparison, RunFacts

TEMPLATE = Path(__file__).parent / "runs.html.j2"
# the view box of the template; text lies outside it, so that it does not shrink with it
WIDTH, HEIGHT = 800, 240
# lines of the page have so many colours; more runs begin them again, dashed
NUM_COLOURS = 8
# one spike would press the curves flat
HIGHEST = 0.995
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """`points`: of an SVG polyline; `colour`: its number; `is_dashed`: of a second round of colours."""

    name: str
    points: str
    colour: int
    is_dashed: bool


@dataclass(frozen=True)
class Chart:
    """Lines over steps, from `low` to `high` as text."""

    title: str
    curves: list[Curve]
    low: str
    high: str
    last_step: str


def page_of(compared: Comparison) -> str:
    """The HTML."""
    runs = compared["runs"]
    losses = chart("loss, smoothed", runs, [run["curve"] for run in runs])
    validation = chart("validation", runs, [run["measured"] for run in runs])
    differing = {name: list(map(printable, values)) for name, values in compared["differing"].items()}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        names=[printable(run["name"]) for run in runs],
        charts=[one for one in (losses, validation) if one],
        rows=rows_of(compared),
        differing=differing,
        width=WIDTH,
        height=HEIGHT,
        num_colours=NUM_COLOURS,
    )


def write_page(output: str, html: str) -> None:
    """At a path or URI. `UserError` where its folder cannot be written."""
    folder, _, name = output.rpartition("/")
    try:
        if "://" not in output:
            Path(folder or ".").mkdir(parents=True, exist_ok=True)
        open_store(folder or ".", writable=True).replace(name, html.encode())
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"output={output}: not writable ({reason}); choose another place") from error


def rows_of(compared: Comparison) -> list[tuple[str, list[str]]]:
    """What is measured of any of them, and its value in each as text."""
    runs = compared["runs"]
    rows = [
        ("recipe", [run["recipe"] for run in runs]),
        ("state", [run["state"] for run in runs]),
        ("step", [_step(run) for run in runs]),
        ("samples", [f"{run['samples']:,}" for run in runs]),
        (f"loss, last {MEAN_STEPS} steps", [_number(run["loss"]) for run in runs]),
        ("validation", [_number(run["validation"]) for run in runs]),
        ("best validation", [_best(run) for run in runs]),
        ("wall time", [_duration(run["wall_s"]) for run in runs]),
        ("CPU time", [_duration(run["cpu_s"]) for run in runs]),
        ("seconds a step", [_number(run["seconds_per_step"]) for run in runs]),
    ]
    names = dict.fromkeys(name for run in runs for name in run["scores"])
    for name in names:
        rows.append((name, [_number(run["scores"].get(name)) for run in runs]))
    return [(label, values) for label, values in rows if set(values) != {"-"}]


def _step(run: RunFacts) -> str:
    return f"{run['step']:,} of {run['steps']:,}" if run["steps"] else f"{run['step']:,}"


def _best(run: RunFacts) -> str:
    return "-" if run["best_step"] is None else f"{_number(run['best_validation'])} at {run['best_step']:,}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    """
    >>> _duration(3725.4), _duration(12.34), _duration(None)
    ('1:02:05', '12.3 s', '-')
    """
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds < 60 else str(datetime.timedelta(seconds=round(seconds)))


def chart(title: str, runs: Sequence[RunFacts], curves: Sequence[Points]) -> Chart | None:
    """All curves in one box; None where there is no point."""
    losses = np.array([loss for points in curves for _, loss in points])
    if not len(losses):
        return None
    low = float(losses.min())
    high = float(np.quantile(losses, HIGHEST))
    last = max(step for points in curves for step, _ in points)
    drawn = [
        Curve(
            name=printable(run["name"]),
            points=_polyline(points, low, high, last),
            colour=number % NUM_COLOURS,
            is_dashed=number >= NUM_COLOURS,
        )
        for number, (run, points) in enumerate(zip(runs, curves, strict=True))
        if points
    ]
    return Chart(title, drawn, f"{low:.3g}", f"{high:.3g}", f"{last:,}")


def _polyline(points: Points, low: float, high: float, last: int) -> str:
    """A single point is a short line: a line of one point is not seen."""
    span = max(high - low, 1e-12)
    drawn = []
    for step, loss in points:
        y = HEIGHT - HEIGHT * min(1.0, max(0.0, (loss - low) / span))
        drawn.append(f"{WIDTH * step / last:.1f},{y:.1f}")
    if len(drawn) == 1:
        x, _, y_text = drawn[0].partition(",")
        drawn.insert(0, f"{float(x) - 8:.1f},{y_text}")
    return " ".join(drawn)
