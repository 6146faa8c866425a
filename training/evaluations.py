"""Which evaluations are of a model: by the records that evaluate leaves in its outputs.

    folders = evaluations_of("out/runs/diffusion", [Path("out")])      # oldest first
    scores_of("out/runs/diffusion", "")                                # {"timbre: gap closed": 0.98, …}

Nothing is computed or judged here; what is in scores.json and judged.json is training.evaluate's and
training.real_scores'.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from cluster.storage import absolute

RECORDS = "runs/*-evaluate-*/config.yaml"
SCORES, JUDGED = "scores.json", "judged.json"


class Evaluation(NamedTuple):
    """One run of evaluate. `name`: its id, which sorts by time; `settings`: as they were typed."""

    name: str
    folder: Path
    settings: Mapping[str, object]


def evaluations_of(model: str, places: Iterable[Path]) -> list[Evaluation]:
    """Of `model`, a path or a URI, in folders directly below `places` or in these; oldest first."""
    found = []
    for place in places:
        for record in (*place.glob(f"*/{RECORDS}"), *place.glob(RECORDS)):
            settings = yaml.safe_load(record.read_text()) or {}
            if _is_same(model, str(settings.get("model"))):
                folder = record.parent.parent.parent
                found.append(Evaluation(record.parent.name, folder, settings))
    return sorted(found, key=lambda one: one.name)


def _is_same(model: str, measured: str) -> bool:
    """Whether `measured` is the model, as it was typed, wherever that was: below a folder that now has it."""
    tail = measured.removeprefix("./").rstrip("/")
    return bool(tail) and f"/{absolute(model).rstrip('/')}".endswith(f"/{tail}")


def places_of(model: Path) -> tuple[Path, Path, Path]:
    """Where evaluations of a run or an export usually lie: in it, beside it, beside its folder of runs."""
    return model, model.absolute().parent, model.absolute().parent.parent


def scores_of(run: str, evaluations: str) -> dict[str, float]:
    """Figures of the newest evaluations of a run, by name; `evaluations`: one more folder to look below."""
    places = [] if "://" in run else list(places_of(Path(run)))
    places += [Path(evaluations)] if evaluations else []
    scores: dict[str, float] = {}
    for one in evaluations_of(run, places):
        scores |= _known_answers(one.folder / SCORES) | _judged(one.folder / JUDGED)
    return scores


def _known_answers(path: Path) -> dict[str, float]:
    """The share of the gap that is closed, by attribute; of a file of scores."""
    scores = json.loads(path.read_text())["scores"] if path.is_file() else {}
    return {f"{name}: gap closed": float(each["closed"]) for name, each in scores.items()}


def _judged(path: Path) -> dict[str, float]:
    """What judges say of the generated sounds, by figure."""
    figures = json.loads(path.read_text())["figures"] if path.is_file() else []
    return {each["name"]: float(each["generated"]["value"]) for each in figures if each.get("generated")}
