"""The order of samples: a function of (snapshot, seed, epoch) alone, at every legal world size.

    order = Order(len(catalogue), lanes=48, seed=0)
    order.sample(31007)          # the number of the sample at a global position, -1 for a hole

C canonical lanes, each a block-shuffled stream over its share of the snapshot; global position p belongs to
lane p mod C and is its sample p // C, so a step is the same set of samples for 1, 2 or C ranks. Reads nothing
(training.data.loader does).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from configs.load import UserError
from training.data.randomness import SampleKey, keyed_rng

BLOCK_SIZE = 16
WINDOW_SIZE = 64


@dataclass(frozen=True)
class Order:
    """Position -> sample, for every epoch. An epoch shows every sample once; lanes are filled up with holes
    (-1).

    Blocks of `block_size` neighbours come in random order, and `window_size` samples of a lane are shuffled
    together: larger ones mix more and cost memory, larger blocks cost fewer requests. `stream`: orders of
    other streams are others, of as many samples too.
    """

    num_samples: int
    lanes: int
    seed: int
    block_size: int = BLOCK_SIZE
    window_size: int = WINDOW_SIZE
    stream: int = 0

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
        """(position where the next window of its lane begins, the samples that are shuffled together from
        `position` to there).
        """
        lane, (epoch, place) = position % self.lanes, divmod(position // self.lanes, self.lane_length)
        end = self.window_end(lane, place)
        return position + (end - place) * self.lanes, [
            int(sample) for sample in _lanes(self, epoch)[lane, place:end] if sample >= 0
        ]

    def window_end(self, lane: int, place: int) -> int:
        """Where the window with a lane's `place` ends; every lane starts with another part of one, so that
        reads are spread over time.
        """
        first = self.window_size - lane * self.window_size // self.lanes
        return min(
            self.lane_length, first + max(0, -(-(place + 1 - first) // self.window_size)) * self.window_size
        )


@lru_cache(maxsize=8)
def _lanes(order: Order, epoch: int) -> np.ndarray:
    """int64 [lanes, lane_length]: blocks of neighbours in random order, cut into lanes, shuffled in windows
    within a lane.
    """
    rng = keyed_rng(SampleKey(order.seed, epoch, -1 - order.stream), "order")
    num_blocks = -(-order.num_samples // order.block_size)
    blocks = (
        np.arange(num_blocks * order.block_size)
        .reshape(num_blocks, order.block_size)[rng.permutation(num_blocks)]
        .ravel()
    )
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


def check_geometry(lanes: int, global_batch: int, world: int) -> None:
    """`UserError` unless the workers divide the lanes and the lanes divide the global batch."""
    if world < 1 or lanes % world:
        legal = [str(w) for w in range(1, lanes + 1) if lanes % w == 0]
        raise UserError(f"workers={world}: must divide lanes={lanes}; legal here: {', '.join(legal)}")
    if global_batch < 1 or global_batch % lanes:
        nearest = max(1, round(global_batch / lanes)) * lanes
        raise UserError(
            f"global_batch={global_batch}: must be a multiple of lanes={lanes}; the nearest is {nearest}"
        )
