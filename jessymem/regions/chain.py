"""`RegionChain`: several files' regions as one table, where the newest row of a number counts.

The lowest is the region file, or the simulation that it is laid over; each further one follows the
one before. The table is private: its offsets are counted from the lowest one's first byte, and lead
from there to whichever file has the content.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from sys import getsizeof
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import jessymem
from jessymem.aligned import aligned_zeros
from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.regions import layout
from jessymem.regions.layout import Edition
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import Extents, LayerTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Origins(NamedTuple):
    """Where each row of a chain comes from."""

    numbers: NDArray[np.uint16]
    members: tuple[MmapRegion, ...]
    which: NDArray[np.uint8]  # of the members
    rows: NDArray[np.uint16]  # in that member
    starts: NDArray[np.uint64]  # in that member, checked
    ends: NDArray[np.uint64]

    @property
    def contents(self) -> NDArray[np.object_]:
        """The bytes of each member."""
        contents = (member.reader[0] for member in self.members)
        return np.fromiter(contents, object, len(self.members))


class RegionChain(LayerTable):
    """A dimension's region file with its deltas, or a simulation with the file over it; immutable.

    Parameters
    ----------
    members : sequence of MmapRegion
        The lowest first.
    before : MmapRegion, RegionChain or None
        What is known of all but the last of them: then only that one's rows are read.
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
        known = before if isinstance(before, RegionChain) else None
        if known is not None and (
            known.members != self._members[:-1] or _shows_what_is_below(self._members)
        ):
            known = None
        self._origins, rows = _merge(self._members, known)
        self.rows = aligned_zeros(len(rows), s.LAYER)
        self.rows[:] = rows
        self.index = layout.build_index(self.rows)
        self.leads_outside = True
        self.table_charge: Any = None  # a `jessymem.budget.Charge`
        origins = self._origins
        owners = origins.contents[origins.which].tolist()
        self.extents = Extents(owners, origins.starts, origins.ends)
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
        members = chain.from_iterable(member.charge_ids for member in self.members)
        own = () if self.table_charge is None else (self.table_charge.id,)
        return (*members, *own)

    @property
    def table_charges(self) -> tuple[Any, ...]:
        """What its private tables cost, and its members'."""
        members = chain.from_iterable(member.table_charges for member in self.members)
        return (*members, *(() if self.table_charge is None else (self.table_charge,)))

    @property
    def created_at(self) -> int:
        """When its newest file was written, in ns since 1970-01-01 UTC."""
        return self.members[-1].created_at

    @property
    def table_bytes(self) -> int:
        """How long its private tables are."""
        origins = self._origins
        tables = (self.rows, self.index, origins.which, origins.rows, origins.starts, origins.ends)
        n_owners = getsizeof(self.reader[5])
        return n_owners + sum(table.nbytes for table in tables if table is not None)

    @property
    def is_viewed(self) -> bool:
        """Whether anybody holds a view of any member's bytes."""
        return any(member.is_viewed for member in self.members)

    def extents_of(self, rows: NDArray[np.intp]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return where contents of some rows are: owners, starts and ends, as in `extents`."""
        origins = self._origins
        owners = origins.contents.take(origins.which.take(rows))
        return owners, origins.starts.take(rows), origins.ends.take(rows)

    def private_rows(self, numbers: Sequence[int] | None = None) -> NDArray[np.void]:
        """Return a copy of the rows, or of those of some layers, ascending."""
        return np.array(self.rows if numbers is None else self.rows[self.rows_of(numbers)])

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
        origins, found = self._origins, []
        for which, member in enumerate(self.members):
            for there in member.rows_named(name):
                row = int(np.searchsorted(origins.numbers, member.rows[there]["layer_num"]))
                if row == len(origins.which):
                    continue
                if (origins.which[row], origins.rows[row]) == (which, there):  # it is the newest
                    found.append(int(origins.numbers[row]))
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
        origins = self._origins
        return int(origins.starts[row]), int(origins.ends[row])

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
        left = ~np.isin(origins.numbers, np.fromiter(without, np.int64, len(without)))
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


def _without(
    deleted: NDArray[np.uint16], columns: tuple[NDArray[Any], ...], members: tuple[MmapRegion, ...]
) -> tuple[NDArray[Any], ...]:
    """Leave the rows of deleted layers out, but for simulated ones, which are in no file."""
    rows, which = columns[:2]
    is_file = np.array([each.path is not None for each in members])
    left = ~(np.isin(rows["layer_num"], deleted) & is_file[which])
    return tuple(column[left] for column in columns)


def _shows_what_is_below(members: tuple[MmapRegion, ...]) -> bool:
    """Tell whether the newest of members deletes what a simulation may have too."""
    return members[0].path is None and len(members[-1].layout.deleted) > 0


def _merge(
    members: tuple[MmapRegion, ...], before: RegionChain | None
) -> tuple[_Origins, NDArray[np.void]]:
    """Lay the members' rows over each other, in a copy that is checked.

    Parameters
    ----------
    before : RegionChain or None
        What all but the last of them are together, if that is known.

    Raises
    ------
    OutOfBounds
        If a file was changed under its mapping.
    """
    origin = members[0].content_address
    tables: list[tuple[NDArray[Any], ...]] = [] if before is None else [before.columns]
    first = 0 if before is None else len(members) - 1
    for number, member in enumerate(members[first:], first):
        rows = member.private_rows()
        starts, ends = rows["content_offset"].copy(), rows["content_end"].copy()
        shift = np.uint64((member.content_address - origin) % 2**64)  # it wraps around
        rows["content_offset"] += shift
        rows["content_end"] += shift
        which = np.full(len(rows), number, np.uint8)
        if len(member.layout.deleted):
            tables = [_without(member.layout.deleted, table, members) for table in tables]
        tables.append((rows, which, np.arange(len(rows), dtype=np.uint16), starts, ends))
    rows, which, there, starts, ends = (
        np.concatenate(column) for column in zip(*tables, strict=True)
    )
    order = np.lexsort((which, rows["layer_num"]))
    numbers = rows["layer_num"][order]
    is_newest = np.ones(len(order), bool)
    is_newest[:-1] = numbers[1:] != numbers[:-1]
    order = order[is_newest]
    origins = _Origins(
        numbers[is_newest], members, which[order], there[order], starts[order], ends[order]
    )
    return origins, rows[order]
