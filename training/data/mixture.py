"""Several datasets in one stream, by weights: which dataset a position takes from, at which position.

    mixture = Mixture.of([catalogue, other], Order(0, lanes=48, seed=0), weights=[0.7, 0.3])
    mixture.locate(31007)                 # (index of the dataset, position in its own order)

In every lane, the weights share out each thousand rows, in a random order that repeats. Each dataset is
shuffled and repeated on its own: within a lane nothing repeats before all was seen. Mapping a position is
O(1), at 10^9 as at 0, and alike at every world size. One dataset alone keeps its own order. Reads nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.dataset import Commit, Snapshot
from cluster.jsonl import JsonObject
from configs.load import UserError
from training.data.catalogue import Catalogue
from training.data.order import Order
from training.data.randomness import SampleKey, keyed_rng

# rows after which the pattern repeats: weights are exact to a thousandth, and a pattern is small
PERIOD = 1000


@dataclass(frozen=True)
class Mixture:
    """Where every position of the stream comes from.

    `pattern`: int64 [lanes, PERIOD], the dataset of each row of a period. `before`: the same shape, how many
    rows of the period that dataset had before. `counts`: rows of a period by dataset.
    """

    catalogues: tuple[Catalogue, ...]
    orders: tuple[Order, ...]
    counts: tuple[int, ...]
    pattern: np.ndarray
    before: np.ndarray

    @staticmethod
    def of(catalogues: Sequence[Catalogue], order: Order, weights: Sequence[float] = ()) -> "Mixture":
        """`order` gives lanes, seed and sizes for all; no weights: each dataset as often as it has samples.

        `UserError` where one would have no row of a thousand.
        """
        sizes = [len(catalogue) for catalogue in catalogues]
        counts = share_out([float(weight) for weight in weights or sizes])
        assert len(counts) == len(catalogues), (weights, len(catalogues))
        orders = [
            replace(order, num_samples=len(catalogue), stream=index)
            for index, catalogue in enumerate(catalogues)
        ]
        patterns = [
            lane_pattern(counts, keyed_rng(SampleKey(order.seed, -1, lane), "mixture"))
            for lane in range(order.lanes)
        ]
        before = [ranks_within(pattern, len(counts)) for pattern in patterns]
        return Mixture(tuple(catalogues), tuple(orders), tuple(counts), np.stack(patterns), np.stack(before))

    @property
    def lanes(self) -> int:
        return len(self.pattern)

    def locate(self, position: int) -> tuple[int, int]:
        """(index of the dataset, position in the order of that dataset) of a global position."""
        row, lane = divmod(position, self.lanes)
        period, row_in_period = divmod(row, PERIOD)
        dataset = int(self.pattern[lane, row_in_period])
        own_row = period * self.counts[dataset] + int(self.before[lane, row_in_period])
        return dataset, own_row * self.lanes + lane

    def key(self, position: int) -> SampleKey:
        """Of a global position; its epoch is that of its dataset."""
        dataset, own_position = self.locate(position)
        return replace(self.orders[dataset].key(own_position), position=position)


def lane_pattern(counts: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The dataset of each row of a lane's period, int64 [PERIOD]: `counts[i]` rows of i, shuffled."""
    pattern = np.repeat(np.arange(len(counts)), counts)
    rng.shuffle(pattern)
    return pattern


def ranks_within(pattern: np.ndarray, num_kinds: int) -> np.ndarray:
    """For each element, how many of the same kind are before it.

    >>> ranks_within(np.array([0, 1, 0, 0, 1]), 2).tolist()
    [0, 0, 1, 2, 1]
    """
    ranks = np.zeros_like(pattern)
    for kind in range(num_kinds):
        is_kind = pattern == kind
        ranks[is_kind] = np.arange(np.count_nonzero(is_kind))
    return ranks


def weighted_statistics(snapshots: Sequence[Snapshot], weights: Sequence[float]) -> list[Commit]:
    """The commits of all snapshots, their moments scaled so that each snapshot counts by its weight.

    A mean over them is then a mean over what a mixture draws. Without weights each sample counts alike, as it
    is drawn.
    """
    if not weights:
        return [commit for snapshot in snapshots for commit in snapshot.commits]
    commits: list[Commit] = []
    for snapshot, weight in zip(snapshots, weights, strict=True):
        samples = sum(commit.statistics.get("image_count", 0) for commit in snapshot.commits)
        scale = weight / max(samples, 1)
        for commit in snapshot.commits:
            commits.append(replace(commit, statistics=_scaled(commit.statistics, scale)))
    return commits


def _scaled(statistics: JsonObject, scale: float) -> JsonObject:
    """With counts, sums and sums of squares times `scale`."""
    scaled = {}
    for name, value in statistics.items():
        is_moment = name.endswith(("_count", "_sum", "_sumsq"))
        scaled[name] = (np.asarray(value) * scale).tolist() if is_moment else value
    return scaled


def share_out(weights: list[float]) -> list[int]:
    """`PERIOD` rows by weights, largest remainders first.

    >>> share_out([2, 1])
    [667, 333]
    """
    if not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"weights={weights}: give positive numbers")
    # summed by Python: NumPy's sum may differ in the last bit, and the order of a run with it
    exact = np.array(weights) / sum(weights) * PERIOD
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: PERIOD - counts.sum()]] += 1
    if not counts.all():
        dataset = int(counts.argmin()) + 1
        fix = "give it more, or leave it out"
        raise UserError(f"weights={weights}: dataset {dataset} has no row among {PERIOD}; {fix}")
    return [int(count) for count in counts]
