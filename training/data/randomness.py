"""Randomness that belongs to a sample, not to a process: the same at every world size and after every resume.

    key = SampleKey(seed=0, epoch=2, position=31007)
    noise = keyed_rng(key, "noise").standard_normal(shape)

Counter-based (Philox, Salmon et al. 2011): no state to save. Every purpose has a stream of its own.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

# the epoch of a run's fixed validation items: no epoch of training, which count from 0
VALIDATION = -2


@dataclass(frozen=True)
class SampleKey:
    """The position of a sample in a run: the run's seed, the epoch of its lane, its global position."""

    seed: int
    epoch: int
    position: int


def keyed_rng(key: SampleKey, purpose: str) -> np.random.Generator:
    """A generator that depends on the key and the purpose alone."""
    text = f"{key.seed}/{key.epoch}/{key.position}/{purpose}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
