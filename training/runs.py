"""`training runs A B C`: runs side by side: losses, validation, scores, time, and the settings that differ.

    compared = compare(["out/runs/a", "s3://bucket/runs/b"])
    compared["runs"][0]["loss"], compared["differing"]["lr"]

Everything is read from what a run writes as it goes (training.run.metrics), so runs under way, stopped or
elsewhere can be compared too; nothing is changed. The page is training.runs_page's.
"""

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from cluster.jsonl import JsonObject, parse_lines
from cluster.storage import Store, open_store
from configs.load import UserError, operational
from training.evaluations import scores_of
from training.run.history import EVENTS, FINISHED, METRICS, RUN
from training.run.prepare import with_defaults
from training.settings import RECIPES, TrainConfig, identity

log = logging.getLogger(__name__)
VALIDATION = "validation.jsonl"
# the loss of a step is noisy: of a run, the mean over its last ones is compared
MEAN_STEPS = 50
# more are not seen on a curve
MAX_POINTS = 400
# where a run stands, by its newest event
STATES = {"stopped": "stopped", "failed": "failed", "finished": "finished"}


@dataclass
class RunsConfig:
    """Where the comparison goes besides the terminal, and where scores are looked for."""

    output: str = operational("")  # a page with the loss curves: a path or URI that ends in .html
    evaluations: str = operational("")  # a folder with outputs of evaluate, if not beside the runs

    def __post_init__(self) -> None:
        if self.output and not self.output.endswith(".html"):
            raise UserError(f"output={self.output}: give the page a name that ends in .html")


class RunFacts(TypedDict):
    """A run as it is compared.

    `loss`: mean over its last `MEAN_STEPS` steps; `validation`: the newest, by the averaged weights where
    there are some, and `best_validation` at `best_step`; None where there is none. `wall_s`, `cpu_s`: of the
    train commands that ended; of a run where none did, of its steps alone and None. `curve`, `measured`:
    [step, loss] of the training, smoothed, and of the validation. `steps`: None where the learning rate does
    not depend on them, as run.json then does not hold them to it.
    """

    run: str
    name: str
    recipe: str
    state: str
    step: int
    steps: int | None
    samples: int
    loss: float | None
    validation: float | None
    best_validation: float | None
    best_step: int | None
    wall_s: float
    cpu_s: float | None
    seconds_per_step: float | None
    scores: dict[str, float]
    curve: list[tuple[int, float]]
    measured: list[tuple[int, float]]


class Comparison(TypedDict):
    """`differing`: setting -> its value in each run, as text; `page`: where it is, "" for none."""

    runs: list[RunFacts]
    differing: dict[str, list[str]]
    page: str


def compare(runs: Sequence[str], config: RunsConfig) -> Comparison:
    """All about `runs`, in the order given. `UserError` where one is none."""
    if not runs:
        raise UserError("give the outputs of one or more runs of python -m training train")
    stores = [open_store(run) for run in runs]
    records = [_record_of(run, store) for run, store in zip(runs, stores, strict=True)]
    names = short_names(runs)
    facts = [
        facts_of(run, name, store, record, config.evaluations)
        for run, name, store, record in zip(runs, names, stores, records, strict=True)
    ]
    return {"runs": facts, "differing": differing([settings_of(record) for record in records]), "page": ""}


def _record_of(run: str, store: Store) -> JsonObject:
    """run.json. `UserError` where there is none."""
    if not store.exists(RUN):
        raise UserError(f"{run}: no run here ({RUN} is missing); give the output of python -m training train")
    record: JsonObject = json.loads(store.read(RUN))
    return record


def facts_of(run: str, name: str, store: Store, record: JsonObject, evaluations: str) -> RunFacts:
    """What is known of one run; `record`: its run.json."""
    lines = _lines(store, METRICS)
    losses = [(int(line["step"]), float(line["loss"])) for line in lines if line.get("loss") is not None]
    validation = _lines(store, VALIDATION)
    # the averaged weights are what ships
    key = "ema_loss" if any("ema_loss" in line for line in validation) else "loss"
    measured = [(int(line["step"]), float(line[key])) for line in validation if line.get(key) is not None]
    best = min(measured, key=lambda point: point[1], default=None)
    spent = _spent(store)
    step_s = [float(line["step_s"]) for line in lines]
    step = int(lines[-1]["step"]) if lines else 0
    return {
        "run": run,
        "name": name,
        "recipe": str(record["config"].get("recipe", "diffusion")),
        "state": _state(store),
        "step": step,
        "steps": record["config"].get("steps"),
        "samples": int(lines[-1]["samples"]) if lines else 0,
        "loss": mean_loss(losses[-MEAN_STEPS:]) if losses else None,
        "validation": measured[-1][1] if measured else None,
        "best_validation": best[1] if best else None,
        "best_step": best[0] if best else None,
        "wall_s": spent["seconds"] if spent else round(sum(step_s), 2),
        "cpu_s": spent["cpu_s"] if spent else None,
        "seconds_per_step": statistics.median(step_s) if step_s else None,
        "scores": scores_of(run, evaluations),
        "curve": smoothed(losses),
        "measured": measured,
    }


def _lines(store: Store, name: str) -> list[JsonObject]:
    return parse_lines(store.read(name), f"{store.uri}/{name}") if store.exists(name) else []


def _state(store: Store) -> str:
    """finished, stopped, failed, or under way: also of one that was killed, which could say nothing."""
    if store.exists(FINISHED):
        return "finished"
    events = [str(line.get("event")) for line in _lines(store, EVENTS)]
    return STATES.get(events[-1], "under way") if events else "under way"


def _spent(store: Store) -> dict[str, float] | None:
    """Seconds and CPU-seconds of all train commands of a run that ended, by their records."""
    names = [name for name in store.list("runs") if "-train-" in name and name.endswith("/summary.json")]
    summaries = [json.loads(store.read(name)) for name in names]
    if not summaries:
        return None
    seconds = sum(float(each["seconds"]) for each in summaries)
    cpu_s = sum(float(each["cpu_s"]) for each in summaries)
    return {"seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2)}


def smoothed(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means over stretches of steps, so that at most `MAX_POINTS` points are left.

    >>> smoothed([(step, float(step)) for step in range(1, 801)])[:2]
    [(2, 1.5), (4, 3.5)]
    """
    stride = max(1, -(-len(losses) // MAX_POINTS))
    parts = [losses[start : start + stride] for start in range(0, len(losses), stride)]
    return [(part[-1][0], mean_loss(part)) for part in parts]


def mean_loss(points: Sequence[tuple[int, float]]) -> float:
    return statistics.fmean(loss for _, loss in points)


def short_names(runs: Sequence[str]) -> list[str]:
    """The ends of paths that tell runs apart.

    >>> short_names(["out/a/runs/x", "s3://b/runs/y/", "out/b/runs/x"])
    ['a/runs/x', 'b/runs/y', 'b/runs/x']
    """
    parts = [run.rstrip("/").split("/") for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    # one run twice
    return ["/".join(part) for part in parts]


# --- Settings -----------------------------------------------------------------------------------------------


def settings_of(record: JsonObject) -> dict[str, str]:
    """Setting -> value of a run.json; what was added since is what it then was, its default. Datasets by
    place and content.
    """
    stored = record["config"]
    recipe = str(stored.get("recipe", "diffusion"))
    defaults = identity(TrainConfig(data="", output="", recipe=recipe)) if recipe in RECIPES else stored
    settings = flat({**with_defaults(stored, defaults, defaults), "recipe": recipe})
    snapshots = record.get("snapshots", [])
    settings["data"] = ", ".join(f"{each['uri']} ({str(each['id'])[:8]})" for each in snapshots)
    if record.get("origin"):
        settings["init_from"] = str(record["origin"].get("source", record["origin"]))
    return settings


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names -> values as one types them.

    >>> flat({"a": {"b": 1}, "c": [True]})
    {'a.b': '1', 'c': '[true]'}
    """
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def differing(settings: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Those that are not the same in all runs; of the sections of recipes, only where all runs have them."""
    names = dict.fromkeys(name for each in settings for name in each)
    recipes = {each["recipe"] for each in settings}
    found = {}
    for name in names:
        values = [each.get(name, "") for each in settings]
        of_one_recipe = name.partition(".")[0] in RECIPES and len(recipes) > 1
        if len(set(values)) > 1 and not of_one_recipe:
            found[name] = values
    return found
