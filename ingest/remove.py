"""`ingest remove DATASET key=…`: take-down by sample, video, channel, license or list, down to the latents.

    remove(RemoveConfig("out/clips", channel="Some Channel", derived=["out/latents"]))

First the tombstones, in the dataset and in what was derived from it: from then on no reader takes the
samples. Then every unit that holds one is rewritten as its next generation: a tar without them, every other
member as it was; their rows stay in their positions as holes (status `removed`), without members, title,
url, times, scores or fingerprints. Rows of refused items are emptied in the same way and stay refused, for
this reason. What an old generation held goes with `ingest gc --purge`. A run that is cut off is completed by
the same command: the key, the ids, channel, license and split stay in the hole, so that it is found again.
docs/take-down.md draws a removal from tombstone to purge.

A removed medium, channel or license is also banned: what of it is listed and not yet scraped, or found by a
later run, ends as a row `taken_down` without title and url, or is not listed at all. The ban is a tombstone
with a hash for a name.

Not reached: the work list (it keeps an item that it had, with its address), and the sums over latents that a
derived commit carries as `facts`. It does not make anybody forget: it says which checkpoints may have seen
the samples.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from cluster.dataset import Commit, Dataset
from cluster.jsonl import JsonObject
from cluster.scratch import scratch_folder
from cluster.shards import (
    CORE,
    DamagedMemberError,
    Row,
    Shard,
    Status,
    check_member,
    members_of,
    write_shard,
)
from configs.load import UserError, at_least, operational
from ingest.licenses import is_code, suggestion
from ingest.rows import ClipRow
from ingest.sample import SELECTORS, Reason, ban, bans_of
from ingest.seen import Match, SeenBy, Selection, seen_by

log = logging.getLogger(__name__)
# kept in a hole, so that the same command finds it again and completes a run that was cut off
STAYS = frozenset({"source", "media_id", "channel", "license", "split"})
# by ingest report, which tells of samples
REPORTED = ("report.html", "README.md", "ATTRIBUTION.csv", "croissant.json")
CHECKPOINTS_MEAN = (
    "every checkpoint of a run that pinned a snapshot with a removed sample of its split;"
    " whether it had come to the sample is not checked"
)


@dataclass
class RemoveConfig:
    """One of `key`, `media`, `channel`, `license` and `ids`, and where else its samples may be."""

    dataset: str  # a folder or URI that scrape made
    key: str = ""  # of the one clip to remove
    media: str = ""  # id of the medium whose clips are removed, alone or as source:id
    channel: str = ""  # whose clips are removed
    license: str = ""  # code whose clips are removed
    ids: str = ""  # a file of keys or media ids, a line each
    reason: str = "take-down"  # stored with each removed sample
    derived: list[str] = field(default_factory=list)  # datasets of latents made of this one
    # training runs and exports, or folders of them, to search for what learnt from it
    runs: list[str] = field(default_factory=list)
    rewrite: bool = True  # false leaves it at the tombstones
    workers: int = operational(4)  # units rewritten at once

    def __post_init__(self) -> None:
        if sum(bool(getattr(self, name)) for name in SELECTORS) != 1:
            raise UserError(f"name what to remove by one of {', '.join(f'{name}=…' for name in SELECTORS)}")
        if self.license and not is_code(self.license):
            raise UserError(f"license={self.license}: no license code{suggestion(self.license)}")
        if not self.reason:
            raise UserError("reason is empty: say why, such as take-down")
        at_least(self, 1, "workers")


class RemoveSummary(TypedDict):
    """`samples` that this command takes down, and those that were down `before`; `pending`: listed items
    that it keeps out; `units` rewritten; `failed`: unit -> its error; `unmatched`: ids of the list that hit
    nothing; `stale`: files that ingest report wrote into the dataset before, and that are as they were.
    """

    dataset: str
    samples: int
    before: int
    pending: int
    units: int
    failed: dict[str, str]
    unmatched: list[str]
    stale: list[str]
    checkpoints: list[SeenBy]
    checkpoints_mean: str


def remove(config: RemoveConfig, dry_run: bool = False) -> RemoveSummary:
    """Removes what the settings select, here and in derived datasets.

    `UserError` before anything is done: nothing matches, a derived dataset has no parents, a run has no
    run.json.
    """
    ids = read_ids(config)
    here = find(Dataset.open(config.dataset), partial(matches, config, ids), config.reason)
    unmatched = sorted(ids - _names(here) - _listed(here.dataset, ids)) if ids else []
    pending = _pending(here.dataset, config, ids)
    if not here.samples and not here.commits and not pending:
        raise UserError(
            f"{config.dataset}: nothing there has {_selection(config)}; ingest report shows what it holds"
        )
    keys = set(here.samples)
    selections = [here]
    for uri in config.derived:
        selections.append(find(open_derived(uri), lambda row: row["key"] in keys, config.reason))
    checkpoints: list[SeenBy] = []
    for uri in config.runs:
        checkpoints += seen_by(uri, selections)
    # counted before anything is buried: the same command again says 0
    fresh = {key for selection in selections for key in _not_yet_down(selection, config)}
    new_bans = bans_by(config, ids) - here.dataset.tombstones()
    failed: dict[str, str] = {}
    if not dry_run:
        # tombstones first, in every dataset: from then on nothing is read, however long the rewrite takes
        bury(here.dataset, keys | bans_by(config, ids), config.reason)
        for selection in selections[1:]:
            bury(selection.dataset, keys, config.reason)
        failed = rewrite_all(selections, config.reason, config.workers) if config.rewrite else {}
    units = sum(len(selection.commits) for selection in selections) if config.rewrite else 0
    return {
        "dataset": config.dataset,
        "samples": len(fresh),
        "before": len(keys - fresh),
        "pending": pending if new_bans else 0,
        "units": units - len(failed),
        "failed": failed,
        "unmatched": unmatched,
        "stale": stale_files(here.dataset, will_bury=dry_run and bool(fresh)),
        "checkpoints": checkpoints,
        "checkpoints_mean": CHECKPOINTS_MEAN,
    }


def stale_files(dataset: Dataset, will_bury: bool = False) -> list[str]:
    """What ingest report wrote into the dataset before its newest tombstone; all of it where more are to
    come.
    """
    store = dataset.store
    there = [name for name in REPORTED if store.exists(name)]
    newest = max(map(store.modified, store.list("tombstones")), default=0.0)
    return [f"{dataset.uri}/{name}" for name in there if will_bury or store.modified(name) < newest]


def find(dataset: Dataset, match: Match, reason: str) -> Selection:
    """Reads every index for rows that `match`: samples, and refused items, which lose their title and url
    too.
    """
    selection = Selection(dataset, match)
    for commit in dataset.commits().values():
        rows = [row for row in dataset.read_index(commit).to_pylist() if match(row)]
        for row in rows:
            if row["key"]:
                selection.samples[row["key"]] = (commit.unit, row.get("split") or "")
                selection.stored |= set() if _is_empty(row, reason) else {row["key"]}
        if not all(_is_empty(row, reason) for row in rows):
            selection.commits.append(commit)
    return selection


def _not_yet_down(selection: Selection, config: RemoveConfig) -> Iterator[str]:
    """The samples of a selection that have no tombstone, or still their content where that is to go."""
    buried = selection.dataset.buried()
    for key in selection.samples:
        if key in selection.stored and not config.rewrite:
            # what curation had buried is taken down by the tombstone of another reason
            is_down = buried.get(key) == config.reason
        else:
            is_down = key in buried and key not in selection.stored
        if not is_down:
            yield key


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
    # more than one only where another removal published the next generation first
    while any(match(row) and not _is_empty(row, reason) for row in dataset.read_index(commit).to_pylist()):
        with scratch_folder(commit.unit) as scratch:
            shard = _without(dataset, commit, match, reason, Path(scratch))
            commit = dataset.commit(commit.unit, commit.generation + 1, shard, commit.statistics)


def read_ids(config: RemoveConfig) -> set[str]:
    """The lines of the file `ids`. `UserError` where it cannot be read, or is empty."""
    if not config.ids:
        return set()
    try:
        # utf-8-sig: Excel and Notepad begin a file with a byte order mark
        text = Path(config.ids).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"ids={config.ids}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    ids = {line.strip() for line in text.split("\n")} - {""}
    if not ids:
        raise UserError(f"ids={config.ids}: the file is empty; write a key or a media id per line")
    return ids


def _selection(config: RemoveConfig) -> str:
    return next(f"{name}={getattr(config, name)}" for name in SELECTORS if getattr(config, name))


def matches(config: RemoveConfig, ids: set[str], row: ClipRow) -> bool:
    """Whether the settings select a row; `ids`: of `read_ids`."""
    if config.key:
        return bool(row["key"] == config.key)
    if config.media:
        return config.media in (row.get("media_id"), row["item_id"])
    if config.channel:
        return bool(row.get("channel") == config.channel)
    if config.license:
        return bool(row.get("license") == config.license)
    return bool(ids & _names_of(row))


def _names_of(row: ClipRow) -> set[str]:
    """By which a list may name a row."""
    return {name for name in (row["key"], row.get("media_id"), row["item_id"]) if name}


def bans_by(config: RemoveConfig, ids: set[str]) -> set[str]:
    """The bans that the settings mean. A key is one sample, and bans nothing else of its medium."""
    bans = {ban("media", id) for id in ids}
    for selector in ("media", "channel", "license"):
        value = getattr(config, selector)
        if value:
            bans.add(ban(selector, value))
    return bans


def _pending(dataset: Dataset, config: RemoveConfig, ids: set[str]) -> int:
    """How many listed items without a commit the bans keep out, as far as the list has their fields."""
    bans = bans_by(config, ids)
    if not bans:
        return 0
    done = dataset.committed_units()
    count = 0
    for task in dataset.worklist.iter_units():
        if task.unit not in done:
            count += sum(bool(bans & bans_of_listed(item.payload)) for item in task.items)
    return count


def bans_of_listed(payload: JsonObject) -> set[str]:
    """Every ban that would keep an item of the work list out."""
    fields = {name: str(payload.get(name) or "") for name in ("source", "id", "medium", "channel", "license")}
    medium = fields["medium"] or fields["id"]
    bans_of_id = bans_of(fields["source"], fields["id"], fields["channel"], fields["license"])
    return bans_of_id | bans_of(fields["source"], medium, fields["channel"], fields["license"])


def _listed(dataset: Dataset, ids: set[str]) -> set[str]:
    """Those of `ids` that name an item of the work list."""
    names: set[str] = set()
    for task in dataset.worklist.iter_units():
        for item in task.items:
            names |= ids & {item.item_id, item.payload.get("id"), item.payload.get("medium")}
    return names


def _names(selection: Selection) -> set[str]:
    """Every name by which a row that was hit could have been listed."""
    units = {unit for unit, _ in selection.samples.values()} | {commit.unit for commit in selection.commits}
    names: set[str] = set()
    for commit in selection.dataset.commits().values():
        if commit.unit not in units:
            continue
        for row in selection.dataset.read_index(commit).to_pylist():
            if selection.match(row):
                names |= _names_of(row)
    return names


def open_derived(uri: str) -> Dataset:
    """A dataset made of another one. `UserError` where it was not."""
    dataset = Dataset.open(uri)
    if not dataset.meta["parents"]:
        raise UserError(
            f"derived={uri}: was not derived from a dataset; name the latents that precompute made of it"
        )
    return dataset


def rewrite_all(selections: list[Selection], reason: str, workers: int) -> dict[str, str]:
    """Rewrites unit by unit, `workers` at a time, each in memory. Returns the units that failed, with the
    error.
    """

    def work(selection: Selection, commit: Commit) -> tuple[str, str]:
        dataset = selection.dataset
        try:
            rewrite_unit(dataset, commit, selection.match, reason)
        except OSError as error:
            log.error("%s: unit %s could not be rewritten: %s", dataset.uri, commit.unit, error)
            return f"{dataset.uri}#{commit.unit}", f"{type(error).__name__}: {error}"
        return "", ""

    jobs = []
    with ThreadPoolExecutor(workers) as pool:
        for selection in selections:
            jobs += [pool.submit(work, selection, commit) for commit in selection.commits]
    outcomes = [job.result() for job in jobs]
    return {unit: error for unit, error in outcomes if error}


def _without(dataset: Dataset, commit: Commit, match: Match, reason: str, scratch: Path) -> Shard:
    """The shard of a unit with holes for its matching rows.

    Samples that were already damaged also become holes; each is logged.
    """
    table = dataset.read_index(commit)
    fixed = {*(name for name, _ in CORE), "members"}
    columns = pa.schema([column for column in table.schema if column.name not in fixed])
    tar = scratch / "old.tar"
    if commit.tar:
        dataset.store.get_file(commit.tar.name, tar)
    rows = []
    # ordinals stay: every other row keeps its position
    for record in sorted(table.to_pylist(), key=lambda record: int(record["ordinal"])):
        row = Row(
            record["item_id"], record["key"], Status(record["status"]), record["reason"], record["detail"]
        )
        row.columns = {name: record[name] for name in columns.names}
        row.members = _read_members(tar, record) if row.status == Status.KEPT else {}
        if match(record) and not _is_empty(record, reason):
            rows.append(_hole(row, reason))
        elif row.status == Status.KEPT and not row.members:
            log.warning("%s: %s was already damaged and is a hole now", dataset.uri, row.key)
            rows.append(_hole(row, str(Reason.DAMAGED)))
        else:
            rows.append(row)
    return write_shard(scratch, rows, columns)


def _read_members(tar: Path, record: ClipRow) -> dict[str, bytes]:
    """Extension -> bytes of a sample; none where one has other bytes than the index says."""
    members = {}
    with tar.open("rb") as file:
        for member in members_of(record):
            file.seek(member.offset)
            try:
                members[member.ext] = check_member(file.read(member.size), member, tar.name)
            except DamagedMemberError:
                return {}
    return members


def _hole(row: Row, reason: str) -> Row:
    """The row without its content. `removed` is only what was kept, so that a reader can count its holes."""
    columns = {name: value if name in STAYS else None for name, value in row.columns.items()}
    status = Status.REMOVED if row.status == Status.KEPT else row.status
    return Row(row.item_id, row.key, status, reason, None, columns)


def _is_empty(row: ClipRow, reason: str) -> bool:
    if row["status"] == Status.KEPT:
        return False
    return row["status"] == Status.REMOVED or bool(row["reason"] == reason)
