"""Where each part of a model is from and what it learnt from: written when a run ends, carried with it.

    record = of_run(run)                                     # of run.json: counted, with its first weights
    record = of_source("hub:owner/name", folder, "vocoder")  # of any weights that a user may name
    write(model, {"unet": record}, step)                     # provenance.json; export publishes it

Counting is one pass over the pinned indexes, a few at a time. A dataset that is gone leaves its record
without counts. What licenses demand is training.weights_license's.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset import Commit, Dataset, Snapshot
from cluster.jsonl import JsonObject
from cluster.learnt import (
    PROVENANCE,
    LearntFrom,
    PartRecord,
    Provenance,
    commits_of,
    learnt_from,
    read_provenance,
)
from cluster.objects import list_own
from cluster.shards import Status
from configs.load import UserError
from training.pretrained import FINISHED, RUN, folder_sha256, is_finished
from training.recipes.diffusion import PARTS
from training.recipes.published import CONDITIONING
from training.weights_license import OWN, license_beside

log = logging.getLogger(__name__)
INDEX_READERS = 16  # an index is a request of a few kB
UNITS_AT_ONCE = 256
MODELS = f"models/{PROVENANCE}"  # beside latents: of the models that made them


@dataclass
class Counts:
    """Of the samples that were pinned in a split: how many, by license, and by reason those removed since."""

    samples: int = 0
    licenses: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        self.samples += other.samples
        self.licenses.update(other.licenses)
        self.removed.update(other.removed)


# --- Records ------------------------------------------------------------------------------------------------


def of_run(run: JsonObject, uris: Sequence[str] = ()) -> PartRecord:
    """What a run trained, by its run.json. `uris`: where its datasets are now, where they moved."""
    origin = run.get("origin") or {}
    records: list[LearntFrom] = []
    numbers = run.get("tombstones") or [None] * len(run["snapshots"])
    for index, (pinned, number) in enumerate(zip(run["snapshots"], numbers, strict=True)):
        snapshot = Snapshot.from_json(pinned)
        uri = uris[index] if uris else snapshot.uri
        record = learnt_from(snapshot, run["config"].get("split") or "", uri, "")
        if number is not None:
            record["tombstones"] = number
        records.append(counted(record))
    first = [origin["init_from"], *origin.get("sources", ())] if origin else []
    return {
        "sources": first,
        "license": origin.get("license", OWN),
        "learnt_from": merged([*records, *origin.get("learnt_from", ())]),
    }


def of_source(path: str, folder: Path, name: str) -> PartRecord:
    """Of the weights in `folder`, which a user named as `path`: a run of ours, what one made, or published.

    `name`: of the part, where provenance.json has several; "" for all of them together.
    """
    named = Path(path)
    if named.is_dir() and not folder.absolute().is_relative_to(named.absolute()):
        # converted into a folder elsewhere
        folder = named
    places = (folder, folder / "model", folder.parent)
    for place in places:
        if (place / PROVENANCE).is_file():
            parts = read(place)["parts"]
            record = _joined(list(parts.values())) if not name else parts.get(name) or _only(parts)
            if record:
                return record
    run = run_of(folder)
    if run and _is_carried(run, folder):
        # what trained it is another run, which this one of an older version does not name
        return {"sources": [path], "license": "unknown", "learnt_from": []}
    if run:
        return of_run(json.loads((run / RUN).read_text()))
    return {"sources": [path], "license": license_beside(places), "learnt_from": []}


def run_of(folder: Path) -> Path | None:
    """The run whose folder, model or part of its model this is."""
    if (folder / RUN).is_file():
        return folder
    for inside in (folder, folder.parent):
        if inside.name == "model" and (inside.parent / RUN).is_file():
            return inside.parent
    return None


def _is_carried(run: Path, folder: Path) -> bool:
    """Whether a part of a run's model is of those that came with its latents."""
    carried = (PARTS.codec, PARTS.vocoder, *PARTS.encoders)
    return (run / "model" / CONDITIONING).is_file() and folder.name in carried


def _only(parts: dict[str, PartRecord]) -> PartRecord | None:
    return next(iter(parts.values())) if len(parts) == 1 else None


def _joined(records: list[PartRecord]) -> PartRecord:
    """All parts of a model as one: what is made from it may have something of each."""
    learnt: list[LearntFrom] = []
    sources: list[str] = []
    for record in records:
        learnt += record["learnt_from"]
        sources += [source for source in record["sources"] if source not in sources]
    return {"sources": sources, "license": OWN, "learnt_from": merged(learnt)}


def merged(records: Sequence[LearntFrom]) -> list[LearntFrom]:
    """Without repetitions of a split of a snapshot."""
    distinct = {(record["snapshot"], record["split"]): record for record in reversed(records)}
    return list(reversed(distinct.values()))


def write(folder: Path, parts: dict[str, PartRecord], step: int | None = None) -> None:
    """provenance.json of a folder; parts that it has and `parts` has not stay."""
    content: Provenance = read(folder) if (folder / PROVENANCE).is_file() else {"parts": {}}
    content["parts"] |= parts
    if step is not None:
        content["step"] = step
    (folder / PROVENANCE).write_text(json.dumps(content))


def read(folder: Path) -> Provenance:
    """`UserError` where provenance.json is damaged."""
    try:
        return read_provenance((folder / PROVENANCE).read_bytes())
    except ValueError as error:
        raise UserError(f"{folder / PROVENANCE}: damaged ({error}); restore it from a copy") from None


# --- Of a model ---------------------------------------------------------------------------------------------


def of_model(
    folder: Path, run: Path, latents: str, names: Sequence[str], sha256: dict[str, str]
) -> Provenance:
    """Of each part in the `folder` of a model. `run`: of which it is the model; `latents`: where those are.

    What a model of an older version does not record is looked for beside its latents, and in the runs beside
    its run; a part that none of them knows has the license `unknown`.
    """
    found: Provenance = read(folder) if (folder / PROVENANCE).is_file() else {"parts": {}}
    parts = found["parts"]
    if (run / RUN).is_file() and not parts:
        record = json.loads((run / RUN).read_text())
        parts[names[0]] = of_run(record, [latents] if latents and len(record["snapshots"]) == 1 else ())
        found["step"] = json.loads((run / FINISHED).read_text())["step"]
    for name, digest in sha256.items():
        if name not in parts:
            known = _beside_latents(latents, name, digest) or _beside_run(run, name, digest)
            if known:
                parts[name] = known
    for name in names:
        parts.setdefault(name, {"sources": ["not recorded"], "license": "unknown", "learnt_from": []})
    return found


def _beside_latents(uri: str, name: str, sha256: str) -> PartRecord | None:
    """What precompute recorded of a model that made these latents."""
    try:
        dataset = Dataset.open(uri, "latents")
        if dataset.meta["config"].get("sha256", {}).get(name) != sha256 or not dataset.store.exists(MODELS):
            return None
        return read_provenance(dataset.store.read(MODELS))["parts"].get(name)
    except (UserError, OSError, ValueError):
        return None


def _beside_run(run: Path, name: str, sha256: str) -> PartRecord | None:
    """Of a finished run in the same folder whose model is this part, byte for byte."""
    for sibling in sorted(run.absolute().parent.glob(f"*/{RUN}")):
        for folder in (sibling.parent / "model" / name, sibling.parent / "model"):
            is_model = (folder / "config.json").is_file() and is_finished(sibling.parent)
            if is_model and not _is_carried(sibling.parent, folder) and folder_sha256(folder) == sha256:
                return of_source(str(sibling.parent), folder, name)
    return None


# --- Counting -----------------------------------------------------------------------------------------------


def counted(record: LearntFrom) -> LearntFrom:
    """The record with its samples by license, where the dataset is at hand; a warning where it is not."""
    found = count(record)
    if found is None:
        return record
    counts, kind = found
    licenses = dict(counts.licenses.most_common())
    return {**record, "kind": kind, "samples": counts.samples, "licenses": licenses}


def count(record: LearntFrom) -> tuple[Counts, str] | None:
    """Counts of what was pinned, and the kind of the dataset; None, with a warning, where it is not there."""
    uri = record.get("uri", "")
    try:
        if not uri:
            raise UserError("its address is not recorded")
        dataset = Dataset.open(uri)
        buried = buried_since(dataset, record.get("tombstones", 0))
        counts = Counts()
        for table, is_pinned in read_pinned(dataset, record):
            counts.add(count_rows(table, record["split"], buried, is_pinned))
        return counts, dataset.meta["kind"]
    except (UserError, OSError) as error:
        log.warning("samples of %s could not be counted: %s", record["name"], error)
        return None


def removed_since(records: Sequence[LearntFrom]) -> Counter[str] | None:
    """By reason, how many samples were taken down since they were pinned: the most of any dataset, as clips
    and their latents are the same samples. None where a dataset is not there, or none is known.
    """
    removed: Counter[str] = Counter()
    if not records:
        return None
    for record in records:
        found = count(record)
        if found is None:
            return None
        # the union of counters: the larger of each
        removed |= found[0].removed
    return removed


def buried_since(dataset: Dataset, first: int) -> dict[str, str]:
    """Key -> reason of the tombstones from the `first` file on, and of all of the datasets it was made from:
    what was buried there before is not in this one.
    """
    buried: dict[str, str] = {}
    for parent in dataset.meta["parents"]:
        try:
            buried |= Dataset.open(parent["uri"]).buried()
        except (UserError, OSError) as error:
            log.warning("%s: its tombstones could not be read: %s", parent["uri"], error)
    return buried | dataset.buried(first)


def read_pinned(dataset: Dataset, record: LearntFrom) -> Iterator[tuple[pa.Table, bool]]:
    """The index of each pinned unit, and whether it is the pinned one: where a take-down has deleted it, the
    newest is read instead. `OSError` where the dataset has not what was pinned.
    """
    indexes = set(list_own(dataset.store, "index"))
    newest = {name.removeprefix("commits/").split(".")[0]: name for name in dataset.commit_names()}

    def of_unit(commit: Commit) -> tuple[pa.Table, bool]:
        if commit.index.name in indexes:
            return dataset.read_index(commit), True
        if commit.unit not in newest:
            raise OSError(f"{dataset.uri}: has no unit {commit.unit} any more")
        current = dataset.read_commit(newest[commit.unit])
        if current.generation <= commit.generation:
            raise OSError(f"{dataset.uri}: unit {commit.unit} has other content than was pinned")
        return dataset.read_index(current), False

    commits = commits_of(record)
    with ThreadPoolExecutor(INDEX_READERS, "index") as readers:
        for start in range(0, len(commits), UNITS_AT_ONCE):
            yield from readers.map(of_unit, commits[start : start + UNITS_AT_ONCE])


def count_rows(table: pa.Table, split: str, buried: dict[str, str], is_pinned: bool) -> Counts:
    """Of one index. In a newer one than was pinned, holes are samples that were removed since."""
    table = of_split(table, split)
    statuses = table["status"]
    kept = table.filter(pc.equal(statuses, Status.KEPT))
    counts = Counts(len(kept), _licenses(kept))
    if buried:
        reasons = (buried.get(key) for key in cast(list[str], kept["key"].to_pylist()))
        counts.removed.update(reason for reason in reasons if reason)
    if not is_pinned:
        gone = table.filter(pc.equal(statuses, Status.REMOVED))
        counts.add(Counts(len(gone), _licenses(gone), Counter(gone["reason"].to_pylist())))
    return counts


def of_split(table: pa.Table, split: str) -> pa.Table:
    """The rows of a split; no split is every one."""
    return table.filter(pc.fill_null(pc.equal(table["split"], split), False)) if split else table


def _licenses(table: pa.Table) -> Counter[str]:
    if "license" not in table.column_names:
        return Counter({"unknown": len(table)} if len(table) else {})
    counts: Counter[str] = Counter()
    for entry in pc.value_counts(table["license"]).to_pylist():
        counts[entry["values"] or "unknown"] += entry["counts"]
    return counts
