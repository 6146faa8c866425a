"""The order of samples: a function of (snapshot, seed, epoch) alone, at every legal world size.

    order = Order(len(catalogue), lanes=48, seed=0)
    order.sample(31007)          # the index of the sample at a global position, -1 for a hole

There are C lanes, each a block-shuffled stream over its share of the snapshot. Global position p belongs to
lane p mod C and is its sample p // C, so a step is the same set of samples for 1, 2 or C ranks:

    position      0  1  2  3 | 4  5  6  7 | …       lanes=4
    lane          0  1  2  3 | 0  1  2  3 |
    row           0  0  0  0 | 1  1  1  1 |         a rank of two serves lanes 0 and 2, or 1 and 3

Reads nothing (training.data.loader does). docs/order-and-loader.md draws it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from configs.load import UserError
from training.data.randomness import SampleKey, keyed_rng

# neighbours in a tar that are read with one request; larger blocks cost fewer requests and mix less
BLOCK_SIZE = 16
# samples of a lane in memory at once; four blocks, so that a batch never is one block in order
WINDOW_SIZE = 64
# epochs whose permutation stays in memory: the current one and the next, of up to four mixed datasets
EPOCHS_CACHED = 8


@dataclass(frozen=True)
class Order:
    """Position -> sample, for every epoch. An epoch has every sample once; lanes are filled up with -1.

    Blocks of `block_size` neighbours come in random order, and `window_size` samples of a lane are shuffled
    together: larger ones mix more and cost memory. Orders of different `stream` are independent, even where
    they have as many samples.
    """

    num_samples: int
    lanes: int
    seed: int
    block_size: int = BLOCK_SIZE
    window_size: int = WINDOW_SIZE
    stream: int = 0

    @property
    def lane_length(self) -> int:
        return ceil_div(self.num_samples, self.lanes)

    def key(self, position: int) -> SampleKey:
        return SampleKey(self.seed, position // self.lanes // self.lane_length, position)

    def sample(self, position: int) -> int:
        """The sample at a global position, or -1 for a hole."""
        epoch, row = self._locate(position)
        return int(_lanes(self, epoch)[position % self.lanes, row])

    def window(self, position: int) -> tuple[int, list[int]]:
        """The rest of the window that `position` is in.

        Returns (position where the next window of its lane begins, the samples from `position` to there).
        """
        epoch, row = self._locate(position)
        lane = position % self.lanes
        end = self.window_end(lane, row)
        samples = _lanes(self, epoch)[lane, row:end]
        return position + (end - row) * self.lanes, samples[samples >= 0].tolist()

    def window_end(self, lane: int, row: int) -> int:
        """The row at which the window with a lane's `row` ends.

        The first window of each lane has another length, so that the lanes do not all read at the same step.
        With 32 lanes and windows of 64, they end at

            lane 0:  64, 128, 192 …
            lane 1:  62, 126, 190 …
            lane 2:  60, 124, 188 …
        """
        first = self.window_size - lane * self.window_size // self.lanes
        windows_after_first = max(0, ceil_div(row + 1 - first, self.window_size))
        return min(self.lane_length, first + windows_after_first * self.window_size)

    def _locate(self, position: int) -> tuple[int, int]:
        """(epoch, row within the lane) of a global position."""
        return divmod(position // self.lanes, self.lane_length)


def ceil_div(dividend: int, divisor: int) -> int:
    """The quotient, rounded up.

    >>> ceil_div(7, 3), ceil_div(6, 3), ceil_div(-1, 3)
    (3, 2, 0)
    """
    return -(-dividend // divisor)


@lru_cache(maxsize=EPOCHS_CACHED)
def _lanes(order: Order, epoch: int) -> np.ndarray:
    """The samples of an epoch, int64 [lanes, lane_length]; -1 fills up the last lane.

    Blocks of neighbours in random order are cut into lanes, and each lane is shuffled in windows.
    """
    rng = keyed_rng(SampleKey(order.seed, epoch, -1 - order.stream), "order")
    num_blocks = ceil_div(order.num_samples, order.block_size)
    blocks = np.arange(num_blocks * order.block_size).reshape(num_blocks, order.block_size)
    shuffled = blocks[rng.permutation(num_blocks)].ravel()
    flat = np.full(order.lanes * order.lane_length, -1)
    # the last block may be longer than what is left of the samples
    flat[: order.num_samples] = shuffled[shuffled < order.num_samples]
    lanes = flat.reshape(order.lanes, order.lane_length)
    for lane, samples in enumerate(lanes):
        start = 0
        while start < len(samples):
            end = order.window_end(lane, start)
            rng.shuffle(samples[start:end])
            start = end
    return lanes


def check_geometry(lanes: int, global_batch: int, world: int) -> None:
    """`UserError` unless the workers divide the lanes and the lanes divide the global batch."""
    if world < 1 or lanes % world:
        legal = [str(count) for count in range(1, lanes + 1) if lanes % count == 0]
        raise UserError(f"workers={world}: must divide lanes={lanes}; legal here: {', '.join(legal)}")
    if global_batch < 1 or global_batch % lanes:
        nearest = max(1, round(global_batch / lanes)) * lanes
        rule = f"must be a multiple of lanes={lanes}"
        raise UserError(f"global_batch={global_batch}: {rule}; the nearest is {nearest}")
