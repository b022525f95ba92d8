"""What callers hand in: sizes and offsets, checked and brought to one form."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.errors import shown
from jessymem.ids import items_of
from jessymem.kernels.schema import REQUEST_BYTES_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BOOLS: Final = (bool, np.bool_)


def as_size(value: Any, at_least: int = 1) -> int:
    """Return a number of bytes; what is beyond any memory is as good as 2**62."""
    if isinstance(value, _BOOLS):  # NumPy's own counts as an integer before 2.3
        raise TypeError("a size is an integer, not a bool")
    n_bytes = index(value)
    if n_bytes < at_least:
        raise ValueError(f"a size is at least {at_least} bytes, not {shown(n_bytes)}")
    return min(n_bytes, REQUEST_BYTES_LIMIT)


def as_sizes(values: Any) -> NDArray[np.int64]:
    """Return numbers of bytes as an array of their own."""
    sizes = _as_integers(values, "sizes")
    if len(sizes) and (sizes.min() < 1 or sizes.max() > REQUEST_BYTES_LIMIT):
        raise ValueError(f"a size is 1 byte to 2**62: there are {sizes.min()} to {sizes.max()}")
    return np.ascontiguousarray(sizes, np.int64)


def as_handles(values: Any) -> NDArray[np.int64]:
    """Return packed offsets as an array of their own."""
    handles = _as_integers(values, "offsets")
    if len(handles) and (handles.min() < 0 or handles.max() >= 2**63):
        raise ValueError("an offset without a generation can only be freed by itself")
    return np.ascontiguousarray(handles, np.int64)


def as_lengths(shape: Any) -> tuple[int, ...]:
    """Return the shape of an array."""
    lengths = tuple(map(index, shape)) if np.iterable(shape) else (index(shape),)
    if any(length < 0 for length in lengths):
        raise ValueError(f"an array has no negative length: {lengths}")
    return lengths


def _as_integers(values: Any, name: str) -> NDArray[Any]:
    items = values if isinstance(values, np.ndarray) else items_of(values, name)
    if items is not values and not {bool, np.bool_}.isdisjoint(map(type, items)):
        raise TypeError(f"{name} are integers, not bools")
    array = np.array(items)
    if array.ndim != 1:
        raise ValueError(f"{name} have one dimension, not {array.ndim}")
    if array.dtype == object and all(isinstance(value, int) for value in array):
        raise ValueError(f"{name} are 64-bit integers here: {min(array)} to {max(array)}")
    if len(array) and array.dtype.kind not in "iu":
        raise TypeError(f"{name} are integers, not {array.dtype}")
    return array
