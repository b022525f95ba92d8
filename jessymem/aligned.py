"""Arrays whose rows lie on cache lines, so that a row of 64 or 128 bytes touches no other's."""

from __future__ import annotations

from ctypes import addressof, c_char
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels.schema import CACHE_LINE_BYTES

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

#: NumPy gives up the GIL to get zeros; so many bytes are cleared sooner than another thread begins.
_MAX_HELD_BYTES: Final = 2**16


def aligned_zeros(n_items: int, dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros, shape ``(n_items,)``, whose first byte lies on a cache line.

    NumPy aligns small arrays to 16 bytes. Writable; its base is an array of bytes that owns the
    memory, up to 63 bytes more.
    """
    item = np.dtype(dtype)
    return _aligned(n_items * item.itemsize).view(item)


def aligned_copy(*tables: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of arrays of one axis and dtype, one behind the other, as `aligned_zeros`."""
    dtype = tables[0].dtype
    copied = _aligned(sum(map(len, tables)) * dtype.itemsize)
    target, at = memoryview(copied), 0
    for rows in tables:  # field by field it takes a hundred times as long
        end = at + rows.nbytes
        target[at:end] = memoryview(rows.view(np.uint8))  # NumPy would give up the GIL for it
        at = end
    return copied.view(dtype)


def _aligned(n_bytes: int) -> NDArray[np.uint8]:
    """Return memory that is zero, from a cache line on."""
    n_owned = n_bytes + CACHE_LINE_BYTES - 1
    if n_owned <= _MAX_HELD_BYTES:
        small = bytearray(n_owned)
        start = -addressof(c_char.from_buffer(small)) % CACHE_LINE_BYTES
        return np.frombuffer(small, np.uint8, n_bytes, start)
    owner = np.zeros(n_owned, np.uint8)
    start = -owner.ctypes.data % CACHE_LINE_BYTES
    return owner[start : start + n_bytes]
