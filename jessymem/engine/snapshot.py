"""The published state: immutable, replaced whole, kept alive by whoever still reads it.

Readers bind `Engine.snapshot` once and take everything from it: the arrays for kernels, and
the same tables cut into views for single reads from Python. A writer builds the next snapshot
beside it and publishes it with one assignment; the reference count tells when the old one's memory
may go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from jessymem.aligned import aligned_zeros
from jessymem.engine.policies import Mark
from jessymem.engine.sampling import Gates
from jessymem.errors import DimensionNotFound, LayerNotFound
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.regions.table import LayerTable, LoadedDimension

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A table's `Reader`, where a read is noted for eviction, and the threads' gates.
ReadPath: TypeAlias = tuple[
    memoryview, memoryview, memoryview, memoryview | None, int, dict[int, memoryview], Mark, Gates
]


class Publication(NamedTuple):
    """A table to publish for a dimension."""

    loaded: LoadedDimension
    region_id: int
    mark: Mark
    gates: Gates


class _Rows:
    """The base of a region table: while the array lives, so does what it points at."""

    def __init__(self, rows: NDArray[Any], held: tuple[LoadedDimension | None, ...]) -> None:
        raw = rows.view(np.uint8)  # whose interface costs a tenth: no fields are spelt out
        raw.flags.writeable = False
        self._rows = raw
        self._held = held
        self.__array_interface__ = raw.__array_interface__


class Snapshot:
    """One state of the store.

    Attributes
    ----------
    directory : ndarray of DIRECTORY, shape (65536,)
        Dimension number to row of `regions`, -1: absent. Read-only.
    regions : ndarray of REGION, shape (n,)
        Rows 0 to 13 are the core slots. Read-only; the array owns the memory behind its addresses.
    handles : tuple of LoadedDimension or None
        One per row.
    readers : dict of int to ReadPath
        Per dimension that is in memory, what a single read from Python goes through.
    """

    __slots__ = ("directory", "handles", "readers", "regions")

    def __init__(
        self,
        directory: NDArray[np.int32],
        rows: NDArray[Any],
        handles: tuple[LoadedDimension | None, ...],
        readers: dict[int, ReadPath],
    ) -> None:
        # Read-only for good: neither has a writeable array below it.
        if directory.flags.writeable:
            directory = np.frombuffer(memoryview(directory).toreadonly(), s.DIRECTORY)
        self.directory = directory
        self.regions = np.asarray(_Rows(rows, handles)).view(s.REGION)
        self.handles = handles
        self.readers = readers

    @classmethod
    def empty(cls, capacities: dict[DimensionId, int]) -> Snapshot:
        """Return a state with nothing loaded: the core slots, each with its capacity."""
        rows = aligned_zeros(s.N_CORE_DIMENSIONS, s.REGION)
        rows["dimension"] = np.arange(1, s.N_CORE_DIMENSIONS + 1)
        rows["capacity"] = [capacities[DimensionId(number)] for number in rows["dimension"]]
        directory = np.full(s.MAX_DIMENSION + 1, s.ABSENT, s.DIRECTORY)
        return cls(directory, rows, (None,) * len(rows), {})

    def with_published(self, publications: Iterable[Publication]) -> Snapshot:
        """Return the state with each of `publications` for its dimension."""
        directory, handles, readers = self.directory, list(self.handles), self.readers.copy()
        chosen: list[tuple[int, Publication]] = []
        for publication in publications:
            loaded = publication.loaded
            dimension = loaded.dimension_id
            row = self._row_for(dimension, directory, handles)
            if row == len(handles):
                handles.append(None)
            if directory[dimension] != row:
                if directory is self.directory:
                    directory = directory.copy()  # 256 KiB: only where a dimension is new
                directory[dimension] = row
            handles[row] = loaded
            chosen.append((row, publication))
            table = loaded.resident
            if table is None:
                readers.pop(int(dimension), None)
            else:
                readers[int(dimension)] = (*table.reader, publication.mark, publication.gates)
        rows = aligned_zeros(len(handles), s.REGION)
        rows[: len(self.regions)] = self.regions
        for row, publication in chosen:
            rows[row] = _empty_slot(rows[row])
            publication.loaded.describe_into(rows[row])
            rows[row]["region_id"] = publication.region_id
        return Snapshot(directory, rows, tuple(handles), readers)

    def without(self, dimension: DimensionId) -> Snapshot:
        """Return the state in which a loaded dimension's slot is empty."""
        row = int(self.directory[dimension])
        rows = aligned_zeros(len(self.regions), s.REGION)
        rows[:] = self.regions
        rows[row] = _empty_slot(rows[row])
        if rows[row]["capacity"]:
            rows[row]["dimension"] = dimension
        handles = (*self.handles[:row], None, *self.handles[row + 1 :])
        directory = self.directory.copy()
        directory[dimension] = s.ABSENT
        readers = {number: self.readers[number] for number in self.readers if number != dimension}
        return Snapshot(directory, rows, handles, readers)

    def __contains__(self, dimension: int) -> bool:
        """Tell whether a dimension is loaded; evicted ones are."""
        return bool(self.directory[dimension] != s.ABSENT)

    @property
    def loaded(self) -> list[LoadedDimension]:
        """The loaded dimensions, evicted ones too, ascending."""
        present = [each for each in self.handles if each is not None]
        return sorted(present, key=lambda each: each.dimension_id)

    @property
    def resident(self) -> list[LayerTable]:
        """Of the loaded dimensions those that are in memory, ascending."""
        return [table for each in self.loaded if (table := each.resident) is not None]

    def find(self, dimension: DimensionId) -> LoadedDimension | None:
        """Return what is loaded of a dimension, or None."""
        row = self.directory[dimension]
        return None if row == s.ABSENT else self.handles[row]

    def get(self, dimension: DimensionId) -> LoadedDimension:
        """Return what is loaded of a dimension, or raise DimensionNotFound."""
        found = self.find(dimension)
        if found is None:
            raise DimensionNotFound(f"{dimension} is not loaded", dimension=dimension, path=None)
        return found

    def get_for(self, layer_id: LayerId) -> LoadedDimension:
        """Return what is loaded of a layer's dimension, or raise LayerNotFound."""
        found = self.find(layer_id.dimension)
        if found is None:
            raise LayerNotFound(
                f"{layer_id}: dimension {layer_id.dimension} is not loaded",
                layer=layer_id,
            )
        return found

    def mark_of(self, dimension: int) -> Mark:
        """Return where accesses of a dimension are noted.

        Nowhere, if it is not in memory: mapping it again is the access that counts.
        """
        path = self.readers.get(dimension)
        return [None] if path is None else path[6]

    def table_at(self, row: int) -> LayerTable:
        """Return the table in a row of `regions` in which a layer was located."""
        loaded = self.handles[row]
        table = None if loaded is None else loaded.resident
        if table is None:
            raise LookupError(f"row {row} holds no table")
        return table

    def region_id_of(self, dimension: DimensionId) -> int:
        """Return the region id of a loaded dimension."""
        return int(self.regions[self.directory[dimension]]["region_id"])

    def region_ids(self) -> list[int]:
        """Return the region ids of all that is loaded."""
        return [self.region_id_of(each.dimension_id) for each in self.loaded]

    def children_of(self, parent: LayerId) -> tuple[LayerId, ...]:
        """Return the loaded layers that name `parent`, ascending."""
        return tuple(child for each in self.loaded for child in each.children_of(parent))

    def _row_for(
        self,
        dimension: DimensionId,
        directory: NDArray[np.int32],
        handles: list[LoadedDimension | None],
    ) -> int:
        """Choose a slot: the one it has, its core slot, the first that is free, or a new one."""
        if directory[dimension] != s.ABSENT:
            return int(directory[dimension])
        if dimension <= s.N_CORE_DIMENSIONS:
            return dimension - 1
        for row in range(s.N_CORE_DIMENSIONS, len(handles)):
            if handles[row] is None:
                return row
        return len(handles)


def _empty_slot(slot: Any) -> NDArray[Any]:
    """Return a row of nothing that keeps a core slot's capacity."""
    empty = np.zeros((), s.REGION)
    empty["capacity"] = slot["capacity"]
    return empty
