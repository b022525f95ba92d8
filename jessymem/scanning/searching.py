"""A search at work: `find` and `count` over the spans of one state."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from jessymem.kernels import _jit, search, vectors
from jessymem.kernels import schema as s
from jessymem.scanning.needles import Needle
from jessymem.scanning.spans import Job, Spans
from jessymem.scanning.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

R = TypeVar("R")

#: Finds that a thread writes down before it hands them over.
MAX_HITS_AT_ONCE: Final = 65_536

_WITHOUT_END: Final = 2**62

#: A job is small enough to share the work evenly, and large enough to be worth handing out.
_JOBS_PER_WORKER: Final = 16
_JOB_BYTES: Final = (256 * 1024, 8 * 2**20)
#: No shorter than so many needles: where the needle recurs, a job may read one beyond its end.
_JOB_NEEDLES: Final = 4


def find_in(
    spans: Spans, needle: Needle, workers: Workers, limit: int | None
) -> tuple[list[NDArray[Any]], int]:
    """Return the first `limit` finds as arrays of HIT that follow each other, and their number."""
    n_wanted = _WITHOUT_END if limit is None else limit
    parts: list[NDArray[Any]] = []
    n_found = 0
    work = partial(_find_in_job, spans, needle, workers, n_wanted)
    is_limited = limit is not None
    with closing(_search(spans, needle, workers, work, is_awaited=is_limited)) as results:
        for found in results:
            for part in found:
                parts.append(part[: n_wanted - n_found])
                n_found += len(parts[-1])
            if n_found >= n_wanted:
                break
    return parts, n_found


def count_in(spans: Spans, needle: Needle, workers: Workers) -> int:
    """Return how many finds there are."""
    work = partial(_count_in_job, spans, needle, workers)
    with closing(_search(spans, needle, workers, work, is_awaited=False)) as results:
        return sum(results)


def _search(
    spans: Spans, needle: Needle, workers: Workers, work: Callable[[Job], R], *, is_awaited: bool
) -> Generator[R, None, None]:
    n_steps = (spans.n_bytes + needle.n_bytes) // vectors.MANY
    _jit.promote_for(n_steps, _jit.SEARCHING)
    needle.aim_at(spans)
    smallest, largest = (max(bound, _JOB_NEEDLES * needle.n_bytes) for bound in _JOB_BYTES)
    jobs = spans.jobs(_JOBS_PER_WORKER * workers.n_workers, (smallest, largest), is_whole=False)
    return workers.results(work, jobs, spans.n_bytes, is_awaited=is_awaited)


def _find_in_job(
    spans: Spans, needle: Needle, workers: Workers, limit: int, job: Job
) -> list[NDArray[Any]]:
    """Return the first `limit` finds that begin in a job."""
    state = _state_of(job)
    hits = np.empty(min(MAX_HITS_AT_ONCE, limit), s.HIT)
    state["hits"] = hits.ctypes.data
    parts: list[NDArray[Any]] = []
    n_found, is_full = 0, True
    while is_full and n_found < limit:
        state["n_hits"] = 0
        state["capacity"] = min(MAX_HITS_AT_ONCE, limit - n_found)
        code = search.search_on(spans.rows, needle.record, state, workers.stop)
        is_full = code == s.HITS_FULL
        n_hits = int(state["n_hits"][0])
        if n_hits:
            parts.append(hits[:n_hits].copy())
        n_found += n_hits
    return parts


def _count_in_job(spans: Spans, needle: Needle, workers: Workers, job: Job) -> int:
    """Return how many finds begin in a job."""
    state = _state_of(job)
    state["capacity"] = _WITHOUT_END
    search.search_on(spans.rows, needle.record, state, workers.stop)
    return int(state["n_hits"][0])


def _state_of(job: Job) -> NDArray[Any]:
    state = np.zeros(1, s.SEARCH)
    state["span"], state["at"], state["last_span"], state["last_end"] = job[:4]
    return state
