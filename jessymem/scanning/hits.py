"""`Hits`: where a needle was found, without an object for each find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, overload

import numpy as np

from jessymem.ids import LayerId
from jessymem.kernels import schema as s

#: A find that has a length of its own.
MATCH: Final = np.dtype([*s.HIT.descr, ("n_bytes", "i8")])

_N_SHOWN: Final = 3
_N_TOGETHER: Final = 4_096


class Hit(NamedTuple):
    """One find.

    Attributes
    ----------
    layer_id : LayerId
    offset : int
        In bytes from the beginning of the layer's content.

    Examples
    --------
    >>> hit = manager.find("lines")[0]
    >>> hit
    Hit(layer_id=L15-02, offset=11)
    >>> bytes(manager[hit.layer_id][hit.offset :])
    b'lines.'
    """

    layer_id: LayerId
    offset: int


class Hits(Sequence[Hit]):
    """Finds in ascending order by layer, then by offset; an immutable sequence of `Hit`.

    Sixteen bytes each, and eight more where each has its own length; a `Hit` is made when one is
    asked for.

    Parameters
    ----------
    array : ndarray of HIT, shape (n,)
        It becomes read-only.
    lengths : int or ndarray of int64, shape (n,)
        How long they are, in bytes: all the same, or each.

    Examples
    --------
    >>> hits = manager.find("a")
    >>> hits
    <7 hits: L15-00+1, L15-00+8, L15-01+1, ...>
    >>> len(hits), hits[-1]
    (7, Hit(layer_id=L16-07, offset=22))
    """

    __slots__ = ("_array", "_lengths")

    def __init__(
        self, array: np.typing.NDArray[Any], lengths: int | np.typing.NDArray[np.int64] = 0
    ) -> None:
        array.flags.writeable = False
        self._array = array
        self._lengths = lengths

    @property
    def array(self) -> np.typing.NDArray[Any]:
        """The finds as a read-only structured array.

        Fields ``layer``, the packed layer id, and ``offset``, both int64.

        Examples
        --------
        >>> hits = manager.find("a", dimensions="D15")
        >>> [LayerId.from_packed(each) for each in np.unique(hits.array["layer"])]
        [L15-00, L15-01]
        """
        return self._array

    @property
    def lengths(self) -> np.typing.NDArray[np.int64]:
        """How long each find is, in bytes: a read-only array of int64, shape ``(n,)``.

        Examples
        --------
        >>> import re
        >>> manager.find(re.compile(rb"[A-Z]+"), dimensions="D15").lengths.tolist()
        [1, 4, 1]
        """
        return np.broadcast_to(np.asarray(self._lengths, np.int64), len(self._array))

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
            lengths = self._lengths
            return Hits(self._array[index], lengths if isinstance(lengths, int) else lengths[index])
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
        return bool(
            np.array_equal(self._array, other._array)
            and np.array_equal(self.lengths, other.lengths)
        )

    __hash__ = None  # type: ignore[assignment]  # as long as it may be

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the arrays."""
        return Hits, (self._array, self._lengths)

    def __repr__(self) -> str:
        """Show how many there are, and the first few."""
        shown = [f"{hit.layer_id}+{hit.offset}" for hit in islice(self, _N_SHOWN)]
        more = ", ..." if len(self) > _N_SHOWN else ""
        return f"<{len(self):,} hits: {', '.join(shown)}{more}>" if shown else "<0 hits>"


def join_hits(parts: list[np.typing.NDArray[Any]], n_bytes: int) -> Hits:
    """Put finds together that follow each other: HITs of one length, or MATCHes."""
    found = np.concatenate(parts) if parts else np.zeros(0, s.HIT)
    if found.dtype != MATCH:
        return Hits(found, n_bytes)
    array = np.empty(len(found), s.HIT)
    array["layer"], array["offset"] = found["layer"], found["offset"]
    return Hits(array, found["n_bytes"].copy())
