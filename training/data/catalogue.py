"""Where the members of every sample of a split lie, and how they are read: few range reads, every byte
checked.

    catalogue = Catalogue.of(dataset, snapshot, split="train", members=("latent.npy", "image.npy"))
    samples = catalogue.read([3, 4, 5])          # sample -> its members, None for a hole

What was removed is a hole, and so is what turns out to be damaged: it is read again once, then told in the
log once and passed over. Samples are views of the bytes that were read, so that nothing is copied. Which
sample comes when is the business of training.data.loader.
"""

import logging
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset import Commit, Dataset, Snapshot
from cluster.shards import Status, verify_member
from cluster.storage import Store
from configs.load import UserError

log = logging.getLogger(__name__)
FREE_GAP_BYTES = 4096  # tar headers between the samples of one read
MAX_GAP_SHARE = 0.08  # of the bytes used, what a read may hold of other samples besides
MAX_DAMAGED_SHARE, FEW_DAMAGED = 0.01, 10
INDEX_READERS = 16
Sample = dict[str, memoryview]


@dataclass(frozen=True)
class Catalogue:
    """Arrays of [num_samples] and [num_samples, num_members]; `damaged`: the samples found so while reading."""

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
        What was removed is a hole at its place in all of them, so that the order is the pinned one.
        """
        buried, commits = dataset.tombstones(), current_commits(dataset, snapshot)

        def rows(commit: Commit) -> tuple[np.ndarray, ...]:
            return _rows(dataset.read_index(commit), split, members)

        with ThreadPoolExecutor(INDEX_READERS, "index") as readers:
            found = list(readers.map(rows, commits))
        parts = zip(*found, strict=True) if found else ([part] for part in _rows(None, "", members))
        keys, offsets, sizes, checksums = (np.concatenate(part) for part in parts)
        numbers = np.repeat(np.arange(len(found)), [len(part[0]) for part in found])
        holes = np.fromiter((key in buried for key in keys.tolist()), bool, len(keys)) | (sizes[:, 0] == 0)
        if holes.all():
            raise UserError(f"data={snapshot.uri}: holds no sample of split={split}")
        tars = tuple(commit.tar.name if commit.tar else "" for commit in commits)
        return Catalogue(dataset.store, tars, numbers, keys, members, offsets, sizes, checksums, holes)

    def __len__(self) -> int:
        return len(self.keys)

    def hide(self, keys: Set[str]) -> None:
        """Makes holes of these samples from now on; they keep their places."""
        if keys:
            self.holes[np.isin(self.keys, np.array(sorted(keys), str))] = True

    def read(self, samples: list[int]) -> dict[int, Sample | None]:
        """The members of some samples;

        None for a hole. `OSError` where more than one in a hundred is damaged.
        """
        found: dict[int, Sample | None] = dict.fromkeys(samples)
        for run in self._runs([sample for sample in samples if not self.holes[sample]]):
            read = self._read_run(run)
            for sample in run:
                found[sample] = self._slice(sample, *read) or self._again(sample)
        return found

    def _read_run(self, run: list[int]) -> tuple[memoryview, int]:
        """The bytes from the first sample's start to the last one's end, and where they begin."""
        start, end = self._start(run[0]), max(self._end(sample) for sample in run)
        return memoryview(self.store.read_range(self.tars[self.tar_numbers[run[0]]], start, end)), start

    def _runs(self, samples: list[int]) -> Iterator[list[int]]:
        """Samples whose bytes follow each other closely in one tar."""
        run: list[int] = []
        gap = used = 0
        for sample in sorted(samples):
            between = self._start(sample) - self._end(run[-1]) if run else 0
            between = between if between > FREE_GAP_BYTES else 0
            if run and (
                self.tar_numbers[run[-1]] != self.tar_numbers[sample] or gap + between > MAX_GAP_SHARE * used
            ):
                yield run
                run, gap, used, between = [], 0, 0, 0
            gap += between
            used += self._end(sample) - self._start(sample)
            run.append(sample)
        if run:
            yield run

    def _start(self, sample: int) -> int:
        return int(self.offsets[sample].min())

    def _end(self, sample: int) -> int:
        return int((self.offsets[sample] + self.sizes[sample]).max())

    def _slice(self, sample: int, data: memoryview, start: int) -> Sample | None:
        """The members of one sample; None where one is not what the index recorded."""
        parts = {}
        for place, name in enumerate(self.members):
            offset = int(self.offsets[sample, place]) - start
            part = data[offset : offset + int(self.sizes[sample, place])]
            if not verify_member(part, int(self.checksums[sample, place])):
                return None
            parts[name] = part
        return parts

    def _again(self, sample: int) -> Sample | None:
        """A second read of a damaged sample, in case that the way was at fault; else it is a hole from now
        on.
        """
        found = self._slice(sample, *self._read_run([sample]))
        if found is None and sample not in self.damaged:
            self.damaged.add(sample)
            place = f"{self.store.uri}/{self.tars[self.tar_numbers[sample]]}: {self.keys[sample]}"
            log.warning(
                "%s is damaged and passed over; python -m ingest verify %s tells more", place, self.store.uri
            )
            if len(self.damaged) > max(FEW_DAMAGED, MAX_DAMAGED_SHARE * len(self)):
                raise OSError(
                    f"{self.store.uri}: {len(self.damaged)} of {len(self)} samples are damaged, the last one {self.keys[sample]}: "
                    f"run python -m ingest verify {self.store.uri}"
                )
        return found


def current_commits(dataset: Dataset, snapshot: Snapshot) -> list[Commit]:
    """The pinned units, each in the newest generation that is there."""
    newest = dataset.commits()
    return [
        max(pinned, newest.get(pinned.unit, pinned), key=lambda commit: commit.generation)
        for pinned in snapshot.commits
    ]


def _rows(table: pa.Table | None, split: str, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Of one index, sorted by key: keys [n], offsets, sizes and checksums [n, num_members]; zeros for what
    was removed.
    """
    if table is None:
        return np.zeros(0, "U1"), *(np.zeros((0, len(names)), np.int64) for _ in range(3))
    ours = pc.and_(
        pc.is_in(table["status"], pa.array([Status.KEPT, Status.REMOVED])), pc.equal(table["split"], split)
    )
    table = table.filter(pc.fill_null(ours, False)).select(["key", "status", "members"]).sort_by("key")
    members = (
        table["members"].combine_chunks()
        if len(table)
        else table["members"].chunk(0)
        if table["members"].num_chunks
        else None
    )
    places = [np.zeros((len(table), len(names)), np.int64) for _ in range(3)]
    if members is not None and len(table):
        parents, flat = pc.list_parent_indices(members).to_numpy(), pc.list_flatten(members)
        ext = flat.field("ext")
        for number, name in enumerate(names):
            rows = pc.equal(ext, name).to_numpy(zero_copy_only=False)
            for array, part in zip(places, ("offset", "size", "crc32"), strict=True):
                array[parents[rows], number] = flat.field(part).to_numpy(zero_copy_only=False)[rows]
        removed = pc.equal(table["status"], Status.REMOVED).to_numpy()
        lacking = np.argwhere((places[1] == 0) & ~removed[:, None])
        if len(lacking):
            row, number = lacking[0]
            raise UserError(
                f"sample {table['key'][int(row)]} has no member {names[number]}: this recipe needs {', '.join(names)}"
            )
        for array in places:
            array[removed] = 0
    return np.array(table["key"].to_pylist(), str), *places
