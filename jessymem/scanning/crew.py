"""Who does the work of a scan: threads made for it and gone with it, watched from the caller's."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import Final, Protocol, TypeVar

import numpy as np

from jessymem.ids import as_integer
from jessymem.scanning.spans import Job

R = TypeVar("R")

#: So many bytes are scanned before a thread would have started.
_SMALL_BYTES: Final = 2**20
#: Jobs per thread that are given out ahead: none runs dry while results are taken in order.
_N_AHEAD: Final = 4
_POLL_SECONDS: Final = 0.05


class CancelToken(Protocol):
    """What may stop a scan: a `threading.Event`, or anything that can be asked the same."""

    def is_set(self) -> bool:
        """Tell whether the scan is to stop."""
        ...


class Crew:
    """The threads of one scan, and those who watch it.

    Parameters
    ----------
    workers : int or None
        How many threads; None: one for each CPU that the process may use.
    progress : callable or None
        Called as ``progress(n_done, n_total)``, in bytes, from the thread that scans.
    cancel : CancelToken or None

    Attributes
    ----------
    n_workers : int
    stop : ndarray of int64, shape (1,)
        Not 0: kernels return at the next opportunity.

    Raises
    ------
    ValueError, TypeError
        If an argument is not of that form.
    """

    def __init__(
        self,
        workers: int | None,
        progress: Callable[[int, int], object] | None,
        cancel: CancelToken | None,
    ) -> None:
        self.n_workers = count_cpus() if workers is None else as_integer(workers, "workers")
        if self.n_workers < 1:
            raise ValueError(f"workers is a number of threads, at least 1, not {workers!r}")
        if progress is not None and not callable(progress):
            raise TypeError(f"progress is called with two numbers; it cannot be {progress!r}")
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise TypeError(f"cancel has a method is_set, as a threading.Event; not {cancel!r}")
        self.stop = np.zeros(1, np.int64)
        self._progress = progress
        self._cancel = cancel
        self._n_done = 0
        self._n_expected = 0

    def expect(self, n_bytes: int) -> None:
        """Count bytes that are to be scanned; negative: fewer than was thought."""
        self._n_expected += n_bytes

    def results(
        self, work: Callable[[Job], R], jobs: Iterator[Job], n_bytes: int
    ) -> Generator[R, None, None]:
        """Do all `jobs`, of `n_bytes` together, and yield what they come to, in their order.

        Close the iterator: whatever way it ends, no thread is left. `work` is no closure: the frame
        of one, in the traceback of an error that somebody keeps, would hold what is scanned.

        Raises
        ------
        CancelledError
            If the scan was cancelled.
        Exception
            What `work` or the progress callback raises.
        """
        self.check()
        with self._threads(n_bytes) as threads:
            pending: deque[tuple[Job, Future[R] | None]] = deque()
            n_ahead = 1 if threads is None else _N_AHEAD * self.n_workers
            submit = None if threads is None else threads.submit
            while True:
                for job in islice(jobs, n_ahead - len(pending)):
                    pending.append((job, submit and submit(work, job)))
                if not pending:
                    return
                job, future = pending.popleft()
                result = work(job) if future is None else self._await(future)
                self.check()
                self._n_done += job.n_bytes
                if self._progress is not None:
                    self._progress(self._n_done, self._n_expected)
                yield result

    def check(self) -> None:
        """Raise CancelledError if the scan is cancelled."""
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError("the scan was cancelled")

    @contextmanager
    def _threads(self, n_bytes: int) -> Iterator[ThreadPoolExecutor | None]:
        """Have threads within, none for little work; those that run are told to stop at the end."""
        if n_bytes < _SMALL_BYTES:
            yield None
            return
        threads = ThreadPoolExecutor(self.n_workers, "jessymem-scan")
        try:
            yield threads
        finally:
            self.stop[0] = 1
            threads.shutdown(cancel_futures=True)
            self.stop[0] = 0

    def _await(self, future: Future[R]) -> R:
        while not wait((future,), _POLL_SECONDS).done:
            self.check()
        return future.result()


def count_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
