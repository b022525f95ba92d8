"""The published state: immutable, replaced whole, kept alive by whoever still reads it.

Readers bind `MmapManager._snapshot` once and take everything from it: the arrays for kernels, and
the same tables cut into views for single reads from Python. A writer builds the next snapshot
beside it and publishes it with one assignment; the reference count tells when the old one's memory
may go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.errors import LayerNotFound
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.regions.region import MmapRegion, Reader

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Rows:
    """The base of a region table: while the array lives, so does what it points at."""

    def __init__(self, rows: NDArray[Any], held: tuple[MmapRegion | None, ...]) -> None:
        self._rows = rows
        self._held = held
        self.__array_interface__ = rows.__array_interface__


class Snapshot:
    """One state of the store.

    Attributes
    ----------
    directory : ndarray of DIRECTORY, shape (65536,)
        Dimension number to row of `regions`, -1: absent. Read-only.
    regions : ndarray of REGION, shape (n,)
        Rows 0 to 13 are the core slots. Read-only; the array owns the memory behind its addresses.
    handles : tuple of MmapRegion or None
        One per row.
    readers : dict of int to Reader
        Per loaded dimension, what a single read from Python goes through.
    """

    __slots__ = ("directory", "handles", "readers", "regions")

    def __init__(
        self,
        directory: NDArray[np.int32],
        rows: NDArray[Any],
        handles: tuple[MmapRegion | None, ...],
        readers: dict[int, Reader],
    ) -> None:
        directory.flags.writeable = False
        self.directory = directory
        self.regions = np.asarray(_Rows(rows, handles))
        self.regions.flags.writeable = False
        self.handles = handles
        self.readers = readers

    @classmethod
    def empty(cls, capacities: dict[DimensionId, int]) -> Snapshot:
        """Return a state with nothing loaded: the core slots, each with its capacity."""
        rows = np.zeros(s.N_CORE_DIMENSIONS, s.REGION)
        rows["dimension"] = np.arange(1, s.N_CORE_DIMENSIONS + 1)
        rows["capacity"] = [capacities[DimensionId(number)] for number in rows["dimension"]]
        directory = np.full(s.MAX_DIMENSION + 1, s.ABSENT, s.DIRECTORY)
        return cls(directory, rows, (None,) * len(rows), {})

    def with_region(self, region: MmapRegion, region_id: int) -> Snapshot:
        """Return the state in which `region` stands for its dimension."""
        row = self._row_for(region.dimension_id)
        n_rows = max(len(self.regions), row + 1)
        rows = np.zeros(n_rows, s.REGION)
        rows[: len(self.regions)] = self.regions
        region.describe_into(rows[row])
        rows[row]["region_id"] = region_id
        handles = list(self.handles) + [None] * (n_rows - len(self.handles))
        handles[row] = region
        directory = self.directory.copy()
        directory[region.dimension_id] = row
        readers = {**self.readers, int(region.dimension_id): region.reader}
        return Snapshot(directory, rows, tuple(handles), readers)

    def without(self, dimension: DimensionId) -> Snapshot:
        """Return the state in which a loaded dimension's slot is empty."""
        row = int(self.directory[dimension])
        rows = self.regions.copy()
        capacity = rows[row]["capacity"]
        rows[row] = np.zeros((), s.REGION)
        rows[row]["capacity"] = capacity
        if capacity:
            rows[row]["dimension"] = dimension
        handles = (*self.handles[:row], None, *self.handles[row + 1 :])
        directory = self.directory.copy()
        directory[dimension] = s.ABSENT
        readers = {number: self.readers[number] for number in self.readers if number != dimension}
        return Snapshot(directory, rows, handles, readers)

    @property
    def loaded(self) -> list[MmapRegion]:
        """The loaded regions, ascending by dimension."""
        present = [region for region in self.handles if region is not None]
        return sorted(present, key=lambda region: region.dimension_id)

    def region_of(self, dimension: DimensionId) -> MmapRegion | None:
        """Return a dimension's region, or None."""
        row = self.directory[dimension]
        return None if row == s.ABSENT else self.handles[row]

    def region_id_of(self, dimension: DimensionId) -> int:
        """Return the region id of a loaded dimension."""
        return int(self.regions[self.directory[dimension]]["region_id"])

    def region_ids(self) -> list[int]:
        """Return the region ids of all that is loaded."""
        return [self.region_id_of(DimensionId(number)) for number in self.readers]

    def find(self, layer_id: LayerId) -> tuple[MmapRegion, int]:
        """Return a layer's region and row, or raise LayerNotFound."""
        region = self.region_of(layer_id.dimension)
        if region is None:
            raise LayerNotFound(
                f"{layer_id}: dimension {layer_id.dimension} is not loaded", layer=layer_id
            )
        return region, region.find_row(layer_id)

    def content(self, layer_id: LayerId) -> memoryview:
        """Return a layer's bytes, or raise LayerNotFound or OutOfBounds."""
        region, row = self.find(layer_id)
        return region.content_of(row)

    def children_of(self, parent: LayerId) -> tuple[LayerId, ...]:
        """Return the loaded layers that name `parent`, ascending."""
        return tuple(child for region in self.loaded for child in region.children_of(parent))

    def _row_for(self, dimension: DimensionId) -> int:
        """Choose a slot: the one it has, its core slot, the first that is free, or a new one."""
        if self.directory[dimension] != s.ABSENT:
            return int(self.directory[dimension])
        if dimension <= s.N_CORE_DIMENSIONS:
            return dimension - 1
        for row in range(s.N_CORE_DIMENSIONS, len(self.handles)):
            if self.handles[row] is None:
                return row
        return len(self.handles)
