"""`Needle`: bytes that are searched for, and how: by kernels, or by `re` before there are any."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels import _jit, search
from jessymem.kernels import schema as s
from jessymem.scanning.spans import Job, Spans
from jessymem.scanning.words import are_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: Finds that are written down before they are handed over.
MAX_HITS_AT_ONCE: Final = 65_536

_WITHOUT_END: Final = 2**62

#: What is looked at to learn which bytes are rare: a piece here and there of what is scanned.
_N_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 1_024

#: What `re` has searched before compiled kernels earn back numba's import: 512 MiB, or a million
#: finds, or four millions that are only counted. Needles that are longer are not for `re`: where
#: they overlap themselves, a find may cost as many steps as they have bytes.
_BYTES_AN_ITEM: Final = 2**29 // _jit.WORTH_COMPILING
_FINDS_AN_ITEM: Final = 64
_COUNTED_AN_ITEM: Final = 256
_MAX_PLAIN_BYTES: Final = 1_024
_MAX_OVERLAPPING_BYTES: Final = 32
#: So much stays in the fastest cache while it is brought to small letters and searched.
_FOLDED_BYTES: Final = 2**16

#: Plain Python's kernels, which only needles come to that `re` is not for, are so much slower.
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
        self._is_overlapping = _overlaps_itself(self.wanted)
        self._regex: re.Pattern[bytes] | None = None
        if self.n_bytes <= (_MAX_OVERLAPPING_BYTES if self._is_overlapping else _MAX_PLAIN_BYTES):
            self._regex = re.compile(re.escape(self.wanted))

    def prepare(self, spans: Spans) -> bool:
        """Compile kernels if so many bytes are worth it; tell whether several threads may search.

        They may where the GIL is in nobody's way.
        """
        n_bytes_an_item = _BYTES_A_SLOW_ITEM if self._regex is None else _BYTES_AN_ITEM
        n_items = (spans.n_bytes + self.n_bytes) // n_bytes_an_item
        _jit.promote_for(n_items, _jit.SEARCHING)
        self._is_aimed = False
        is_threaded = self._regex is None or _jit.is_promoted(_jit.SEARCHING)
        if is_threaded:
            self.aim_at(spans)
        return is_threaded

    def find(
        self, spans: Spans, job: Job, stop: NDArray[np.int64], limit: int
    ) -> list[NDArray[Any]]:
        """Return the first `limit` finds that begin in a job, as arrays of HIT."""
        if self._regex is not None and not _jit.is_promoted(_jit.SEARCHING):
            return self._find_plainly(spans, job, self._regex, limit)
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
        if self._regex is not None and not _jit.is_promoted(_jit.SEARCHING):
            haystacks = (haystack for haystack, _, _ in self._haystacks(spans, job))
            if self._is_overlapping:
                n_found = sum(1 for each in haystacks for _ in _starts_in(self._regex, *each))
            else:
                n_found = sum(len(self._regex.findall(*each)) for each in haystacks)
            _jit.promote_for(n_found // _COUNTED_AN_ITEM, _jit.SEARCHING)
            return n_found
        if not self._is_aimed:  # compiled in the middle of the search
            self.aim_at(spans)
        state = _state_of(job)
        state["capacity"] = _WITHOUT_END
        search.search_on(spans.rows, self.record, state, stop)
        return int(state["n_hits"][0])

    # -- by `re` -----------------------------------------------------------------------------------

    def _find_plainly(
        self, spans: Spans, job: Job, regex: re.Pattern[bytes], limit: int
    ) -> list[NDArray[Any]]:
        starts: list[int] = []
        pieces: list[tuple[int, int, int]] = []  # whose layer, where in it, and how many finds
        for haystack, layer, shift in self._haystacks(spans, job):
            n_before = len(starts)
            if self._is_overlapping:
                starts += _starts_in(regex, *haystack)
            else:
                starts += [found.start() for found in regex.finditer(*haystack)]
            if len(starts) > n_before:
                pieces.append((layer, shift, len(starts) - n_before))
            if len(starts) >= limit:
                break
        _jit.promote_for(len(starts) // _FINDS_AN_ITEM, _jit.SEARCHING)
        if not starts:
            return []
        layers, shifts, counts = np.array(pieces, np.int64).T
        hits = np.empty(len(starts), s.HIT)
        hits["layer"] = layers.repeat(counts)
        hits["offset"] = np.array(starts, np.int64) + shifts.repeat(counts)
        return [hits[:limit]]

    def _haystacks(
        self, spans: Spans, job: Job
    ) -> Iterator[tuple[tuple[memoryview | bytes, int, int], int, int]]:
        """Yield what `re` searches, from where to where, whose layer it is, and where in it.

        The latter is to be added to an offset in it. Where case does not matter it is a copy in
        small letters, a piece at a time: ten times as quick as ``re.IGNORECASE``.
        """
        view, address = spans.view_of(job)
        n_more = self.n_bytes - 1  # of a find that begins with the last byte
        is_folded = bool(self.record["is_folded"][0])
        for (first, n_bytes, layer), start, end in spans.pieces_of(job):
            base = first - address
            if not is_folded:
                stop = base + min(end + n_more, n_bytes)
                yield (view, base + start, stop), layer, -base
                continue
            for at in range(start, end, _FOLDED_BYTES):
                stop = min(at + _FOLDED_BYTES, end) + n_more
                piece = bytes(view[base + at : base + min(stop, n_bytes)]).lower()
                yield (piece, 0, len(piece)), layer, at

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


def _starts_in(
    regex: re.Pattern[bytes], haystack: memoryview | bytes, start: int, end: int
) -> Iterator[int]:
    """Yield where finds begin, overlapping ones too."""
    while found := regex.search(haystack, start, end):
        yield found.start()
        start = found.start() + 1


def _overlaps_itself(wanted: bytes) -> bool:
    """Tell whether some end of a needle is a beginning of it, so that finds may overlap."""
    return any(wanted.startswith(wanted[at:]) for at in range(1, len(wanted)))


def _state_of(job: Job) -> NDArray[Any]:
    state = np.zeros(1, s.SEARCH)
    state["span"], state["at"], state["last_span"], state["last_end"] = job[:4]
    return state
