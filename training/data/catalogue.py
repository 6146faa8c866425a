"""Where a split's samples are stored and how they are read: few range reads, every byte checked.

    catalogue = Catalogue.of(dataset, snapshot, split="train", members=("latent.npy", "image.npy"))
    samples = catalogue.read([3, 4, 5])          # sample -> its members, None for a hole

A removed sample is a hole, and so is one that turns out to be damaged: it is re-read once, logged once and
skipped. Samples are views of the bytes that were read, so that nothing is copied. Which sample comes when is
training.data.order's.
"""

import logging
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset import Commit, Dataset, Snapshot
from cluster.shards import Status, verify_member
from cluster.storage import Store
from configs.load import UserError

log = logging.getLogger(__name__)
# tar headers between the samples of one read cost nothing worth a second request
FREE_GAP_BYTES = 4096
# of the bytes used, the share that a read may hold of other samples: past it, a second request is cheaper
MAX_GAP_SHARE = 0.08
# more damage than this is no accident of a disk: the run stops rather than learn from what is left
MAX_DAMAGED_SHARE = 0.01
# in a small dataset one sample is more than a hundredth
FEW_DAMAGED = 10
# an index is one request of a few kB: these wait for the network, not for a processor
INDEX_READERS = 16
Sample = dict[str, memoryview]


class IndexColumns(NamedTuple):
    """Some samples in arrays: keys [n]; offset, size and crc32 of each member, int64 [n, num_members].

    A removed sample has zeros.
    """

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray

    @staticmethod
    def zeros(keys: list[str], num_members: int) -> "IndexColumns":
        arrays = np.zeros((3, len(keys), num_members), np.int64)
        return IndexColumns(np.array(keys, str), *arrays)

    @staticmethod
    def concatenate(columns: "list[IndexColumns]", num_members: int) -> "IndexColumns":
        if not columns:
            return IndexColumns.zeros([], num_members)
        return IndexColumns(*(np.concatenate(arrays) for arrays in zip(*columns, strict=True)))


@dataclass(frozen=True)
class Catalogue:
    """Arrays of [num_samples] and [num_samples, num_members]; `damaged`: samples found so while reading."""

    store: Store
    tars: tuple[str, ...]
    tar_numbers: np.ndarray
    keys: np.ndarray
    members: tuple[str, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray
    holes: np.ndarray
    damaged: set[int] = field(default_factory=set)

    @staticmethod
    def of(dataset: Dataset, snapshot: Snapshot, split: str, members: tuple[str, ...]) -> "Catalogue":
        """The samples of a split in the order of the snapshot's tars. `UserError` where there is none.

        Every unit is read in its newest generation: a pinned one may have been deleted after a take-down.
        A removed sample is a hole at its index in all of them, so that the order is the pinned one.
        """
        buried = dataset.tombstones()
        commits = current_commits(dataset, snapshot)

        def read_columns(commit: Commit) -> IndexColumns:
            return read_index(dataset.read_index(commit), split, members)

        with ThreadPoolExecutor(INDEX_READERS, "index") as readers:
            by_unit = list(readers.map(read_columns, commits))
        columns = IndexColumns.concatenate(by_unit, len(members))
        tar_numbers = np.repeat(np.arange(len(by_unit)), [len(unit.keys) for unit in by_unit])
        is_buried = np.fromiter((key in buried for key in columns.keys.tolist()), bool, len(columns.keys))
        holes = is_buried | (columns.sizes[:, 0] == 0)
        if holes.all():
            raise UserError(f"data={snapshot.uri}: holds no sample of split={split}")
        tars = tuple(commit.tar.name if commit.tar else "" for commit in commits)
        keys, offsets, sizes, checksums = columns
        return Catalogue(dataset.store, tars, tar_numbers, keys, members, offsets, sizes, checksums, holes)

    def __len__(self) -> int:
        return len(self.keys)

    def hide(self, keys: Set[str]) -> None:
        """Makes holes of these samples from now on; they keep their indexes."""
        if keys:
            self.holes[np.isin(self.keys, np.array(sorted(keys), str))] = True

    def read(self, samples: list[int]) -> dict[int, Sample | None]:
        """The members of some samples; None for a hole.

        `OSError` where more than one in a hundred is damaged.
        """
        members: dict[int, Sample | None] = dict.fromkeys(samples)
        for run in self._runs([sample for sample in samples if not self.holes[sample]]):
            data, start = self._read_run(run)
            for sample in run:
                members[sample] = self._slice(sample, data, start) or self._read_again(sample)
        return members

    def _read_run(self, run: list[int]) -> tuple[memoryview, int]:
        """The bytes from the first sample's start to the last one's end, and their offset in the tar."""
        start = self._start(run[0])
        end = max(self._end(sample) for sample in run)
        tar = self.tars[self.tar_numbers[run[0]]]
        return memoryview(self.store.read_range(tar, start, end)), start

    def _runs(self, samples: list[int]) -> Iterator[list[int]]:
        """Samples whose bytes follow each other closely in one tar."""
        run: list[int] = []
        gap = used = 0
        for sample in sorted(samples):
            between = self._gap(run[-1], sample) if run else 0
            same_tar = not run or self.tar_numbers[run[-1]] == self.tar_numbers[sample]
            if run and (not same_tar or gap + between > MAX_GAP_SHARE * used):
                yield run
                run = []
                gap = used = between = 0
            gap += between
            used += self._end(sample) - self._start(sample)
            run.append(sample)
        if run:
            yield run

    def _gap(self, before: int, sample: int) -> int:
        """The bytes between two samples that a read of both would waste."""
        between = self._start(sample) - self._end(before)
        return between if between > FREE_GAP_BYTES else 0

    def _start(self, sample: int) -> int:
        return int(self.offsets[sample].min())

    def _end(self, sample: int) -> int:
        return int((self.offsets[sample] + self.sizes[sample]).max())

    def _slice(self, sample: int, data: memoryview, start: int) -> Sample | None:
        """The members of one sample; None where one is not what the index recorded."""
        members = {}
        for column, name in enumerate(self.members):
            offset = int(self.offsets[sample, column]) - start
            member = data[offset : offset + int(self.sizes[sample, column])]
            if not verify_member(member, int(self.checksums[sample, column])):
                return None
            members[name] = member
        return members

    def _read_again(self, sample: int) -> Sample | None:
        """A second read of a damaged sample, since the network may be at fault; else it becomes a hole."""
        data, start = self._read_run([sample])
        members = self._slice(sample, data, start)
        if members is None and sample not in self.damaged:
            self.damaged.add(sample)
            self._report_damage(sample)
        return members

    def _report_damage(self, sample: int) -> None:
        uri = self.store.uri
        name = f"{uri}/{self.tars[self.tar_numbers[sample]]}: {self.keys[sample]}"
        log.warning("%s is damaged and skipped; python -m ingest verify %s lists all damage", name, uri)
        if len(self.damaged) > max(FEW_DAMAGED, MAX_DAMAGED_SHARE * len(self)):
            count = f"{len(self.damaged)} of {len(self)} samples are damaged"
            last = f"the last one {self.keys[sample]}"
            raise OSError(f"{uri}: {count}, {last}: run python -m ingest verify {uri}")


def current_commits(dataset: Dataset, snapshot: Snapshot) -> list[Commit]:
    """The pinned units, each in the newest generation that is there."""
    newest = dataset.commits()
    return [
        max(pinned, newest.get(pinned.unit, pinned), key=lambda commit: commit.generation)
        for pinned in snapshot.commits
    ]


def read_index(table: pa.Table, split: str, names: tuple[str, ...]) -> IndexColumns:
    """The members `names` of one index's samples of a split, sorted by key; removed samples are among them.

    `UserError` where a kept sample lacks one.
    """
    table = _of_split(table, split)
    columns = IndexColumns.zeros(table["key"].to_pylist(), len(names))
    if not len(table):
        return columns
    _scatter(table["members"].combine_chunks(), names, columns)
    is_removed = pc.equal(table["status"], Status.REMOVED).to_numpy()
    _check_complete(columns, ~is_removed, names)
    for array in columns[1:]:
        array[is_removed] = 0
    return columns


def _of_split(table: pa.Table, split: str) -> pa.Table:
    """The kept and the removed rows of a split: together they are what a run may have pinned."""
    is_sample = pc.is_in(table["status"], pa.array([Status.KEPT, Status.REMOVED]))
    # refused rows may have no split: a null counts as another one
    mask = pc.fill_null(pc.and_(is_sample, pc.equal(table["split"], split)), False)
    return table.filter(mask).select(["key", "status", "members"]).sort_by("key")


def _scatter(members: pa.ListArray, names: tuple[str, ...], columns: IndexColumns) -> None:
    """Fills the arrays from lists of members, one list a row, in whatever order and with whatever else."""
    parents = pc.list_parent_indices(members).to_numpy()
    flat = pc.list_flatten(members)
    ext = flat.field("ext")
    fields = {"offset": columns.offsets, "size": columns.sizes, "crc32": columns.checksums}
    for column, name in enumerate(names):
        is_named = pc.equal(ext, name).to_numpy(zero_copy_only=False)
        for field_name, array in fields.items():
            values = flat.field(field_name).to_numpy(zero_copy_only=False)
            array[parents[is_named], column] = values[is_named]


def _check_complete(columns: IndexColumns, is_kept: np.ndarray, names: tuple[str, ...]) -> None:
    lacking = np.argwhere((columns.sizes == 0) & is_kept[:, None])
    if len(lacking):
        row, column = lacking[0]
        needed = f"this recipe needs {', '.join(names)}"
        raise UserError(f"sample {columns.keys[row]} has no member {names[column]}: {needed}")
