"""The published state: immutable, replaced whole, kept alive by whoever still reads it.

Readers bind `Engine.snapshot` once and take everything from it: the directory for kernels, and the
same tables cut into views for single reads from Python. A writer builds the next snapshot beside it
and publishes it with one assignment; the reference count tells when the old one's memory may go.

Two states share all chunks of 64 dimensions in which they do not differ. So publishing a dimension
copies its chunk and the list of chunks, whatever else is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from jessymem.aligned import aligned_copy, aligned_zeros
from jessymem.engine.parents import Parents
from jessymem.engine.policies import Mark
from jessymem.engine.sampling import Gates
from jessymem.errors import DimensionNotFound, LayerNotFound
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.named_tuples import NamedTuple
from jessymem.regions.table import LayerTable, LoadedDimension, address_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A table's `Reader`, where a read is noted for eviction, and the threads' gates.
ReadPath: TypeAlias = tuple[
    memoryview, memoryview, memoryview, memoryview | None, int, Sequence[memoryview], Mark, Gates
]

_ROW_MASK: Final = s.CHUNK_ROWS - 1


class Publication(NamedTuple):
    """A table to publish for a dimension."""

    loaded: LoadedDimension
    region_id: int
    mark: Mark
    gates: Gates


class Totals(NamedTuple):
    """What all that is loaded adds up to."""

    n_loaded: int = 0
    n_resident: int = 0
    n_simulated: int = 0
    n_layers: int = 0
    n_bytes: int = 0  # of those that are in memory

    def changed(self, slot: Slot | None, sign: int) -> Totals:
        """Return the totals with one dimension more, or one less."""
        if slot is None:
            return self
        loaded = slot.loaded
        table = loaded.resident
        return Totals(
            self.n_loaded + sign,
            self.n_resident + sign * (table is not None),
            self.n_simulated + sign * loaded.has_simulated,
            self.n_layers + sign * loaded.n_layers,
            self.n_bytes + sign * (0 if table is None else table.n_file_bytes),
        )


class Slot(NamedTuple):
    """What is published of one dimension."""

    loaded: LoadedDimension
    region_id: int
    path: ReadPath | None  # None: it is not in memory


class _Chunk:
    """The slots of 64 dimensions, for Python and for kernels; immutable once it is published."""

    __slots__ = ("address", "names", "rows", "slots")

    def __init__(self, slots: list[Slot | None], rows: NDArray[Any]) -> None:
        self.slots = slots
        self.rows = rows
        self.names: Any = None  # made of it when a layer is looked up by name: a `NameIndex`
        self.address = address_of(rows)

    def copy(self) -> _Chunk:
        return _Chunk(self.slots.copy(), aligned_copy(self.rows))

    def put(self, at: int, slot: Slot | None) -> None:
        """Fill a slot of a chunk that nobody else sees yet, or empty it."""
        row = self.rows[at]
        capacity, number = row["capacity"], row["dimension"]
        self.rows[at] = _EMPTY_ROW
        if capacity:  # a core slot stays, whatever is in it
            row["capacity"], row["dimension"] = capacity, number
        if slot is not None:
            slot.loaded.describe_into(row)
            row["region_id"] = slot.region_id
        self.slots[at] = slot


_EMPTY_ROW: Final = np.zeros((), s.REGION)
_NOTHING: Final = _Chunk([None] * s.CHUNK_ROWS, aligned_zeros(s.CHUNK_ROWS, s.REGION))


class _Directory:
    """The base of a directory: while the array lives, so does what it leads to."""

    def __init__(
        self, addresses: NDArray[np.int64], chunks: tuple[_Chunk, ...], held: object = None
    ) -> None:
        raw = addresses.view(np.uint8)
        raw.flags.writeable = False
        self._addresses = raw
        self._chunks = chunks
        self._held = held
        self.__array_interface__ = raw.__array_interface__


class _Readers(dict[int, ReadPath]):
    """What single reads from Python go through, by dimension; found in the chunks, and kept.

    Holds no snapshot, which holds it: a circle would keep memory until the collector runs.
    """

    __slots__ = ("_chunks",)

    def __init__(self, chunks: tuple[_Chunk, ...]) -> None:
        self._chunks = chunks

    def __missing__(self, dimension: int) -> ReadPath:
        slot = self._chunks[dimension >> s.CHUNK_BITS].slots[dimension & _ROW_MASK]
        if slot is None or slot.path is None or dimension < 0:
            raise KeyError(dimension)
        self[dimension] = slot.path
        return slot.path


class Snapshot:
    """One state of the store.

    Attributes
    ----------
    directory : ndarray of DIRECTORY, shape (n_chunks,)
        Where the REGION rows of 64 dimensions each are. Read-only; the array owns the memory behind
        all addresses.
    readers : mapping of int to ReadPath
        Per dimension that is in memory, what a single read from Python goes through. Only for
        subscripts: what was not asked for yet is not in it.
    totals : Totals
    """

    __slots__ = ("_chunks", "_parents", "directory", "readers", "totals")

    def __init__(
        self,
        addresses: NDArray[np.int64],
        chunks: tuple[_Chunk, ...],
        totals: Totals,
        parents: Parents,
    ) -> None:
        # Read-only for good: there is no writeable array below it.
        self.directory: NDArray[np.int64] = np.asarray(_Directory(addresses, chunks)).view(
            s.DIRECTORY
        )
        self.readers = _Readers(chunks)
        self.totals = totals
        self._chunks = chunks
        self._parents = parents

    @classmethod
    def empty(cls, capacities: dict[DimensionId, int]) -> Snapshot:
        """Return a state with nothing loaded: the core slots, each with its capacity."""
        core = _NOTHING.copy()
        for dimension, capacity in capacities.items():
            core.rows[dimension]["dimension"] = dimension
            core.rows[dimension]["capacity"] = capacity
        return cls(np.array([core.address], s.DIRECTORY), (core,), Totals(), Parents())

    def with_capacities(self, capacities: dict[DimensionId, int]) -> Snapshot:
        """Return the state with other capacities of the core slots."""
        core = self._chunks[0].copy()
        for dimension, capacity in capacities.items():
            core.rows[dimension]["capacity"] = capacity
        addresses = np.array(self.directory)
        addresses[0] = core.address
        return Snapshot(addresses, (core, *self._chunks[1:]), self.totals, self._parents)

    def with_published(self, publications: Iterable[Publication]) -> Snapshot:
        """Return the state with each of `publications` for its dimension."""
        return self._with(
            (
                publication.loaded.dimension_id,
                Slot(publication.loaded, publication.region_id, _path_of(publication)),
            )
            for publication in publications
        )

    def without(self, dimension: DimensionId) -> Snapshot:
        """Return the state in which a loaded dimension's slot is empty."""
        return self._with([(dimension, None)])

    def _with(self, slots: Iterable[tuple[DimensionId, Slot | None]]) -> Snapshot:
        chunks, totals = list(self._chunks), self.totals
        fresh: dict[int, _Chunk] = {}
        for dimension, slot in slots:
            at = dimension >> s.CHUNK_BITS
            if at not in fresh:
                chunks += [_NOTHING] * (at + 1 - len(chunks))
                fresh[at] = chunks[at] = chunks[at].copy()
            if slot is not None:
                self._parents.note(slot.loaded)
            row = dimension & _ROW_MASK
            totals = totals.changed(fresh[at].slots[row], -1).changed(slot, 1)
            fresh[at].put(row, slot)
        addresses = np.full(len(chunks), _NOTHING.address, s.DIRECTORY)
        addresses[: len(self.directory)] = self.directory
        for at, chunk in fresh.items():
            addresses[at] = chunk.address
        return Snapshot(addresses, tuple(chunks), totals, self._parents)

    def directory_with(self, tables: Mapping[int, NDArray[Any]], held: object) -> NDArray[np.int64]:
        """Return a directory in which some dimensions have other rows, private and checked.

        Parameters
        ----------
        tables : mapping of int to ndarray of LAYER
            By dimension that is in memory; contents may lie anywhere.
        held : object
            What those lead to; the directory keeps it.
        """
        chunks = list(self._chunks)
        for dimension, rows in tables.items():
            at = dimension >> s.CHUNK_BITS
            if chunks[at] is self._chunks[at]:
                chunks[at] = chunks[at].copy()
            row = chunks[at].rows[dimension & _ROW_MASK]
            row["table_address"], row["leads_outside"] = address_of(rows), True
        addresses = np.array([chunk.address for chunk in chunks], s.DIRECTORY)
        base = _Directory(addresses, tuple(chunks), (tables, held))
        return np.asarray(base).view(s.DIRECTORY)

    # -- what is loaded ----------------------------------------------------------------------------

    def slot_of(self, dimension: int) -> Slot | None:
        """Return what is published of a dimension; None: it is not loaded."""
        at = dimension >> s.CHUNK_BITS
        return self._chunks[at].slots[dimension & _ROW_MASK] if at < len(self._chunks) else None

    def __contains__(self, dimension: int) -> bool:
        """Tell whether a dimension is loaded; evicted ones are."""
        return self.slot_of(dimension) is not None

    @property
    def chunks(self) -> Iterator[Any]:
        """The chunks in which anything may be, ascending; each has `slots` and `names`."""
        return (chunk for chunk in self._chunks if chunk is not _NOTHING)

    @property
    def slots(self) -> Iterator[Slot]:
        """What is published, by ascending dimension."""
        for chunk in self.chunks:
            yield from filter(None, chunk.slots)

    @property
    def loaded(self) -> list[LoadedDimension]:
        """The loaded dimensions, evicted ones too, ascending."""
        return [slot.loaded for slot in self.slots]

    @property
    def resident(self) -> list[LayerTable]:
        """Of the loaded dimensions those that are in memory, ascending."""
        return [table for each in self.loaded if (table := each.resident) is not None]

    def find(self, dimension: DimensionId) -> LoadedDimension | None:
        """Return what is loaded of a dimension, or None."""
        slot = self.slot_of(dimension)
        return None if slot is None else slot.loaded

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

    def path_of(self, dimension: int) -> ReadPath | None:
        """Return what single reads of a dimension go through; None: it is not in memory."""
        slot = self.slot_of(dimension)
        return None if slot is None else slot.path

    def mark_of(self, dimension: int) -> Mark:
        """Return where accesses of a dimension are noted.

        Nowhere, if it is not in memory: mapping it again is the access that counts.
        """
        path = self.path_of(dimension)
        return [None] if path is None else path[6]

    def table_at(self, dimension: int) -> LayerTable:
        """Return the table of a dimension that is in memory, by its number."""
        slot = self.slot_of(dimension)
        table = None if slot is None else slot.loaded.resident
        if table is None:
            raise LookupError(f"slot {dimension} holds no table")
        return table

    def region_at(self, dimension: int) -> Any:
        """Return a copy of a dimension's REGION row."""
        return self._chunks[dimension >> s.CHUNK_BITS].rows[dimension & _ROW_MASK].copy()

    def rows(self) -> NDArray[Any]:
        """Return a copy of the REGION rows of what is loaded, ascending."""
        found = np.concatenate([_NOTHING.rows[:0], *(chunk.rows for chunk in self.chunks)])
        loaded: NDArray[Any] = found[found["state"] != s.REGION_EMPTY]
        return loaded

    @property
    def n_slots(self) -> int:
        """How many slots there are; the number of every dimension loaded is below."""
        return len(self._chunks) << s.CHUNK_BITS

    def region_id_of(self, dimension: DimensionId) -> int:
        """Return the region id of a loaded dimension."""
        slot = self.slot_of(dimension)
        if slot is None:
            raise LookupError(f"{dimension} is not loaded")
        return slot.region_id

    def children_of(self, parent: LayerId) -> tuple[LayerId, ...]:
        """Return the loaded layers that name `parent`, ascending."""
        found = (self.slot_of(each) for each in self._parents.candidates(parent))
        return tuple(child for slot in found if slot for child in slot.loaded.children_of(parent))


def _path_of(publication: Publication) -> ReadPath | None:
    table = publication.loaded.resident
    return None if table is None else (*table.reader, publication.mark, publication.gates)
