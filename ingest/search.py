"""Where samples still are: in datasets, models and files of places, object by object.

    search = Search(look_into(["out"]), match, traces=Traces({"urls_m1_0"}))
    search_places(search, Dataset.open("out/clips"))
    search.found, search.models, search.places.unread

No commit is trusted: every shard and index object is read, a tar byte by byte, and one whose bytes are not
those of its name goes to `unread`. Other files are known by their names and texts, media by their names
alone, weights by what is recorded of them. It writes nothing.
"""

import hashlib
import mmap
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypedDict

from cluster.dataset import Dataset
from cluster.seals import open_parquet
from cluster.shards import CORE, Status
from cluster.storage import absolute
from ingest.places import File, Places, unrecorded
from ingest.remove import STAYS
from ingest.rows import ClipRow
from ingest.seen import Match, Selection, seen_in
from ingest.traces import Traces

# by name alone: what is in them was encoded
MEDIA = frozenset(".wav .flac .mp3 .ogg .m4a .jpg .jpeg .png .webp .gif .mp4 .webm .mkv .mov .npy".split())
# numbers: what they learnt from is recorded beside them
WEIGHTS = frozenset(".safetensors .bin .pt .pth .ckpt".split())
PACKED = frozenset(".zip .gz .tgz .bz2 .xz .zst .7z .rar .npz .parquet .arrow".split())
# records of removals, and earlier reports: they say what was removed, and must
RECORDS = re.compile(r"(.*/)?(runs/\d{8}T\d{6}-(remove|refresh|prove-removed)-[\d-]+/|removals/).*")
# not content: the key ends in the time, and ids stay in a hole so that it is found again
KEPT_COLUMNS = STAYS | {name for name, _ in CORE} | {"members", "start_s", "unit"}
MAX_KEYS = 20  # named in a finding; all are counted


class Found(TypedDict):
    """A place that holds `samples` of what is looked for, some of their `keys`, and what would end that."""

    place: str
    kind: str
    samples: int
    keys: list[str]
    detail: str
    fix: str


@dataclass
class Search:
    """What is looked for, and what came of it so far. `models`: those that may have learnt from it. `kept`:
    what stays by design, counted.
    """

    places: Places
    match: Match
    traces: Traces = field(default_factory=lambda: Traces(()))
    found: list[Found] = field(default_factory=list)
    models: list[Found] = field(default_factory=list)
    objects: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0

    def add(self, place: str, kind: str, names: set[str], detail: str, fix: str) -> None:
        keys = sorted(names & self.traces.keys)
        samples = len(keys) or len(names)
        self.found.append(
            {
                "place": place,
                "kind": kind,
                "samples": samples,
                "keys": keys[:MAX_KEYS],
                "detail": detail,
                "fix": fix,
            }
        )


def search_places(search: Search, dataset: Dataset) -> None:
    """Everything of the places; what comes of it goes into `search`.

    Rows of `dataset` are known by `search.match`, those of others by their keys.
    """
    selections: list[Selection] = []
    for address, each in sorted(search.places.datasets.items()):
        is_own = address == absolute(dataset.uri)
        match: Match = search.match if is_own else (lambda row: row["key"] in search.traces.keys)
        selection = Selection(each, match)
        selections.append(selection)
        state = _states(search, each)
        for file in own_objects(search.places, each, "index"):
            _search_index(search, file, selection, state)
        for file in own_objects(search.places, each, "shards"):
            _search_shard(search, file, each, state)
    for _, file in sorted(search.places.files.items()):
        _search_file(search, file)
    _search_models(search, selections)


def own_objects(places: Places, dataset: Dataset, folder: str) -> Iterator[File]:
    """The objects of a dataset in one of its folders."""
    for name, file in sorted(places.own.get(absolute(dataset.uri), {}).items()):
        if name.startswith(f"{folder}/"):
            yield file


def _states(search: Search, dataset: Dataset) -> dict[str, str]:
    """Object -> which generation of its unit names it; the newest says so."""
    states: dict[str, str] = {}
    newest = set(dataset.commit_names())
    for file in own_objects(search.places, dataset, "commits"):
        try:
            commit = dataset.read_commit(file.name)
        except OSError as error:
            search.places.unread[file.address] = str(error)
            continue
        age = "the newest" if file.name in newest else "an old generation, not purged"
        for part in (commit.tar, commit.index):
            # one that two generations name is the newest's
            if part and not states.get(part.name, "").startswith("the newest"):
                states[part.name] = f"{age}: unit {commit.unit}, generation {commit.generation}"
    return states


def _is_whole(data: bytes | mmap.mmap, name: str) -> bool:
    """An object of a dataset is named by its bytes."""
    return hashlib.sha256(data).hexdigest()[:16] == PurePosixPath(name).stem.rpartition("-")[2]


def rows_of(file: File, search: Search) -> Iterator[ClipRow]:
    """The rows of an index object; none where its bytes are not those of its name: then it is `unread`."""
    try:
        with file.mapped() as mapped:
            data = bytes(mapped)
        if not _is_whole(data, file.name):
            raise OSError("damaged: its bytes are not those that its name tells")
        rows: list[ClipRow] = open_parquet(data).read(use_threads=False).to_pylist()
    except (OSError, ValueError) as error:
        search.places.unread[file.address] = str(error)
        return
    yield from rows


def _search_index(search: Search, file: File, selection: Selection, states: dict[str, str]) -> None:
    unit = file.name.removeprefix("index/").rpartition("-")[0]
    is_clips = selection.dataset.meta["kind"] == "clips"
    found: set[str] = set()
    for row in rows_of(file, search):
        if not selection.match(row):
            continue
        if row["key"]:
            selection.samples[row["key"]] = (unit, row.get("split") or "")
        if holds_content(row, is_clips):
            found.add(row["key"] or row["item_id"])
    search.objects["indexes"] += 1
    if found:
        _add_object(search, file, selection.dataset, "index", found, states)


def holds_content(row: ClipRow, is_clips: bool) -> bool:
    """Whether a row is more than a hole: a sample, or texts and fingerprints of one."""
    texts = any(value is not None for name, value in row.items() if name not in KEPT_COLUMNS)
    return row["status"] == Status.KEPT or texts or bool(is_clips and row["detail"])


def _search_shard(search: Search, file: File, dataset: Dataset, states: dict[str, str]) -> None:
    found = set[str]()
    try:
        with file.mapped() as data:
            found = search.traces.find(data)
            search.num_bytes += len(data)
            if not _is_whole(data, file.name):
                search.places.unread[file.address] = "damaged: its bytes are not those that its name tells"
    except OSError as error:
        search.places.unread[file.address] = str(error)
    search.objects["shards"] += 1
    if found:
        _add_object(search, file, dataset, "shard", found, states)


def _add_object(
    search: Search, file: File, dataset: Dataset, kind: str, found: set[str], states: dict[str, str]
) -> None:
    detail = states.get(file.name, "no commit names it")
    if detail.startswith("the newest"):
        option = f"derived=[{dataset.uri}]" if dataset.meta["parents"] else "by the same selection"
        fix = f"python -m ingest remove … {option}"
    else:
        fix = f"python -m ingest gc {dataset.uri} --purge"
    search.add(file.address, kind, found, f"{dataset.meta['kind']}, {detail}", fix)


def _search_file(search: Search, file: File) -> None:
    """Any other file: by its name, and by its text unless it has none."""
    if RECORDS.fullmatch(file.name):
        search.kept["records of removals"] += 1
        return
    suffix = PurePosixPath(file.name).suffix.lower()
    # with its folders: the medium itself, where the dataset was made of files, is named by its address
    found = search.traces.find(file.address.encode("utf-8", "surrogateescape"))
    detail = "named in the file's name" if found else ""
    if suffix in WEIGHTS:
        search.objects["weights, by what is recorded of them"] += 1
        if not any(file.address.startswith(f"{model}/") for model in search.places.models):
            search.places.unread[file.address] = "weights, and nothing says what they learnt from"
    elif suffix in PACKED:
        search.places.unread[file.address] = "packed: unpack it, search the folder, or delete it"
    elif suffix in MEDIA:
        search.objects["media and arrays, by their names"] += 1
    else:
        search.objects["files"] += 1
        try:
            with file.mapped() as data:
                inside = search.traces.find(data)
                search.num_bytes += len(data)
            detail = detail or "named in its text"
            found |= inside
        except OSError as error:
            search.places.unread[file.address] = str(error)
    if found:
        search.add(file.address, "file", found, detail, "delete it, or make it again")


def _search_models(search: Search, selections: list[Selection]) -> None:
    for address, (store, is_export) in sorted(search.places.models.items()):
        search.objects["models"] += 1
        why = unrecorded(store, is_export)
        if why:
            search.places.unread[address] = why
            continue
        try:
            seen = list(seen_in(address, store, is_export, selections))
        except (OSError, ValueError, KeyError, TypeError) as error:
            search.places.unread[address] = f"what it learnt from cannot be read: {error}"
            continue
        for entry in seen:
            detail = f"may have learnt from {entry['samples']} of them: step {entry['step']}"
            search.models.append(
                {
                    "place": f"{address}/{entry['checkpoint']}" if not is_export else address,
                    "kind": "model",
                    "samples": entry["samples"],
                    "keys": [],
                    "detail": detail,
                    "fix": "train again without it and delete this, or decide to keep it: models=false",
                }
            )
