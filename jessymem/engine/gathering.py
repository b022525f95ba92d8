"""`Gathering`: dimensions that are mapped, and wait to be published together.

Small tables among them are checked many at once, which takes a tenth of the time. What does not
pass is refused, and nothing of it is kept: a load of its own tells what is wrong.
"""

from __future__ import annotations

from itertools import compress
from typing import Final, TypeAlias

from jessymem.engine.records import Record
from jessymem.ids import DimensionId
from jessymem.regions import layout
from jessymem.regions.chain import RegionChain
from jessymem.regions.region import MmapRegion

#: So many tables are checked at once; more gain nothing.
_N_TOGETHER: Final = 64


#: A dimension that is mapped, its region id, and what there is to tell once it is published.
Loaded: TypeAlias = tuple[MmapRegion | RegionChain, int, Record | None]


class Gathering:
    """What is mapped for the next publication; used under the writer lock.

    Attributes
    ----------
    refused : list of DimensionId
        What broke a rule, and is not mapped any more.
    """

    def __init__(self) -> None:
        self.refused: list[DimensionId] = []
        self._checked: list[Loaded] = []
        self._unchecked: list[tuple[layout.Unchecked, Loaded]] = []

    def __bool__(self) -> bool:
        """Tell whether anything waits."""
        return bool(self._checked or self._unchecked)

    def add(self, loaded: Loaded) -> None:
        """Take one more dimension, which nobody else holds."""
        unchecked = loaded[0].take_unchecked()
        if unchecked is None:
            self._checked.append(loaded)
            return
        self._unchecked.append((unchecked, loaded))
        if len(self._unchecked) >= _N_TOGETHER:
            self._check()

    def take(self) -> list[Loaded]:
        """Return what may be published, ascending by dimension; it waits no longer."""
        self._check()
        taken, self._checked = self._checked, []
        return sorted(taken, key=lambda loaded: loaded[0].dimension_id)

    def _check(self) -> None:
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        tables, found = zip(*unchecked, strict=True)
        sound = layout.are_sound(tables)
        self._checked += compress(found, sound)
        self.refused += (
            loaded[0].dimension_id
            for loaded, is_sound in zip(found, sound, strict=True)
            if not is_sound
        )
