"""`GrowingRows`: a table that successive states of one dimension share while layers are only added.

A state sees so many rows as there were when it was published; what is written behind them is seen
by later states alone. So adding a layer above the highest number copies nothing, however many there
are. Any other change makes new ones. Used under the writer lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from jessymem.aligned import aligned_copy, aligned_zeros
from jessymem.kernels import schema as s
from jessymem.regions.layout import empty_index, fill_index

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rows, and in further arrays what else is known of each.
Columns: TypeAlias = "tuple[NDArray[Any], ...]"


class GrowingRows:
    """Rows and their index, with space for more.

    Parameters
    ----------
    rows : ndarray of LAYER, shape (n,)
        Ascending; copied.
    n_spare : int
        For so many more rows there is space.
    n_numbers : int
        For the layer numbers below there is space in the index.

    Attributes
    ----------
    n_rows : int
        How many rows are taken.
    n_begun : int
        As `n_rows`, but counted from the moment at which they begin to be added.
    """

    def __init__(self, rows: NDArray[np.void], n_spare: int, n_numbers: int = s.MAX_LAYERS) -> None:
        self._rows = aligned_zeros(len(rows) + n_spare, s.LAYER)
        copy_rows(rows, self._rows)
        self._index: NDArray[np.uint16] | None = None
        self._n_numbers = n_numbers
        self.n_rows = self.n_begun = len(rows)

    def rows(self, n_rows: int) -> NDArray[np.void]:
        """Return the first rows."""
        return self._rows[:n_rows]

    def index(self, n_rows: int) -> NDArray[np.uint16] | None:
        """Return the index of the first rows: number to row; None where they are the same."""
        last = self.last_number(n_rows)
        if last == n_rows - 1:
            return None
        if self._index is None:
            numbers = self._rows["layer_num"][: self.n_rows]
            self._index = empty_index(self._n_numbers)
            fill_index(self._index, numbers, 0)
        return self._index[: last + 1]

    def last_number(self, n_rows: int) -> int:
        """Return the highest number of the first rows; -1: there are none."""
        return int(self._rows["layer_num"][n_rows - 1]) if n_rows else -1

    def has_space(self, n_rows: int, rows: NDArray[np.void]) -> bool:
        """Tell whether rows can be added behind the first `n_rows`, and those are the last ones."""
        if self.n_begun != n_rows or n_rows + len(rows) > len(self._rows):
            return False
        numbers = rows["layer_num"]
        is_above = not len(rows) or int(numbers[0]) > self.last_number(n_rows)
        return is_above and (not len(rows) or int(numbers[-1]) < self._n_numbers)

    def extend(self, rows: NDArray[np.void]) -> slice:
        """Add rows for which there is space; return where they are."""
        first, end = self.n_rows, self.n_rows + len(rows)
        self.n_begun = end
        copy_rows(rows, self._rows[first:end])
        if self._index is not None:
            fill_index(self._index, rows["layer_num"], first)
        self.n_rows = end
        return slice(first, end)


def copy_rows(rows: NDArray[np.void], target: NDArray[np.void]) -> None:
    """Copy rows to the beginning of others; field by field that takes a hundred times as long."""
    memoryview(target.view(np.uint8))[: rows.nbytes] = memoryview(rows.view(np.uint8))


def newest(tables: list[Columns]) -> Columns:
    """Put tables of ascending rows together: of those of one number the last table's counts."""
    if len(tables) == 1:
        return tables[0]
    joined = tuple(aligned_copy(*column) for column in zip(*tables, strict=True))
    numbers = joined[0]["layer_num"].copy()
    order = np.argsort(numbers, kind="stable")
    is_newest = np.ones(len(order), bool)
    is_newest[:-1] = numbers[order[1:]] != numbers[order[:-1]]
    return _cooked([column[order[is_newest]] for column in map(_raw, joined)])


def lay_over(under: Columns, over: Columns) -> Columns:
    """Lay ascending rows over others, each in the place of its number, in arrays of their own."""
    columns = list(zip(map(_raw, under), map(_raw, over), strict=True))
    numbers, fresh = under[0]["layer_num"].copy(), over[0]["layer_num"].copy()
    if not (len(numbers) and len(fresh)) or fresh[0] > numbers[-1]:
        return _cooked([aligned_copy(*column) for column in columns])
    at = np.searchsorted(numbers, fresh)
    is_new = np.ones(len(fresh), bool)
    inside = at < len(numbers)
    is_new[inside] = numbers[at[inside]] != fresh[inside]
    laid = [_inserted(column, at[is_new], given[is_new]) for column, given in columns]
    if not is_new.all():
        places = (at + np.cumsum(is_new))[~is_new]
        for column, (_, given) in zip(laid, columns, strict=True):
            column[places] = given[~is_new]
    return _cooked(laid)


def insert_rows(
    rows: NDArray[np.void], at: NDArray[np.intp], fresh: NDArray[np.void]
) -> NDArray[np.void]:
    """Return a copy of rows with others put in before some of them; as `numpy.insert`."""
    return _inserted(_raw(rows), at, _raw(fresh)).view(s.LAYER)


def _inserted(column: NDArray[Any], at: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of a column with values put in before what is at some places, ascending."""
    if len(at) and at[0] != at[-1]:  # else it is done in a fifth of the time
        return aligned_copy(np.insert(column, at, values))
    first = int(at[0]) if len(at) else 0
    return aligned_copy(column[:first], values, column[first:])


# Field by field, rows take a hundred times as long to copy.
_RAW: Final = np.dtype(f"V{s.LAYER_BYTES}")


def _raw(column: NDArray[Any]) -> NDArray[Any]:
    return column.view(_RAW) if column.dtype == s.LAYER else column


def _cooked(columns: list[NDArray[Any]]) -> Columns:
    return (columns[0].view(s.LAYER), *columns[1:])
