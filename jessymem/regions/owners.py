"""Which rows of a table are compressed, and per row the bytes in which its content is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels import schema as s

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Owners(list[Any]):
    """Per row, the bytes in which its content is; None: it is compressed, and not inflated."""

    __slots__ = ("__weakref__",)


def is_compressed(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell of each LAYER row whether its layer is compressed."""
    found: NDArray[np.bool_] = rows["content_offset"] == s.COMPRESSED_AT
    return found


def owned(owners: list[Any], rows: NDArray[Any]) -> list[Any]:
    """Return owners of rows, none for those whose layer is compressed: `Owners`, if any is."""
    compressed = np.flatnonzero(is_compressed(rows)).tolist()
    if not compressed:
        return owners
    found = Owners(owners)
    for row in compressed:
        found[row] = None
    return found
