"""`Pattern`: a regular expression that is searched for, by the engine that compiled it.

Engines hold the GIL, so the caller's thread does the work, where Ctrl-C reaches it. Where bytes are
known that every find contains, they are searched for first, and the expression is tried only on the
lines, or layers, that have them (see `prefilters`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.scanning.hits import MATCH
from jessymem.scanning.prefilters import Prefilter
from jessymem.scanning.spans import Job, Spans
from jessymem.scanning.words import is_word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: Where what every find contains is more frequent than once in so many bytes, to look for it first
#: costs more than it saves, and after so many jobs like that it is left. What `re` searches for by
#: itself, since the expression begins with it, has to be rarer.
_BYTES_PER_CANDIDATE: Final = 512
_BYTES_PER_PREFIX: Final = 4_096
_N_VAIN_JOBS: Final = 2

_GLOBAL_FLAGS: Final = re.compile(rb"\A\(\?[aLimsux]+\)")


class Pattern:
    """A regular expression to be found: from left to right, no find within another.

    Parameters
    ----------
    pattern : compiled pattern
        Of `re`, compiled from bytes; or of another engine with the same ``finditer``.
    ignore_case : bool
        Whether ASCII letters stand for capital and small ones.
    word : bool
        Whether a find has to begin and end where a word does.

    Raises
    ------
    TypeError
        If `pattern` was compiled from text; or is of another engine, and case or words matter.
    """

    dtype: Final = MATCH
    is_cut_anywhere: Final = False

    def __init__(self, pattern: Any, *, ignore_case: bool = False, word: bool = False) -> None:
        if isinstance(getattr(pattern, "pattern", b""), str):
            raise TypeError(
                f"contents are bytes, and the pattern {pattern.pattern!r} is text: compile bytes, "
                "as in re.compile(rb'...')"
            )
        self._prefilter: Prefilter | None = None
        if isinstance(pattern, re.Pattern):
            flags = pattern.flags | (re.IGNORECASE if ignore_case else 0)
            text = pattern.pattern
            if flags != pattern.flags or word:
                text = _GLOBAL_FLAGS.sub(b"", text)  # which `flags` has
                pattern = re.compile(_between_borders(text, flags) if word else text, flags)
            self._prefilter = Prefilter.of(pattern)
        elif ignore_case or word:
            kind = type(pattern).__name__
            raise TypeError(
                f"ignore_case and word are for bytes, text and patterns of re: {kind} says it in "
                "the expression"
            )
        self._finditer = pattern.finditer
        self._is_word = word
        self._n_vain_jobs = 0

    def prepare(self, spans: Spans) -> bool:
        """Get ready for what is to be searched; no threads are to be."""
        self._n_vain_jobs = 0
        if self._prefilter is not None:
            self._prefilter.needle.prepare(spans)
        return False

    def find(
        self, spans: Spans, job: Job, stop: NDArray[np.int64], limit: int
    ) -> list[NDArray[Any]]:
        """Return the first `limit` finds in a job, which consists of whole layers, as MATCH."""
        found: list[tuple[int, int, int]] = []
        for view, start, end, layer in self._pieces(spans, job, stop):
            found += [
                (layer, first, last - first)
                for first, last in (each.span() for each in self._finditer(view, start, end))
                if last > first and (not self._is_word or is_word(view, first, last))
            ]
            if len(found) >= limit:
                break
        return [np.array(found[:limit], MATCH)] if found else []

    def count(self, spans: Spans, job: Job, stop: NDArray[np.int64]) -> int:
        """Return how many finds there are in a job."""
        return sum(map(len, self.find(spans, job, stop, spans.n_bytes)))

    def _pieces(
        self, spans: Spans, job: Job, stop: NDArray[np.int64]
    ) -> Iterator[tuple[memoryview, int, int, int]]:
        """Yield a layer's bytes, from where to where they are searched, and which layer it is."""
        prefilter = self._prefilter
        if prefilter is not None and self._n_vain_jobs < _N_VAIN_JOBS:
            n_bytes_each = _BYTES_PER_PREFIX if prefilter.is_prefixed else _BYTES_PER_CANDIDATE
            most = 1 + job.n_bytes // n_bytes_each
            parts = prefilter.needle.find(spans, job, stop, most)
            if sum(map(len, parts)) < most:
                self._n_vain_jobs = 0
                yield from prefilter.pieces(spans, job, parts)
                return
            self._n_vain_jobs += 1
        for i in range(job.span, job.last_span):
            view = spans.view(i)
            yield view, 0, len(view), int(spans.rows["layer"][i])


def _between_borders(text: bytes, flags: int) -> bytes:
    """Return an expression for what `text` is for, where that begins and ends as words do."""
    end = b"\n)" if flags & re.VERBOSE else b")"  # it may end with a comment
    return rb"(?<!\w)(?:" + text + end + rb"(?!\w)"


def fold_text(text: str) -> re.Pattern[bytes]:
    """Return a pattern for the UTF-8 of some text in which no letter's case matters.

    Each letter stands for those that are the same when brought to capitals, or to small letters, if
    they are single ones: of a sharp s there is only that.
    """
    parts = []
    for character in text:
        forms = {character, character.lower(), character.upper(), character.title()}
        encoded = sorted(re.escape(each.encode()) for each in forms if len(each) == 1)
        parts.append(encoded[0] if len(encoded) == 1 else b"(?:" + b"|".join(encoded) + b")")
    return re.compile(b"".join(parts))
