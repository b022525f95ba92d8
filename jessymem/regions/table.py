"""`LoadedDimension`: what is loaded of a dimension; `LayerTable`: one in memory.

`MmapRegion` has the rows of a file; a dimension in which layers are learned has those and others in
memory. Readers of the manager know this much of either and no more.
"""

from __future__ import annotations

import gc
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

import jessymem
from jessymem import osmem
from jessymem.computed_once import computed_once
from jessymem.errors import LayerNotFound, OutOfBounds, clears_frames
from jessymem.ids import DimensionId, LayerId, LayerLike, as_layer_id
from jessymem.kernels import schema as s
from jessymem.named_tuples import NamedTuple
from jessymem.regions.indexes import NumberIndex, index_of_words, key_of
from jessymem.regions.layout import Edition
from jessymem.regions.owners import Owners

_NOTHING: Final[Mapping[int, Any]] = MappingProxyType({})


class LoadedDimension(ABC):
    """One loaded dimension.

    Its layers are in memory (`LayerTable`: as its file has them, or with learned ones among them),
    or it was evicted and only its names are (`EvictedRegion`).

    Attributes
    ----------
    dimension_id : DimensionId
    name : str
        The dimension's.
    path : pathlib.Path or None
        Of the region file; None: there is none.
    edition : Edition
        Which of the files that may bear its name it is.
    state : int
        REGION_*.
    resident : LayerTable or None
        Itself, if it is in memory.
    base : MmapRegion, RegionChain or None
        What lies under its learned layers: its files as mapped, or its simulation. None: nothing
        does, or it is not in memory.
    """

    dimension_id: DimensionId
    name: str
    path: Path | None
    edition: Edition
    state: int

    @property
    def resident(self) -> LayerTable | None:
        """Itself, if it is in memory."""
        return None

    @property
    def base(self) -> Any:
        """What lies under its learned layers."""
        return None

    @property
    def has_simulated(self) -> bool:
        """Whether any of its layers may be simulated."""
        return self.state == s.REGION_SIMULATED

    @property
    def is_replaceable(self) -> bool:
        """Whether loading its file is no duplicate: it is simulated, or only in memory."""
        return self.state in (s.REGION_SIMULATED, s.REGION_LEARNED)

    # -- its layers --------------------------------------------------------------------------------

    @property
    @abstractmethod
    def numbers(self) -> np.typing.NDArray[np.uint16]:
        """The layers' numbers, ascending."""

    @property
    def n_layers(self) -> int:
        """How many layers there are.

        Examples
        --------
        >>> region.n_layers
        4
        """
        return len(self.numbers)

    @abstractmethod
    def has_layer(self, number: int) -> bool:
        """Tell whether there is a layer of this number."""

    def list_layers(self) -> list[LayerId]:
        """Return the ids of all layers, ascending.

        Examples
        --------
        >>> region.list_layers()
        [L15-00, L15-01, L15-02, L15-03]
        """
        return LayerId.in_order(self.dimension_id, self.numbers.tolist())

    @abstractmethod
    def edition_of(self, number: int) -> Edition | None:
        """Return the edition of the one file that has a layer; None: it is simulated."""

    def still_viewed(self) -> list[Any]:
        """Return the regions of an evicted dimension whose memory a view has kept alive."""
        return []

    @property
    def n_members(self) -> int:
        """How many regions it is made of, or was before it was evicted."""
        return 0

    @property
    def file_lengths(self) -> tuple[int, ...]:
        """How long each of the regions is, or was before, that it is made of, in bytes."""
        return ()

    def check_has(self, layer_id: LayerId) -> None:
        """Raise LayerNotFound where there is no such layer."""
        if layer_id.dimension != self.dimension_id or not self.has_layer(layer_id.layer):
            raise self.not_found(layer_id)

    def not_found(self, layer_id: LayerId) -> LayerNotFound:
        """Return the error for a layer that is not here."""
        return LayerNotFound(f"{layer_id} is not in {self.path or 'memory'}", layer=layer_id)

    @abstractmethod
    def children_of(self, parent: LayerId) -> tuple[LayerId, ...]:
        """Return this dimension's layers that name `parent`, ascending."""

    def may_have_name(self, digest: int) -> bool:
        """Tell whether a layer may have a name of this digest; see `NameTable`."""
        return True

    @property
    def name_tables(self) -> tuple[jessymem.hints.NameTable | None, ...]:
        """The tables of its names; None stands for names that are in no table, or not yet."""
        return (None,)

    @property
    @abstractmethod
    def parents(self) -> np.typing.NDArray[np.uint32]:
        """The parents that its layers name, packed, each once; 0: one names none."""

    @abstractmethod
    def describe_into(self, slot: Any) -> None:
        """Fill one REGION row; what it leads to must outlive the row."""

    # -- what is learned ---------------------------------------------------------------------------

    @property
    def learned(self) -> Mapping[int, Any]:
        """Learned layers by number; `jessymem.learning` knows more of them."""
        return _NOTHING

    @property
    def n_learned(self) -> int:
        """How many layers are learned."""
        return 0

    def learned_layer(self, number: int) -> Any:
        """Return a learned layer; None where there is none of this number."""
        return None

    @property
    def unwritten(self) -> list[LayerId]:
        """The layers that are in memory alone, ascending."""
        found = [number for number, layer in self.learned.items() if not layer.is_crystallized]
        return LayerId.in_order(self.dimension_id, sorted(found))

    def rebased(self, base: Any, blocks: Callable[[], Any]) -> tuple[LayerTable, list[Any]]:
        """Return what the dimension is over another base, and blocks to free then.

        Parameters
        ----------
        base : MmapRegion
            A file as mapped, or a simulation.
        blocks : callable
            Returns the allocator, where learned layers have to be copied.
        """
        return base, []

    def __copy__(self) -> LoadedDimension:
        """Return itself: nothing changes it."""
        return self

    def __deepcopy__(self, known: object) -> LoadedDimension:
        """Return itself: nothing changes it, and its bytes are the file's."""
        return self

    def __reduce__(self) -> Any:
        """Refuse: a pickle would come without the memory."""
        raise TypeError(
            f"{self.dimension_id} cannot be pickled: its memory belongs to this process; a manager "
            "can be, and what `MmapManager.ref` returns"
        )

    def drop_unpublished(self) -> None:  # noqa: B027  # most have nothing to drop
        """Forget what was added to this dimension for a state that was not published."""

    def forget_crystallizing(self) -> None:
        """In a forked child: what a thread of the parent was writing, nobody is here."""
        _rest(self.learned.values())


def _rest(layers: Iterable[Any]) -> None:
    for layer in layers:
        if layer.is_crystallizing:
            layer.writer = None


class Extents(NamedTuple):
    """Per row of a table, the bytes in which its content is, and where in them; checked.

    Attributes
    ----------
    owners : sequence of memoryview
        A member's whole bytes, or a block. It may go on behind the table's rows.
    starts, ends : ndarray of uint64, shape (n,)
    """

    owners: Sequence[memoryview]
    starts: np.typing.NDArray[np.uint64]
    ends: np.typing.NDArray[np.uint64]


#: The same of some rows: owners, which of them is each row's, where contents begin and end there.
#: A text, which loads nothing: `numpy.typing` takes longer to import than a read does.
ExtentsOfRows: TypeAlias = "tuple[Sequence[memoryview], _Integers, _Places, _Places]"
_Integers: TypeAlias = "np.typing.NDArray[Any]"
_Places: TypeAlias = "np.typing.NDArray[np.uint64]"

#: What one read from Python needs: views of the whole region, per row of where its content begins
#: and ends, of layer number to row (None: they are the same); the region's length; and nothing. Or,
#: with `Extents`: those, with -1 for the length, which no content is within, and the owners.
#: A plain tuple: a named one takes 30 ns longer to unpack, a fifth of the read.
Reader: TypeAlias = tuple[
    memoryview, memoryview, memoryview, memoryview | None, int, Sequence[memoryview]
]

#: Of contents that are not all in one region.
_NOT_WITHIN: Final = -1


class LayerTable(LoadedDimension):
    """One dimension's layers: ascending rows, and what lies behind them.

    Attributes
    ----------
    size : int
        Length of the region in bytes.
    generation : int
        The file's, 0 for plain V1.
    rows : ndarray of LAYER, shape (n,)
        Ascending by layer number.
    index : ndarray of uint16 or None
        Layer number to row, where the numbers have gaps.
    reader : Reader
        What single reads from Python go through.
    leads_outside : bool
        Whether contents may lie outside the region's bytes; then the rows are private, and checked.
    extents : Extents or None
        Where contents are that may lie outside; None: none does.
    """

    size: int
    generation: int
    leads_outside: bool = False
    extents: Extents | None = None
    rows: np.typing.NDArray[Any]
    index: np.typing.NDArray[np.uint16] | None
    reader: Reader

    @computed_once
    def forms(self) -> dict[int, jessymem.hints.ArrayForm]:
        """Forms by row, of arrays that were asked for."""
        return {}

    def name_of(self, row: int) -> str:
        """Return a layer's name; what is no UTF-8 is shown as U+FFFD."""
        raise NotImplementedError

    def numbers_named(self, name: bytes) -> list[int]:
        """Return the numbers of the layers that have a name, ascending."""
        raise NotImplementedError

    def rows_matching(self, pattern: jessymem.hints.NamePattern) -> np.typing.NDArray[np.bool_]:
        """Tell of each row whether the layer's name matches a pattern."""
        raise NotImplementedError

    def keep_names(self, charge: Callable[[int], Any]) -> None:
        """Make the tables that look-ups by name need, and keep them.

        Parameters
        ----------
        charge : callable
            Charges so many bytes; None: that costs nothing. Raises LimitExceeded where there is no
            room: they are made again for each look-up then.
        """
        for member in self.members:
            member.keep_names(charge)

    @property
    def name_tables(self) -> tuple[jessymem.hints.NameTable | None, ...]:
        """Of each of its regions the table of names, where there is one yet."""
        return tuple(member.name_table for member in self.members)

    @property
    def keeps_names(self) -> bool:
        """Whether `keep_names` has nothing to do."""
        return None not in self.name_tables

    def keywords_of(self, row: int) -> tuple[str, ...]:
        """Return a layer's keywords; what is no UTF-8 is shown as U+FFFD."""
        raise NotImplementedError

    def location_of(self, row: int) -> jessymem.ContentLocation:
        """Return where a layer's content is."""
        raise NotImplementedError

    def state_of(self, row: int) -> jessymem.LayerState:
        """Return how far a layer has come."""
        raise NotImplementedError

    def read_form(self, row: int) -> jessymem.hints.ArrayForm | None:
        """Return what makes a layer's content an array; None where it is not an array.

        Raises RegionFormatError where its description is malformed.
        """
        raise NotImplementedError

    # -- reading -----------------------------------------------------------------------------------

    @clears_frames
    def get_layer_info(self, layer_id: LayerLike) -> jessymem.LayerInfo:
        """Describe one layer; its children are those of this region.

        Raises
        ------
        LayerNotFound
            If the region has no such layer.
        RegionFormatError
            If its keywords, or its description as an array, are malformed.
        ValueError, TypeError
            If `layer_id` is not a layer id.

        Examples
        --------
        >>> info = region.get_layer_info("L15-00")
        >>> info.name, info.keywords, info.children
        ('bash/README', ('shell',), (L15-01,))
        """
        wanted = as_layer_id(layer_id)
        row = self.find_row(wanted)
        return self.info_of(wanted, row, self.children_of(wanted))

    @property
    def resident(self) -> LayerTable:
        """Itself: it is in memory."""
        return self

    @property
    def members(self) -> tuple[Any, ...]:
        """The regions that its rows and contents come from, beside what is learned."""
        return ()

    @property
    def charge_ids(self) -> tuple[int, ...]:
        """What the budget counts for it: ids of the charges of its files, and of its tables."""
        return ()

    @property
    def n_charged(self) -> int:
        """What the budget counts for it, in bytes."""
        n_files: int = sum([member.n_charged_bytes for member in self.members])
        return n_files + sum([int(charge.n_bytes) for charge in self.table_charges])

    @property
    def file_lengths(self) -> tuple[int, ...]:
        """How long each of the regions is that it is made of, in bytes."""
        return tuple([int(member.size) for member in self.members])

    @property
    def n_file_bytes(self) -> int:
        """How long the files, or the simulation, are that it comes from, in bytes."""
        return sum(int(member.size) for member in self.members)

    def private_rows(self, numbers: Sequence[int] | None = None) -> np.typing.NDArray[np.void]:
        """Return a copy of the rows, or of those of some layers, ascending, and checked."""
        raise NotImplementedError

    @property
    def bounds(self) -> tuple[memoryview, memoryview]:
        """Per row where its content begins and ends, counted from the region's first byte."""
        return memoryview(self.rows["content_offset"]), memoryview(self.rows["content_end"])

    def extents_of(self, rows: np.typing.NDArray[np.intp]) -> ExtentsOfRows:
        """Return where the contents of some rows are, of a table with `extents`."""
        raise NotImplementedError

    @property
    def table_charges(self) -> tuple[Any, ...]:
        """The `jessymem.budget.Charge` of each of its private tables that has one."""
        return ()

    @property
    def identities(self) -> tuple[osmem.FileIdentity, ...]:
        """Which files it comes from, the region file first."""
        return tuple(each.identity for each in self.members if each.identity is not None)

    def is_simulated(self, number: int) -> bool:
        """Tell whether a layer is the simulation's, or lies over one that is."""
        raise NotImplementedError

    @property
    def is_viewed(self) -> bool:
        """Whether anybody holds a view of its bytes, so that its memory would not come free.

        Every view cut from the region's own shares one buffer object with it, whose references tell
        how many there are. Where an interpreter counts differently, a viewed region is evicted in
        vain, and taken back as it is when it is read again.
        """
        return is_viewed(self.reader[0])

    @property
    def numbers(self) -> np.typing.NDArray[np.uint16]:
        """The layers' numbers, ascending."""
        found: np.typing.NDArray[np.uint16] = self.rows["layer_num"]
        return found

    # -- for the manager ---------------------------------------------------------------------------

    @computed_once
    def content_address(self) -> int:
        """From where the offsets of contents are counted."""
        return address_of(np.frombuffer(self.reader[0], np.uint8))

    def describe_into(self, slot: Any) -> None:
        """Fill one REGION row's addresses and lengths; the table must outlive the row."""
        slot["table_address"] = address_of(self.rows)
        slot["n_layers"] = len(self.rows)
        slot["index_address"] = 0 if self.index is None else address_of(self.index)
        slot["n_index"] = 0 if self.index is None else len(self.index)
        slot["content_address"] = self.content_address
        slot["n_bytes"] = self.size
        slot["n_charged"] = self.n_charged
        slot["generation"] = self.generation
        slot["dimension"] = self.dimension_id
        slot["state"] = self.state
        slot["leads_outside"] = self.leads_outside

    def find_row(self, layer_id: LayerId) -> int:
        """Return the row of a layer, or raise LayerNotFound."""
        number = layer_id.layer
        if layer_id.dimension == self.dimension_id:
            if self.index is not None:
                number = int(self.index[number]) if number < len(self.index) else s.NO_LAYER
            if number < len(self.rows):
                return number
        raise self.not_found(layer_id)

    def rows_of(self, numbers: Iterable[int]) -> list[int]:
        """Return the rows of layers; raise LayerNotFound where one is not there."""
        return [self.find_row(LayerId(self.dimension_id, number)) for number in numbers]

    def has_layer(self, number: int) -> bool:
        """Tell whether there is a layer of this number.

        Examples
        --------
        >>> region.has_layer(3), region.has_layer(4)
        (True, False)
        """
        if self.index is not None:
            return number < len(self.index) and self.index[number] != s.NO_LAYER
        return number < len(self.rows)

    def info_of(
        self, layer_id: LayerId, row: int, children: tuple[LayerId, ...]
    ) -> jessymem.LayerInfo:
        """Describe the layer in a row; its number is not read again, the file may be rewritten."""
        from jessymem.regions.metadata import LayerInfo

        record = self.rows[row]
        start, end = self.extent_of(row)
        form, stored = self.form_of(row), self.frames_of(row)
        codec, n_stored = (None, end - start) if stored is None else stored[0].cost_of(stored[1])
        return LayerInfo(
            layer_id=layer_id,
            name=self.name_of(row),
            frequency=float(record["frequency"]),
            depth=int(record["depth"]),
            offset=start,
            size=end - start,
            keywords=self.keywords_of(row),
            parent=self.parent_of(row),
            children=children,
            location=self.location_of(row),
            state=self.state_of(row),
            dtype=None if form is None else form.dtype,
            shape=None if form is None else form.shape,
            encoding=self.encoding_of(row),
            compression=codec,
            stored_size=n_stored,
        )

    def encoding_of(self, row: int) -> str:
        """Return how a layer's content is to be read; where its file does not say, "bytes"."""
        return s.ENCODINGS.get(int(self.rows[row]["encoding"]), "bytes")

    def describe_layers(self) -> Iterator[jessymem.LayerInfo]:
        """Yield what is known of each layer, ascending."""
        for row, layer_id in enumerate(self.list_layers()):
            yield self.info_of(layer_id, row, self.children_of(layer_id))

    def extent_of(self, row: int) -> tuple[int, int]:
        """Return where a layer's content begins and ends, as `LayerInfo.offset` counts."""
        record = self.rows[row]
        return int(record["content_offset"]), int(record["content_end"])

    def content_of(self, row: int) -> memoryview:
        """Return a layer's bytes; raise OutOfBounds where the file was changed under its row."""
        content, starts, ends, _, n_bytes, owners = self.reader
        start, end = starts[row], ends[row]
        if start <= end <= n_bytes:
            return content[start:end]
        owner = owners[row] if owners else None
        if owner is not None:
            return owner[start:end]
        stored = self.frames_of(row)
        if stored is not None:
            return self._inflated(*stored, row)
        number = int(self.rows[row]["layer_num"])
        raise OutOfBounds(
            f"layer {number} of {self.dimension_id}: bytes {start} to {end} lie outside its "
            f"{self.size}; {self.path} was changed while it was mapped",
            offset=start,
            size=end - start,
            region_size=self.size,
        )

    def origin_of(self, row: int) -> tuple[Any, int]:
        """Return the region that a row comes from, None where it is learned, and the row there."""
        raise NotImplementedError

    def _inflated(self, frames: jessymem.hints.Frames, there: int, row: int) -> memoryview:
        """Return a compressed layer's content, and lead later reads to it where it is kept."""
        view, kept = frames.view(there)
        owners = self.reader[5]
        if kept is not None and isinstance(owners, Owners):
            kept.lead(owners, row)
        return view[:]

    def frames_of(self, row: int) -> tuple[jessymem.hints.Frames, int] | None:
        """Return where a row's layer is stored compressed, and its row there; None: it is not."""
        member, there = self.origin_of(row)
        if member is None or member.frames is None or not member.frames.has(there):
            return None
        return member.frames, there

    def copy_content(self, row: int, target: memoryview) -> None:
        """Copy a layer's bytes into memory that is just as long; what is compressed is inflated.

        Raises as `content_of`, but needs no room.
        """
        stored = self.frames_of(row)
        if stored is None:
            target[:] = self.content_of(row)
        else:
            frames, there = stored
            frames.copy_into(there, target)

    def array_of(self, row: int) -> np.typing.NDArray[Any]:
        """Return a layer's content as the array that it is.

        Raises
        ------
        TypeError
            If it is not an array.
        RegionFormatError
            If its description is malformed.
        OutOfBounds
            As `content_of`.
        """
        content, form = self.content_of(row), self.forms.get(row) or self.form_of(row)
        if form is not None and form.n_bytes == len(content):
            return form.make_array(content)
        record = self.rows[row]
        layer_id = LayerId(self.dimension_id, int(record["layer_num"]))
        if form is None:
            encoding = s.ENCODINGS.get(int(record["encoding"]))
            raise TypeError(f"{layer_id} is no array: its content is {encoding}")
        raise OutOfBounds(
            f"{layer_id}: its {len(content)} bytes are no array of {form.n_bytes}; {self.path} "
            "was changed while it was mapped",
            offset=self.extent_of(row)[0],
            size=form.n_bytes,
            region_size=self.size,
        )

    def form_of(self, row: int) -> jessymem.hints.ArrayForm | None:
        """Return what makes a layer's content an array, read once; None where it is not one."""
        form = self.forms.get(row)
        if form is None:
            form = self.read_form(row)
            if form is not None:
                self.forms[row] = form
        return form

    def parent_of(self, row: int) -> LayerId | None:
        """Return a layer's parent; None also where the file was changed to name no layer."""
        packed = int(self.rows[row]["parent"])
        return LayerId.from_packed(packed) if packed >> s.LAYER_BITS else None

    @computed_once
    def keyword_index(self) -> NumberIndex:
        """Rows by keyword; made when first asked for, in O(keywords of the region)."""
        return index_of_words(map(self.keywords_of, range(len(self.rows))))

    def rows_with_keyword(self, keyword: str) -> np.typing.NDArray[np.uint16]:
        """Return the rows of layers that have a keyword, ascending."""
        found = self.keyword_index.find(key_of(keyword))
        # One tells for all: that two keywords of one region share a key, nobody will see.
        if len(found) and keyword not in self.keywords_of(int(found[0])):
            return found[:0]
        return found

    @property
    def parents(self) -> np.typing.NDArray[np.uint32]:
        """The parents that its layers name, packed, each once; 0: one names none."""
        return np.unique(self.rows["parent"])

    def children_of(self, parent: LayerId) -> tuple[LayerId, ...]:
        """Return this region's layers that name `parent`, ascending."""
        numbers = self.children_by_parent.find(int(parent))
        return tuple(LayerId.in_order(self.dimension_id, numbers.tolist()))

    @computed_once
    def children_by_parent(self) -> NumberIndex:
        """Numbers of layers by packed parent; made when first asked for."""
        named = self.rows[self.rows["parent"] != 0]
        return NumberIndex(named["parent"], named["layer_num"])

    def _cut_reader(self, content: memoryview) -> None:
        """Cut the views that single reads from Python go through; `content` is all of the region's.

        Rows, index and extents are there by now.
        """
        index = None if self.index is None else memoryview(self.index)
        if self.extents is None:
            self.reader = content, *self.bounds, index, len(content), self._own_owners()
        else:
            owners, starts, ends = self.extents
            views = memoryview(starts), memoryview(ends)
            self.reader = content, *views, index, _NOT_WITHIN, owners

    def _own_owners(self) -> Sequence[Any]:
        """Return owners of what does not lie in the table's own bytes; nothing, where all does."""
        return ()


def address_of(array: np.typing.NDArray[Any]) -> int:
    """Return where an array's first byte lies."""
    return array.ctypes.data


def _count_references(view: memoryview) -> int:
    """Count the references to a view's buffer object, those of counting included."""
    for buffer in gc.get_referents(view):
        if type(buffer).__name__ == "managedbuffer":
            return sys.getrefcount(buffer)
    return 0


def is_viewed(view: memoryview) -> bool:
    """Tell whether there is any view beside this one of the same buffer object."""
    return _count_references(view) > _N_UNVIEWED


#: What is counted where a view is the only one: interpreters differ in how many are of counting.
_N_UNVIEWED: Final = _count_references(memoryview(b""))
