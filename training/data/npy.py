"""Arrays as .npy bytes and back, the form of the members of latents. Never pickle.

    data = to_npy(array)
    read_npy(data)               # a view of `data`, nothing is copied

Each header is parsed once: there are as many as shapes, not as samples.
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
    """The array, a read-only view of `data`. `ValueError` where that is no .npy of numbers in C order.

    >>> read_npy(to_npy(np.arange(3))).tolist()
    [0, 1, 2]
    """
    # version 1.0: magic, length of the header in two bytes, header, numbers
    start = len(MAGIC) + 2 + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 2], "little")
    dtype, shape = _header(bytes(data[:start]))
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=64)
def _header(data: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"no .npy of version 1.0 begins with {data[: len(MAGIC)]!r}")
    shape, fortran, dtype = npy_format.read_array_header_1_0(io.BytesIO(data[len(MAGIC) :]))
    if fortran or dtype.hasobject:
        layout = "Fortran" if fortran else "C"
        raise ValueError(f".npy of {dtype} in {layout} order: need numbers in C order")
    return dtype, shape
