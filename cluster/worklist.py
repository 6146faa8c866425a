"""The frozen work list of a dataset: what is to be done, cut into units, in files that are only ever added.

    dataset.worklist.append(items, unit_size=8)     # new items become new units; known ids are skipped
    for task in dataset.worklist.iter_units(): …    # in order, a few at a time in memory

A unit that has rows worth another attempt leaves a mark beside the list before it is committed, so that no
commit has to be read in search of them.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from cluster.jsonl import JsonObject
from cluster.objects import list_own, open_list
from cluster.seals import seal_table
from cluster.storage import Store

# items in one file of the list: a source of millions is appended in bounded memory
LIST_ITEMS = 50_000
# rows in a group of such a file: what a reader has in memory at once
LIST_ROWS = 2_000
WORKLIST = pa.schema(
    [("unit", pa.string()), ("item_id", pa.string()), ("attempt", pa.int32()), ("payload", pa.string())]
)


class ListRow(TypedDict, total=False):
    """A row of the list as it is stored; a reader of some columns has only these."""

    unit: str
    item_id: str
    attempt: int
    payload: str


@dataclass(frozen=True)
class WorkItem:
    """One entry of the work list: `attempt` 0 at first, higher in follow-up units of retryable failures."""

    item_id: str
    attempt: int
    payload: JsonObject


@dataclass(frozen=True)
class UnitTask:
    """A fixed slice of the work list: what one worker does in one go."""

    unit: str
    items: list[WorkItem]


class WorkList:
    """The work list of the dataset in `store`."""

    def __init__(self, store: Store):
        self.store = store

    def append(self, items: Iterable[tuple[str, JsonObject]], unit_size: int, attempt: int = 0) -> int:
        """Appends the items not yet listed (by id and attempt) as units of `unit_size`; returns how many.

        Reads `items` as it goes, a list file for each `LIST_ITEMS`. Safe against a second driver that appends
        at the same time: a list file is only ever created; where it exists by now, the list is read again.
        """
        source = iter(items)
        added = 0
        while chunk := dict(itertools.islice(source, LIST_ITEMS)):
            added += self._append_chunk(chunk, unit_size, attempt)
        return added

    def _append_chunk(self, items: dict[str, JsonObject], unit_size: int, attempt: int) -> int:
        while True:
            names = self._files()
            fresh = pa.array(items)
            for name in names:
                table = open_list(self.store, name).read(["item_id", "attempt"], use_threads=False)
                listed = table.filter(pc.equal(table["attempt"], attempt))["item_id"]
                fresh = fresh.filter(pc.invert(pc.is_in(fresh, value_set=listed.combine_chunks())))
            if not len(fresh):
                return 0
            ids = fresh.to_pylist()
            new_items = {item_id: items[item_id] for item_id in ids}
            table = _worklist_table(new_items, self.count_units(), unit_size, attempt)
            data = seal_table(table, LIST_ROWS)
            try:
                self.store.put(f"worklist/{len(names):06d}.parquet", data)
                return len(ids)
            except FileExistsError:  # another driver was first: some of the items may be its own
                continue

    def units(self) -> list[UnitTask]:
        """Every unit of the work list, in order."""
        return list(self.iter_units())

    def iter_units(self, first: int = 0) -> Iterator[UnitTask]:
        """The units of the work list from index `first` on, in order, a few at a time in memory."""
        unit, items = "", list[WorkItem]()
        for row in self._iter_rows(first, None):
            if row["unit"] != unit and items:
                yield UnitTask(unit, items)
                items = []
            unit = row["unit"]
            items.append(WorkItem(row["item_id"], row["attempt"], json.loads(row["payload"])))
        if items:
            yield UnitTask(unit, items)

    def unit_attempts(self, first: int = 0) -> Iterator[tuple[str, int]]:
        """Name and attempt of the units from index `first` on, without their items."""
        last = ""
        for row in self._iter_rows(first, ["unit", "attempt"]):
            if row["unit"] != last:
                last = row["unit"]
                yield last, row["attempt"]

    def count_units(self) -> int:
        """How many units the work list has; they are numbered from 0."""
        names = self._files()
        if not names:
            return 0
        file = open_list(self.store, names[-1])
        last_group = file.read_row_group(file.num_row_groups - 1, ["unit"], use_threads=False)
        return 1 + int(last_group["unit"][-1].as_py()[1:])

    def mark_retryable(self, unit: str) -> None:
        """Marks, before its commit, a unit with rows worth another attempt: a listing then finds it."""
        self.store.put(f"again/{unit}", b"")

    def retryable_units(self) -> list[str]:
        """The units with such a mark."""
        return [name.removeprefix("again/") for name in list_own(self.store, "again")]

    def clear_retryable(self, unit: str) -> None:
        """Deletes the mark: the next attempt is listed."""
        self.store.delete(f"again/{unit}")

    def _files(self) -> list[str]:
        return list_own(self.store, "worklist")

    def _iter_rows(self, first: int, columns: list[str] | None) -> Iterator[ListRow]:
        start = f"u{first:07d}"
        for name in self._files():
            file = open_list(self.store, name)
            for group in range(file.num_row_groups):
                # names sort like their numbers: groups that end before `start` are not read
                if file.metadata.row_group(group).column(0).statistics.max < start:
                    continue
                rows = file.read_row_group(group, columns, use_threads=False).to_pylist()
                yield from (row for row in rows if row["unit"] >= start)


def _worklist_table(items: dict[str, JsonObject], first_unit: int, unit_size: int, attempt: int) -> pa.Table:
    rows: list[ListRow] = [
        {
            "unit": f"u{first_unit + index // unit_size:07d}",
            "item_id": item_id,
            "attempt": attempt,
            "payload": json.dumps(payload, sort_keys=True),
        }
        for index, (item_id, payload) in enumerate(items.items())
    ]
    return pa.Table.from_pylist(rows, schema=WORKLIST)
