"""Which items a measurement takes, as a function of their keys alone: for validation, previews and evaluate.

    chosen = choose(keys, holes, 320)        # item numbers, in order

The items whose keys have the smallest hashes. Holes keep their place, so that removing one item changes
nothing about which others are taken, nor about what is drawn for them.
"""

import hashlib
import heapq
from collections.abc import Sequence

import numpy as np


def choose(keys: Sequence[str] | np.ndarray, holes: np.ndarray, count: int, at_least: int = 1) -> list[int]:
    """Numbers of `count` of the `keys`, sorted; `holes` bool [len(keys)] are among them, to weigh nothing.

    Where fewer than `at_least` of these are whole, the next whole ones by hash come last. Empty where none is
    whole.
    """
    if holes.all():
        return []
    ranked = heapq.nsmallest(count, range(len(keys)), key=lambda number: rank(str(keys[number])))
    chosen = sorted(ranked)
    missing = at_least - int((~holes[chosen]).sum())
    if missing > 0:
        others = set(np.flatnonzero(~holes).tolist()) - set(chosen)
        chosen += heapq.nsmallest(missing, others, key=lambda number: rank(str(keys[number])))
    return chosen


def rank(key: str) -> bytes:
    """Where a key stands in the order of hashes."""
    return hashlib.sha256(key.encode()).digest()


def seed_of(seed: int, key: str) -> int:
    """A seed for what is drawn for one item, the same whatever is drawn beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]) >> 1
