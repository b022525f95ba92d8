"""Arrays on cache lines."""

from __future__ import annotations

import numpy as np
import pytest

from jessymem.aligned import aligned_copy, aligned_zeros
from jessymem.kernels import schema as s


@pytest.mark.parametrize("dtype", [s.REGION, s.LAYER, s.LAYER_INDEX, np.dtype("u1"), "f8"])
@pytest.mark.parametrize("n_items", [0, 1, 2, 3, 64, 1_000, 65_536])
def test_the_first_byte_lies_on_a_cache_line(n_items, dtype):
    held = []
    for _ in range(8):  # at other addresses each time
        array = aligned_zeros(n_items, dtype)
        assert (array.dtype, array.shape) == (np.dtype(dtype), (n_items,))
        assert not n_items or array.ctypes.data % s.CACHE_LINE_BYTES == 0
        assert array.flags.writeable and array.flags.c_contiguous
        assert not array.view(np.uint8).any()
        held.append((array, bytes(7)))


@pytest.mark.parametrize("n_items", [0, 1, 64])
def test_a_copy_lies_there_too_and_is_no_view(n_items):
    rows = np.zeros(n_items, s.REGION)
    rows["dimension"] = np.arange(n_items)
    copied = aligned_copy(rows)
    rows["dimension"] = -1
    assert copied.dtype == s.REGION and copied["dimension"].tolist() == list(range(n_items))
    assert not n_items or copied.ctypes.data % s.CACHE_LINE_BYTES == 0
    assert copied.flags.writeable


def test_a_row_of_a_layer_is_one_cache_line_and_one_of_a_region_two():
    for dtype, n_lines in ((s.LAYER, 1), (s.REGION, 2)):
        rows = aligned_zeros(5, dtype)
        for i in range(5):
            first = rows[i : i + 1].ctypes.data
            last = first + dtype.itemsize - 1
            assert last // s.CACHE_LINE_BYTES - first // s.CACHE_LINE_BYTES == n_lines - 1


def test_the_memory_is_owned():
    array = aligned_zeros(3, s.LAYER)
    array["layer_num"] = 7
    some = array[1:]
    del array
    assert some["layer_num"].tolist() == [7, 7]
