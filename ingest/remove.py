"""`ingest remove DATASET key=…`: take-down by sample, video, channel, license or list, down to the latents.

    remove(RemoveConfig("out/clips", channel="Some Channel", derived=["out/latents"], runs=["runs/diffusion"]))

First the tombstones, in the dataset and in what was derived from it: from then on no reader takes the
samples. Then every unit that holds one is written again as its next generation: a tar without them, every
other member as it was; their rows stay at their place as holes (status `removed`), without members, title,
url, times, scores or fingerprints. Rows of refused items are emptied in the same way and stay refused, for
this reason. What an old generation held goes with `ingest gc --purge`. A run that is cut off is completed by
the same command: the key, the ids, channel, license and split stay in the hole, so that it is found again.

A removed medium, channel or license is also banned: what of it is listed and not yet scraped, or found by a
later run, ends as a row `taken_down` without title and url, or is not listed at all. The ban is a tombstone
with a hash for a name.

Not reached: the work list (it keeps an item that it had, with its address), and the sums over latents that a
derived commit carries as `facts`. It does not make anybody forget: it says which checkpoints may have seen
the samples.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.dataset import Commit, Dataset, Snapshot
from cluster.runs import checkpoint_folder, committed_steps
from cluster.scratch import scratch_folder
from cluster.shards import CORE, Row, Shard, Status, verify_member, write_shard
from cluster.storage import Store, open_store
from configs.load import UserError
from ingest.licenses import is_code, suggestion
from ingest.sample import SELECTORS, Reason, ban, bans_of

log = logging.getLogger(__name__)
STAYS = frozenset({"source", "media_id", "channel", "license", "split"})
CHECKPOINTS_MEAN = "every checkpoint of a run that pinned a snapshot with a removed sample of its split; whether it had come to the sample is not checked"


@dataclass
class RemoveConfig:
    """One of `key`, `media` (its id, alone or as source:id), `channel`, `license`, `ids` (a file of keys or
    media ids, a line each).

    `derived`: datasets of latents made of this one; `runs`: training runs to search for checkpoints.
    `rewrite=false` leaves it at the tombstones.
    """

    dataset: str
    key: str = ""
    media: str = ""
    channel: str = ""
    license: str = ""
    ids: str = ""
    reason: str = "take-down"
    derived: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    rewrite: bool = True
    workers: int = 4

    def __post_init__(self) -> None:
        if sum(bool(getattr(self, name)) for name in SELECTORS) != 1:
            raise UserError(f"say what to remove by one of {', '.join(f'{name}=…' for name in SELECTORS)}")
        if self.license and not is_code(self.license):
            raise UserError(f"license={self.license}: no license code{suggestion(self.license)}")
        if not self.reason:
            raise UserError("reason is empty: say why, such as take-down")
        if self.workers < 1:
            raise UserError(f"workers={self.workers}: give 1 or more")


Match = Callable[[dict[str, Any]], bool]


@dataclass
class Found:
    """What a selection hits in one dataset: key -> (unit, split) of samples, and the commits with a row not
    yet empty.
    """

    dataset: Dataset
    match: Match
    samples: dict[str, tuple[str, str]] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)


def remove(config: RemoveConfig, dry_run: bool = False) -> dict[str, Any]:
    """Removes, and tells `samples`, `units` rewritten, `failed` units with their error, `unmatched` ids and
    `checkpoints`.

    `UserError` before anything is done: nothing matches, a derived dataset has no parents, a run has no
    run.json.
    """
    wanted = _wanted(config)
    here = find(Dataset.open(config.dataset), partial(_matches, config, wanted), config.reason)
    unmatched = sorted(wanted - _names(here) - _listed(here.dataset, wanted)) if config.ids else []
    pending = _pending(here.dataset, config, wanted)
    if not here.samples and not here.commits and not pending:
        raise UserError(
            f"{config.dataset}: nothing there has {_selection(config)}; ingest report shows what it holds"
        )
    keys = set(here.samples)
    found = [
        here,
        *(find(open_derived(uri), lambda row: row["key"] in keys, config.reason) for uri in config.derived),
    ]
    checkpoints = [entry for uri in config.runs for entry in seen_by(uri, found)]
    units, failed = sum(len(part.commits) for part in found) if config.rewrite else 0, {}
    if not dry_run:
        for part in found:
            bury(part.dataset, keys | (_bans(config, wanted) if part is here else set()), config.reason)
        failed = rewrite_all(found, config.reason, config.workers) if config.rewrite else {}
    summary = {
        "dataset": config.dataset,
        "samples": len(keys),
        "pending": pending,
        "units": units - len(failed),
        "failed": failed,
    }
    return {
        **summary,
        "unmatched": unmatched,
        "checkpoints": checkpoints,
        "checkpoints_mean": CHECKPOINTS_MEAN,
    }


def find(dataset: Dataset, match: Match, reason: str) -> Found:
    """Reads every index for rows that `match`: samples, and refused items, which lose their title and url
    too.
    """
    found = Found(dataset, match)
    for commit in dataset.commits().values():
        rows = [row for row in dataset.read_index(commit).to_pylist() if match(row)]
        found.samples |= {row["key"]: (commit.unit, row.get("split") or "") for row in rows if row["key"]}
        if not all(_is_empty(row, reason) for row in rows):
            found.commits.append(commit)
    return found


def bury(dataset: Dataset, keys: set[str], reason: str) -> None:
    """A tombstone with this reason for each key that has none."""
    buried = dataset.buried()
    fresh = {key: reason for key in keys if buried.get(key) != reason}
    if fresh:
        dataset.bury(fresh)


def rewrite_unit(dataset: Dataset, commit: Commit, match: Match, reason: str) -> None:
    """Publishes generations of a unit until the newest has no matching row that is not empty.

    `OSError` as of storage.
    """
    while any(match(row) and not _is_empty(row, reason) for row in dataset.read_index(commit).to_pylist()):
        with scratch_folder(commit.unit) as scratch:
            shard = _without(dataset, commit, match, reason, Path(scratch))
            commit = dataset.commit(commit.unit, commit.generation + 1, shard, commit.statistics)


def _wanted(config: RemoveConfig) -> set[str]:
    """The words of the list `ids`. `UserError` where it cannot be read, or is empty."""
    if not config.ids:
        return set()
    try:
        words = {line.strip() for line in Path(config.ids).read_text(encoding="utf-8-sig").split("\n")} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"ids={config.ids}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not words:
        raise UserError(f"ids={config.ids}: the file is empty; write a key or a media id per line")
    return words


def _selection(config: RemoveConfig) -> str:
    return next(f"{name}={getattr(config, name)}" for name in SELECTORS if getattr(config, name))


def _matches(config: RemoveConfig, wanted: set[str], row: dict[str, Any]) -> bool:
    if config.key:
        return bool(row["key"] == config.key)
    if config.media:
        return config.media in (row.get("media_id"), row["item_id"])
    if config.channel:
        return bool(row.get("channel") == config.channel)
    if config.license:
        return bool(row.get("license") == config.license)
    return bool(wanted & {row["key"], row.get("media_id"), row["item_id"]})


def _bans(config: RemoveConfig, wanted: set[str]) -> set[str]:
    """A key is one sample, and bans nothing else of its medium."""
    values = {"media": {config.media} | wanted, "channel": {config.channel}, "license": {config.license}}
    return {ban(selector, value) for selector, given in values.items() for value in given - {""}}


def _pending(dataset: Dataset, config: RemoveConfig, wanted: set[str]) -> int:
    """How many listed items without a commit the bans keep out, as far as the list tells."""
    bans, done = _bans(config, wanted), dataset.committed_units()
    if not bans:
        return 0
    items = (
        item.payload for task in dataset.worklist.iter_units() if task.unit not in done for item in task.items
    )
    return sum(bool(bans & _bans_of_listed(item)) for item in items)


def _bans_of_listed(payload: dict[str, Any]) -> set[str]:
    source, id, medium, channel, license = (
        str(payload.get(name) or "") for name in ("source", "id", "medium", "channel", "license")
    )
    return bans_of(source, id, channel, license) | bans_of(source, medium or id, channel, license)


def _listed(dataset: Dataset, wanted: set[str]) -> set[str]:
    """The words by which an item of the work list is called."""
    items = (item for task in dataset.worklist.iter_units() for item in task.items)
    return wanted & {
        word for item in items for word in (item.item_id, item.payload.get("id"), item.payload.get("medium"))
    }


def _names(found: Found) -> set[str]:
    """Every word by which a row that was hit could have been named."""
    units = {unit for unit, _ in found.samples.values()} | {commit.unit for commit in found.commits}
    commits = (commit for commit in found.dataset.commits().values() if commit.unit in units)
    rows = (
        row for commit in commits for row in found.dataset.read_index(commit).to_pylist() if found.match(row)
    )
    return {word for row in rows for word in (row["key"], row.get("media_id"), row["item_id"]) if word}


def open_derived(uri: str) -> Dataset:
    """A dataset made of another one. `UserError` where it was not."""
    dataset = Dataset.open(uri)
    if not dataset.meta["parents"]:
        raise UserError(
            f"derived={uri}: was not derived from a dataset; name the latents that precompute made of it"
        )
    return dataset


def rewrite_all(found: list[Found], reason: str, workers: int) -> dict[str, str]:
    """Rewrites unit by unit, `workers` at a time, each in memory; returns the units that could not be, with
    the error.
    """

    def work(part: Found, commit: Commit) -> tuple[str, str]:
        try:
            rewrite_unit(part.dataset, commit, part.match, reason)
        except OSError as error:
            log.error("%s: unit %s could not be written again: %s", part.dataset.uri, commit.unit, error)
            return f"{part.dataset.uri}#{commit.unit}", f"{type(error).__name__}: {error}"
        return "", ""

    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(work, part, commit) for part in found for commit in part.commits]
        return {unit: error for unit, error in (job.result() for job in jobs) if error}


def _without(dataset: Dataset, commit: Commit, match: Match, reason: str, scratch: Path) -> Shard:
    """The shard of a unit with holes for its matching rows.

    A member damaged before becomes a hole, too, and is told.
    """
    table = dataset.read_index(commit)
    fixed = {*(name for name, _ in CORE), "members"}
    columns = pa.schema([column for column in table.schema if column.name not in fixed])
    tar = scratch / "old.tar"
    if commit.tar:
        dataset.store.get_file(commit.tar.name, tar)
    rows = []
    for record in sorted(table.to_pylist(), key=lambda record: int(record["ordinal"])):
        row = Row(record["item_id"], record["key"], record["status"], record["reason"], record["detail"])
        row.columns = {name: record[name] for name in columns.names}
        row.members = _members(tar, record) if row.status == Status.KEPT else {}
        if match(record) and not _is_empty(record, reason):
            rows.append(_hole(row, reason))
        elif row.status == Status.KEPT and not row.members:
            log.warning("%s: %s was damaged before and is a hole now", dataset.uri, row.key)
            rows.append(_hole(row, str(Reason.DAMAGED)))
        else:
            rows.append(row)
    return write_shard(scratch, rows, columns)


def _members(tar: Path, record: dict[str, Any]) -> dict[str, bytes]:
    """The members of a sample; none where one has other bytes than the index says."""
    members = {}
    with tar.open("rb") as file:
        for member in record["members"]:
            file.seek(member["offset"])
            members[member["ext"]] = file.read(member["size"])
            if not verify_member(members[member["ext"]], member["crc32"]):
                return {}
    return members


def _hole(row: Row, reason: str) -> Row:
    """The row without what it told; `removed` is only what was kept, so that a reader can count its holes."""
    columns = {name: value if name in STAYS else None for name, value in row.columns.items()}
    return Row(
        row.item_id,
        row.key,
        Status.REMOVED if row.status == Status.KEPT else row.status,
        reason,
        None,
        columns,
    )


def _is_empty(row: dict[str, Any], reason: str) -> bool:
    return row["status"] == Status.REMOVED or (row["status"] != Status.KEPT and row["reason"] == reason)


def seen_by(uri: str, found: list[Found]) -> Iterator[dict[str, Any]]:
    """`{"run", "step", "checkpoint", "samples"}` of each checkpoint and finished model of a run that pinned
    removed samples.

    `UserError` where there is no run.
    """
    store = open_store(uri)
    try:
        run = _read_json(store, "run.json")
    except FileNotFoundError:
        raise UserError(f"runs={uri}: no run.json there; name the output folder of a training run") from None
    snapshots, split = (
        [Snapshot.from_json(snapshot) for snapshot in run["snapshots"]],
        run["config"].get("split"),
    )
    pairs = [
        (snapshot, part) for snapshot in snapshots for part in found if _same_dataset(snapshot, part.dataset)
    ]
    samples = sum(_pinned(snapshot, split, part) for snapshot, part in pairs)
    for step in committed_steps(store) if samples else []:
        if step > 0:  # a checkpoint of step 0 has seen no sample
            yield {"run": uri, "step": step, "checkpoint": checkpoint_folder(step), "samples": samples}
    if samples and store.exists("FINISHED.json"):
        yield {
            "run": uri,
            "step": int(_read_json(store, "FINISHED.json")["step"]),
            "checkpoint": "model",
            "samples": samples,
        }


def _same_dataset(snapshot: Snapshot, dataset: Dataset) -> bool:
    """By place, or, where it was moved, by an index that both know."""
    places = (
        os.path.abspath(uri) if "://" not in uri else uri.rstrip("/") for uri in (snapshot.uri, dataset.uri)
    )
    known = {commit.index.sha256 for commit in dataset.commits().values()}
    return len(set(places)) == 1 or any(commit.index.sha256 in known for commit in snapshot.commits)


def _pinned(snapshot: Snapshot, split: str | None, found: Found) -> int:
    """How many of the removed samples the snapshot holds in its split; where its index is gone, all of the
    unit count.
    """
    count = 0
    for commit in snapshot.commits:
        ours = {
            key
            for key, (unit, own) in found.samples.items()
            if unit == commit.unit and split in (None, "", own)
        }
        if not ours:
            continue
        if not found.dataset.store.exists(commit.index.name):
            count += len(ours)
            continue
        table = found.dataset.read_index(commit).select(["key", "status"]).to_pylist()
        count += sum(row["status"] == Status.KEPT and row["key"] in ours for row in table)
    return count


def _read_json(store: Store, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(store.read(name))
    return data
