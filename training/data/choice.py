"""Which items a measurement takes, as a function of their keys alone: for validation, previews and evaluate.

    chosen = choose(keys, holes, 320)        # indexes, in order

The items whose keys have the smallest hashes. Holes keep their place, so that removing one item changes
neither which of the remaining ones are taken nor what is drawn for them.
"""

import hashlib
import heapq
from collections.abc import Sequence

import numpy as np


def choose(keys: Sequence[str] | np.ndarray, holes: np.ndarray, count: int, at_least: int = 1) -> list[int]:
    """Indexes of `count` of the `keys`, sorted; `holes`, bool [len(keys)], are among them, to weigh nothing.

    Where fewer than `at_least` of these are no holes, the next ones by hash come last. Empty where all are
    holes.

    >>> choose(["a", "b", "c"], np.array([False, False, True]), count=2)
    [1, 2]
    """
    if holes.all():
        return []
    ranked = heapq.nsmallest(count, range(len(keys)), key=lambda index: rank(str(keys[index])))
    chosen = sorted(ranked)
    missing = at_least - int((~holes[chosen]).sum())
    if missing > 0:
        candidates = set(np.flatnonzero(~holes).tolist()) - set(chosen)
        chosen += heapq.nsmallest(missing, candidates, key=lambda index: rank(str(keys[index])))
    return chosen


def rank(key: str) -> bytes:
    """What keys are sorted by: their hash, as good as random and the same for ever."""
    return hashlib.sha256(key.encode()).digest()


def seed_of(seed: int, key: str) -> int:
    """A seed for what is drawn for one item, the same whatever is drawn beside it."""
    # torch takes seeds of 63 bits
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]) >> 1
