"""The loader: a rank's batches, in the order of training.data.order, of one dataset or of several mixed by
weights.

    catalogue = Catalogue.of(dataset, snapshot, split="train", members=("latent.npy", "image.npy"))
    mixture = Mixture.of([catalogue], Order(0, lanes=48, seed=0))
    for batch in Loader(mixture, global_batch=48, rank=0, world=2, position=0): ...

A rank serves whole lanes. A lane's next window is fetched while its last half is used, and batches are made
ready in a thread. The only state is the position. Decodes nothing: the recipes do, here in threads of its own
where `make` is given.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from training.data.catalogue import Sample
from training.data.mixture import Mixture
from training.data.order import check_geometry
from training.data.randomness import SampleKey

FETCHERS = 8
MAKERS = 4  # of batches for a GPU, which takes them faster than one thread makes them
Make = Callable[[list[Sample | None], list[SampleKey]], dict[str, Any]]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step.

    `wait_s`: how long the training had to wait for it; `tensors`: what `make` made of it.
    """

    step: int
    keys: list[SampleKey]
    samples: list[Sample | None]
    wait_s: float
    tensors: dict[str, Any] = field(default_factory=dict)


@dataclass
class Window:
    """What lies ready of a dataset's lane, up to its position `end`;

    `coming`: the window after it, from when half of this one is used.
    """

    end: int
    samples: dict[int, Sample | None]
    coming: "Future[Window] | None" = None


class Loader:
    """A rank's batches from `position` on, for ever; made ready in a thread, `prefetch` steps ahead.

    Whatever goes wrong in the thread is raised where the batch is asked for.
    """

    def __init__(
        self,
        mixture: Mixture,
        global_batch: int,
        rank: int,
        world: int,
        position: int = 0,
        prefetch: int = 2,
        make: Make | None = None,
    ):
        check_geometry(mixture.lanes, global_batch, world)
        self.mixture, self.global_batch = mixture, global_batch
        self.rank, self.world, self.position, self.prefetch = rank, world, position, prefetch
        self.windows: dict[tuple[int, int], Window] = {}  # by dataset and lane
        self.thread = ThreadPoolExecutor(1, "loader")  # one: batches are made in their order
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetcher")
        self.makers = ThreadPoolExecutor(MAKERS, "maker")
        self.make = make

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)
        self.fetchers.shutdown(cancel_futures=True)
        self.makers.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        steps = itertools.count(self.position // self.global_batch)
        ahead = deque(self._start(next(steps)) for _ in range(self.prefetch))
        while True:
            started = time.monotonic()
            ahead.append(self._start(next(steps)))
            batch = ahead.popleft().result()
            yield replace(batch, wait_s=time.monotonic() - started)

    def _start(self, step: int) -> "Future[Batch]":
        read = self.thread.submit(self.batch, step)
        return self.makers.submit(self._made, read, self.make) if self.make else read

    def _made(self, read: "Future[Batch]", make: Make) -> Batch:
        batch = read.result()
        return replace(batch, tensors=make(batch.samples, batch.keys))

    def batch(self, step: int) -> Batch:
        """This rank's samples of a step (counted from 0): a plain function of the order."""
        first = step * self.global_batch
        positions = range(first + self.rank, first + self.global_batch, self.world)
        for position in positions:
            number, own = self.mixture.locate(position)
            place = number, own % self.mixture.lanes
            if place not in self.windows:
                self.windows[place] = Window(own, {}, self.fetchers.submit(self._fetch, number, own))
        return Batch(step, [self.mixture.key(p) for p in positions], [self._take(p) for p in positions], 0.0)

    def _take(self, position: int) -> Sample | None:
        """The sample at a position; waits for its lane's window where that is not at hand, and has the next
        one fetched in time.
        """
        number, own = self.mixture.locate(position)
        order = self.mixture.orders[number]
        sample, place = order.sample(own), (number, own % order.lanes)
        if sample < 0:
            return None
        window = self.windows[place]
        if sample not in window.samples:
            fetched = window.coming.result() if window.coming and window.end <= own else None
            window = self.windows[place] = (
                fetched if fetched and sample in fetched.samples else self._fetch(number, own)
            )
        if not window.coming and 2 * (window.end - own) <= order.window_size * order.lanes:
            window.coming = self.fetchers.submit(self._fetch, number, window.end)
        found = window.samples.pop(sample)
        return (
            None if self.mixture.catalogues[number].holes[sample] else found
        )  # it may have been buried since it was fetched

    def _fetch(self, number: int, own: int) -> Window:
        end, samples = self.mixture.orders[number].window(own)
        return Window(end, self.mixture.catalogues[number].read(samples))
