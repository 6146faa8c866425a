"""The loader: a rank's batches, in the order of training.data.order, of one dataset or of several mixed.

    catalogue = Catalogue.of(dataset, snapshot, split="train", members=("latent.npy", "image.npy"))
    mixture = Mixture.of([catalogue], Order(0, lanes=48, seed=0))
    for batch in Loader(mixture, global_batch=48, rank=0, world=2, position=0): ...

Each stage wraps the one below it:

    Loader        batches, `prefetch` steps ahead                      one thread reads, MAKERS make tensors
      Window      the samples of a lane that are shuffled together     FETCHERS threads read the next one
        Mixture   position -> dataset and its own position             a plain function
          Order   its own position -> sample                           a plain function
            Catalogue   sample -> bytes, by range reads                each byte checked

A rank serves whole lanes. A lane's next window is fetched while the last half of this one is used. The only
state is the position. Decodes nothing: the recipes do, here in threads where `make` is given.
docs/order-and-loader.md has the reasons.
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

# reads wait for disk or network, so more than there are processors
FETCHERS = 8
# a GPU takes batches faster than one thread makes them
MAKERS = 4
Arrays = dict[str, Any]
"""By name, as `make` gives them; the loader does not look into them."""
Make = Callable[[list[Sample | None], list[SampleKey]], Arrays]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step.

    `wait_s`: how long the training had to wait for it; `tensors`: what `make` made of it.
    """

    step: int
    keys: list[SampleKey]
    samples: list[Sample | None]
    wait_s: float
    tensors: Arrays = field(default_factory=dict)


@dataclass
class Window:
    """What is ready of a dataset's lane, up to its position `end`.

    `following`: the window after it, from when half of this one is used.
    """

    end: int
    samples: dict[int, Sample | None]
    following: "Future[Window] | None" = None


class Loader:
    """A rank's batches from `position` on, for ever; made ready in a thread, `prefetch` steps ahead.

    Whatever fails in the thread is raised where the batch is requested.
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
        self.mixture = mixture
        self.global_batch = global_batch
        self.rank = rank
        self.world = world
        self.position = position
        self.prefetch = prefetch
        self.make = make
        # by (dataset, lane)
        self.windows: dict[tuple[int, int], Window] = {}
        # one thread: samples leave their windows in the order of the steps
        self.thread = ThreadPoolExecutor(1, "loader")
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetcher")
        self.makers = ThreadPoolExecutor(MAKERS, "maker")

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
        # first all windows, then the samples: after a start, the windows of all lanes come at once
        for position in positions:
            self._open_window(position)
        # the keys are of positions, holes included: what is drawn for the others must not depend on them
        keys = [self.mixture.key(position) for position in positions]
        samples = [self._take(position) for position in positions]
        return Batch(step, keys, samples, wait_s=0.0)

    def _open_window(self, position: int) -> None:
        """Begins to fetch the first window of a lane that this loader has not met yet."""
        dataset, own_position = self.mixture.locate(position)
        lane = own_position % self.mixture.lanes
        if (dataset, lane) not in self.windows:
            following = self.fetchers.submit(self._fetch, dataset, own_position)
            self.windows[dataset, lane] = Window(own_position, {}, following)

    def _take(self, position: int) -> Sample | None:
        """The sample at a position; waits for its window if need be, and requests the next one in time."""
        dataset, own_position = self.mixture.locate(position)
        order = self.mixture.orders[dataset]
        sample = order.sample(own_position)
        if sample < 0:
            return None
        window = self._window_with(sample, dataset, own_position)
        rows_left = (window.end - own_position) // order.lanes
        if not window.following and 2 * rows_left <= order.window_size:
            window.following = self.fetchers.submit(self._fetch, dataset, window.end)
        members = window.samples.pop(sample)
        # the window was read before: its sample may have been buried since
        return None if self.mixture.catalogues[dataset].holes[sample] else members

    def _window_with(self, sample: int, dataset: int, own_position: int) -> Window:
        """The lane's window that holds a sample: this one, the following one, or one that is fetched now."""
        lane = own_position % self.mixture.lanes
        window = self.windows[dataset, lane]
        if sample in window.samples:
            return window
        following = window.following.result() if window.following and window.end <= own_position else None
        if following is None or sample not in following.samples:
            # only after a jump, as in tests: training goes from position to position
            following = self._fetch(dataset, own_position)
        self.windows[dataset, lane] = following
        return following

    def _fetch(self, dataset: int, own_position: int) -> Window:
        end, samples = self.mixture.orders[dataset].window(own_position)
        return Window(end, self.mixture.catalogues[dataset].read(samples))
