"""`EvictedRegion`: what is known of a dimension whose file is not mapped at the moment."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

import jessymem
from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.regions.chain import RegionChain
from jessymem.regions.layout import Edition
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import LoadedDimension

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EvictedRegion(LoadedDimension):
    """The numbers of a region's layers that was evicted: two to eight bytes a layer.

    Ten more where layers were looked up by name before.
    """

    def __init__(self, region: MmapRegion | RegionChain) -> None:
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
        self._editions = tuple(member.edition_of(0) for member in region.members)
        self._which: NDArray[np.uint8] | None = (
            region.which if isinstance(region, RegionChain) else None
        )
        self._name_tables = region.name_tables
        # Where somebody still views it, it can be had back as it is.
        self._members = tuple(map(_Remembered, region.members))

    @property
    def numbers(self) -> NDArray[np.uint16]:
        """The layers' numbers, ascending."""
        return self._numbers

    def has_layer(self, number: int) -> bool:
        """Tell whether there is a layer of this number."""
        at = int(np.searchsorted(self._numbers, number))
        return at < len(self._numbers) and int(self._numbers[at]) == number

    @property
    def has_simulated(self) -> bool:
        """Whether any of its layers may be simulated."""
        return None in self._editions

    def edition_of(self, number: int) -> Edition | None:
        """Return the edition of the one file that has a layer; None: it is simulated."""
        if self._which is None:
            return self._editions[0]
        row = int(np.searchsorted(self._numbers, number))
        return self._editions[int(self._which[row])]

    def may_have_name(self, digest: int) -> bool:
        """Tell whether a layer may have a name of this digest, as far as names are known."""
        return any(table is None or table.has(digest) for table in self.name_tables)

    @property
    def name_tables(self) -> tuple[jessymem.hints.NameTable | None, ...]:
        """Of each of its regions the table of names, where it was made before."""
        return self._name_tables

    @property
    def parents(self) -> NDArray[np.uint32]:
        """The parents that its layers name, packed, each once; 0: one names none."""
        return np.unique(self._parents)

    def children_of(self, parent: LayerId) -> tuple[LayerId, ...]:
        """Return this region's layers that name `parent`, ascending."""
        named = self._children[self._parents == int(parent)]
        return tuple(LayerId.in_order(self.dimension_id, named.tolist()))

    def describe_into(self, slot: Any) -> None:
        """Fill one REGION row: no address, no layer, and the state that says why."""
        slot["dimension"] = self.dimension_id
        slot["generation"] = self.edition.generation
        slot["state"] = s.REGION_EVICTED

    def still_viewed(self) -> list[MmapRegion]:
        """Return those of its regions whose memory a view has kept alive."""
        return [found for each in self._members if (found := each.find()) is not None]

    @property
    def file_lengths(self) -> tuple[int, ...]:
        """How long each of the files is that are to be mapped again, in bytes."""
        return tuple([each.n_bytes for each in self._editions if each is not None])

    @property
    def n_members(self) -> int:
        """How many regions it was made of."""
        return len(self._members)


class _Remembered:
    """A region that may be had back."""

    __slots__ = ("_arguments", "_charge_id", "_data", "_name_table")

    def __init__(self, region: MmapRegion) -> None:
        self._data: weakref.ref[NDArray[np.uint8]] = weakref.ref(region.data)
        self._arguments = region.dimension_id, region.path, region.state, region.identity
        self._charge_id = region.charge_id
        self._name_table = region.name_table

    def find(self) -> MmapRegion | None:
        data = self._data()
        if data is None:
            return None
        dimension, path, state, identity = self._arguments
        region = MmapRegion(dimension, path, data, state, identity)
        region.charge_id = self._charge_id
        region.name_table = self._name_table
        return region
