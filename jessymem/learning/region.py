"""`LearnedRegion`: a dimension with learned layers, in one table with those of its file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from jessymem.core_dimensions import core_dimensions
from jessymem.errors import OutOfBounds
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.learning.layers import LearnedLayer
from jessymem.learning.room import Room
from jessymem.pools.offsets import MmapOffset
from jessymem.regions.arrays import ArrayForm, read_description
from jessymem.regions.metadata import ContentLocation, LayerState
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import Edition, LayerTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.snapshot import Standing

T = TypeVar("T")

_NOTHING = memoryview(b"")


class LearnedRegion(LayerTable):
    """Learned layers over a base, in a private table; immutable, as all that is published.

    Where both have a layer of one number, the learned one stands.

    Attributes
    ----------
    base : MmapRegion or None
        The dimension's file as it is loaded, or its simulation; None: neither is loaded.
    """

    def __init__(
        self, dimension: DimensionId, base: MmapRegion | None, room: Room, n_rows: int
    ) -> None:
        self.dimension_id = dimension
        self.base = base
        self.rows = room.rows(n_rows)
        self.index = room.index(n_rows)
        self._room = room
        if base is None:
            self.path, self.size, self.generation = None, 0, 0
            self.name = name_of_new(dimension)
            self.edition = Edition(0, 0, 0)
            self.state = s.REGION_LEARNED
        else:
            self.path, self.size, self.generation = base.path, base.size, base.generation
            self.name, self.edition, self.state = base.name, base.edition, base.state
        self._cut_reader(_NOTHING if base is None else base.reader[0], room.in_memory)

    @classmethod
    def over(
        cls, dimension: DimensionId, base: MmapRegion | None, learned: Iterable[LearnedLayer]
    ) -> LearnedRegion:
        """Lay learned layers over a base.

        Raises
        ------
        OutOfBounds
            If the base's file was changed under its mapping.
        """
        rows = np.zeros(0, s.LAYER) if base is None else _checked(base, base.rows)
        empty = cls(dimension, base, Room(rows, {}, {}), len(rows))
        return empty._merged(sorted(learned, key=_number))

    @property
    def learned(self) -> dict[int, LearnedLayer]:
        """Learned layers by number, in a dictionary of the caller's own."""
        return self._seen(self._room.learned)

    def learned_layer(self, number: int) -> LearnedLayer | None:
        """Return a learned layer; None where there is none of this number."""
        return self._room.learned.get(number) if self.has_layer(number) else None

    def with_layers(self, layers: Iterable[LearnedLayer]) -> LearnedRegion:
        """Return the dimension with further layers, or others in the place of their numbers.

        If the result is not published, it is to be told to `retract`.
        """
        given = sorted(layers, key=_number)
        n_rows, room = len(self.rows), self._room
        is_above = not n_rows or given[0].number > int(self.rows["layer_num"][-1])
        if is_above and room.has_space(n_rows, len(given)):
            room.append(_describe(given, self.base), given)
            return LearnedRegion(self.dimension_id, self.base, room, room.n_rows)
        return self._merged(given)

    def retract(self, before: Standing | None) -> None:
        """Undo what was added to `before`, which stays published."""
        if isinstance(before, LearnedRegion) and before._room is self._room:
            self._room.retract(len(before.rows))

    def without_layers(self, numbers: Iterable[int]) -> LearnedRegion:
        """Return the dimension without some learned layers; what lies under them is seen again."""
        gone = np.array(sorted(numbers), np.int64)
        places = np.searchsorted(self.rows["layer_num"], gone)
        rows = self.rows.copy()
        is_under = np.zeros(len(gone), bool)
        if self.base is not None:
            is_under[:] = [self.base.has_layer(number) for number in gone.tolist()]
            under = [self.base.find_row(self._id(number)) for number in gone[is_under].tolist()]
            restored = _checked(self.base, self.base.rows[under], gone[is_under])
            rows[places[is_under]] = restored
        rows = np.delete(rows, places[~is_under])
        learned, in_memory = self.learned, self._in_memory()
        for number in gone.tolist():
            del learned[number]
            in_memory.pop(number, None)
        return self._remade(rows, learned, in_memory)

    def _merged(self, given: list[LearnedLayer]) -> LearnedRegion:
        """Put `given` layers among the rows, each in the place of its number."""
        fresh, rows = _describe(given, self.base), self.rows
        numbers = fresh["layer_num"]
        places = np.searchsorted(rows["layer_num"], numbers)
        is_known = np.zeros(len(numbers), bool)
        inside = places < len(rows)
        is_known[inside] = rows["layer_num"][places[inside]] == numbers[inside]
        if is_known.all():
            rows = rows.copy()
        else:
            rows = np.insert(rows, places[~is_known], fresh[~is_known])
        if is_known.any():
            rows[np.searchsorted(rows["layer_num"], numbers[is_known])] = fresh[is_known]
        learned, in_memory = self.learned, self._in_memory()
        for layer in given:
            learned[layer.number] = layer
            in_memory.pop(layer.number, None)
            if layer.block is not None:
                in_memory[layer.number] = layer.block.view
        return self._remade(rows, learned, in_memory)

    def _remade(
        self,
        rows: NDArray[np.void],
        learned: dict[int, LearnedLayer],
        in_memory: dict[int, memoryview],
    ) -> LearnedRegion:
        """Return the dimension with other rows, in a room of their own."""
        room = Room(rows, learned, in_memory)
        return LearnedRegion(self.dimension_id, self.base, room, len(rows))

    # -- as a table --------------------------------------------------------------------------------

    def name_of(self, row: int) -> str:
        """Return a layer's name; what is no UTF-8 is shown as U+FFFD."""
        learned, base_row = self._find(row)
        if learned is not None:
            return learned.draft.name.decode("utf-8", "replace")
        return self._base.name_of(base_row)

    def keywords_of(self, row: int) -> tuple[str, ...]:
        """Return a layer's keywords; what is no UTF-8 is shown as U+FFFD."""
        learned, base_row = self._find(row)
        if learned is not None:
            return tuple(each.decode("utf-8", "replace") for each in learned.draft.keywords)
        return self._base.keywords_of(base_row)

    def read_form(self, row: int) -> ArrayForm | None:
        """Return what makes a layer's content an array; None where it is none."""
        learned, base_row = self._find(row)
        if learned is None:
            return self._base.form_of(base_row)
        header = learned.draft.array_header
        return read_description(header) if header else None

    def location_of(self, row: int) -> ContentLocation:
        """Return where a layer's content is."""
        learned, base_row = self._find(row)
        return self._base.location_of(base_row) if learned is None else learned.location

    def state_of(self, row: int) -> LayerState:
        """Return how far a layer has come."""
        learned, base_row = self._find(row)
        return self._base.state_of(base_row) if learned is None else learned.state

    @property
    def content_address(self) -> int:
        """From where the offsets of contents are counted: the base's first byte, or 0."""
        return 0 if self.base is None else self.base.content_address

    def extent_of(self, row: int) -> tuple[int, int]:
        """Return where a layer's content begins and ends; a learned one's in its pool."""
        learned, _ = self._find(row)
        if learned is None:
            return super().extent_of(row)
        handle = learned.block.handle if learned.block is not None else 0
        start = MmapOffset.from_packed(handle).offset
        return start, start + len(learned.content)

    def __repr__(self) -> str:
        """Show what it is."""
        n_learned = len(self.learned)
        return f"<LearnedRegion {self.dimension_id} {self.n_layers} layers, {n_learned} learned>"

    # -- inside ------------------------------------------------------------------------------------

    def _in_memory(self) -> dict[int, memoryview]:
        """Return contents by layer number, in a dictionary of the caller's own."""
        return self._seen(self._room.in_memory)

    def _seen(self, shared: dict[int, T]) -> dict[int, T]:
        """Copy what this state sees of a dictionary that it shares with others."""
        found = shared.copy()  # in one step: a writer may be adding to it
        if self._room.n_rows == len(self.rows):
            return found
        # Later states have added to it, or an attempt at one that was not published.
        return {number: each for number, each in found.items() if self.has_layer(number)}

    def _id(self, number: int) -> LayerId:
        return LayerId(self.dimension_id, number)

    @property
    def _base(self) -> MmapRegion:
        if self.base is None:
            raise AssertionError("a row that is not learned is the base's")
        return self.base

    def _find(self, row: int) -> tuple[LearnedLayer | None, int]:
        """Return a row's learned layer, or its row in the base."""
        number = int(self.rows[row]["layer_num"])
        learned = self._room.learned.get(number)
        if learned is not None or self.base is None:
            return learned, -1
        return None, self.base.find_row(self._id(number))


def _number(layer: LearnedLayer) -> int:
    return layer.number


def _describe(layers: list[LearnedLayer], base: MmapRegion | None) -> NDArray[np.void]:
    """Return a row for each layer, its offset counted from the base's first byte, or from 0."""
    origin = 0 if base is None else base.content_address
    rows = np.zeros(len(layers), s.LAYER)
    for row, layer in zip(rows, layers, strict=True):
        layer.fill_row(row, origin)
    return rows


def learned_over(
    dimension: DimensionId, base: MmapRegion | None, learned: Iterable[LearnedLayer]
) -> LayerTable | None:
    """Return what stands for a dimension: learned layers over a base, or whichever there is."""
    layers = list(learned)
    return LearnedRegion.over(dimension, base, layers) if layers else base


def with_learned(
    dimension: DimensionId, standing: Standing | None, layers: Iterable[LearnedLayer]
) -> LearnedRegion:
    """Return a dimension with further learned layers, or others in the place of their numbers."""
    if isinstance(standing, LearnedRegion):
        return standing.with_layers(layers)
    if standing is not None and not isinstance(standing, MmapRegion):
        raise AssertionError("an evicted dimension is mapped before anything is laid over it")
    return LearnedRegion.over(dimension, standing, layers)


def name_of_new(dimension: DimensionId) -> str:
    """Return the name of a dimension that has no file yet."""
    core = core_dimensions().get(dimension)
    return core.name if core is not None else str(dimension)


def _checked(
    base: MmapRegion, rows: NDArray[np.void], numbers: NDArray[np.int64] | None = None
) -> NDArray[np.void]:
    """Copy rows of a base; afterwards nobody can change them under a reader that trusts them."""
    rows = np.array(rows)
    starts, ends, found = rows["content_offset"], rows["content_end"], rows["layer_num"]
    wrong = (starts > ends) | (ends > base.size)
    wrong[1:] |= found[1:] <= found[:-1]
    if numbers is not None:
        wrong |= found != numbers
    if wrong.any():
        row = rows[int(wrong.argmax())]
        raise OutOfBounds(
            f"{base.dimension_id}: the row of layer {row['layer_num']} was changed in {base.path} "
            "while it was mapped",
            offset=int(row["content_offset"]),
            size=int(row["content_end"]) - int(row["content_offset"]),
            region_size=base.size,
        )
    return rows
