"""`Hits`: where a needle was found, without an object for each find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, overload

import numpy as np

from jessymem.ids import LayerId
from jessymem.kernels import schema as s

_N_SHOWN: Final = 3
_N_TOGETHER: Final = 4_096


class Hit(NamedTuple):
    """One find.

    Attributes
    ----------
    layer_id : LayerId
    offset : int
        In bytes from the beginning of the layer's content.
    """

    layer_id: LayerId
    offset: int


class Hits(Sequence[Hit]):
    """Finds in ascending order by layer, then by offset; an immutable sequence of `Hit`.

    Sixteen bytes each; a `Hit` is made when one is asked for.

    Parameters
    ----------
    array : ndarray of HIT, shape (n,)
        It becomes read-only.
    """

    __slots__ = ("_array",)

    def __init__(self, array: np.typing.NDArray[Any]) -> None:
        array.flags.writeable = False
        self._array = array

    @property
    def array(self) -> np.typing.NDArray[Any]:
        """The finds as a read-only structured array.

        Fields ``layer``, the packed layer id, and ``offset``, both int64.
        """
        return self._array

    def __len__(self) -> int:
        """Return how many finds there are."""
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Hits: ...
    def __getitem__(self, index: int | slice) -> Hit | Hits:
        """Return one find, or those of a slice."""
        if isinstance(index, slice):
            return Hits(self._array[index])
        layer, offset = self._array[index].item()
        return Hit(LayerId.from_packed(layer), offset)

    def __iter__(self) -> Iterator[Hit]:
        """Make one find after the other."""
        layer_id: int = 0
        for start in range(0, len(self._array), _N_TOGETHER):
            for layer, offset in self._array[start : start + _N_TOGETHER].tolist():
                if layer != layer_id:
                    layer_id = LayerId.from_packed(layer)
                yield Hit(layer_id, offset)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        """Tell whether `other` has the same finds."""
        if not isinstance(other, Hits):
            return NotImplemented
        return bool(np.array_equal(self._array, other._array))

    __hash__ = None  # type: ignore[assignment]  # as long as it may be

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the array."""
        return Hits, (self._array,)

    def __repr__(self) -> str:
        """Show how many there are, and the first few."""
        shown = [f"{hit.layer_id}+{hit.offset}" for hit in islice(self, _N_SHOWN)]
        more = ", ..." if len(self) > _N_SHOWN else ""
        return f"<{len(self):,} hits: {', '.join(shown)}{more}>" if shown else "<0 hits>"


def join_hits(parts: list[np.typing.NDArray[Any]]) -> Hits:
    """Put finds together that follow each other."""
    return Hits(np.concatenate(parts) if parts else np.zeros(0, s.HIT))
