"""`LayerIds`: the ids of many layers, without an object for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, overload

import numpy as np

from jessymem.ids import LayerId
from jessymem.kernels import schema as s

_N_SHOWN: Final = 3
_N_TOGETHER: Final = 4_096


class LayerIds(Sequence[LayerId]):
    """The ids of many layers; an immutable sequence of `LayerId`.

    Eight bytes each; a `LayerId` is made when one is asked for. To NumPy, and to what takes ids,
    it is an array of packed ids.

    Parameters
    ----------
    array : ndarray of int64, shape (n,)
        Packed ids, all of them valid. It becomes read-only.

    Examples
    --------
    >>> ids = LayerIds(manager.store().layer_ids())
    >>> ids
    <6 layers: L15-00, L15-01, L15-02, ...>
    >>> len(ids), ids[2:4].tolist(), LayerId("L16-07") in ids
    (6, [L15-02, L15-03], True)
    """

    __slots__ = ("_array",)

    def __init__(self, array: np.typing.NDArray[np.int64]) -> None:
        array.flags.writeable = False
        self._array = array

    @property
    def array(self) -> np.typing.NDArray[np.int64]:
        """The packed ids, dimension << 16 | layer; read-only.

        Examples
        --------
        >>> ids = LayerIds(manager.store().layer_ids())
        >>> ids.array.dtype, hex(ids.array[-1])
        (dtype('int64'), '0x100007')
        """
        return self._array

    @property
    def dimensions(self) -> np.typing.NDArray[np.uint16]:
        """The number of each layer's dimension.

        Examples
        --------
        >>> ids = LayerIds(manager.store().layer_ids())
        >>> ids[ids.dimensions == 16]
        <2 layers: L16-00, L16-07>
        """
        return (self._array >> s.LAYER_BITS).astype(np.uint16)

    @property
    def layers(self) -> np.typing.NDArray[np.uint16]:
        """The number of each layer in its dimension.

        Examples
        --------
        >>> ids = LayerIds(manager.store().layer_ids())
        >>> ids.layers
        array([0, 1, 2, 3, 0, 7], dtype=uint16)
        """
        return (self._array & s.MAX_LAYER).astype(np.uint16)

    def tolist(self) -> list[LayerId]:
        """Return a list of all.

        Examples
        --------
        >>> LayerIds(manager.store().layer_ids()).tolist()
        [L15-00, L15-01, L15-02, L15-03, L16-00, L16-07]
        """
        return list(self)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> LayerId: ...
    @overload
    def __getitem__(self, index: slice | np.typing.NDArray[Any]) -> LayerIds: ...
    def __getitem__(self, index: int | slice | np.typing.NDArray[Any]) -> LayerId | LayerIds:
        """Return one, or those of a slice, of an array of positions or of an array of truths."""
        found = self._array[index]
        if isinstance(found, np.ndarray):
            return LayerIds(found)
        return LayerId.from_packed(found)

    def __iter__(self) -> Iterator[LayerId]:
        """Make one after the other."""
        for start in range(0, len(self._array), _N_TOGETHER):
            for packed in self._array[start : start + _N_TOGETHER].tolist():
                yield int.__new__(LayerId, packed)

    def __contains__(self, item: object) -> bool:
        """Tell whether an id is among them."""
        return isinstance(item, int) and bool((self._array == item).any())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.typing.NDArray[Any]:
        """Return the packed ids."""
        if dtype is None or np.dtype(dtype) == self._array.dtype:
            return self._array.copy() if copy else self._array
        if copy is False:
            raise ValueError(f"ids are int64: as {np.dtype(dtype)} they are a copy")
        return self._array.astype(dtype)

    def __eq__(self, other: object) -> bool:
        """Tell whether `other` has the same ids."""
        if not isinstance(other, LayerIds):
            return NotImplemented
        return bool(np.array_equal(self._array, other._array))

    __hash__ = None  # type: ignore[assignment]  # as long as it may be

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the array."""
        return LayerIds, (self._array,)

    def __repr__(self) -> str:
        """Show how many there are, and the first few."""
        shown = ", ".join(map(str, islice(self, _N_SHOWN)))
        more = ", ..." if len(self) > _N_SHOWN else ""
        return f"<{len(self):,} layers: {shown}{more}>" if shown else "<0 layers>"
