"""`NameTable`: where the layers of one file are that have a certain name.

Not in the file: made of its heap when a layer is first looked up by name, and kept beside the
file's table. docs/names.md says what that costs.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

if TYPE_CHECKING:
    from jessymem.regions.layout import Layout


def digest_of(name: bytes | memoryview) -> int:
    """Return the XXH3-64 of a name."""
    return xxhash.xxh3_64_intdigest(name)


class NameTable:
    """The digests of names, ascending, each beside its row; layers without a name are not in it.

    Ten bytes a layer. It answers with a binary search, and may name rows of other names, whose
    digest is the same: who asks compares the names.

    Parameters
    ----------
    layout : Layout

    Attributes
    ----------
    digests : memoryview of uint64
    n_bytes : int
        How long its arrays are.
    charge : Charge or None
        What the budget counts for it.
    """

    __slots__ = ("_rows", "charge", "digests", "n_bytes")

    def __init__(self, layout: Layout) -> None:
        rows = layout.rows
        starts, sizes = rows["name_offset"].astype(np.int64), rows["name_size"].astype(np.int64)
        named = np.flatnonzero(sizes)
        starts = starts[named]
        heap = memoryview(layout.heap)
        # A call in C for each name: as quick as whole columns of words in NumPy.
        pairs = zip(starts.tolist(), (starts + sizes[named]).tolist(), strict=True)
        digests = np.array([digest_of(heap[start:end]) for start, end in pairs], np.uint64)
        order = np.argsort(digests, kind="stable")  # of one name the rows ascend
        self.digests = memoryview(digests[order])
        self._rows = memoryview(named[order].astype(np.uint16))
        self.n_bytes = self.digests.nbytes + self._rows.nbytes
        self.charge: Any = None

    def has(self, digest: int) -> bool:
        """Tell whether a name may be in it."""
        at = bisect_left(self.digests, digest)
        return at < len(self.digests) and self.digests[at] == digest

    def rows_with(self, digest: int) -> list[int]:
        """Return the rows of all names with a digest, ascending."""
        digests, at = self.digests, bisect_left(self.digests, digest)
        first = at
        while at < len(digests) and digests[at] == digest:
            at += 1
        return self._rows[first:at].tolist()


def rows_named(layout: Layout, table: NameTable, name: bytes) -> list[int]:
    """Return the rows of a file that have a name, ascending."""
    rows, heap = layout.rows, layout.heap
    found = []
    for row in table.rows_with(digest_of(name)):
        start, size = int(rows[row]["name_offset"]), int(rows[row]["name_size"])
        if heap[start : start + size].tobytes() == name:
            found.append(row)
    return found
