"""`Parents`: which dimensions to ask for the children of a layer, however many are loaded.

States share one. A dimension is noted before it is published, and looked at when somebody asks for
children next: so readers that never ask cost nothing, and each dimension is looked at once. Nothing
is taken out again, since a reader of an older state may be about to ask: a dimension that is asked
and has no children costs little. No lock is taken.
"""

from __future__ import annotations

from typing import Final
from weakref import ref

from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.regions.table import LoadedDimension

#: Of a dimension that names more parents elsewhere, only their dimensions are told apart; of one
#: that names more dimensions, nothing: it is always asked.
_N_NAMED: Final = 8


class Parents:
    """Tells of layers, and of all layers of a dimension, who may name them as their parents."""

    def __init__(self) -> None:
        self._unread: set[ref[LoadedDimension]] = set()
        self._naming: dict[int, set[int]] = {}  # by packed id, or by dimension
        self._always: set[int] = set()

    def note(self, loaded: LoadedDimension) -> None:
        """Take a dimension that is about to be published; it is not held."""
        self._unread.add(ref(loaded, self._unread.discard))

    def candidates(self, parent: LayerId) -> list[int]:
        """Return the dimensions that may have children of a layer, ascending.

        Of each state that was bound before this is called.
        """
        for each in self._unread.copy():  # in one step: others may be adding to it
            loaded = each()
            if loaded is not None:
                self._read(loaded)
            self._unread.discard(each)
        own = int(parent.dimension)
        named = (self._naming.get(key, set()) for key in (int(parent), own))
        return sorted({own}.union(*named, self._always))

    def _read(self, loaded: LoadedDimension) -> None:
        number = int(loaded.dimension_id)
        parents = loaded.parents
        named = set(parents[parents >> s.LAYER_BITS != number].tolist()) - {0}
        if len(named) > _N_NAMED:
            named = {each >> s.LAYER_BITS for each in named}
        if len(named) > _N_NAMED:
            self._always.add(number)
            return
        for each in named:
            self._naming.setdefault(each, set()).add(number)
