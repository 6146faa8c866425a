"""Arrays as .npy bytes and back, the form of the members of latents: `to_npy(array)`, `read_npy(data)`. Never
pickle.

Reading copies nothing, and parses each header once: there are as many as shapes, not as samples.
"""

import io
from functools import lru_cache

import numpy as np
from numpy.lib import format as npy_format

MAGIC = npy_format.magic(1, 0)


def to_npy(array: np.ndarray) -> bytes:
    """The bytes of a plain array of numbers."""
    buffer = io.BytesIO()
    npy_format.write_array(buffer, np.asarray(array, order="C"), (1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_npy(data: bytes | memoryview) -> np.ndarray:
    """The array, a read-only view of `data`. `ValueError` where that is no .npy of numbers in C order."""
    start = len(MAGIC) + 2 + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 2], "little")
    dtype, shape = _header(bytes(data[:start]))
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=64)
def _header(data: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"no .npy of version 1.0 begins with {data[: len(MAGIC)]!r}")
    shape, fortran, dtype = npy_format.read_array_header_1_0(io.BytesIO(data[len(MAGIC) :]))
    if fortran or dtype.hasobject:
        raise ValueError(f".npy of {dtype} in {'Fortran' if fortran else 'C'} order: need numbers in C order")
    return dtype, shape
