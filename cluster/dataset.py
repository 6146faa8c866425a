"""A dataset at a URI: frozen work list, shards, commits with generations, snapshots, tombstones.

    dataset = Dataset.create_or_open(uri, "clips", config, parents=[])
    dataset.worklist.append(items, unit_size=8)       # new items become new units; known ids are skipped
    dataset.commit(unit, 0, shard, statistics)        # data first, the commit object last
    Dataset.open(uri).snapshot()                      # what a training run or a derived dataset pins

The contract between rooms. Readers trust commits only, and no object is ever overwritten;
docs/commit-protocol.md draws it. It runs no work (cluster.units does) and does not know what a sample is.
"""

import datetime
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import pyarrow as pa

from cluster.jsonl import JsonObject
from cluster.objects import RESTORE, DamagedDatasetError, list_own, open_list
from cluster.seals import open_json, open_parquet, seal_json, seal_table
from cluster.shards import Shard
from cluster.storage import Store, file_sha256, open_store
from cluster.worklist import WorkList
from configs.load import SettingsTree, UserError, describe_difference, semantic_hash

log = logging.getLogger(__name__)
# raised when a reader of today could not read what is written tomorrow
SCHEMA_VERSION = 1
# a commit is a request of about 1 kB: these wait for the network
COMMIT_READERS = 8
# in memory at once where commits are read one by one
COMMITS_AT_ONCE = 64
TOMBSTONE = pa.schema([("key", pa.string()), ("reason", pa.string()), ("date", pa.string())])


# numbers that a stage wants merged over the dataset, by names of its own: sums and counts, nested or not
Statistics = dict[str, Any]


class Parent(TypedDict):
    """What a dataset was made of: where it is, and the id of the snapshot that was read."""

    uri: str
    snapshot: NotRequired[str]


class DatasetMeta(TypedDict):
    """dataset.json, by which a dataset is recognised. `config`: the semantic settings it was made with."""

    kind: str
    schema_version: int
    config: SettingsTree
    parents: list[Parent]
    semantic_hash: str


@dataclass(frozen=True)
class Part:
    """A committed object: name below the dataset root, bytes, sha256 hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """The record that makes a unit's shard visible.

    `statistics`: plain numbers that a stage wants merged over the dataset; `facts` in the stored JSON.
    """

    unit: str
    generation: int
    tar: Part | None
    index: Part
    counts: dict[str, int]
    semantic_hash: str
    statistics: Statistics = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        data = asdict(self)
        # the stored name is older than ours: datasets that exist must stay readable
        data["facts"] = data.pop("statistics")
        return data

    @staticmethod
    def from_json(data: JsonObject) -> "Commit":
        tar = Part(**data["tar"]) if data["tar"] else None
        fields = {name: value for name, value in data.items() if name != "facts"}
        fields.update(tar=tar, index=Part(**data["index"]), statistics=data.get("facts", {}))
        return Commit(**fields)


@dataclass(frozen=True)
class Snapshot:
    """A fixed list of commits, sorted by unit. `id`: hash of their units, generations and index hashes."""

    id: str
    uri: str
    commits: tuple[Commit, ...]

    def to_json(self) -> JsonObject:
        return {"id": self.id, "uri": self.uri, "commits": [commit.to_json() for commit in self.commits]}

    @staticmethod
    def from_json(data: JsonObject) -> "Snapshot":
        return Snapshot(
            data["id"], data["uri"], tuple(Commit.from_json(commit) for commit in data["commits"])
        )

    @staticmethod
    def of(uri: str, commits: Iterable[Commit]) -> "Snapshot":
        ordered = tuple(sorted(commits, key=lambda commit: commit.unit))
        identity = json.dumps([(c.unit, c.generation, c.index.sha256) for c in ordered])
        return Snapshot(hashlib.sha256(identity.encode()).hexdigest(), uri, ordered)


class Dataset:
    """A dataset that exists; made by `open` or `create_or_open`. `meta` is dataset.json."""

    def __init__(self, store: Store, meta: DatasetMeta):
        self.store = store
        self.meta = meta
        self.worklist = WorkList(store)
        self.uri = store.uri

    @staticmethod
    def open(uri: str, kind: str | None = None) -> "Dataset":
        """The dataset at `uri`. `UserError` where there is none, or it is of another kind."""
        store = open_store(uri)
        try:
            meta = cast(DatasetMeta, open_json(store.read("dataset.json")))
        except FileNotFoundError:
            fix = "check the path or make it first"
            raise UserError(f"{uri}: no dataset here (dataset.json is missing); {fix}") from None
        except ValueError as error:
            raise UserError(f"{uri}/dataset.json: damaged ({error}); restore it from a copy") from None
        if meta["schema_version"] != SCHEMA_VERSION:
            version = f"has schema version {meta['schema_version']}, this code reads {SCHEMA_VERSION}"
            raise UserError(f"{uri}: {version}; use the release that made it")
        if kind and meta["kind"] != kind:
            raise UserError(f"{uri}: is a dataset of {meta['kind']}, need one of {kind}")
        return Dataset(store, meta)

    @staticmethod
    def create_or_open(uri: str, kind: str, config: SettingsTree, parents: list[Parent]) -> "Dataset":
        """The dataset at `uri`, new or existing. `config` holds semantic settings only.

        `UserError` with the difference where the existing one was made with other semantic settings, or of
        other parents.
        """
        store = open_store(uri, writable=True)
        identity = _identity(config, parents)
        meta: DatasetMeta = {
            "kind": kind,
            "schema_version": SCHEMA_VERSION,
            "config": config,
            "parents": parents,
            "semantic_hash": semantic_hash(identity),
        }
        try:
            store.put("dataset.json", seal_json({**meta}))
        except FileExistsError:
            existing = Dataset.open(uri, kind)
            was = _identity(existing.meta["config"], existing.meta["parents"])
            if semantic_hash(was) != meta["semantic_hash"]:
                difference = describe_difference(was, identity)
                raise UserError(
                    f"{uri} was made with other settings: {difference}; use these, or another output"
                ) from None
            return existing
        return Dataset(store, meta)

    def commits_of(self, units: Iterable[str]) -> dict[str, Commit]:
        """The first commit of each of these units that has one."""
        commits = {}
        for unit in units:
            try:
                commits[unit] = self.read_commit(f"commits/{unit}.0.json")
            except FileNotFoundError:
                continue
        return commits

    def committed_units(self) -> set[str]:
        """Names of units with any commit, by a fresh listing."""
        return {name.removeprefix("commits/").split(".")[0] for name in list_own(self.store, "commits")}

    def commits(self) -> dict[str, Commit]:
        """The commit of the highest generation of each unit. `DamagedDatasetError` for an unreadable one."""
        with ThreadPoolExecutor(COMMIT_READERS) as pool:
            return {commit.unit: commit for commit in pool.map(self.read_commit, self.commit_names())}

    def iter_commits(self) -> Iterator[Commit]:
        """The same one by one, in order of the units, without holding them all."""
        with ThreadPoolExecutor(COMMIT_READERS) as pool:
            for names in _batched(self.commit_names(), COMMITS_AT_ONCE):
                yield from pool.map(self.read_commit, names)

    def commit_names(self) -> list[str]:
        """The object of the highest generation of each unit, in order of the units."""
        newest: dict[str, tuple[int, str]] = {}
        for name in list_own(self.store, "commits"):
            unit, generation, _ = name.removeprefix("commits/").split(".")
            newest[unit] = max(newest.get(unit, (-1, "")), (int(generation), name))
        return [name for _, (_, name) in sorted(newest.items())]

    def read_commit(self, name: str) -> Commit:
        """The commit in the object `name`. `DamagedDatasetError` where it is not one of that unit."""
        try:
            commit = Commit.from_json(open_json(self.store.read(name)))
        except (ValueError, KeyError, TypeError) as error:
            problem = f"damaged: not a commit ({error})"
            raise DamagedDatasetError(f"{self.uri}/{name}: {problem}; {RESTORE}") from None
        # a sealed commit under another's name is whole, and wrong
        if name != f"commits/{commit.unit}.{commit.generation}.json":
            problem = f"damaged: it is of unit {commit.unit}, generation {commit.generation}"
            raise DamagedDatasetError(f"{self.uri}/{name}: {problem}; {RESTORE}")
        return commit

    def snapshot(self) -> Snapshot:
        """All that is committed now, as a fixed list. `DamagedDatasetError` for what other settings made."""
        commits = self.commits().values()
        for commit in commits:
            self._check_own(commit)
        return Snapshot.of(self.uri, commits)

    def _check_own(self, commit: Commit) -> Commit:
        """The commit. `DamagedDatasetError` where it was made with other settings than the dataset has: a
        command of others was still at work here while the output took new ones (cluster.rebind).
        """
        if commit.semantic_hash != self.meta["semantic_hash"]:
            name = f"{self.uri}/commits/{commit.unit}.{commit.generation}.json"
            problem = "made with other settings than those of dataset.json"
            raise DamagedDatasetError(
                f"{name}: {problem}: another command was at work here; use another output"
            )
        return commit

    def read_index(self, commit: Commit) -> pa.Table:
        """A unit's index. `DamagedDatasetError` where it is missing, or its bytes are not those committed."""
        name = f"{self.uri}/{commit.index.name}"
        try:
            data = self.store.read(commit.index.name)
        except FileNotFoundError:
            raise DamagedDatasetError(f"{name}: missing; {RESTORE}") from None
        if len(data) != commit.index.size or hashlib.sha256(data).hexdigest() != commit.index.sha256:
            problem = "damaged: its size or sha256 is not the committed one"
            raise DamagedDatasetError(f"{name}: {problem}; {RESTORE}")
        return open_parquet(data).read(use_threads=False)

    def iter_rows(self, columns: list[str] | None = None) -> Iterator[JsonObject]:
        """Rows of every committed index, unit by unit, with the unit's name in `unit`."""
        for commit in self.iter_commits():
            table = self.read_index(commit)
            for row in (table.select(columns) if columns else table).to_pylist():
                yield {"unit": commit.unit, **row}

    def commit(self, unit: str, generation: int, shard: Shard, statistics: Statistics) -> Commit:
        """Uploads a built shard, data first, and publishes its commit last.

        Returns the commit that counts: this one, or the one that another worker published before.
        """
        tar = _part("shards", unit, shard.tar) if shard.tar else None
        index = _part("index", unit, shard.index)
        if tar and shard.tar:
            self.store.put_file(tar.name, shard.tar)
        self.store.put_file(index.name, shard.index)
        commit = Commit(unit, generation, tar, index, shard.counts, self.meta["semantic_hash"], statistics)
        name = f"commits/{unit}.{generation}.json"
        try:
            self.store.put(name, seal_json(commit.to_json()))
        except FileExistsError:
            return self._check_own(self.read_commit(name))
        return commit

    def bury(self, keys: dict[str, str]) -> None:
        """Appends a tombstone file; `keys`: sample key -> reason. Every reader skips these from now on."""
        today = datetime.date.today().isoformat()
        rows = [{"key": key, "reason": reason, "date": today} for key, reason in sorted(keys.items())]
        data = seal_table(pa.Table.from_pylist(rows, schema=TOMBSTONE))
        index = len(list_own(self.store, "tombstones"))
        while True:
            try:
                return self.store.put(f"tombstones/{index:06d}.parquet", data)
            except FileExistsError:  # another driver buried something since the listing
                index += 1

    def tombstones(self) -> frozenset[str]:
        """Keys removed later: holes, never read from the moment they are known."""
        return frozenset(self.buried())

    def buried(self, first: int = 0) -> dict[str, str]:
        """Key -> reason of every tombstone; the newest reason where there are several.

        `first`: only of the files from this one on, which were added after the `first` ones before it.
        """
        reasons: dict[str, str] = {}
        for name in list_own(self.store, "tombstones")[first:]:
            table = open_list(self.store, name).read(use_threads=False)
            reasons.update(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))
        return reasons


def _identity(config: SettingsTree, parents: list[Parent]) -> SettingsTree:
    """What makes two datasets the same: settings and the content of their parents, not the URIs of these."""

    def content(parent: Parent) -> dict[str, object]:
        is_pinned = "snapshot" in parent  # then the snapshot says what it holds, wherever it is
        return {name: value for name, value in parent.items() if not (is_pinned and name == "uri")}

    return {"config": config, "parents": [content(parent) for parent in parents]}


def _batched(names: list[str], size: int) -> Iterator[list[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def _part(folder: str, unit: str, path: Path) -> Part:
    """A file under a name made of its bytes, so that it cannot collide with what a dead worker left."""
    sha256 = file_sha256(path)
    return Part(part_name(folder, unit, sha256, path.suffix), path.stat().st_size, sha256)


def part_name(folder: str, unit: str, sha256: str, suffix: str) -> str:
    """Where the object of a unit with these bytes is, below the dataset's root."""
    return f"{folder}/{unit}-{sha256[:16]}{suffix}"
