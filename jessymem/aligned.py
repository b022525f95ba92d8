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
    n_bytes = n_items * item.itemsize
    n_owned = n_bytes + CACHE_LINE_BYTES - 1
    if n_owned <= _MAX_HELD_BYTES:
        owner = np.frombuffer(bytearray(n_owned), np.uint8)
    else:
        owner = np.zeros(n_owned, np.uint8)
    start = -owner.ctypes.data % CACHE_LINE_BYTES
    return owner[start : start + n_bytes].view(item)
