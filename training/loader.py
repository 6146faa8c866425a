"""The loader: the order of samples is a function of (snapshot, seed, epoch) alone, at every legal world size.

    catalogue = Catalogue.of(dataset, snapshot, split="train", members=("latent.npy", "image.npy"))
    order = Order(len(catalogue), lanes=48, seed=0)
    for batch in Loader(catalogue, order, global_batch=48, rank=0, world=2, position=0): ...

C canonical lanes, each a block-shuffled stream over its share of the snapshot; global position p belongs to lane p mod C and
is its sample p // C, so a step is the same set of samples for 1, 2 or C ranks. A lane's next window is fetched while its last
half is used, and batches are made ready in a thread. The only state is the position. Decodes nothing (the recipes do).
"""

import itertools
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from configs.load import UserError
from training.catalogue import Catalogue, Sample
from training.randomness import SampleKey, keyed_rng

BLOCK_SIZE = 16
WINDOW_SIZE = 64
FETCHERS = 8


@dataclass(frozen=True)
class Order:
    """Position -> sample, for every epoch. An epoch shows every sample once; lanes are filled up with holes (-1).

    Blocks of `block_size` neighbours come in random order, and `window_size` samples of a lane are shuffled together: larger ones
    mix more and cost memory, larger blocks cost fewer requests.
    """

    num_samples: int
    lanes: int
    seed: int
    block_size: int = BLOCK_SIZE
    window_size: int = WINDOW_SIZE

    @property
    def lane_length(self) -> int:
        return -(-self.num_samples // self.lanes)

    def key(self, position: int) -> SampleKey:
        return SampleKey(self.seed, position // self.lanes // self.lane_length, position)

    def sample(self, position: int) -> int:
        """The sample at a global position, or -1 for a hole."""
        epoch, place = divmod(position // self.lanes, self.lane_length)
        return int(_lanes(self, epoch)[position % self.lanes, place])

    def window(self, position: int) -> tuple[int, list[int]]:
        """(position where the next window of its lane begins, the samples that are shuffled together from `position` to there)."""
        lane, (epoch, place) = position % self.lanes, divmod(position // self.lanes, self.lane_length)
        end = self.window_end(lane, place)
        return position + (end - place) * self.lanes, [int(sample) for sample in _lanes(self, epoch)[lane, place:end] if sample >= 0]

    def window_end(self, lane: int, place: int) -> int:
        """Where the window with a lane's `place` ends; every lane starts with another part of one, so that reads are spread over time."""
        first = self.window_size - lane * self.window_size // self.lanes
        return min(self.lane_length, first + max(0, -(-(place + 1 - first) // self.window_size)) * self.window_size)


@lru_cache(maxsize=4)
def _lanes(order: Order, epoch: int) -> np.ndarray:
    """int64 [lanes, lane_length]: blocks of neighbours in random order, cut into lanes, shuffled in windows within a lane."""
    rng = keyed_rng(SampleKey(order.seed, epoch, -1), "order")
    num_blocks = -(-order.num_samples // order.block_size)
    blocks = np.arange(num_blocks * order.block_size).reshape(num_blocks, order.block_size)[rng.permutation(num_blocks)].ravel()
    flat = np.full(order.lanes * order.lane_length, -1)
    flat[: order.num_samples] = blocks[blocks < order.num_samples]
    lanes = flat.reshape(order.lanes, order.lane_length)
    for number, lane in enumerate(lanes):
        start = 0
        while start < len(lane):
            end = order.window_end(number, start)
            rng.shuffle(lane[start:end])
            start = end
    return lanes


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step. `wait_s`: how long the training had to wait for it."""

    step: int
    keys: list[SampleKey]
    samples: list[Sample | None]
    wait_s: float


@dataclass
class Window:
    """What lies ready of a lane, up to position `end`; `coming`: the window after it, from when half of this one is used."""

    end: int
    samples: dict[int, Sample | None]
    coming: "Future[Window] | None" = None


class Loader:
    """A rank's batches from `position` on, for ever; made ready in a thread, `prefetch` steps ahead.

    Whatever goes wrong in the thread is raised where the batch is asked for.
    """

    def __init__(self, catalogue: Catalogue, order: Order, global_batch: int, rank: int, world: int, position: int = 0, prefetch: int = 2):
        check_geometry(order.lanes, global_batch, world)
        self.catalogue, self.order, self.global_batch = catalogue, order, global_batch
        self.rank, self.world, self.position, self.prefetch = rank, world, position, prefetch
        self.windows: dict[int, Window] = {}
        self.thread = ThreadPoolExecutor(1, "loader")  # one: batches are made in their order
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetcher")

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)
        self.fetchers.shutdown(cancel_futures=True)

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
        for position in positions[: self.order.lanes // self.world]:
            lane = position % self.order.lanes
            if lane not in self.windows:
                self.windows[lane] = Window(position, {}, self.fetchers.submit(self._fetch, position))
        return Batch(step, [self.order.key(p) for p in positions], [self._take(p) for p in positions], 0.0)

    def _take(self, position: int) -> Sample | None:
        """The sample at a position; waits for its lane's window where that is not at hand, and has the next one fetched in time."""
        sample, lane = self.order.sample(position), position % self.order.lanes
        if sample < 0:
            return None
        window = self.windows[lane]
        if sample not in window.samples:
            fetched = window.coming.result() if window.coming and window.end <= position else None
            window = self.windows[lane] = fetched if fetched and sample in fetched.samples else self._fetch(position)
        if not window.coming and 2 * (window.end - position) <= self.order.window_size * self.order.lanes:
            window.coming = self.fetchers.submit(self._fetch, window.end)
        return window.samples.pop(sample)

    def _fetch(self, position: int) -> Window:
        end, samples = self.order.window(position)
        return Window(end, self.catalogue.read(samples))


def check_geometry(lanes: int, global_batch: int, world: int) -> None:
    """`UserError` unless the workers divide the lanes and the lanes divide the global batch."""
    if world < 1 or lanes % world:
        legal = [str(w) for w in range(1, lanes + 1) if lanes % w == 0]
        raise UserError(f"workers={world}: must divide lanes={lanes}; legal here: {', '.join(legal)}")
    if global_batch < 1 or global_batch % lanes:
        nearest = max(1, round(global_batch / lanes)) * lanes
        raise UserError(f"global_batch={global_batch}: must be a multiple of lanes={lanes}; the nearest is {nearest}")
