"""`ingest verify DATASET`: reads everything that is committed and reports where each flipped byte is.

`verify(uri)` yields one line per problem; none means the dataset is whole. It changes nothing.
"""

import hashlib
from collections.abc import Iterator

from cluster.dataset import Commit, Dataset, Part
from cluster.objects import list_own
from cluster.shards import DamagedMemberError, IndexRow, Status, members_of, read_member
from cluster.storage import Store, open_store
from configs.load import UserError


def verify(uri: str) -> Iterator[str]:
    """Problems at `uri`: missing or damaged objects, wrong counts, keys kept twice, items without a row."""
    try:
        dataset = Dataset.open(uri)
    except UserError as error:
        if not open_store(uri).exists("dataset.json"):
            raise
        yield str(error)
        return
    listed, problems = _listed(dataset)
    yield from problems
    # rows of latents are of the clips' items, not of their own work list's
    has_own_items = dataset.meta["kind"] == "clips"
    seen: dict[str, str] = {}
    newest = set(dataset.commit_names())
    for name in list_own(dataset.store, "commits"):
        try:
            commit = dataset.read_commit(name)
        except OSError as error:
            yield str(error)
            continue
        if commit.semantic_hash != dataset.meta["semantic_hash"]:
            yield f"{name}: made with other settings than those of dataset.json"
        if name not in newest:
            continue
        damages = [_damage(dataset, stored) for stored in (commit.index, commit.tar) if stored]
        yield from filter(None, damages)
        if damages[0] is None:
            items = listed.get(commit.unit) if has_own_items else None
            yield from _rows(dataset, commit, seen, check_members=any(damages[1:]), items=items)


def _listed(dataset: Dataset) -> tuple[dict[str, int], list[str]]:
    """Unit -> a hash of its items' ids, and what is wrong with work list, tombstones and unit numbers."""
    listed: dict[str, int] = {}
    try:
        for task in dataset.worklist.iter_units():
            listed[task.unit] = hash(frozenset(item.item_id for item in task.items))
    except OSError as error:
        return {}, [str(error)]
    problems = []
    for index, unit in enumerate(listed):
        if unit != f"u{index:07d}":
            problems.append(f"worklist: unit {unit} is at index {index}")
    for name in dataset.commit_names():
        if name.removeprefix("commits/").split(".")[0] not in listed:
            problems.append(f"{name}: of a unit that the work list does not have")
    try:
        dataset.buried()
    except OSError as error:
        problems.append(str(error))
    return listed, problems


def _damage(dataset: Dataset, part: Part) -> str | None:
    try:
        data = dataset.store.read(part.name)
    except FileNotFoundError:
        return f"{part.name}: missing"
    if len(data) != part.size:
        return f"{part.name}: {len(data)} bytes, committed were {part.size}"
    if hashlib.sha256(data).hexdigest() != part.sha256:
        return f"{part.name}: other bytes than committed (sha256 differs)"
    return None


def _rows(
    dataset: Dataset, commit: Commit, seen: dict[str, str], check_members: bool, items: int | None
) -> Iterator[str]:
    """Checks counts and keys; where the tar is damaged, names the members hit."""
    rows = dataset.read_index(commit).to_pylist()
    samples = [row for row in rows if row["status"] == Status.KEPT]
    if len(samples) != commit.counts.get("kept", 0) or len(rows) != sum(commit.counts.values()):
        yield f"{commit.index.name}: {len(samples)} kept of {len(rows)} rows, the commit says {commit.counts}"
    if items is not None and items != hash(frozenset(row["item_id"] for row in rows)):
        yield f"{commit.index.name}: its rows are not of the items that the work list has for {commit.unit}"
    # a missing tar is reported already: there is no member to name
    has_tar = check_members and commit.tar and dataset.store.exists(commit.tar.name)
    tar = commit.tar.name if has_tar and commit.tar else ""
    for row in samples:
        if row["key"] in seen:
            yield f"{row['key']}: kept twice, in {seen[row['key']]} and {commit.unit}"
        seen[row["key"]] = commit.unit
        if tar:
            yield from _damaged_members(dataset.store, tar, row)


def _damaged_members(store: Store, tar: str, row: IndexRow) -> Iterator[str]:
    for member in members_of(row):
        try:
            read_member(store, tar, member)
        except DamagedMemberError:
            extent = f"bytes {member.offset} to {member.end}"
            yield f"{tar}: damaged in member {row['key']}.{member.ext} ({extent})"
