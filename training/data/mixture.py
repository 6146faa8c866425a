"""Several datasets in one stream, by weights: which of them a position takes from, and which of its own
positions that is.

    mixture = Mixture.of([catalogue, other], Order(0, lanes=48, seed=0), weights=[0.7, 0.3])
    mixture.locate(31007)                 # (number of the dataset, position in the order of that dataset alone)

In every lane, each thousand places are shared out by the weights, in a random order that repeats. So each
dataset goes round by itself, in each lane every sample once before any twice, and where a position belongs is
known without counting: at 10^9 as at 0, and alike at every world size. With one dataset, its own order. Reads
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.dataset import Commit, Snapshot
from configs.load import UserError
from training.data.catalogue import Catalogue
from training.data.order import Order
from training.data.randomness import SampleKey, keyed_rng

PERIOD = 1000


@dataclass(frozen=True)
class Mixture:
    """int64 [lanes, PERIOD]: `pattern` is the number of a place's dataset, `before` how many places of the
    period it had before.
    """

    catalogues: tuple[Catalogue, ...]
    orders: tuple[Order, ...]
    counts: tuple[int, ...]
    pattern: np.ndarray
    before: np.ndarray

    @staticmethod
    def of(catalogues: Sequence[Catalogue], order: Order, weights: Sequence[float] = ()) -> "Mixture":
        """`order` says lanes, seed and sizes for all; no weights: each dataset as often as it has samples.

        `UserError` where one would have no place in a thousand.
        """
        counts = shared_out(
            [float(weight) for weight in weights] or [float(len(catalogue)) for catalogue in catalogues]
        )
        assert len(counts) == len(catalogues), (weights, len(catalogues))
        orders = (
            replace(order, num_samples=len(found), stream=number) for number, found in enumerate(catalogues)
        )
        pattern = np.tile(np.repeat(np.arange(len(counts)), counts), (order.lanes, 1))
        for lane, places in enumerate(pattern):
            keyed_rng(SampleKey(order.seed, -1, lane), "mixture").shuffle(places)
        before = np.zeros_like(pattern)
        for number in range(len(counts)):
            ours = pattern == number
            before[ours] = (np.cumsum(ours, axis=1) - 1)[ours]
        return Mixture(tuple(catalogues), tuple(orders), tuple(counts), pattern, before)

    @property
    def lanes(self) -> int:
        return len(self.pattern)

    def locate(self, position: int) -> tuple[int, int]:
        """(the number of the dataset, the position in its own order)."""
        row, lane = divmod(position, self.lanes)
        period, place = divmod(row, PERIOD)
        number = int(self.pattern[lane, place])
        return number, (period * self.counts[number] + int(self.before[lane, place])) * self.lanes + lane

    def key(self, position: int) -> SampleKey:
        """Of a global position; its epoch is that of its dataset."""
        number, own = self.locate(position)
        return replace(self.orders[number].key(own), position=position)


def weighted_statistics(snapshots: Sequence[Snapshot], weights: Sequence[float]) -> list[Commit]:
    """The commits of all snapshots, with the moments in their statistics scaled so that each snapshot counts by
    its weight.

    A mean over them is then a mean over what a mixture draws. Without weights each sample counts alike, as it
    is drawn.
    """
    if not weights:
        return [commit for snapshot in snapshots for commit in snapshot.commits]
    found = []
    for snapshot, weight in zip(snapshots, weights, strict=True):
        samples = sum(commit.statistics.get("image_count", 0) for commit in snapshot.commits)
        scale = weight / max(samples, 1)
        found += [
            replace(commit, statistics=_scaled(commit.statistics, scale)) for commit in snapshot.commits
        ]
    return found


def _scaled(statistics: dict[str, Any], scale: float) -> dict[str, Any]:
    """With counts, sums and sums of squares times `scale`."""
    scaled = {}
    for name, value in statistics.items():
        is_moment = name.endswith(("_count", "_sum", "_sumsq"))
        scaled[name] = (np.asarray(value) * scale).tolist() if is_moment else value
    return scaled


def shared_out(weights: list[float]) -> list[int]:
    """A thousand places by weights, largest remainders first."""
    if not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"weights={weights}: give positive numbers")
    exact = np.array(weights) / sum(weights) * PERIOD
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: PERIOD - counts.sum()]] += 1
    if not counts.all():
        raise UserError(
            f"weights={weights}: dataset {int(counts.argmin()) + 1} has no place among {PERIOD} samples; give it more, or leave it out"
        )
    return counts.tolist()
