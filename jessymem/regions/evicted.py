"""`EvictedRegion`: what is known of a dimension whose file is not mapped at the moment."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.regions.table import Edition

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.regions.region import MmapRegion


class EvictedRegion:
    """The names of a region that was given up for room: two to eight bytes a layer.

    Attributes
    ----------
    dimension_id : DimensionId
    name : str
        The dimension's.
    path : pathlib.Path
        From where it is mapped again.
    edition : Edition
        Which file it was.
    state : int
        REGION_EVICTED.
    numbers : ndarray of uint16
        The layers', ascending.
    """

    def __init__(self, region: MmapRegion) -> None:
        rows = region.rows
        self.dimension_id: DimensionId = region.dimension_id
        self.name = region.name
        self.path: Path | None = region.path
        self.edition: Edition = region.edition
        self.state = s.REGION_EVICTED
        self.numbers: NDArray[np.uint16] = np.array(rows["layer_num"])
        is_child = rows["parent"] != 0
        self._children = rows["layer_num"][is_child]
        self._parents: NDArray[np.uint32] = rows["parent"][is_child]
        # Where somebody still views it, it can be had back as it is.
        self._data: weakref.ref[NDArray[np.uint8]] | None = weakref.ref(region.data)
        self._identity = region.identity
        self._was = region.state

    @property
    def n_layers(self) -> int:
        """How many layers there are."""
        return len(self.numbers)

    def list_layers(self) -> list[LayerId]:
        """Return the ids of all layers, ascending."""
        return LayerId.in_order(self.dimension_id, self.numbers.tolist())

    def has_layer(self, number: int) -> bool:
        """Tell whether there is a layer of this number."""
        at = int(np.searchsorted(self.numbers, number))
        return at < len(self.numbers) and int(self.numbers[at]) == number

    def children_of(self, parent: LayerId) -> tuple[LayerId, ...]:
        """Return this region's layers that name `parent`, ascending."""
        named = self._children[self._parents == int(parent)]
        return tuple(LayerId.in_order(self.dimension_id, named.tolist()))

    def describe_into(self, slot: Any) -> None:
        """Fill one REGION row: no address, no layer, and the state that says why."""
        slot["dimension"] = self.dimension_id
        slot["generation"] = self.edition.generation
        slot["state"] = s.REGION_EVICTED

    def still_viewed(self) -> MmapRegion | None:
        """Return the region, if a view has kept its memory alive."""
        from jessymem.regions.region import MmapRegion

        data = None if self._data is None else self._data()
        if data is None:
            return None
        return MmapRegion(self.dimension_id, self.path, data, self._was, self._identity)
