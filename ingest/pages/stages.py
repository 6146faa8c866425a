"""The stages of a chain, from the records that every verb leaves beside its output: what, how many, how long.

    stages_of(Dataset.open("out/clips", "clips"), [Path("out/runs/diffusion")], Path("out/evaluation"))

Found from what is named and from what those records name themselves: the scenes a dataset was scraped from,
the latents that a run learnt from. What is not there, or elsewhere by now, is left out.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.dataset import Dataset
from cluster.jsonl import JsonObject
from cluster.storage import Store, open_store
from configs.load import UserError

RECORD = re.compile(r"runs/(\d{8}T\d{6})-([\w-]+?)-[\d-]+/summary\.json")


@dataclass(frozen=True)
class Stage:
    """`count`: what came out of it, in words; `share`: of the seconds of all stages, in percent."""

    name: str
    count: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Record:
    """What a verb wrote of one run: when, its settings and its summary."""

    when: str
    verb: str
    settings: JsonObject
    summary: JsonObject


@dataclass(frozen=True)
class Work:
    """A stage before its share is known."""

    when: str
    name: str
    count: str
    seconds: float


def stages_of(dataset: Dataset, runs: Sequence[Path], scores: Path | None) -> list[Stage]:
    """In the order in which they were begun; verbs that were repeated count together."""
    clips = records_of(dataset.store)
    works = [*_of_sources(clips), *_of_clips(clips)]
    for uri in dict.fromkeys(uri for run in runs for uri in _learnt_from(run)):
        works += _of_latents(uri)
    for run in runs:
        works += _of_run(run)
    works += _of_scores(scores) if scores else []
    total_s = sum(work.seconds for work in works) or 1.0
    return [
        Stage(work.name, work.count, work.seconds, round(100 * work.seconds / total_s, 1))
        for work in sorted(works, key=lambda work: work.when)
    ]


def records_of(store: Store) -> list[Record]:
    """Of the runs that ended in a place, oldest first; damaged ones are left out."""
    records = []
    for path in store.list("runs"):
        name = RECORD.fullmatch(path)
        if name:
            try:
                summary = json.loads(store.read(path))
                settings = yaml.safe_load(store.read(path.replace("summary.json", "config.yaml"))) or {}
            except (OSError, ValueError, yaml.YAMLError):
                continue
            records.append(Record(name[1], name[2], settings, summary))
    return records


def _records_at(uri: str) -> list[Record]:
    """None where it cannot be read, such as a place that is gone."""
    try:
        return records_of(open_store(uri))
    except (UserError, OSError):
        return []


def _of_verb(records: Sequence[Record], verb: str) -> list[Record]:
    return [record for record in records if record.verb == verb]


def _seconds(records: Sequence[Record]) -> float:
    return sum(float(record.summary.get("seconds", 0)) for record in records)


def _of_sources(clips: Sequence[Record]) -> Iterator[Work]:
    """Scenes that were rendered for the scrape."""
    paths = {str((record.settings.get("source") or {}).get("path") or "") for record in clips}
    for path in sorted(paths - {""}):
        synths = _of_verb(_records_at(str(Path(path).parent)), "synth")
        if synths:
            count = f"{synths[-1].summary.get('media', 0):,} videos and pictures"
            yield Work(synths[0].when, "render scenes", count, _seconds(synths))


def _of_clips(clips: Sequence[Record]) -> Iterator[Work]:
    scrapes = _of_verb(clips, "scrape")
    if scrapes:
        kept, refused = _counts(scrapes)
        yield Work(scrapes[0].when, "scrape", f"{kept:,} clips kept, {refused:,} refused", _seconds(scrapes))
    curated = _of_verb(clips, "curate")
    if curated:
        count = f"{curated[-1].summary.get('kept', 0):,} clips stay"
        yield Work(curated[0].when, "curate", count, _seconds(curated))


def _counts(records: Sequence[Record]) -> tuple[int, int]:
    """Rows that were kept, and rows that were not, of all runs."""
    kept = 0
    refused = 0
    for record in records:
        counts = record.summary.get("counts", {})
        kept += counts.get("kept", 0)
        refused += sum(count for name, count in counts.items() if name != "kept")
    return kept, refused


def _learnt_from(run: Path) -> list[str]:
    """Datasets whose snapshots a run took."""
    try:
        snapshots = json.loads((run / "run.json").read_text())["snapshots"]
        return [str(snapshot["uri"]) for snapshot in snapshots]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _of_latents(uri: str) -> Iterator[Work]:
    """Nothing of a dataset of clips, which has no such record."""
    records = _of_verb(_records_at(uri), "precompute")
    if records:
        kept, _ = _counts(records)
        yield Work(records[0].when, "precompute", f"{kept:,} latents and embeddings", _seconds(records))


def _of_run(run: Path) -> Iterator[Work]:
    trained = _of_verb(_records_at(str(run)), "train")
    if trained:
        steps = trained[-1].summary.get("steps", 0)
        yield Work(trained[0].when, f"train {run.name}", f"{steps:,} steps", _seconds(trained))


def _of_scores(scores: Path) -> Iterator[Work]:
    evaluated = _of_verb(_records_at(str(scores)), "evaluate")
    if evaluated:
        count = f"{evaluated[-1].summary.get('num_clips', 0):,} held-out clips judged"
        # older scores in the same folder were replaced
        yield Work(evaluated[-1].when, "evaluate", count, _seconds(evaluated[-1:]))
