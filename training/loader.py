"""The loader: the order of samples is a function of (snapshot, seed, epoch) alone, at every legal world size.

    catalogue = Catalogue.of(dataset, snapshot, split="train", members=("latent.npy", "image.npy"))
    order = Order(len(catalogue), lanes=48, seed=0)
    for batch in Loader(catalogue, order, global_batch=48, rank=0, world=2, position=0): ...

C canonical lanes, each a block-shuffled stream over its share of the snapshot; global position p belongs to lane p mod C and
is its sample p // C, so a step is the same set of samples for 1, 2 or C ranks. Reads byte ranges through the index, checks
every member's crc32, and prefetches in a thread. The only state is the position. Decodes nothing (the recipes do).
"""

import itertools
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from cluster.dataset import Dataset, Snapshot
from cluster.shards import verify_member
from cluster.storage import Store
from configs.load import UserError
from training.randomness import SampleKey, keyed_rng

BLOCK_SIZE = 16
WINDOW_SIZE = 64
MAX_GAP_BYTES = 4096
REMOVED = "removed"
Sample = dict[str, bytes]


@dataclass(frozen=True)
class Catalogue:
    """Where the members of every sample of a split lie. Arrays of [num_samples] and [num_samples, num_members]."""

    store: Store
    tars: tuple[str, ...]
    tar_numbers: np.ndarray
    keys: np.ndarray
    members: tuple[str, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray
    holes: np.ndarray

    @staticmethod
    def of(dataset: Dataset, snapshot: Snapshot, split: str, members: tuple[str, ...]) -> "Catalogue":
        """The samples of a split in the order of the snapshot's tars. `UserError` where there is none.

        Every unit is read in its newest generation: a pinned one may have been deleted after a take-down. What was removed is
        a hole at its place in all of them, so that the order is the pinned one.
        """
        buried, newest = dataset.tombstones(), dataset.commits()
        tars: list[str] = []
        rows = []
        for pinned in snapshot.commits:
            commit = max(pinned, newest.get(pinned.unit, pinned), key=lambda commit: commit.generation)
            table = dataset.read_index(commit).select(["key", "status", "split", "members"])
            ours = [row for row in table.to_pylist() if row["status"] in ("kept", REMOVED) and row["split"] == split]
            rows += [(len(tars), row["key"], *_places(row, members)) for row in sorted(ours, key=lambda row: row["key"])]
            tars.append(commit.tar.name if commit.tar else "")
        numbers, keys, offsets, sizes, checksums = zip(*rows, strict=True) if rows else ((),) * 5
        holes = np.array([key in buried or not size[0] for key, size in zip(keys, sizes, strict=True)], bool)
        if holes.all():
            raise UserError(f"data={snapshot.uri}: holds no sample of split={split}")
        arrays = (np.array(offsets), np.array(sizes), np.array(checksums, np.int64))
        return Catalogue(dataset.store, tuple(tars), np.array(numbers), np.array(keys), members, *arrays, holes)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, samples: list[int]) -> dict[int, Sample | None]:
        """The members of some samples, by few range reads; None for a hole. `OSError` naming a damaged member."""
        found: dict[int, Sample | None] = {sample: None for sample in samples if self.holes[sample]}
        for run in self._runs([sample for sample in samples if not self.holes[sample]]):
            start, end = self._start(run[0]), max(self._end(sample) for sample in run)
            data = memoryview(self.store.read_range(self.tars[self.tar_numbers[run[0]]], start, end))
            for sample in run:
                found[sample] = self._slice(sample, data, start)
        return found

    def _runs(self, samples: list[int]) -> Iterator[list[int]]:
        """Samples whose bytes follow each other closely in one tar."""
        run: list[int] = []
        for sample in sorted(samples):
            close = run and self.tar_numbers[run[-1]] == self.tar_numbers[sample] and self._near(run[-1], sample)
            if run and not close:
                yield run
                run = []
            run.append(sample)
        if run:
            yield run

    def _near(self, before: int, after: int) -> bool:
        return bool(self._start(after) - self._end(before) <= MAX_GAP_BYTES)

    def _start(self, sample: int) -> int:
        return int(self.offsets[sample].min())

    def _end(self, sample: int) -> int:
        return int((self.offsets[sample] + self.sizes[sample]).max())

    def _slice(self, sample: int, data: memoryview, start: int) -> Sample:
        parts = {}
        for place, name in enumerate(self.members):
            offset = int(self.offsets[sample, place]) - start
            part = bytes(data[offset : offset + int(self.sizes[sample, place])])
            if not verify_member(part, int(self.checksums[sample, place])):
                tar = self.tars[self.tar_numbers[sample]]
                raise OSError(
                    f"{self.store.uri}/{tar}: {self.keys[sample]}.{name} is damaged; run python -m ingest verify {self.store.uri}"
                )
            parts[name] = part
        return parts


def _places(row: dict, names: tuple[str, ...]) -> tuple[list[int], list[int], list[int]]:
    if row["status"] == REMOVED:
        zeros = [0] * len(names)
        return zeros, zeros, zeros
    members = {member["ext"]: member for member in row["members"]}
    missing = [name for name in names if name not in members]
    if missing:
        raise UserError(f"sample {row['key']} has no member {missing[0]}: this recipe needs {', '.join(names)}")
    return tuple([members[name][part] for name in names] for part in ("offset", "size", "crc32"))  # type: ignore[return-value]


@dataclass(frozen=True)
class Order:
    """Position -> sample, for every epoch. An epoch shows every sample once; lanes are filled up with holes (-1)."""

    num_samples: int
    lanes: int
    seed: int

    @property
    def lane_length(self) -> int:
        return -(-self.num_samples // self.lanes)

    def key(self, position: int) -> SampleKey:
        return SampleKey(self.seed, position // self.lanes // self.lane_length, position)

    def sample(self, position: int) -> int:
        """The sample at a global position, or -1 for a hole."""
        epoch, place = divmod(position // self.lanes, self.lane_length)
        return int(_lanes(self, epoch)[position % self.lanes, place])

    def window(self, position: int) -> list[int]:
        """The samples that are shuffled together with the one at `position`, from it to the window's end, in its lane."""
        lane, (epoch, place) = position % self.lanes, divmod(position // self.lanes, self.lane_length)
        end = next(end for end in _window_ends(self, lane) if end > place)
        return [int(sample) for sample in _lanes(self, epoch)[lane, place:end] if sample >= 0]


def _window_ends(order: Order, lane: int) -> list[int]:
    """Where a lane's windows end; every lane starts with another part of a window, so that reads are spread over time."""
    first = WINDOW_SIZE - lane * WINDOW_SIZE // order.lanes
    return [*range(first, order.lane_length, WINDOW_SIZE), order.lane_length]


@lru_cache(maxsize=4)
def _lanes(order: Order, epoch: int) -> np.ndarray:
    """int64 [lanes, lane_length]: blocks of neighbours in random order, cut into lanes, shuffled in windows within a lane."""
    rng = keyed_rng(SampleKey(order.seed, epoch, -1), "order")
    num_blocks = -(-order.num_samples // BLOCK_SIZE)
    blocks = np.arange(num_blocks * BLOCK_SIZE).reshape(num_blocks, BLOCK_SIZE)[rng.permutation(num_blocks)].ravel()
    flat = np.full(order.lanes * order.lane_length, -1)
    flat[: order.num_samples] = blocks[blocks < order.num_samples]
    lanes = flat.reshape(order.lanes, order.lane_length)
    for number, lane in enumerate(lanes):
        ends = _window_ends(order, number)
        for start, end in zip([0, *ends], ends):
            rng.shuffle(lane[start:end])
    return lanes


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step. `wait_s`: how long the training had to wait for it."""

    step: int
    keys: list[SampleKey]
    samples: list[Sample | None]
    wait_s: float


class Loader:
    """A rank's batches from `position` on, for ever; made ready in a thread, `prefetch` steps ahead.

    Whatever goes wrong in the thread is raised where the batch is asked for.
    """

    def __init__(self, catalogue: Catalogue, order: Order, global_batch: int, rank: int, world: int, position: int = 0, prefetch: int = 2):
        check_geometry(order.lanes, global_batch, world)
        self.catalogue, self.order, self.global_batch = catalogue, order, global_batch
        self.rank, self.world, self.position, self.prefetch = rank, world, position, prefetch
        self.cache: dict[int, dict[int, Sample | None]] = {}
        self.thread = ThreadPoolExecutor(1, "loader")  # one: batches are made in their order

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        steps = itertools.count(self.position // self.global_batch)
        ahead = deque(self.thread.submit(self.batch, next(steps)) for _ in range(self.prefetch))
        while True:
            started = time.monotonic()
            ahead.append(self.thread.submit(self.batch, next(steps)))
            batch = ahead.popleft().result()
            yield replace(batch, wait_s=time.monotonic() - started)

    def batch(self, step: int) -> Batch:
        """This rank's samples of a step (counted from 0): a plain function of the order."""
        first = step * self.global_batch
        positions = range(first + self.rank, first + self.global_batch, self.world)
        return Batch(step, [self.order.key(p) for p in positions], [self._take(p) for p in positions], 0.0)

    def _take(self, position: int) -> Sample | None:
        """The sample at a position; reads the rest of its lane's window where it is not at hand."""
        sample = self.order.sample(position)
        if sample < 0:
            return None
        lane = self.cache.setdefault(position % self.order.lanes, {})
        if sample not in lane:
            lane.clear()
            lane.update(self.catalogue.read(self.order.window(position)))
        return lane.pop(sample)


def check_geometry(lanes: int, global_batch: int, world: int) -> None:
    """`UserError` unless the workers divide the lanes and the lanes divide the global batch."""
    if world < 1 or lanes % world:
        legal = [str(w) for w in range(1, lanes + 1) if lanes % w == 0]
        raise UserError(f"workers={world}: must divide lanes={lanes}; legal here: {', '.join(legal)}")
    if global_batch < 1 or global_batch % lanes:
        nearest = max(1, round(global_batch / lanes)) * lanes
        raise UserError(f"global_batch={global_batch}: must be a multiple of lanes={lanes}; the nearest is {nearest}")
