"""Arrays as .npy bytes: exact, without copies, never pickle."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(shape=st.lists(st.integers(0, 4), max_size=3), dtype=st.sampled_from(["float16", "float32", "int64"]))
def test_an_array_comes_back_from_npy_as_numpy_reads_it(shape: list[int], dtype: str) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    for array_read in (
        read_npy(memoryview(to_npy(array))),
        np.load(io.BytesIO(to_npy(array)), allow_pickle=False),
    ):
        assert (
            array_read.dtype == array.dtype
            and array_read.shape == array.shape
            and (array_read == array).all()
        )


def test_npy_of_objects_of_another_version_and_cut_ones_are_refused() -> None:
    whole, pickled = to_npy(np.zeros(9, np.float32)), io.BytesIO()
    np.save(pickled, np.array([{}]), allow_pickle=True)
    for wrong in (pickled.getvalue(), b"\x93NUMPY\x02\x00" + whole[8:], whole[:-1], whole[:20], b""):
        with pytest.raises(ValueError):
            read_npy(wrong)
