"""`RegionChain`: several files' regions as one table, where the newest row of a number counts.

The lowest is the region file, or the simulation that it is laid over; each further one follows the
one before. The table is private: its offsets are counted from the lowest one's first byte, and lead
from there to whichever file has the content.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import jessymem
from jessymem.aligned import aligned_copy
from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.named_tuples import NamedTuple
from jessymem.regions.layout import Edition
from jessymem.regions.owners import Owners, is_compressed, owned
from jessymem.regions.region import MmapRegion
from jessymem.regions.rows import Columns, GrowingRows, lay_over, newest
from jessymem.regions.table import Extents, ExtentsOfRows, LayerTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Origins(NamedTuple):
    """Where each row of a chain comes from."""

    members: tuple[MmapRegion, ...]
    which: NDArray[np.uint8]  # of the members
    rows: NDArray[np.uint16]  # in that member
    starts: NDArray[np.uint64]  # in that member, checked
    ends: NDArray[np.uint64]

    @property
    def contents(self) -> list[memoryview]:
        """The bytes of each member."""
        return [member.reader[0] for member in self.members]


class RegionChain(LayerTable):
    """A dimension's region file with its deltas, or a simulation with the file over it; immutable.

    Parameters
    ----------
    members : sequence of MmapRegion
        The lowest first.
    before : MmapRegion, RegionChain or None
        What is known of all but the last of them: then only that one's rows are read.

    Raises
    ------
    OutOfBounds
        If a file was changed under its mapping.
    """

    def __init__(
        self, members: Sequence[MmapRegion], before: MmapRegion | RegionChain | None = None
    ) -> None:
        lowest, newest = members[0], members[-1]
        files = [each for each in members if each.path is not None]
        self._members = tuple(members)
        self.dimension_id = newest.dimension_id
        self.name, self.path = newest.name, files[0].path
        self.edition, self.generation, self.state = newest.edition, newest.generation, newest.state
        self.flags = newest.layout.flags
        self.size = lowest.size
        self._table = self._table_after(before)
        n_rows = self._table.n_rows
        self.rows, self.index = self._table.rows(n_rows), self._table.index(n_rows)
        origins = self._origins = _Origins(self._members, *self._table.origins(n_rows))
        self.leads_outside = True
        self.extents = Extents(self._table.owners, origins.starts, origins.ends)
        self._cut_reader(lowest.reader[0])

    @property
    def members(self) -> tuple[MmapRegion, ...]:
        """The regions that it is made of, the lowest first."""
        return self._members

    @property
    def base(self) -> RegionChain:
        """Itself: nothing is learned in it."""
        return self

    def take_unchecked(self) -> None:
        """Return None: its members are checked."""

    @property
    def charge_ids(self) -> tuple[int, ...]:
        """What the budget counts for its members and its tables."""
        found = [each.charge_id for each in self._members if each.charge_id is not None]
        return (*found, *[charge.id for charge in self.table_charges])

    @property
    def table_charges(self) -> tuple[Any, ...]:
        """What its private tables cost, and its members'."""
        parts: tuple[Any, ...] = (*self._members, self)
        return tuple([each.table_charge for each in parts if each.table_charge is not None])

    @property
    def created_at(self) -> int:
        """When its newest file was written, in ns since 1970-01-01 UTC."""
        return self.members[-1].created_at

    @property
    def table_bytes(self) -> int:
        """How long its private tables are."""
        return self._table.n_bytes

    @property
    def table_charge(self) -> Any:
        """What the budget counts for its tables, a `jessymem.budget.Charge`; None: nothing."""
        return self._table.charge

    @table_charge.setter
    def table_charge(self, charge: Any) -> None:
        self._table.charge = charge

    @property
    def content_address(self) -> int:
        """From where the offsets of contents are counted: the lowest one's first byte."""
        return self._members[0].content_address

    @property
    def is_viewed(self) -> bool:
        """Whether anybody holds a view of any member's bytes."""
        return any(member.is_viewed for member in self.members)

    def extents_of(self, rows: NDArray[np.intp]) -> ExtentsOfRows:
        """Return where the contents of some rows are; see `LayerTable`."""
        origins = self._origins
        which = origins.which.take(rows)
        return origins.contents, which, origins.starts.take(rows), origins.ends.take(rows)

    def private_rows(self, numbers: Sequence[int] | None = None) -> NDArray[np.void]:
        """Return a copy of the rows, or of those of some layers, ascending."""
        return aligned_copy(self.rows if numbers is None else self.rows[self.rows_of(numbers)])

    @property
    def has_simulated(self) -> bool:
        """Whether the lowest member is a simulation."""
        return self._members[0].has_simulated

    def member_with(self, number: int) -> MmapRegion:
        """Return the member that a layer comes from; raise LayerNotFound where there is none."""
        return self._member_of(self.find_row(LayerId(self.dimension_id, number)))[0]

    def is_simulated(self, number: int) -> bool:
        """Tell whether a layer is one of the simulation's."""
        return self.member_with(number).is_simulated(number)

    def edition_of(self, number: int) -> Edition | None:
        """Return the edition of the one file that has a layer; None: it is simulated."""
        return self.member_with(number).edition_of(number)

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        """Its rows, and of each the member, the row there, and where its content is there."""
        origins = self._origins
        return self.rows, origins.which, origins.rows, origins.starts, origins.ends

    @property
    def which(self) -> NDArray[np.uint8]:
        """Per row, the member that it comes from."""
        return self._origins.which

    # -- as a table --------------------------------------------------------------------------------

    def name_of(self, row: int) -> str:
        """Return a layer's name; what is no UTF-8 is shown as U+FFFD."""
        member, there = self._member_of(row)
        return member.name_of(there)

    def numbers_named(self, name: bytes) -> list[int]:
        """Return the numbers of the layers that have a name, ascending."""
        origins, numbers, found = self._origins, self.numbers, []
        for which, member in enumerate(self.members):
            for there in member.rows_named(name):
                row = int(np.searchsorted(numbers, member.rows[there]["layer_num"]))
                if row == len(origins.which):
                    continue
                if (origins.which[row], origins.rows[row]) == (which, there):  # it is the newest
                    found.append(int(numbers[row]))
        return sorted(found)

    def rows_matching(self, pattern: jessymem.hints.NamePattern) -> NDArray[np.bool_]:
        """Tell of each row whether the layer's name matches a pattern."""
        origins, found = self._origins, np.zeros(len(self.rows), bool)
        for which, member in enumerate(self.members):
            mine = origins.which == which
            found[mine] = member.rows_matching(pattern)[origins.rows[mine]]
        return found

    def keywords_of(self, row: int) -> tuple[str, ...]:
        """Return a layer's keywords; what is no UTF-8 is shown as U+FFFD."""
        member, there = self._member_of(row)
        return member.keywords_of(there)

    def read_form(self, row: int) -> jessymem.hints.ArrayForm | None:
        """Return what makes a layer's content an array; None where it is not an array."""
        member, there = self._member_of(row)
        return member.form_of(there)

    def location_of(self, row: int) -> jessymem.ContentLocation:
        """Return where a layer's content is."""
        member, there = self._member_of(row)
        return member.location_of(there)

    def state_of(self, row: int) -> jessymem.LayerState:
        """Return how far a layer has come: on disk, or simulated."""
        member, there = self._member_of(row)
        return member.state_of(there)

    def extent_of(self, row: int) -> tuple[int, int]:
        """Return where a layer's content begins and ends in its file."""
        member, there = self._member_of(row)
        return member.extent_of(there)

    def origin_of(self, row: int) -> tuple[MmapRegion, int]:
        """Return the member that a row comes from, and the row there."""
        return self._member_of(row)

    def draft_of(self, row: int) -> jessymem.hints.LayerDraft:
        """Return the layer in a row as it would be written again; as `MmapRegion.draft_of`."""
        member, there = self._member_of(row)
        return member.draft_of(there)

    def drafts(self, without: Collection[int] = ()) -> list[jessymem.hints.LayerDraft]:
        """Return all layers on disk as they would be written again, but for some numbers."""
        return self.drafts_since(0, without)

    def drafts_since(
        self, first: int, without: Collection[int] = ()
    ) -> list[jessymem.hints.LayerDraft]:
        """Return the layers that come from a member or a later one; otherwise as `drafts`."""
        origins = self._origins
        left = ~np.isin(self.numbers, np.fromiter(without, np.int64, len(without)))
        found: list[jessymem.hints.LayerDraft] = []
        for which, member in enumerate(self.members):
            if which >= first and member.path is not None:
                rows = origins.rows[left & (origins.which == which)]
                found += member.drafts_of(rows.astype(np.intp))
        return found

    def deleted_since(self, first: int) -> set[int]:
        """Return what a member or later ones delete of those before, and do not have again."""
        gone: set[int] = set()
        for member in self.members[first:]:
            gone = (gone | set(member.layout.deleted.tolist())) - set(member.numbers.tolist())
        before = [member.numbers for member in self.members[:first]]
        return gone & set(np.concatenate(before).tolist()) if gone else gone

    def verify_integrity(self, level: str = "full") -> bool:
        """Compare every member with its checksums; as `MmapRegion.verify_integrity`."""
        return all(member.verify_integrity(level) for member in self.members)

    def __repr__(self) -> str:
        """Show what it is."""
        n_files = len(self.members)
        return (
            f"<RegionChain {self.dimension_id} {self.n_layers} layers, {n_files} files {self.path}>"
        )

    # -- inside ------------------------------------------------------------------------------------

    def _member_of(self, row: int) -> tuple[MmapRegion, int]:
        """Return the member that a row comes from, and the row there."""
        origins = self._origins
        return self.members[origins.which[row]], int(origins.rows[row])

    def _table_after(self, before: MmapRegion | RegionChain | None) -> _ChainRows:
        """Return the table of the members, which goes on from what is known, if it is of them."""
        members, last = self._members, len(self._members) - 1
        is_known = isinstance(before, RegionChain) and before.members[:last] == members[:last]
        if is_known and not len(members[last].layout.deleted):
            known: RegionChain = before  # type: ignore[assignment]
            fresh, is_longer = _columns_of(members, last), len(known.members) == last
            if is_longer and known._table.has_space(len(known.rows), fresh[0]):
                known._table.append(fresh, members[last])
                return known._table
            laid = lay_over(known.columns, fresh)
            # Of members that the last one has taken the place of, nothing may be left.
            if is_longer or np.count_nonzero(laid[1] >= last) == len(fresh[0]):
                return _ChainRows(laid, members)
        tables: list[Columns] = []
        for at, member in enumerate(members):
            if len(member.layout.deleted):
                tables = [_without(member.layout.deleted, table, members) for table in tables]
            tables.append(_columns_of(members, at))
        return _ChainRows(lay_over(tables[0], newest(tables[1:])), members)


def _without(
    deleted: NDArray[np.uint16], columns: tuple[NDArray[Any], ...], members: tuple[MmapRegion, ...]
) -> tuple[NDArray[Any], ...]:
    """Leave the rows of deleted layers out, but for simulated ones, which are in no file."""
    rows, which = columns[:2]
    is_file = np.array([each.path is not None for each in members])
    left = ~(np.isin(rows["layer_num"], deleted) & is_file[which])
    return tuple(column[left] for column in columns)


class _ChainRows(GrowingRows):
    """The rows of a chain, and of each where it comes from.

    Attributes
    ----------
    owners : list of memoryview
        Per row, the bytes of its member.
    charge : jessymem.budget.Charge or None
        What it costs.
    """

    def __init__(self, columns: Columns, members: tuple[MmapRegion, ...]) -> None:
        rows, *origins = columns
        n_rows = len(rows)
        n_spare = max(s.MAX_DELTAS, n_rows // 8)
        last = int(rows["layer_num"][-1]) if n_rows else -1
        super().__init__(rows, n_spare, min(last + 1 + n_spare, s.MAX_LAYERS))
        self._origins = [aligned_copy(each, np.zeros(n_spare, each.dtype)) for each in origins]
        self.index(n_rows)
        self.owners = owned(_contents_of(members)[origins[0]].tolist(), rows)
        self.charge: Any = None

    def origins(self, n_rows: int) -> Columns:
        """Return the further columns of the first rows, as `_Origins` has them."""
        return tuple([each[:n_rows] for each in self._origins])

    def has_space(self, n_rows: int, rows: NDArray[np.void]) -> bool:
        """Tell whether rows can be added, as `GrowingRows`, and need no index that is not there."""
        if not super().has_space(n_rows, rows):
            return False
        if not isinstance(self.owners, Owners) and is_compressed(rows).any():
            return False
        n_after = n_rows + len(rows)
        return self._index is not None or int(rows["layer_num"][-1]) == n_after - 1

    def append(self, columns: Columns, member: MmapRegion) -> None:
        """Add rows of a member whose numbers are above all that there are."""
        rows, *origins = columns
        places = self.extend(rows)
        for column, given in zip(self._origins, origins, strict=True):
            column[places] = given
        owners = [member.reader[0]] * len(rows)
        if member.frames is not None:
            owners = owned(owners, rows)
        self.owners[places.start :] = owners

    @property
    def n_bytes(self) -> int:
        """How long all of it is, with the space for more."""
        tables = (self._rows, self._index, *self._origins)
        n_owners = len(self._rows) * _OWNER_BYTES
        return n_owners + sum([table.nbytes for table in tables if table is not None])


#: What a list takes for an item, with the space that it leaves for more.
_OWNER_BYTES: Final = 9


def _contents_of(members: tuple[MmapRegion, ...]) -> NDArray[np.object_]:
    return np.fromiter((member.reader[0] for member in members), object, len(members))


def _columns_of(members: tuple[MmapRegion, ...], at: int) -> Columns:
    """Return the columns of one of some members."""
    member = members[at]
    rows = member.private_rows()
    starts, ends = rows["content_offset"].copy(), rows["content_end"].copy()
    stored = None if member.frames is None else member.frames.is_stored
    if stored is not None:
        starts[stored] = 0
    if at:
        away = member.content_address - members[0].content_address
        shift = np.uint64(away % 2**64)  # it wraps around
        for field in ("content_offset", "content_end"):
            shifted = rows[field] + shift
            rows[field] = shifted if stored is None else np.where(stored, rows[field], shifted)
    which, there = np.full(len(rows), at, np.uint8), np.arange(len(rows), dtype=np.uint16)
    return rows, which, there, starts, ends
