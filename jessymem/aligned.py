"""Arrays whose rows lie on cache lines, so that a row of 64 or 128 bytes touches no other's."""

from __future__ import annotations

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
    return _aligned_part(_owner(n_items * item.itemsize + CACHE_LINE_BYTES - 1)).view(item)


def aligned_copy(*tables: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of arrays of one axis and dtype, one behind the other, as `aligned_zeros`."""
    dtype = tables[0].dtype
    n_bytes = sum(len(rows) for rows in tables) * dtype.itemsize
    copied = _aligned_part(_owner(n_bytes + CACHE_LINE_BYTES - 1))
    target, at = memoryview(copied), 0
    for rows in tables:  # field by field it takes a hundred times as long
        end = at + rows.nbytes
        target[at:end] = memoryview(rows.view(np.uint8))  # NumPy would give up the GIL for it
        at = end
    return copied.view(dtype)


def _owner(n_bytes: int) -> NDArray[np.uint8]:
    """Return memory that is zero."""
    if n_bytes <= _MAX_HELD_BYTES:
        return np.frombuffer(bytearray(n_bytes), np.uint8)
    return np.zeros(n_bytes, np.uint8)


def _aligned_part(owner: NDArray[np.uint8]) -> NDArray[np.uint8]:
    start = -owner.ctypes.data % CACHE_LINE_BYTES
    return owner[start : start + len(owner) - CACHE_LINE_BYTES + 1]
