"""`SharedRows`: the rows of a dimension in which layers are learned, and those layers."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Final

import numpy as np

from jessymem.kernels import schema as s
from jessymem.regions.owners import owned
from jessymem.regions.rows import GrowingRows
from jessymem.regions.table import Extents

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from jessymem.learning.layers import LearnedLayer

_MIN_ROWS: Final = 64


def extents_of(layers: Sequence[LearnedLayer]) -> Extents:
    """Return where the contents of learned layers are: each is the whole of its own view."""
    contents = [layer.content for layer in layers]
    ends = np.fromiter(map(len, contents), np.uint64, len(contents))
    return Extents(contents, np.zeros(len(contents), np.uint64), ends)


def changed(extents: Extents, at: Sequence[int], fresh: Extents) -> Extents:
    """Return extents with those at some rows replaced."""
    if not at:
        return extents
    owners, starts, ends = list(extents.owners), extents.starts.copy(), extents.ends.copy()
    for row, owner in zip(at, fresh.owners, strict=True):
        owners[row] = owner
    starts[at], ends[at] = fresh.starts, fresh.ends
    return Extents(owners, starts, ends)


def inserted(extents: Extents, at: NDArray[np.intp], fresh: Extents) -> Extents:
    """Return extents with further ones, each before a row; as `numpy.insert`."""
    owners = np.insert(_as_array(extents.owners), at, _as_array(fresh.owners))
    starts, ends = (
        np.insert(old, at, new) for old, new in zip(extents[1:], fresh[1:], strict=True)
    )
    return Extents(owners.tolist(), starts, ends)


def without(extents: Extents, at: NDArray[np.intp]) -> Extents:
    """Return extents without those of some rows."""
    if not len(at):
        return extents
    is_left = np.ones(len(extents.starts), bool)
    is_left[at] = False
    owners = list(compress(extents.owners, is_left.tolist()))
    return Extents(owners, extents.starts[is_left], extents.ends[is_left])


def _as_array(owners: Sequence[memoryview]) -> NDArray[np.object_]:
    return np.fromiter(owners, object, len(owners))


class SharedRows(GrowingRows):
    """Rows, index and learned layers, with space for more.

    Parameters
    ----------
    rows : ndarray of LAYER, shape (n,)
        Ascending; copied.
    extents : Extents
        Of these rows; copied.
    learned : dict of int to LearnedLayer
        By number; kept.

    Attributes
    ----------
    learned : dict of int to LearnedLayer
    named : dict of bytes to list of int, or None
        The numbers of learned layers by name; None: nobody has asked for any yet.
    """

    def __init__(
        self,
        rows: NDArray[np.void],
        extents: Extents,
        learned: dict[int, LearnedLayer],
    ) -> None:
        n_rows = len(rows)
        super().__init__(rows, max(_MIN_ROWS - n_rows, n_rows // 4))
        self._owners = owned(list(extents.owners[:n_rows]), rows)
        self._starts, self._ends = np.zeros((2, len(self._rows)), np.uint64)
        self._starts[:n_rows], self._ends[:n_rows] = extents.starts, extents.ends
        self.learned = learned
        self.named: dict[bytes, list[int]] | None = None

    def extents(self, n_rows: int) -> Extents:
        """Return where the contents of the first rows are; owners go on behind them."""
        return Extents(self._owners, self._starts[:n_rows], self._ends[:n_rows])

    def append(self, rows: NDArray[np.void], layers: list[LearnedLayer]) -> None:
        """Add layers whose numbers are above all that there are, ascending."""
        at = self.extend(rows)
        self._owners[at.start :], self._starts[at], self._ends[at] = extents_of(layers)
        for layer in layers:
            self.learned[layer.number] = layer
        if self.named is not None:
            _note_names(self.named, layers)

    def keep_names(self) -> None:
        """Make `named`, to which layers are added from then on."""
        if self.named is None:
            named: dict[bytes, list[int]] = {}
            _note_names(named, self.learned.values())
            self.named = named

    def retract(self, n_rows: int) -> None:
        """Forget what was added, or begun to be, behind the first `n_rows`; nobody has seen it."""
        if self.n_begun == n_rows:
            return
        last = self.last_number(n_rows)
        self.named = None
        del self._owners[n_rows:]
        for number in [each for each in self.learned if each > last]:
            del self.learned[number]
        if self._index is not None:
            self._index[last + 1 :] = s.NO_LAYER
        self.n_rows = self.n_begun = n_rows


def _note_names(named: dict[bytes, list[int]], layers: Iterable[LearnedLayer]) -> None:
    for layer in layers:
        named.setdefault(layer.draft.name, []).append(layer.number)
