"""Pairs of clips that may be near each other, found without comparing each with each.

    for low, high in candidate_pairs(prints): …      # indices, int [n] each

Clips that agree in some of their bits fall into one bucket, and only those of a bucket are compared. A
bucket is these keys, one after the other:

    byte i of the image hash | byte j of it | 16 bits of the sound's shape [ | 16 bits of its change ]
                                                                           only where it is crowded

Every pair of bytes (28) times every 16 bits of the shape (8) is one sorting of all clips. Two image hashes
that differ in 6 bits leave at least two of 8 bytes untouched, and shapes that differ in 7 bits one of 8
times 16 bits: so every pair that near shares a bucket, and of those further apart most do. A camera that
never moves would put all its clips into one bucket, and the work would be quadratic: more than `CROWD` are
divided by the sound's change, too.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from ingest.dedup.fingerprint import IMAGE_BYTES

CHUNK = 200_000  # pairs at a time: a few MB of indices
CROWD = 256  # clips of a bucket that are compared each with each
# columns of the prints
IMAGE = slice(0, 1)
SHAPE = slice(1, 3)
CHANGE = slice(3, 5)
Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


def candidate_pairs(prints: np.ndarray) -> Pairs:
    """Pairs of rows of `prints` that share a bucket, the lower index first.

    `prints`: uint64 [n, 5]: image hash, two columns of shape, two of change.
    A pair may come several times: near ones share many buckets.
    """
    changes = _sixteen_bits(prints, CHANGE)
    for picture in image_keys(prints):
        for shape in shape_keys(prints):
            buckets = picture | shape
            order = np.argsort(buckets, kind="stable")  # stable: within a bucket the lower index comes first
            buckets = buckets[order]
            crowded = in_crowds(buckets)
            yield from pairs_within(buckets[~crowded], order[~crowded])
            if crowded.any():
                yield from _pairs_of_crowds(buckets[crowded], order[crowded], changes)


def image_keys(prints: np.ndarray) -> Iterator[np.ndarray]:
    """uint32 [n], in the upper 16 bits two bytes of the image hash; for every choice of two."""
    image = np.ascontiguousarray(prints[:, IMAGE]).view(np.uint8).astype(np.uint32)
    for first, second in itertools.combinations(range(IMAGE_BYTES), 2):
        yield image[:, first] << 24 | image[:, second] << 16


def shape_keys(prints: np.ndarray) -> np.ndarray:
    """uint16 [8, n]: the sound's shape, 16 bits at a time."""
    return _sixteen_bits(prints, SHAPE).T


def change_keys(buckets: np.ndarray, changes: np.ndarray) -> Iterator[np.ndarray]:
    """uint64 [n]: crowded buckets, with 16 bits of the sound's change appended; for each of the 8."""
    wider = buckets.astype(np.uint64) << np.uint64(16)
    for change in changes.T:
        yield wider | change


def in_crowds(buckets: np.ndarray) -> np.ndarray:
    """bool [n]: whether the bucket of a clip, in the sorted `buckets` [n], holds more than CROWD."""
    starts = np.flatnonzero(np.concatenate([[True], buckets[1:] != buckets[:-1]])[: len(buckets)])
    sizes = np.diff(starts, append=len(buckets))
    return np.repeat(sizes > CROWD, sizes)


def pairs_within(buckets: np.ndarray, indices: np.ndarray) -> Pairs:
    """Pairs of `indices` [n] in one bucket (sorted, [n]), at most CROWD apart."""
    lower = np.flatnonzero(buckets[1:] == buckets[:-1])
    for distance in range(1, CROWD + 1):
        lower = lower[lower + distance < len(buckets)]
        lower = lower[buckets[lower] == buckets[lower + distance]]
        if not len(lower):
            return
        for start in range(0, len(lower), CHUNK):
            chunk = lower[start : start + CHUNK]
            yield indices[chunk], indices[chunk + distance]


def _pairs_of_crowds(buckets: np.ndarray, indices: np.ndarray, changes: np.ndarray) -> Pairs:
    for divided in change_keys(buckets, changes[indices]):
        order = np.argsort(divided, kind="stable")
        # still too many in one bucket are compared with their CROWD nearest in order only
        yield from pairs_within(divided[order], indices[order])


def _sixteen_bits(prints: np.ndarray, columns: slice) -> np.ndarray:
    """uint16 [n, 8]: two columns of 64 bits, 16 at a time."""
    return np.ascontiguousarray(prints[:, columns]).view(np.uint16)
