"""Which checkpoints, models and exports may have learnt from removed samples.

    for entry in seen_by("out/demo", selections):      # runs and exports, at and below a folder
        print(entry["run"], entry["step"], entry["checkpoint"], entry["samples"])

A run pins snapshots in run.json, and names what the weights that it began with had learnt from; an export has
provenance.json, with every part. Datasets are recognised by the indexes that were pinned, wherever they are
now. Whether training had come to a sample is not checked, and nobody is made to forget.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypedDict

from cluster.dataset import Commit, Dataset, Snapshot
from cluster.jsonl import JsonObject
from cluster.learnt import INDEX, PROVENANCE, commits_of, read_provenance
from cluster.objects import list_own
from cluster.runs import checkpoint_folder, committed_steps
from cluster.shards import Status
from cluster.storage import Store, open_store
from configs.load import UserError
from ingest.rows import ClipRow

log = logging.getLogger(__name__)
RUN = "run.json"  # marks the folder of a run


# whether a row is selected; rows of derived datasets have `key` and no column of clips
Match = Callable[[ClipRow], bool]


@dataclass
class Selection:
    """What a selection hits in one dataset: key -> (unit, split) of samples, the commits with a row not yet
    empty, and the keys of such rows.
    """

    dataset: Dataset
    match: Match
    samples: dict[str, tuple[str, str]] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)


class SeenBy(TypedDict):
    """A checkpoint that may have seen removed samples: its folder in the run, "model", or "export"."""

    run: str
    step: int
    checkpoint: str
    samples: int


def seen_by(uri: str, selections: list[Selection]) -> Iterator[SeenBy]:
    """Each checkpoint, finished model and exported model, of runs and exports at or below `uri`, that pinned
    removed samples. `UserError` where there is neither.
    """
    top = open_store(uri)
    folders = _models_below(top)
    if not folders:
        raise UserError(
            f"runs={uri}: no run.json there and no exported model; "
            "name the output folder of a training run, or of an export"
        )
    for folder, is_export in folders:
        place = f"{uri.rstrip('/')}/{folder}".rstrip("/") if folder else uri
        store = open_store(place) if folder else top
        yield from seen_in(place, store, is_export, selections)


def seen_in(uri: str, store: Store, is_export: bool, selections: list[Selection]) -> Iterator[SeenBy]:
    """The same of one run or one export. `UserError` where its record of what it learnt from is damaged."""
    yield from (_of_export if is_export else _of_run)(uri, store, selections)


def _models_below(store: Store) -> list[tuple[str, bool]]:
    """The folders of runs and of exports, and which of both they are; "" is the store's own.

    Where that is a run, its checkpoints are not searched for others.
    """
    if store.exists(RUN):
        names = [name for name in (RUN, *store.list()) if not name.startswith("checkpoints/")]
    elif store.exists(INDEX):
        names = [INDEX]
    else:
        names = store.list()
    kinds = {RUN: False, INDEX: True}
    found = {(name.rpartition("/")[0], kinds[name.rpartition("/")[2]]) for name in names if _marks(name)}
    return sorted(found)


def _marks(name: str) -> bool:
    return name.rpartition("/")[2] in (RUN, INDEX)


def _of_run(uri: str, store: Store, selections: list[Selection]) -> Iterator[SeenBy]:
    """The checkpoints of a run, and its model."""
    run = _read_json(store, RUN)
    split = run["config"].get("split")
    keys: set[str] = set()
    for snapshot in map(Snapshot.from_json, run["snapshots"]):
        keys |= _pinned_of_all(snapshot.uri, snapshot.commits, split, selections)
    # what the weights that it began with had learnt from
    for record in (run.get("origin") or {}).get("learnt_from", ()):
        keys |= _pinned_of_all(record.get("uri", ""), commits_of(record), record["split"], selections)
    samples = len(keys)
    if not samples:
        return
    for step in committed_steps(store):
        if step > 0:  # a checkpoint of step 0 has seen no sample
            yield {"run": uri, "step": step, "checkpoint": checkpoint_folder(step), "samples": samples}
    if store.exists("FINISHED.json"):
        step = int(_read_json(store, "FINISHED.json")["step"])
        yield {"run": uri, "step": step, "checkpoint": "model", "samples": samples}


def _of_export(uri: str, store: Store, selections: list[Selection]) -> Iterator[SeenBy]:
    """An exported model of which a part learnt from removed samples."""
    try:
        provenance = read_provenance(store.read(PROVENANCE))
    except FileNotFoundError:
        # stock folders inside an export, and those of an older version
        if store.exists("pipeline.py"):
            log.warning("%s: does not record what it learnt from; export it again", uri)
        return
    except ValueError as error:
        raise UserError(f"runs={uri}: its {PROVENANCE} is damaged ({error}); export it again") from None
    keys: set[str] = set()
    for part in provenance["parts"].values():
        for record in part["learnt_from"]:
            keys |= _pinned_of_all("", commits_of(record), record["split"], selections)
    if keys:
        yield {
            "run": uri,
            "step": provenance.get("step", 0),
            "checkpoint": "export",
            "samples": len(keys),
        }


def _pinned_of_all(
    uri: str, commits: tuple[Commit, ...], split: str | None, selections: list[Selection]
) -> set[str]:
    """The removed samples among the pinned `commits`, of whichever dataset has them."""
    keys: set[str] = set()
    for selection in selections:
        if _same_dataset(uri, commits, selection.dataset):
            keys |= _pinned(commits, split, selection)
    return keys


def _same_dataset(uri: str, commits: tuple[Commit, ...], dataset: Dataset) -> bool:
    """By its address, or, where it was moved or is not known, by an index that both have."""
    if uri and _absolute(uri) == _absolute(dataset.uri):
        return True
    # of any generation: after a take-down the newest one may be no pinned one
    names = set(list_own(dataset.store, "index"))
    return any(commit.index.name in names for commit in commits) or _was_rewritten(commits, dataset)


def _was_rewritten(commits: tuple[Commit, ...], dataset: Dataset) -> bool:
    """Whether a dataset of the same settings has the pinned units in newer generations, and no other: after a
    purge, that is all that is left to know it by.
    """
    generations = dict(name.removeprefix("commits/").split(".")[:2] for name in dataset.commit_names())
    is_alike = all(commit.semantic_hash == dataset.meta["semantic_hash"] for commit in commits)
    newer = (int(generations.get(commit.unit, -1)) > commit.generation for commit in commits)
    return bool(commits) and is_alike and all(newer)


def _absolute(uri: str) -> str:
    return uri.rstrip("/") if "://" in uri else os.path.abspath(uri)


def _pinned(commits: tuple[Commit, ...], split: str | None, selection: Selection) -> set[str]:
    """The removed samples that the pinned units hold in a split; where an index is gone, all of its unit."""
    found: set[str] = set()
    for commit in commits:
        keys = _keys_of(selection, commit.unit, split)
        if not keys:
            continue
        if not selection.dataset.store.exists(commit.index.name):
            found |= keys
            continue
        rows = selection.dataset.read_index(commit).select(["key", "status"]).to_pylist()
        found |= {row["key"] for row in rows if row["status"] == Status.KEPT and row["key"] in keys}
    return found


def _keys_of(selection: Selection, unit: str, split: str | None) -> set[str]:
    """The selected samples of a unit and a split; no split is every split."""
    return {
        key
        for key, (own_unit, own_split) in selection.samples.items()
        if own_unit == unit and split in (None, "", own_split)
    }


def _read_json(store: Store, name: str) -> JsonObject:
    data: JsonObject = json.loads(store.read(name))
    return data
