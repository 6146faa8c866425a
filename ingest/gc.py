"""`ingest gc DATASET`: deletes what no commit names: old generations, orphans, unfinished uploads.

    gc(GcConfig("out/clips"))                  # what has been garbage for a week
    gc(GcConfig("out/clips", purge=True))      # at once: after a take-down

What the highest generation of a unit names is never deleted. A superseded generation is garbage from the
moment its successor was committed, anything else from when it was written; both wait `grace_s`, for readers
that still pin them. `purge` waits for nothing, except for shards of units without any commit: a scrape may be
about to commit them, and no removed sample can be in them. Do not run it beside `ingest remove`, or beside a
scrape that resumes after a week.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

from cluster.dataset import Commit, Dataset, Part
from cluster.objects import list_own
from configs.load import UserError, at_least

WEEK_S = 7 * 24 * 3600.0


@dataclass
class GcConfig:
    """What is deleted, and when."""

    dataset: str  # a folder or URI
    grace_s: float = WEEK_S  # how long garbage stays
    purge: bool = False  # deletes it at once: runs that pin it cannot resume

    def __post_init__(self) -> None:
        at_least(self, 0, "grace_s")


@dataclass(frozen=True)
class Garbage:
    """`kind`: superseded (a commit), orphan (a tar or index), unfinished (an upload). `due`: may go now."""

    kind: str
    name: str
    due: bool


class GcSummary(TypedDict):
    """Names `deleted` (in a dry run: that would be) and `waiting`, and the bytes of the former."""

    dataset: str
    dry_run: bool
    deleted: list[str]
    waiting: list[str]
    num_bytes: int


def gc(config: GcConfig, dry_run: bool = False) -> GcSummary:
    """Deletes what is due."""
    dataset = Dataset.open(config.dataset)
    garbage = list(find_garbage(dataset, config, time.time()))
    due = [piece for piece in garbage if piece.due]
    num_bytes = sum(dataset.store.size(piece.name) for piece in due if piece.kind != "unfinished")
    for piece in due if not dry_run else []:
        if piece.kind == "unfinished":
            dataset.store.discard(piece.name)
        else:
            dataset.store.delete(piece.name)
    return {
        "dataset": config.dataset,
        "dry_run": dry_run,
        "deleted": [piece.name for piece in due],
        "waiting": [piece.name for piece in garbage if not piece.due],
        "num_bytes": num_bytes,
    }


def find_garbage(dataset: Dataset, config: GcConfig, now_s: float) -> Iterator[Garbage]:
    """What no commit of a highest generation names. Commits come first: none may outlive what it names.

    `UserError` where one of those commits is damaged: nobody can know what it names.
    """
    # listed before the commits are read: what a commit made since names is then seen as live
    names = [*list_own(dataset.store, "shards"), *list_own(dataset.store, "index")]
    try:
        newest = dataset.commits()
    except OSError as error:
        raise UserError(f"{error}; nothing was deleted") from error
    live = {stored.name for commit in newest.values() for stored in _parts(commit)}
    waiting: set[str] = set()
    for name, successor in _superseded(dataset):
        due = config.purge or now_s - dataset.store.modified(successor) >= config.grace_s
        yield Garbage("superseded", name, due)
        waiting |= set() if due else _named(dataset, name)
    for name in (name for name in names if name not in live):
        unit = name.split("/")[-1].rpartition("-")[0]
        old = now_s - dataset.store.modified(name) >= config.grace_s
        due = name not in waiting and (old or (config.purge and unit in newest))
        yield Garbage("orphan", name, due)
    for name, begun_s in sorted(dataset.store.unfinished().items()):
        yield Garbage("unfinished", name, config.purge or now_s - begun_s >= config.grace_s)


def _superseded(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """(a commit's name, that of the next generation of its unit)."""
    generations: dict[str, list[int]] = {}
    for name in list_own(dataset.store, "commits"):
        unit, generation, _ = name.removeprefix("commits/").split(".")
        generations.setdefault(unit, []).append(int(generation))
    for unit, numbers in sorted(generations.items()):
        for old, successor in itertools.pairwise(sorted(numbers)):
            yield f"commits/{unit}.{old}.json", f"commits/{unit}.{successor}.json"


def _named(dataset: Dataset, name: str) -> set[str]:
    try:
        return {stored.name for stored in _parts(dataset.read_commit(name))}
    except OSError:
        # a damaged old commit protects nothing; its objects go by their own age
        return set()


def _parts(commit: Commit) -> list[Part]:
    return [stored for stored in (commit.index, commit.tar) if stored]
