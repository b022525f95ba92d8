"""`SharedRows`: arrays that successive states of one dimension share while layers are only added.

A state sees so many rows as there were when it was published; what is written behind them is seen
by later states alone. So adding a layer above the highest number copies nothing, however many there
are. Any other change makes new ones. Used under the writer lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from jessymem.aligned import aligned_zeros
from jessymem.kernels import schema as s

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from jessymem.learning.layers import LearnedLayer

_MIN_ROWS: Final = 64


class SharedRows:
    """Rows, index and learned layers, with space for more.

    Parameters
    ----------
    rows : ndarray of LAYER, shape (n,)
        Ascending; copied.
    learned : dict of int to LearnedLayer
        By number; kept.
    in_memory : dict of int to memoryview
        The contents of those that have any; kept.

    Attributes
    ----------
    n_rows : int
        How many rows are taken.
    n_begun : int
        As `n_rows`, but counted from the moment at which they begin to be added.
    learned : dict of int to LearnedLayer
    in_memory : dict of int to memoryview
    named : dict of bytes to list of int, or None
        The numbers of learned layers by name; None: nobody has asked for any yet.
    """

    def __init__(
        self,
        rows: NDArray[np.void],
        learned: dict[int, LearnedLayer],
        in_memory: dict[int, memoryview],
    ) -> None:
        self._rows = aligned_zeros(max(_MIN_ROWS, len(rows) * 5 // 4), s.LAYER)
        self._rows[: len(rows)] = rows
        self._index: NDArray[np.uint16] | None = None
        self.n_rows = self.n_begun = len(rows)
        self.learned = learned
        self.in_memory = in_memory
        self.named: dict[bytes, list[int]] | None = None

    def rows(self, n_rows: int) -> NDArray[np.void]:
        """Return the first rows."""
        return self._rows[:n_rows]

    def index(self, n_rows: int) -> NDArray[np.uint16] | None:
        """Return the index of the first rows: number to row; None where they are the same."""
        last = int(self._rows["layer_num"][n_rows - 1]) if n_rows else -1
        if last == n_rows - 1:
            return None
        if self._index is None:
            numbers = self._rows["layer_num"][: self.n_rows]
            self._index = np.full(s.MAX_LAYERS, s.NO_LAYER, s.LAYER_INDEX)
            self._index[numbers] = np.arange(self.n_rows, dtype=s.LAYER_INDEX)
        return self._index[: last + 1]

    def has_space(self, n_rows: int, n_more: int) -> bool:
        """Tell whether more rows fit behind the first `n_rows`, and those are the last ones."""
        return self.n_begun == n_rows and n_rows + n_more <= len(self._rows)

    def append(self, rows: NDArray[np.void], layers: list[LearnedLayer]) -> None:
        """Add layers whose numbers are above all that there are, ascending."""
        first, end = self.n_rows, self.n_rows + len(rows)
        self.n_begun = end
        self._rows[first:end] = rows
        if self._index is not None:
            self._index[rows["layer_num"]] = np.arange(first, end, dtype=s.LAYER_INDEX)
        for layer in layers:
            self.learned[layer.number] = layer
            if layer.block is not None:
                self.in_memory[layer.number] = layer.block.view
        if self.named is not None:
            _note_names(self.named, layers)
        self.n_rows = end

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
        last = int(self._rows["layer_num"][n_rows - 1]) if n_rows else -1
        self.named = None
        for found in (self.learned, self.in_memory):
            for number in [each for each in found if each > last]:
                del found[number]
        if self._index is not None:
            self._index[last + 1 :] = s.NO_LAYER
        self.n_rows = self.n_begun = n_rows


def _note_names(named: dict[bytes, list[int]], layers: Iterable[LearnedLayer]) -> None:
    for layer in layers:
        named.setdefault(layer.draft.name, []).append(layer.number)
