"""`EvictedRegion`: what is known of a dimension whose file is not mapped at the moment."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import LoadedDimension

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EvictedRegion(LoadedDimension):
    """The names of a region that was evicted: two to eight bytes a layer."""

    def __init__(self, region: MmapRegion) -> None:
        rows = region.rows
        self.dimension_id = region.dimension_id
        self.name = region.name
        self.path = region.path
        self.edition = region.edition
        self.state = s.REGION_EVICTED
        self._numbers: NDArray[np.uint16] = np.array(rows["layer_num"])
        is_child = rows["parent"] != 0
        self._children = rows["layer_num"][is_child]
        self._parents: NDArray[np.uint32] = rows["parent"][is_child]
        # Where somebody still views it, it can be had back as it is.
        self._data: weakref.ref[NDArray[np.uint8]] = weakref.ref(region.data)
        self._identity = region.identity
        self._was = region.state

    @property
    def numbers(self) -> NDArray[np.uint16]:
        """The layers' numbers, ascending."""
        return self._numbers

    def has_layer(self, number: int) -> bool:
        """Tell whether there is a layer of this number."""
        at = int(np.searchsorted(self._numbers, number))
        return at < len(self._numbers) and int(self._numbers[at]) == number

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
        data = self._data()
        if data is None:
            return None
        return MmapRegion(self.dimension_id, self.path, data, self._was, self._identity)
