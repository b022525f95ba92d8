"""`LearnedRegion`: a dimension with learned layers, in one table with those of its file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import jessymem
from jessymem.aligned import aligned_copy
from jessymem.core_dimensions import core_dimensions
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.learning import overlays
from jessymem.learning.layers import LearnedLayer
from jessymem.learning.rows import SharedRows, changed, extents_of, inserted, without
from jessymem.regions.arrays import ArrayForm, read_description
from jessymem.regions.chain import RegionChain
from jessymem.regions.layout import Edition
from jessymem.regions.metadata import ContentLocation, LayerState
from jessymem.regions.owners import is_compressed
from jessymem.regions.region import MmapRegion
from jessymem.regions.rows import insert_rows
from jessymem.regions.table import Extents, ExtentsOfRows, LayerTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.pools.allocator import PoolAllocator
    from jessymem.pools.stored import StoredBlock
    from jessymem.regions.name_patterns import NamePattern

#: What lies under learned layers.
Base: TypeAlias = MmapRegion | RegionChain

_NOTHING = memoryview(b"")


class LearnedRegion(LayerTable):
    """Learned layers over a base, in a private table; immutable, as all that is published.

    Where both have a layer of one number, the learned one counts.
    """

    def __init__(
        self, dimension: DimensionId, base: Base | None, shared: SharedRows, n_rows: int
    ) -> None:
        self.dimension_id = dimension
        self._base = base
        self.rows = shared.rows(n_rows)
        self.index = shared.index(n_rows)
        self._shared = shared
        if base is None:
            self.path, self.size, self.generation = None, 0, 0
            self.name = name_of_new(dimension)
            self.edition = Edition(0, 0, 0)
            self.state = s.REGION_LEARNED
        else:
            self.path, self.size, self.generation = base.path, base.size, base.generation
            self.name, self.edition, self.state = base.name, base.edition, base.state
        self.leads_outside = bool(shared.learned) or (base is not None and base.leads_outside)
        self.extents = shared.extents(n_rows)
        self._cut_reader(_NOTHING if base is None else base.reader[0])

    @classmethod
    def over(
        cls, dimension: DimensionId, base: Base | None, learned: Iterable[LearnedLayer]
    ) -> LearnedRegion:
        """Lay learned layers over a base.

        Raises
        ------
        OutOfBounds
            If the base's file was changed under its mapping.
        """
        rows, extents = _rows_under(base)
        empty = cls(dimension, base, SharedRows(rows, extents, {}), len(rows))
        return empty.with_layers(learned)

    @property
    def base(self) -> Base | None:
        """The dimension's files as they are loaded, or its simulation; None: neither is loaded."""
        return self._base

    @property
    def members(self) -> tuple[MmapRegion, ...]:
        """The regions under what is learned."""
        return () if self._base is None else self._base.members

    @property
    def charge_ids(self) -> tuple[int, ...]:
        """What the budget counts for the regions under what is learned."""
        return () if self._base is None else self._base.charge_ids

    @property
    def table_charges(self) -> tuple[Any, ...]:
        """What the tables under what is learned cost."""
        return () if self._base is None else self._base.table_charges

    @property
    def has_simulated(self) -> bool:
        """Whether what lies under its learned layers is simulated, or a part of it."""
        return self._base is not None and self._base.has_simulated

    def private_rows(self, numbers: Sequence[int] | None = None) -> NDArray[np.void]:
        """Return a copy of the rows, or of those of some layers, ascending."""
        return aligned_copy(self.rows if numbers is None else self.rows[self.rows_of(numbers)])

    def extents_of(self, rows: NDArray[np.intp]) -> ExtentsOfRows:
        """Return where the contents of some rows are; see `LayerTable`."""
        owners, starts, ends = self._shared.extents(len(self.rows))
        return owners, rows, starts.take(rows), ends.take(rows)

    def edition_of(self, number: int) -> Edition | None:
        """Return the edition of the one file that has a layer; None: it is in none."""
        return None if self._base is None else self._base.edition_of(number)

    def is_simulated(self, number: int) -> bool:
        """Tell whether a layer is the simulation's, or lies over one that is."""
        base = self._base
        return base is not None and base.has_layer(number) and base.is_simulated(number)

    @property
    def learned(self) -> dict[int, LearnedLayer]:
        """Learned layers by number, in a dictionary of the caller's own."""
        found = self._shared.learned.copy()  # in one step: a writer may be adding to it
        if self._shared.n_begun == len(self.rows):
            return found
        # Later states have added to it, or an attempt at one that was not published.
        return {number: each for number, each in found.items() if self.has_layer(number)}

    @property
    def n_learned(self) -> int:
        """How many layers are learned."""
        if self._shared.n_begun == len(self.rows):
            return len(self._shared.learned)
        found = self._shared.learned.copy()  # later states have added to it
        numbers = np.fromiter(found, np.int64, len(found))
        return int(np.count_nonzero(np.isin(numbers, self.numbers)))

    def learned_layer(self, number: int) -> LearnedLayer | None:
        """Return a learned layer; None where there is none of this number."""
        return self._shared.learned.get(number) if self.has_layer(number) else None

    def with_layers(self, layers: Iterable[LearnedLayer]) -> LearnedRegion:
        """Return the dimension with further layers, or others in the place of their numbers.

        If the result is not published, `drop_unpublished` is to be called.
        """
        given = sorted(layers, key=_number)
        if not given:
            return self
        fresh, shared = _describe(given, self._base), self._shared
        if shared.has_space(len(self.rows), fresh):
            shared.append(fresh, given)
            return LearnedRegion(self.dimension_id, self._base, shared, shared.n_rows)
        return self._merged(given, fresh)

    def drop_unpublished(self) -> None:
        """Forget what was added behind this state's rows; under the writer lock."""
        self._shared.retract(len(self.rows))

    def without_layers(self, numbers: Iterable[int]) -> LearnedRegion:
        """Return the dimension without some learned layers; what lies under them is seen again."""
        gone = np.array(sorted(numbers), np.int64)
        positions = np.searchsorted(self.rows["layer_num"], gone)
        rows, extents = aligned_copy(self.rows), self._seen_extents()
        is_under = np.zeros(len(gone), bool)
        if self._base is not None:
            is_under[:] = [self._base.has_layer(number) for number in gone.tolist()]
            under = positions[is_under]
            rows[under], fresh = _rows_under(self._base, gone[is_under].tolist())
            extents = changed(extents, under.tolist(), fresh)
        rows = np.delete(rows, positions[~is_under])
        extents = without(extents, positions[~is_under])
        learned = self.learned
        for number in gone.tolist():
            del learned[number]
        return self._remade(rows, extents, learned)

    def _merged(self, given: list[LearnedLayer], fresh: NDArray[np.void]) -> LearnedRegion:
        """Put `given` layers, with `fresh` rows, among those, each in the place of its number."""
        rows = self.rows
        places, extents = extents_of(given), self._seen_extents()
        numbers = fresh["layer_num"]
        positions = np.searchsorted(rows["layer_num"], numbers)
        is_known = np.zeros(len(numbers), bool)
        inside = positions < len(rows)
        is_known[inside] = rows["layer_num"][positions[inside]] == numbers[inside]
        if is_known.all():
            rows = aligned_copy(rows)
        else:
            rows = insert_rows(rows, positions[~is_known], fresh[~is_known])
            new = without(places, np.flatnonzero(is_known))
            extents = inserted(extents, positions[~is_known], new)
        if is_known.any():
            known = np.searchsorted(rows["layer_num"], numbers[is_known])
            rows[known] = fresh[is_known]
            extents = changed(extents, known.tolist(), without(places, np.flatnonzero(~is_known)))
        learned = self.learned
        for layer in given:
            learned[layer.number] = layer
        return self._remade(rows, extents, learned)

    def _remade(
        self,
        rows: NDArray[np.void],
        extents: Extents,
        learned: dict[int, LearnedLayer],
    ) -> LearnedRegion:
        """Return the dimension with other rows, in arrays of their own."""
        shared = SharedRows(rows, extents, learned)
        return LearnedRegion(self.dimension_id, self._base, shared, len(rows))

    # -- as a table --------------------------------------------------------------------------------

    def name_of(self, row: int) -> str:
        """Return a layer's name; what is no UTF-8 is shown as U+FFFD."""
        match self._find(row):
            case (base, base_row):
                return base.name_of(base_row)
            case learned:
                return learned.draft.name.decode("utf-8", "replace")

    def numbers_named(self, name: bytes) -> list[int]:
        """Return the numbers of the layers that have a name, ascending."""
        named = self._shared.named
        if named is None:
            found = [each for each, layer in self.learned.items() if layer.draft.name == name]
        else:
            found = [each for each in named.get(name, ()) if self.learned_layer(each) is not None]
        if self._base is not None:
            under = self._base.numbers_named(name)
            found += [each for each in under if self.learned_layer(each) is None]
        return sorted(found)

    def rows_matching(self, pattern: NamePattern) -> NDArray[np.bool_]:
        """Tell of each row whether the layer's name matches a pattern."""
        found = np.zeros(len(self.rows), bool)
        numbers = self.numbers
        if self._base is not None:
            under = self._base.rows_matching(pattern)
            found = np.isin(numbers, self._base.numbers[under])
        for number, layer in self.learned.items():
            name = layer.draft.name.decode("utf-8", "replace")
            found[np.searchsorted(numbers, number)] = pattern.matches(name)
        return found

    def keep_names(self, charge: Callable[[int], Any]) -> None:
        """Make the tables that look-ups by name need, and keep them; under the writer lock."""
        self._shared.keep_names()
        super().keep_names(charge)

    @property
    def name_tables(self) -> tuple[jessymem.hints.NameTable | None, ...]:
        """The tables of the base's names; what is learned is in none."""
        return (*super().name_tables, None)

    @property
    def keeps_names(self) -> bool:
        """Whether `keep_names` has nothing to do."""
        is_base_kept = self._base is None or self._base.keeps_names
        return is_base_kept and self._shared.named is not None

    def keywords_of(self, row: int) -> tuple[str, ...]:
        """Return a layer's keywords; what is no UTF-8 is shown as U+FFFD."""
        match self._find(row):
            case (base, base_row):
                return base.keywords_of(base_row)
            case learned:
                return tuple(each.decode("utf-8", "replace") for each in learned.draft.keywords)

    def read_form(self, row: int) -> ArrayForm | None:
        """Return what makes a layer's content an array; None where it is not an array."""
        match self._find(row):
            case (base, base_row):
                return base.form_of(base_row)
            case learned:
                header = learned.draft.array_header
                return read_description(header) if header else None

    def location_of(self, row: int) -> ContentLocation:
        """Return where a layer's content is."""
        match self._find(row):
            case (base, base_row):
                return base.location_of(base_row)
            case learned:
                return learned.location

    def state_of(self, row: int) -> LayerState:
        """Return how far a layer has come."""
        match self._find(row):
            case (base, base_row):
                return base.state_of(base_row)
            case learned:
                return learned.state

    @property
    def content_address(self) -> int:
        """From where the offsets of contents are counted: the base's first byte, or 0."""
        return 0 if self._base is None else self._base.content_address

    def extent_of(self, row: int) -> tuple[int, int]:
        """Return where a layer's content begins and ends; a learned one's in its pool."""
        learned = self._find(row)
        if isinstance(learned, tuple):
            base, base_row = learned
            return base.extent_of(base_row)
        start = learned.block.offset if learned.block is not None else 0
        return start, start + len(learned.content)

    def origin_of(self, row: int) -> tuple[MmapRegion | None, int]:
        """Return the region that a row comes from, None where it is learned, and the row there."""
        match self._find(row):
            case (base, base_row):
                return base.origin_of(base_row)
        return None, row

    def rebased(
        self, base: Base, blocks: Callable[[], PoolAllocator]
    ) -> tuple[LayerTable, list[StoredBlock | None]]:
        """Return the dimension over another base, and blocks to free once that is published.

        What has come to disk with the base, or was deleted there since, is learned no longer;
        overlays follow a layer that has changed.
        """
        learned = self.learned
        on_disk = {
            number
            for number, layer in learned.items()
            if layer.is_in(base) or layer.is_gone_from(base)
        }
        left = {number: learned[number] for number in learned.keys() - on_disk}
        fresh = overlays.lay_again(blocks, base, left.values())
        replaced = [learned[number].block for number in on_disk | fresh.keys()]
        if not left:
            return base, replaced
        table = LearnedRegion.over(self.dimension_id, base, (left | fresh).values())
        return table, replaced

    def __repr__(self) -> str:
        """Show what it is."""
        n_learned = len(self.learned)
        return f"<LearnedRegion {self.dimension_id} {self.n_layers} layers, {n_learned} learned>"

    # -- inside ------------------------------------------------------------------------------------

    def _seen_extents(self) -> Extents:
        """Return where the contents of this state's rows are, and of no others."""
        owners, starts, ends = self._shared.extents(len(self.rows))
        return Extents(owners[: len(starts)], starts, ends)

    def _id(self, number: int) -> LayerId:
        return LayerId(self.dimension_id, number)

    def _find(self, row: int) -> LearnedLayer | tuple[Base, int]:
        """Return a row's learned layer, or the base and its row there."""
        number = int(self.rows[row]["layer_num"])
        learned = self._shared.learned.get(number)
        if learned is not None:
            return learned
        if self._base is None:
            raise self.not_found(self._id(number))
        return self._base, self._base.find_row(self._id(number))


def _number(layer: LearnedLayer) -> int:
    return layer.number


def _rows_under(
    base: Base | None, numbers: Sequence[int] | None = None
) -> tuple[NDArray[np.void], Extents]:
    """Return a base's rows, or those of some layers, and where their contents are; checked."""
    if base is None:
        return np.zeros(0, s.LAYER), extents_of([])
    rows = base.private_rows(numbers)
    if base.extents is None:
        starts, ends = rows["content_offset"].copy(), rows["content_end"].copy()
        starts[is_compressed(rows)] = 0
        return rows, Extents([base.reader[0]] * len(rows), starts, ends)
    if numbers is None:
        return rows, base.extents
    owners, starts, ends = base.extents
    at = base.rows_of(numbers)
    return rows, Extents([owners[row] for row in at], starts[at], ends[at])


def _describe(layers: list[LearnedLayer], base: Base | None) -> NDArray[np.void]:
    """Return a row for each layer, its offset counted from the base's first byte, or from 0."""
    origin = 0 if base is None else base.content_address
    rows = np.zeros(len(layers), s.LAYER)
    for row, layer in zip(rows, layers, strict=True):
        layer.fill_row(row, origin)
    return rows


def with_learned(
    dimension: DimensionId, table: LayerTable | None, layers: Iterable[LearnedLayer]
) -> LearnedRegion:
    """Return a dimension with further learned layers, or others in the place of their numbers.

    `table` is what there is of it in memory, if anything.
    """
    if isinstance(table, LearnedRegion):
        return table.with_layers(layers)
    return LearnedRegion.over(dimension, None if table is None else table.base, layers)


def name_of_new(dimension: DimensionId) -> str:
    """Return the name of a dimension that has no file yet."""
    core = core_dimensions().get(dimension)
    return core.name if core is not None else str(dimension)
