"""`Needle`: bytes that are searched for, and how: by kernels, or NumPy before there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels import _jit, search
from jessymem.kernels import schema as s
from jessymem.scanning.pairs import PairSearch
from jessymem.scanning.spans import Job, Spans
from jessymem.scanning.words import are_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Finds that are written down before they are handed over.
MAX_HITS_AT_ONCE: Final = 65_536

_WITHOUT_END: Final = 2**62

#: What is looked at to learn which bytes are rare: a piece here and there of what is scanned.
_N_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 1_024

#: What NumPy has searched before kernels earn back half a second, numba's import: 8 GiB, at half
#: their speed; or eight million finds, each of which is looked at by itself. Longer needles
#: are not for it: it may compare in vain as many bytes as they have.
_BYTES_AN_ITEM: Final = 2**33 // _jit.WORTH_COMPILING
_FINDS_AN_ITEM: Final = 512
_MAX_PLAIN_BYTES: Final = 1_024
#: Plain Python's kernels, which only needles come to that are longer, are so much slower.
_BYTES_A_SLOW_ITEM: Final = 64


class Needle:
    """Bytes to be found, at every position at which they are.

    Parameters
    ----------
    needle : bytes
    ignore_case : bool
        Whether ASCII letters stand for capital and small ones.

    Attributes
    ----------
    wanted : bytes
        The needle; in small letters where case is ignored and it has any.
    n_bytes : int
    record : ndarray of NEEDLE, shape (1,)
        What kernels take; valid as long as this object.
    is_cut_anywhere : bool
        Whether a piece of the work may begin in the middle of a layer.

    Raises
    ------
    ValueError
        If there are none.
    """

    dtype: Final = s.HIT
    is_cut_anywhere: Final = True

    def __init__(self, needle: bytes, *, ignore_case: bool = False) -> None:
        if not needle:
            raise ValueError("a needle has at least one byte")
        is_folded = ignore_case and needle.lower() != needle.upper()
        self.wanted = needle.lower() if is_folded else needle
        self._bytes: NDArray[np.uint8] = np.frombuffer(self.wanted, np.uint8)
        self.n_bytes = len(self._bytes)
        self.record: NDArray[Any] = np.zeros(1, s.NEEDLE)
        self.record["address"] = self._bytes.ctypes.data
        self.record["n_bytes"] = self.n_bytes
        self.record["is_folded"] = is_folded
        self._is_aimed = False
        self._by_pairs: PairSearch | None = None
        if self.n_bytes <= _MAX_PLAIN_BYTES:
            self._by_pairs = PairSearch(self.wanted, is_folded=is_folded)

    def prepare(self, spans: Spans) -> bool:
        """Compile kernels if so many bytes are worth it; tell whether several threads may search.

        They may where the GIL is in nobody's way.
        """
        n_bytes_an_item = _BYTES_A_SLOW_ITEM if self._by_pairs is None else _BYTES_AN_ITEM
        n_items = (spans.n_bytes + self.n_bytes) // n_bytes_an_item
        _jit.promote_for(n_items, _jit.SEARCHING)
        self._is_aimed = False
        if self._by_pairs is None or _jit.is_promoted(_jit.SEARCHING):
            self.aim_at(spans)
        else:
            self._by_pairs.aim_at(spans)
            return False  # each array taken would wait for the other's
        return True

    def find(
        self, spans: Spans, job: Job, stop: NDArray[np.int64], limit: int
    ) -> list[NDArray[Any]]:
        """Return the first `limit` finds that begin in a job, as arrays of HIT."""
        if self._by_pairs is not None and not _jit.is_promoted(_jit.SEARCHING):
            found = self._by_pairs.find(spans, job)
            _jit.promote_for(len(found) // _FINDS_AN_ITEM, _jit.SEARCHING)
            return [found[:limit]] if len(found) else []
        if not self._is_aimed:  # compiled in the middle of the search
            self.aim_at(spans)
        state = _state_of(job)
        hits = np.empty(min(MAX_HITS_AT_ONCE, limit), s.HIT)
        state["hits"] = hits.ctypes.data
        parts: list[NDArray[Any]] = []
        n_found, is_full = 0, True
        while is_full and n_found < limit:
            state["n_hits"] = 0
            state["capacity"] = min(MAX_HITS_AT_ONCE, limit - n_found)
            is_full = search.search_on(spans.rows, self.record, state, stop) == s.HITS_FULL
            n_hits = int(state["n_hits"][0])
            if n_hits:
                parts.append(hits[:n_hits].copy())
            n_found += n_hits
        return parts

    def count(self, spans: Spans, job: Job, stop: NDArray[np.int64]) -> int:
        """Return how many finds begin in a job."""
        if self._by_pairs is not None and not _jit.is_promoted(_jit.SEARCHING):
            n_found = self._by_pairs.count(spans, job)
            _jit.promote_for(n_found // _FINDS_AN_ITEM, _jit.SEARCHING)
            return n_found
        if not self._is_aimed:  # compiled in the middle of the search
            self.aim_at(spans)
        state = _state_of(job)
        state["capacity"] = _WITHOUT_END
        search.search_on(spans.rows, self.record, state, stop)
        return int(state["n_hits"][0])

    # -- by kernels --------------------------------------------------------------------------------

    def aim_at(self, spans: Spans) -> None:
        """Fill the record, with those bytes to be compared first that are rare in `spans`."""
        search.factorize(self.record)
        counts = np.zeros(256, np.int64)
        if self.n_bytes > s.N_PROBES and spans.n_bytes:
            search.count_bytes(spans.samples(_N_SAMPLES, _SAMPLE_BYTES), counts)
        folds = np.zeros(256, np.int64)
        if self.record["is_folded"][0]:
            small, capital = slice(ord("a"), ord("z") + 1), slice(ord("A"), ord("Z") + 1)
            folds[small] = s.CASE_BIT
            counts[small] += counts[capital]
        offsets = self._rarest(counts)
        values = self._bytes[offsets]
        self.record["offsets"] = offsets
        self.record["values"] = values
        self.record["folds"] = folds[values]
        self._is_aimed = True

    def _rarest(self, counts: NDArray[np.int64]) -> list[int]:
        """Return the offsets of the rarest bytes, different ones before the same again."""
        values, firsts = np.unique(self._bytes, return_index=True)
        chosen = firsts[np.argsort(counts[values], kind="stable")].tolist()
        last = self.n_bytes - 1
        chosen += [offset for offset in (last, last // 2, 0, 1, 2) if offset not in chosen]
        # A needle shorter than there are probes has one of its bytes compared again.
        chosen = [offset for offset in chosen if offset <= last] * s.N_PROBES
        return chosen[: s.N_PROBES]


class Word(Needle):
    """Bytes to be found where they are words: no letter, digit or underscore is beside them."""

    def find(
        self, spans: Spans, job: Job, stop: NDArray[np.int64], limit: int
    ) -> list[NDArray[Any]]:
        """Return the first `limit` finds that begin in a job, as arrays of HIT."""
        parts = []
        for part in super().find(spans, job, stop, _WITHOUT_END):
            part = part[are_words(spans, part, self.n_bytes)]
            parts.append(part[:limit])
            limit -= len(parts[-1])
            if not limit:
                break
        return parts

    def count(self, spans: Spans, job: Job, stop: NDArray[np.int64]) -> int:
        """Return how many finds begin in a job."""
        return sum(map(len, self.find(spans, job, stop, _WITHOUT_END)))


def _state_of(job: Job) -> NDArray[Any]:
    state = np.zeros(1, s.SEARCH)
    state["span"], state["at"], state["last_span"], state["last_end"] = job[:4]
    return state
