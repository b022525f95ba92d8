"""`NameIndex`: which of several dimensions have a layer of a certain name.

Made of their name tables, for a chunk of 64 dimensions of a published state, when a layer is looked
up in all of them.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from jessymem.regions.table import LoadedDimension


class NameIndex:
    """The names of several dimensions together, as far as their tables are short.

    Parameters
    ----------
    dimensions : list of LoadedDimension

    Attributes
    ----------
    unknown : list of LoadedDimension
        Those that have to be asked one by one: their names are in no table yet, or in a long one.
    by_name : dict of str to list of LoadedDimension
        By the dimension's own name.
    """

    __slots__ = ("_digests", "_owners", "_which", "by_name", "unknown")

    def __init__(self, dimensions: list[LoadedDimension]) -> None:
        self.unknown: list[LoadedDimension] = []
        self.by_name: dict[str, list[LoadedDimension]] = {}
        digests, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint8)]
        self._owners: list[LoadedDimension] = []
        for each in dimensions:
            if each.name:
                self.by_name.setdefault(each.name, []).append(each)
            tables = each.name_tables
            if any(table is None or table.charge is not None for table in tables):
                self.unknown.append(each)
                continue
            for table in filter(None, tables):
                digests.append(np.asarray(table.digests))
                owners.append(np.full(len(table.digests), len(self._owners), np.uint8))
            self._owners.append(each)
        found = np.concatenate(digests)
        order = np.argsort(found, kind="stable")
        self._digests = memoryview(found[order])
        self._which = memoryview(np.concatenate(owners)[order])

    def dimensions_with(self, digest: int) -> list[LoadedDimension]:
        """Return those, but for the unknown ones, that may have a name of a digest."""
        digests, at = self._digests, bisect_left(self._digests, digest)
        found: list[LoadedDimension] = []
        while at < len(digests) and digests[at] == digest:
            owner = self._owners[self._which[at]]
            if not found or found[-1] is not owner:
                found.append(owner)
            at += 1
        return found
