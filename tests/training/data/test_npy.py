"""Arrays as .npy bytes: exact, without copies, never pickle."""

import io

import numpy as np
import pytest

from training.data.npy import read_npy, to_npy


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "uint8"])
def test_an_array_comes_back_as_it_was(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    result = read_npy(to_npy(array))
    assert result.dtype == array.dtype and np.array_equal(result, array) and not result.flags.owndata


def test_numpy_reads_it() -> None:
    assert np.array_equal(np.load(io.BytesIO(to_npy(np.eye(3)))), np.eye(3))


def test_pickles_and_other_bytes_are_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), b"PK\x03\x04" + bytes(100)):
        with pytest.raises(ValueError):
            read_npy(data)
