"""A search at work: what is wanted, and finds and their number over the spans of one state."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

from jessymem.scanning.needles import Needle, Word
from jessymem.scanning.spans import Job, Spans
from jessymem.scanning.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.scanning.patterns import Pattern

R = TypeVar("R")

_WITHOUT_END: Final = 2**62

#: A job is small enough to share the work evenly, and large enough to be worth handing out; one of
#: an expression, which is slower, small enough for who waits for what is found.
_JOBS_PER_WORKER: Final = 16
_JOB_BYTES: Final = (256 * 1024, 8 * 2**20)
_JOB_BYTES_OF_PATTERN: Final = 2**20
#: No shorter than so many needles: where the needle recurs, a job may read one beyond its end.
_JOB_NEEDLES: Final = 4

Wanted: TypeAlias = "Needle | Pattern"


class SearchPattern(Protocol):
    """A compiled regular expression: of `re`, or of another engine that offers the same."""

    def finditer(self, string: Any, /) -> Iterator[Any]:
        """Yield matches with a ``span()``; also takes from where to where in the bytes."""
        ...


def as_wanted(needle: Any, *, ignore_case: bool, word: bool) -> Wanted:
    """Return what is searched for.

    Raises
    ------
    TypeError
        If `needle` is neither text nor bytes nor a compiled pattern of bytes.
    ValueError
        If it is empty, or holds what cannot be written as UTF-8.
    """
    if callable(getattr(needle, "finditer", None)):
        from jessymem.scanning.patterns import Pattern

        return Pattern(needle, ignore_case=ignore_case, word=word)
    if isinstance(needle, str):
        try:
            encoded = needle.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"a needle cannot be written as UTF-8: {error}") from None
        if ignore_case and not needle.isascii():
            from jessymem.scanning.patterns import Pattern, fold_text

            return Pattern(fold_text(needle), ignore_case=True, word=word)
        needle = encoded
    try:
        wanted = memoryview(needle).tobytes()
    except TypeError:
        kind = type(needle).__name__
        raise TypeError(f"a needle is bytes, a string or a pattern, not {kind}") from None
    return (Word if word else Needle)(wanted, ignore_case=ignore_case)


def length_of(wanted: Wanted) -> int:
    """Return how long its finds are, in bytes; 0 where each has its own length."""
    return wanted.n_bytes if isinstance(wanted, Needle) else 0


def finds_in(
    spans: Spans, wanted: Wanted, workers: Workers, limit: int | None, *, is_awaited: bool
) -> Generator[NDArray[Any], None, None]:
    """Yield the first `limit` finds, as arrays of `wanted.dtype` that follow each other."""
    n_left = _WITHOUT_END if limit is None else limit
    work = partial(_find_in_job, spans, wanted, workers, n_left)
    with closing(_search(spans, wanted, workers, work, is_awaited=is_awaited)) as results:
        for found in results:
            for part in found:
                yield part[:n_left]
                n_left -= min(len(part), n_left)
            if not n_left:
                return


def count_in(spans: Spans, wanted: Wanted, workers: Workers) -> int:
    """Return how many finds there are."""
    work = partial(_count_in_job, spans, wanted, workers)
    with closing(_search(spans, wanted, workers, work, is_awaited=False)) as results:
        return sum(results)


def _search(
    spans: Spans, wanted: Wanted, workers: Workers, work: Callable[[Job], R], *, is_awaited: bool
) -> Generator[R, None, None]:
    is_threaded = wanted.prepare(spans)
    least, most = _JOB_BYTES
    if isinstance(wanted, Needle):
        least, most = (max(bound, _JOB_NEEDLES * wanted.n_bytes) for bound in _JOB_BYTES)
    else:
        most = _JOB_BYTES_OF_PATTERN
    n_jobs = _JOBS_PER_WORKER * workers.n_workers
    jobs = spans.jobs(n_jobs, (least, most), is_whole=not wanted.is_cut_anywhere)
    return workers.results(
        work, jobs, spans.n_bytes, is_awaited=is_awaited, is_threaded=is_threaded
    )


def _find_in_job(
    spans: Spans, wanted: Wanted, workers: Workers, limit: int, job: Job
) -> list[NDArray[Any]]:
    found: list[NDArray[Any]] = []
    for plain, part in spans.plain(job):
        more = wanted.find(plain, part, workers.stop, limit)
        del plain  # before the next is inflated
        found += more
        limit -= sum(map(len, more))
        if limit <= 0 or workers.stop[0]:
            break
    return found


def _count_in_job(spans: Spans, wanted: Wanted, workers: Workers, job: Job) -> int:
    n_found = 0
    for plain, part in spans.plain(job):
        n_found += wanted.count(plain, part, workers.stop)
        del plain  # before the next is inflated
        if workers.stop[0]:
            break
    return n_found
