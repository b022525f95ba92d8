"""Where a needle is, by NumPy: what searches before there are compiled kernels.

Contents are taken as words of 16 bits, and each word is compared with two *probes*, pairs of the
needle's bytes: one lies in a word of its own where a find begins at an even address, the other
where it begins at an odd one. Where either is, the whole needle is compared. The pairs are those
that are rarest in some samples. Of a needle of one or two bytes the rarer byte is the only probe.

Layers that lie close together are searched as one piece, with the few bytes between them, which
are in the same pages; what is found there is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from jessymem.kernels import memory
from jessymem.kernels import schema as s

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from jessymem.scanning.spans import Job, Spans

#: Layers that are no further apart are searched together: they begin at multiples of it.
_GAP_BYTES: Final = 64
#: Compared at a time: that and what comes of it stay in a cache.
_PIECE_BYTES: Final = 2**18
#: Where a find may begin, before it is looked at whether one does.
_CANDIDATES_TOGETHER: Final = 2**16
#: So many bytes of the needle are compared for all candidates together; the rest one by one.
_BYTES_TOGETHER: Final = 32
#: What is looked at to learn which bytes are rare, and how much there has to be for it to pay.
_N_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 1_024
_WORTH_SAMPLING: Final = 2**20

_PAIR_BYTES: Final = 2

_LETTERS: Final = np.arange(ord("a"), ord("z") + 1, dtype=np.uint8)
#: Each byte, and of a capital letter of ASCII the small one.
_SMALL: Final = np.frombuffer(bytes(range(256)).lower(), np.uint8)


class _Probe(NamedTuple):
    """What is compared with each word: bytes of the needle from an offset on."""

    offset: int
    value: np.unsignedinteger[Any]
    fold: np.unsignedinteger[Any]  # bits set before: those that tell small letters from capitals


class _Sought(NamedTuple):
    """The layers of a job: where finds may begin, and end, and which of them lie together.

    A *place* is an address moved so that places ascend from layer to layer.
    """

    rows: NDArray[Any]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]  # a find begins before
    shifts: NDArray[np.int64]  # from addresses to places
    runs: list[tuple[int, int, int]]  # address and length of what lies together, and its shift

    @classmethod
    def of(cls, spans: Spans, job: Job, n_bytes: int) -> _Sought:
        """Look at the layers of a job, for a needle of so many bytes."""
        rows = spans.rows[job.span : job.last_span + (job.last_end > 0)]
        firsts = rows["address"].copy()
        ends = rows["address"] + rows["n_bytes"] - (n_bytes - 1)
        if job.last_end:
            ends[-1] = min(ends[-1], rows["address"][-1] + job.last_end)
        firsts[:1] += job.at
        is_long = firsts < ends
        rows, firsts, ends = rows[is_long], firsts[is_long], ends[is_long]
        stops = ends + (n_bytes - 1)
        gaps = firsts[1:] - stops[:-1]
        is_first = np.ones(len(rows), bool)
        is_first[1:] = (gaps < 0) | (gaps > _GAP_BYTES)
        heads = np.flatnonzero(is_first)
        lasts = np.append(heads[1:], len(rows))[: len(heads)] - 1
        lengths = stops[lasts] - firsts[heads]
        moved = np.cumsum(lengths) - lengths - firsts[heads]
        shifts = moved[np.cumsum(is_first) - 1]
        runs = zip(firsts[heads].tolist(), lengths.tolist(), moved.tolist(), strict=True)
        return cls(rows, firsts + shifts, ends + shifts, shifts, list(runs))


class PairSearch:
    """Bytes to be found, at every position at which they are.

    Parameters
    ----------
    wanted : bytes
        In small letters where those of ASCII stand for capitals too.
    is_folded : bool
        Whether they do.
    """

    def __init__(self, wanted: bytes, *, is_folded: bool) -> None:
        self._wanted = wanted
        self._is_folded = is_folded
        self._bytes = np.frombuffer(wanted, np.uint8)
        self._word: np.dtype[Any] = np.dtype(np.uint8 if len(wanted) <= _PAIR_BYTES else np.uint16)
        self._probes: tuple[_Probe, ...] = ()

    def aim_at(self, spans: Spans) -> None:
        """Choose what is compared first: what is rare in `spans`."""
        is_letter = np.isin(self._bytes, _LETTERS)
        folds = np.where(is_letter & self._is_folded, s.CASE_BIT, 0).astype(np.uint8)
        values, folds = self._words_of(self._bytes), self._words_of(folds)
        counts = self._counts(spans)[values]
        step = self._word.itemsize
        rarest = [first + step * int(counts[first::step].argmin()) for first in range(step)]
        self._probes = tuple(_Probe(each, values[each], folds[each]) for each in rarest)

    def find(self, spans: Spans, job: Job) -> NDArray[Any]:
        """Return all finds that begin in a job, as an array of HIT."""
        sought, places, at = self._search(spans, job)
        hits = np.empty(len(places), s.HIT)
        hits["layer"] = sought.rows["layer"][at]
        hits["offset"] = places - (sought.shifts + sought.rows["address"])[at]
        return hits

    def count(self, spans: Spans, job: Job) -> int:
        """Return how many finds begin in a job."""
        return len(self._search(spans, job)[1])

    def _search(
        self, spans: Spans, job: Job
    ) -> tuple[_Sought, NDArray[np.int64], NDArray[np.intp]]:
        """Return the places of all finds, ascending, and which layer each is in."""
        sought = _Sought.of(spans, job, len(self._wanted))
        found = [np.zeros(0, np.int64)]
        candidates: list[tuple[NDArray[np.int64], int]] = []
        n_candidates = 0
        for addresses, shift in self._candidates(sought):
            candidates.append((addresses, shift))
            n_candidates += len(addresses)
            if n_candidates > _CANDIDATES_TOGETHER:
                found.append(self._finds_among(candidates))
                candidates, n_candidates = [], 0
        if candidates:
            found.append(self._finds_among(candidates))
        places = np.concatenate(found)
        if len(self._probes) > 1:  # the finds of each ascend
            places.sort()
        at = sought.starts.searchsorted(places, side="right") - 1
        is_within = places < sought.ends[at]
        if not is_within.all():  # it reaches into what is between layers
            places, at = places[is_within], at[is_within]
        return sought, places, at

    def _candidates(self, sought: _Sought) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Yield where a find may begin, for a probe is there; and the shift to places."""
        step = self._word.itemsize
        n_words = _PIECE_BYTES // step
        is_there: NDArray[np.bool_] = np.empty((1 + len(self._probes), n_words), bool)
        folded = np.empty(n_words, self._word)
        for address, n_bytes, shift in sought.runs:
            first, last = address - address % step, address + n_bytes - len(self._wanted)
            n_all = -(-(address + n_bytes - first) // step)
            for done in range(0, n_all, n_words):
                start, n = first + done * step, min(n_words, n_all - done)
                words = memory.array_at(None, start, n, self._word)
                either, *each = (row[:n] for row in is_there)
                for probe, out in zip(self._probes, each, strict=True):
                    seen = words
                    if probe.fold:
                        seen = np.bitwise_or(words, probe.fold, out=folded[:n])
                    np.equal(seen, probe.value, out=out)
                if len(each) > 1:
                    np.logical_or(each[0], each[1], out=either)
                (at,) = (either if len(each) > 1 else each[0]).nonzero()
                if not len(at):
                    continue
                for probe, out in zip(self._probes, each, strict=True):
                    here = at if len(each) == 1 else at[out[at]]
                    begins = here * step + (start - probe.offset)
                    if len(begins) and (begins[0] < address or begins[-1] > last):
                        begins = begins[(begins >= address) & (begins <= last)]
                    yield begins, shift

    def _finds_among(self, candidates: list[tuple[NDArray[np.int64], int]]) -> NDArray[np.int64]:
        """Return the places of those candidates at which the whole needle is."""
        addresses = np.concatenate([each for each, _ in candidates])
        places = np.concatenate([each + shift for each, shift in candidates])
        if not len(places):
            return places
        first = int(addresses.min())
        reach = int(addresses.max()) + len(self._wanted) - first
        # Only what the finds may consist of is read: there need be no memory in between.
        contents = memory.array_at(None, first, reach, np.uint8)
        starts = addresses - first
        for i, value in enumerate(self._bytes[:_BYTES_TOGETHER]):
            seen = contents[starts + i]
            is_equal = (_SMALL[seen] if self._is_folded else seen) == value
            if not is_equal.all():
                starts, places = starts[is_equal], places[is_equal]
        if len(self._wanted) > _BYTES_TOGETHER:
            view, n_bytes = memoryview(contents), len(self._wanted)
            pieces = (bytes(view[start : start + n_bytes]) for start in starts.tolist())
            is_found = [
                (piece.lower() if self._is_folded else piece) == self._wanted for piece in pieces
            ]
            places = places[np.array(is_found, bool)]
        return places

    def _counts(self, spans: Spans) -> NDArray[np.int64]:
        """Return how often each byte, or pair of bytes, is in some samples."""
        n_values = 256**self._word.itemsize
        if spans.n_bytes < _WORTH_SAMPLING:
            return np.zeros(n_values, np.int64)
        pieces = spans.samples(_N_SAMPLES, _SAMPLE_BYTES)
        columns = pieces["address"].tolist(), pieces["n_bytes"].tolist()
        seen = np.concatenate(
            [np.zeros(0, np.uint8)]
            + [memory.array_at(None, *each, np.uint8) for each in zip(*columns, strict=True)]
        )
        if self._is_folded:
            seen = _SMALL[seen]
        return np.bincount(self._words_of(seen), minlength=n_values)

    def _words_of(self, values: NDArray[np.uint8]) -> NDArray[Any]:
        """Return what would be in a word that began at each byte: itself, or a pair of them."""
        if self._word.itemsize < _PAIR_BYTES:
            return values
        return values[:-1] | values[1:].astype(np.uint16) << np.uint16(8)
