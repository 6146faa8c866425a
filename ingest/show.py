"""`ingest show DATASET key=…`: where a sample comes from, why one was refused, and what holds it.

    for entry in show(ShowConfig("out/clips", key="youtube_abc_10240")):
        print("\\n".join(lines_of(entry)))

Reads the index unit by unit and holds one unit at a time; `unit=` and an id of the work list are not faster
than a key, only more exact. Of a kept sample it also reads the JSON member, where permission is kept. It
writes nothing.

`holders_of` searches `places=[…]` as prove-removed does: latents, runs, exports and files that
hold the samples.

Covered: rows of the newest generation, their tombstones and bans, and items that are listed without a row.
Not covered: older generations, and titles and addresses of what was removed, which no longer exist.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

import pyarrow as pa

from cluster.dataset import Commit, Dataset
from cluster.jsonl import JsonObject
from cluster.objects import list_own, open_list
from cluster.shards import DamagedMemberError, Member, Status, members_of, read_member
from cluster.worklist import UnitTask
from configs.load import UserError
from configs.terminal import printable
from ingest.licenses import url_of
from ingest.places import look_into
from ingest.proof import NotSearched
from ingest.rows import ClipRow
from ingest.sample import MEANINGS, RETRYABLE, Reason, bans_of, without_tokens
from ingest.search import Found, Search, search_places
from ingest.traces import Traces

SELECTORS = ("key", "item", "id", "media", "unit")
CORE = ("ordinal", "item_id", "key", "status", "reason", "detail", "members")
# bytes for the comparison of samples: of no use to a person, and not JSON
FINGERPRINTS = ("image_hash", "audio_fingerprint", "audio_sequence", "image_palette")
MAX_COMPARED = 20_000  # names looked at for "did you mean", about a second of comparing
MAX_NAME_CHARS = 200  # a longer one makes a comparison slow, and is no id
LISTED = "listed"  # the status of an item that no unit has answered yet


@dataclass
class ShowConfig:
    """One of `key`, `item`, `media` and `unit`; `id` is an older name of `item`."""

    dataset: str  # a folder or URI
    key: str = ""  # of a sample
    item: str = ""  # id of an item, alone or as source:id
    id: str = ""  # the same: its older name
    media: str = ""  # a medium's id, alone or as source:id: all its clips
    unit: str = ""  # name of a unit: all its rows
    # folders of latents, runs, exports and others, to be searched for what holds the samples
    places: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if sum(bool(getattr(self, name)) for name in SELECTORS) != 1:
            raise UserError(f"name what to show by one of {', '.join(f'{name}=…' for name in SELECTORS)}")

    @property
    def selector(self) -> str:
        """The one setting that is given; `item` for its older name."""
        name = next(name for name in SELECTORS if getattr(self, name))
        return "item" if name == "id" else name

    @property
    def value(self) -> str:
        return str(next(value for name in SELECTORS if (value := getattr(self, name))))


@dataclass(frozen=True)
class Tombstone:
    """`selector`: "key" of the sample itself, or by which ban it is kept out: media, channel or license."""

    selector: str
    reason: str
    date: str


@dataclass(frozen=True)
class Entry:
    """A row of the index, or (`status` "listed") an item of the work list that no unit has answered yet.

    `meaning`: of the reason, for a person. `provenance`: the row's other columns. `metadata`: the JSON member
    of a kept clip, with its permission; None where there is none. `attempt`: 0 for the first try.
    """

    unit: str
    attempt: int | None
    item_id: str
    status: str
    key: str | None = None
    reason: str | None = None
    detail: str | None = None
    meaning: str = ""
    tombstones: list[Tombstone] = field(default_factory=list)
    generation: int | None = None
    ordinal: int | None = None
    provenance: JsonObject = field(default_factory=dict)
    metadata: JsonObject | None = None
    tar: str | None = None
    members: list[Member] = field(default_factory=list)
    damage: str = ""

    def to_json(self) -> JsonObject:
        return asdict(self)


def show(config: ShowConfig) -> Iterator[Entry]:
    """What the dataset holds of the selection, in the order of its units; then items that wait.

    `UserError` where nothing matches, with the names nearest to what was looked for.
    """
    dataset = Dataset.open(config.dataset)
    tombstones = _read_tombstones(dataset)
    nearest = Nearest(config.value)
    empty = True
    for commit in dataset.iter_commits():
        if config.unit not in ("", commit.unit):
            nearest.add([commit.unit])
            continue
        table = dataset.read_index(commit)
        rows = table.filter(_mask(table, config)).to_pylist()
        if not rows and config.selector != "unit":
            nearest.add(_names(table, config.selector))
        attempt = _attempt_of(dataset, commit.unit) if rows else None
        for row in rows:
            empty = False
            yield _entry(dataset, commit, row, attempt, tombstones)
    for entry in _waiting(dataset, config):
        empty = False
        yield entry
    if empty:
        raise UserError(f"{config.dataset}: nothing has {config.selector}={config.value}{nearest.hint()}")


class Holders(TypedDict):
    """What holds samples, and where nobody could look."""

    held_by: list[Found]
    not_searched: list[NotSearched]


def holders_of(config: ShowConfig, keys: set[str]) -> Holders:
    """What at and below `places` holds the samples with these keys, and what of the dataset itself does.

    Without `places` or keys, nothing is searched. `UserError` where a place is not there.
    """
    if not config.places or not keys:
        return {"held_by": [], "not_searched": []}
    dataset = Dataset.open(config.dataset)
    places = look_into([config.dataset, *config.places])
    search = Search(places, lambda row: row["key"] in keys, Traces(keys))
    search_places(search, dataset)
    missed: list[NotSearched] = [{"place": place, "why": why} for place, why in sorted(places.unread.items())]
    return {"held_by": [*search.found, *search.models], "not_searched": missed}


class Nearest:
    """The names most like the one that was looked for, of a bounded number that was seen."""

    def __init__(self, name: str):
        self.name = name[:MAX_NAME_CHARS]
        self.best: list[str] = []
        self.compared = 0

    def add(self, names: list[str]) -> None:
        names = names[: MAX_COMPARED - self.compared]
        self.compared += len(names)
        short = [name for name in names if len(name) <= MAX_NAME_CHARS]
        self.best = difflib.get_close_matches(self.name, {*self.best, *short}, 3)

    def hint(self) -> str:
        """The end of a message."""
        names = ", ".join(_one_line(name) for name in self.best)
        return f"; nearest: {names}" if names else "; ingest report shows what there is"


def _mask(table: pa.Table, config: ShowConfig) -> pa.Array:
    """Which rows of an index are selected: bool [num_rows]."""
    value = config.value
    if config.selector == "unit":
        return pa.array([True] * len(table))
    names = table[_column(table, config.selector)].to_pylist()
    if config.selector == "key":
        return pa.array([name == value for name in names])
    items = table["item_id"].to_pylist()
    # an item id is source:id, and people have either
    return pa.array(
        [
            value in (name, item, item.partition(":")[2], f"{item.partition(':')[0]}:{name}")
            for name, item in zip(names, items, strict=True)
        ]
    )


def _column(table: pa.Table, selector: str) -> str:
    column = {"key": "key", "item": "item_id", "media": "media_id"}[selector]
    return column if column in table.column_names else "item_id"


def _names(table: pa.Table, selector: str) -> list[str]:
    return [name for name in table[_column(table, selector)].unique().to_pylist() if name]


def _entry(
    dataset: Dataset,
    commit: Commit,
    row: ClipRow,
    attempt: int | None,
    tombstones: dict[str, tuple[str, str]],
) -> Entry:
    members = members_of(row)
    provenance: JsonObject = {
        name: value for name, value in row.items() if name not in (*CORE, *FINGERPRINTS)
    }
    if provenance.get("scores"):
        provenance["scores"] = json.loads(provenance["scores"])
    metadata, damage = _metadata(dataset, commit, members)
    return Entry(
        commit.unit,
        attempt,
        row["item_id"],
        row["status"],
        row["key"],
        row["reason"],
        row["detail"],
        meaning_of(row["reason"]) if row["reason"] else "",
        list(_tombstones_of(row, tombstones)),
        commit.generation,
        row["ordinal"],
        provenance,
        metadata,
        commit.tar.name if commit.tar and members else None,
        members,
        damage,
    )


def _metadata(dataset: Dataset, commit: Commit, members: list[Member]) -> tuple[JsonObject | None, str]:
    """The JSON member of a sample, and what is wrong with it."""
    member = next((member for member in members if member.ext == "json"), None)
    if member is None or commit.tar is None:
        return None, ""
    try:
        return json.loads(read_member(dataset.store, commit.tar.name, member)), ""
    except DamagedMemberError as error:
        return None, str(error)


def meaning_of(reason: str) -> str:
    """What a stored reason means, in one line, and whether it is final."""
    if reason not in list(Reason):
        return "buried by ingest curate, or for the reason given to ingest remove"
    is_retryable = reason in RETRYABLE
    return f"{MEANINGS[Reason(reason)]} ({'retryable' if is_retryable else 'final'})"


def _read_tombstones(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Key, or hash of a ban -> reason and date of the newest tombstone."""
    newest: dict[str, tuple[str, str]] = {}
    for name in list_own(dataset.store, "tombstones"):
        for row in open_list(dataset.store, name).read(use_threads=False).to_pylist():
            newest[row["key"]] = (row["reason"], row["date"])
    return newest


def _tombstones_of(row: ClipRow, tombstones: dict[str, tuple[str, str]]) -> Iterator[Tombstone]:
    if row["key"] in tombstones:
        yield Tombstone("key", *tombstones[row["key"]])
    source = row.get("source") or row["item_id"].partition(":")[0]
    texts = (row.get("media_id") or "", row.get("channel") or "", row.get("license") or "")
    for ban in sorted(bans_of(source, *texts) & tombstones.keys()):
        yield Tombstone(ban.partition(":")[0], *tombstones[ban])


def _attempt_of(dataset: Dataset, unit: str) -> int | None:
    """Which try of its items a unit is; None where the work list does not have it."""
    task = next(dataset.worklist.iter_units(_number(unit)), None)
    return task.items[0].attempt if task and task.unit == unit else None


def _number(unit: str) -> int:
    return int(unit[1:]) if unit[1:].isdecimal() else 0


def _waiting(dataset: Dataset, config: ShowConfig) -> Iterator[Entry]:
    """Items of the work list that are selected and have no row yet. Keys exist only once a clip was cut."""
    if config.selector == "key":
        return
    committed = dataset.committed_units()
    for task in dataset.worklist.iter_units():
        if task.unit not in committed:
            yield from _listed(task, config)


def _listed(task: UnitTask, config: ShowConfig) -> Iterator[Entry]:
    for item in task.items:
        payload = item.payload
        id = str(payload.get("id") or "")
        medium = str(payload.get("medium") or id)
        source = str(payload.get("source") or "")
        names = {
            "item": {item.item_id, id},
            "media": {item.item_id, medium, f"{source}:{medium}"},
            "unit": {task.unit},
        }
        if config.value in names[config.selector]:
            fields = ("source", "url", "channel", "title", "license")
            provenance = {name: payload[name] for name in fields if payload.get(name)}
            if "url" in provenance:
                provenance["url"] = without_tokens(str(provenance["url"]))
            yield Entry(task.unit, item.attempt, item.item_id, LISTED, provenance=provenance)


def lines_of(entry: Entry) -> list[str]:
    """An entry for a terminal: a line per field. Texts of the web are made inert and stay on their line."""
    fields: list[tuple[str, Any]] = [
        ("key", entry.key),
        ("item", entry.item_id),
        ("status", _status_line(entry)),
        ("detail", entry.detail),
        ("meaning", entry.meaning),
        *((f"tombstone ({stone.selector})", f"{stone.reason}, {stone.date}") for stone in entry.tombstones),
        *entry.provenance.items(),
        ("license text", url_of(entry.provenance.get("license") or "")),
        ("license stated", _license_stated(entry)),
        ("permission", _permission(entry)),
        ("unit", _unit_line(entry)),
        ("tar", entry.tar),
        *((member.ext, f"bytes {member.offset} to {member.end}") for member in entry.members),
        ("damaged", entry.damage),
    ]
    return [f"{name:18} {_one_line(value)}" for name, value in fields if value not in (None, "", {}, [])]


def _status_line(entry: Entry) -> str:
    if entry.status == LISTED:
        return "listed, not scraped yet"
    buried = " (buried: no reader takes it)" if entry.status == Status.KEPT and entry.tombstones else ""
    return f"{entry.status}: {entry.reason}" if entry.reason else f"{entry.status}{buried}"


def _unit_line(entry: Entry) -> str:
    fields = [entry.unit]
    if entry.ordinal is not None:
        fields.append(f"generation {entry.generation}, row {entry.ordinal}")
    if entry.attempt is not None:
        fields.append(f"attempt {entry.attempt + 1}")
    return ", ".join(fields)


def _permission(entry: Entry) -> Any:
    """What was found of permission when the medium was fetched; scrape keeps it in the sample's `meta`."""
    return ((entry.metadata or {}).get("meta") or {}).get("permission")


def _license_stated(entry: Entry) -> Any:
    """The license in the words of its source, as far as they were kept."""
    meta = (entry.metadata or {}).get("meta") or {}
    return {name: value for name, value in meta.items() if name.startswith("license") and value}


def _one_line(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return " ".join(printable(text).split())
