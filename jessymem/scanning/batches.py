"""`HitBatch`: some finds with the contents that they are in, and what is around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jessymem.kernels import memory
from jessymem.scanning.hits import Hits

if TYPE_CHECKING:
    from jessymem.scanning.spans import Spans


class Windows(NamedTuple):
    """Pieces of contents, all of one width, around some finds.

    Attributes
    ----------
    bytes : ndarray of uint8, shape (n, width)
        A copy; behind the end of a layer that is shorter there are zeros.
    starts : ndarray of int64, shape (n,)
        The offset in its layer at which each begins.
    ends : ndarray of int64, shape (n,)
        How many of a row's bytes are the layer's.
    """

    bytes: np.typing.NDArray[np.uint8]
    starts: np.typing.NDArray[np.int64]
    ends: np.typing.NDArray[np.int64]


class HitBatch(Hits):
    """Some finds of one state of the store, which holds what they are in.

    Parameters
    ----------
    array : ndarray of HIT, shape (n,)
        It becomes read-only.
    lengths : ndarray of int64, shape (n,)
        How long they are, in bytes.
    spans : Spans
        What was searched.
    """

    __slots__ = ("_spans",)

    def __init__(
        self,
        array: np.typing.NDArray[Any],
        lengths: np.typing.NDArray[np.int64],
        spans: Spans,
    ) -> None:
        super().__init__(array, lengths)
        self._spans = spans

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as `Hits`, without what they are in."""
        return Hits, (self.array, self.lengths.copy())

    def content(self, layer: int) -> memoryview:
        """Return the bytes of a layer that was searched, by its packed id.

        Returns
        -------
        memoryview
            Read-only, without a copy; valid and unchanged for as long as it is held.
        """
        return self._spans.view(int(self._spans.rows["layer"].searchsorted(layer)))

    def name(self, layer: int) -> str:
        """Return the name of a layer that was searched, by its packed id; it may be empty.

        What is no UTF-8 in it is U+FFFD.
        """
        return self._spans.name(int(self._spans.rows["layer"].searchsorted(layer)))

    def windows(self, n_before: int, n_bytes: int) -> Windows:
        """Copy out what is around each find: from `n_before` bytes before it, `n_bytes` of it.

        Where the layer begins or ends in that, the window is moved into the layer.
        """
        spans, hits = self._spans.rows, self.array
        at = spans["layer"].searchsorted(hits["layer"])
        rows = spans[at]
        last_starts = np.maximum(rows["n_bytes"] - n_bytes, 0)
        starts = np.clip(hits["offset"] - n_before, 0, last_starts)
        ends = np.minimum(rows["n_bytes"], n_bytes)
        is_whole = rows["n_bytes"] >= n_bytes
        is_whole &= ~self._spans.is_compressed[at]
        windows = np.zeros((len(hits), n_bytes), np.uint8)
        if is_whole.any():
            addresses = (rows["address"] + starts)[is_whole]
            first = int(addresses.min())
            reach = int(addresses.max()) + n_bytes - first
            # Only what the layers have is read: there need be no memory in between.
            contents = memory.array_at(None, first, reach, np.uint8)
            shape = (reach - n_bytes + 1, n_bytes)
            all_windows = np.lib.stride_tricks.as_strided(contents, shape, (1, 1), writeable=False)
            windows[is_whole] = all_windows[addresses - first]
        is_rest = np.flatnonzero(~is_whole)
        for span in np.unique(at[is_rest]).tolist():
            content = np.frombuffer(self._spans.view(span), np.uint8)
            for hit in is_rest[at[is_rest] == span].tolist():
                piece = content[starts[hit] : starts[hit] + n_bytes]
                windows[hit, : len(piece)] = piece
        return Windows(windows, starts, ends)
