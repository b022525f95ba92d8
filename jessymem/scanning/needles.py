"""What is searched for, and which of its bytes are compared first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels import schema as s
from jessymem.kernels import search
from jessymem.scanning.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Buffer

    from numpy.typing import NDArray

#: What is looked at to learn which bytes are rare: a piece here and there of what is scanned.
_N_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 1_024


class Needle:
    """Bytes to be found.

    Attributes
    ----------
    n_bytes : int
    record : ndarray of NEEDLE, shape (1,)
        What kernels take; valid as long as this object.

    Raises
    ------
    ValueError
        If there are none.
    TypeError
        If `needle` is neither text nor bytes.
    """

    def __init__(self, needle: Buffer | str) -> None:
        if isinstance(needle, str):
            needle = needle.encode()
        try:
            self._bytes: NDArray[np.uint8] = np.frombuffer(memoryview(needle).tobytes(), np.uint8)
        except TypeError:
            kind = type(needle).__name__
            raise TypeError(f"a needle is bytes or a string, not {kind}") from None
        self.n_bytes = len(self._bytes)
        if not self.n_bytes:
            raise ValueError("a needle has at least one byte")
        self.record: NDArray[Any] = np.zeros(1, s.NEEDLE)
        self.record["address"] = self._bytes.ctypes.data
        self.record["n_bytes"] = self.n_bytes

    def aim_at(self, spans: Spans) -> None:
        """Fill the record, with those bytes to be compared first that are rare in `spans`."""
        search.factorize(self.record)
        counts = np.zeros(256, np.int64)
        if self.n_bytes > s.N_PROBES and spans.n_bytes:
            search.count_bytes(spans.pieces(_N_SAMPLES, _SAMPLE_BYTES), counts)
        offsets = self._rarest(counts)
        self.record["offsets"] = offsets
        self.record["values"] = self._bytes[offsets]

    def _rarest(self, counts: NDArray[np.int64]) -> list[int]:
        """Return the offsets of the rarest bytes, different ones before the same again."""
        values, firsts = np.unique(self._bytes, return_index=True)
        chosen = firsts[np.argsort(counts[values], kind="stable")].tolist()
        last = self.n_bytes - 1
        chosen += [offset for offset in (last, last // 2, 0, 1, 2) if offset not in chosen]
        # A needle shorter than there are probes has one of its bytes compared again.
        chosen = [offset for offset in chosen if offset <= last] * s.N_PROBES
        return chosen[: s.N_PROBES]
