"""`Workers`: the threads of one scan, which the thread of the caller watches."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event, Lock, Semaphore, Thread
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import numpy as np

from jessymem.errors import shown
from jessymem.ids import as_integer
from jessymem.scanning.spans import Job

if TYPE_CHECKING:
    from numpy.typing import NDArray

R = TypeVar("R")

#: So many bytes are scanned before a thread would have started.
_SMALL_BYTES: Final = 2**20
#: How often the caller's thread looks at what was done, unless somebody waits for it.
_POLL_SECONDS: Final = 0.05
#: How often a thread that waits for room looks whether it is to stop.
_ROOM_SECONDS: Final = 0.05
#: Jobs that each thread may be ahead of who takes what they come to.
_N_AHEAD: Final = 4


class CancelToken(Protocol):
    """What may stop a scan: a `threading.Event`, or anything that can be asked the same."""

    def is_set(self) -> bool:
        """Tell whether the scan is to stop."""
        ...


class Workers:
    """The threads of one scan, and those who watch it.

    Parameters
    ----------
    workers : int or None
        How many threads; None: one for each CPU that the process may use.
    progress : callable or None
        Called as ``progress(n_done, n_total)``, in bytes, from the thread that scans.
    cancel : CancelToken or None
    reader : callable
        Returns a context manager in which a thread counts as a reader: `ReadSampler.reader`.

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
        reader: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.n_workers = count_cpus() if workers is None else as_integer(workers, "workers")
        if self.n_workers < 1:
            raise ValueError(f"workers is a number of threads, at least 1, not {shown(workers)}")
        if progress is not None and not callable(progress):
            raise TypeError(f"progress is called with two numbers; it cannot be {shown(progress)}")
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise TypeError(
                f"cancel has a method is_set, as a threading.Event; not {shown(cancel)}"
            )
        self.stop = np.zeros(1, np.int64)
        self._reader = reader
        self._progress = progress
        self._cancel = cancel
        self._n_done = 0
        self._n_expected = 0

    def expect(self, n_bytes: int) -> None:
        """Count bytes that are to be scanned; negative: fewer than was thought."""
        self._n_expected += n_bytes

    def results(
        self,
        work: Callable[[Job], R],
        jobs: Iterator[Job],
        n_bytes: int,
        *,
        is_awaited: bool,
        is_threaded: bool = True,
    ) -> Generator[R, None, None]:
        """Do all `jobs`, of `n_bytes` together, and yield what they come to, in their order.

        At once where that `is_awaited`, and then threads wait for who takes it; else now and then:
        to wake this thread takes as long as to scan a MiB. Where work is not for threads, or the
        system lets none start, it is done here. Close the iterator: whatever way it ends, no thread
        is left. `work` is no closure: the frame of one, in the traceback of an error that somebody
        keeps, would hold what is scanned.

        Raises
        ------
        CancelledError
            If the scan was cancelled.
        Exception
            What `work` or the progress callback raises.
        """
        self.check()
        if n_bytes >= _SMALL_BYTES and is_threaded:
            queue = _JobQueue(work, jobs, self.n_workers, self.stop, is_awaited, self._reader)
            yield from self._results_of(queue)
        # What is left: of few bytes all; of more what no thread could be started for.
        for job in jobs:
            result = work(job)
            self._note(job.n_bytes)
            yield result

    def _results_of(self, queue: _JobQueue[R]) -> Generator[R, None, None]:
        """Have threads do the jobs of a queue, if any can be started; yield as `results`."""
        with self._threads(queue) as n_started:
            is_over = not n_started
            while not is_over:
                queue.changed.wait(_POLL_SECONDS)
                queue.changed.clear()
                is_over = not queue.n_running  # before the last look at what they have done
                done = queue.take()
                if done:
                    self._note(sum(job.n_bytes for job, _ in done))
                self.check()
                for _, result in done:
                    yield result
            if queue.error is not None:
                raise queue.error

    def check(self) -> None:
        """Raise CancelledError if the scan is cancelled."""
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError("the scan was cancelled")

    def _note(self, n_bytes: int) -> None:
        """Count bytes that are done, tell of it, and look whether that is enough."""
        self._n_done += n_bytes
        if self._progress is not None:
            self._progress(self._n_done, self._n_expected)
        self.check()

    @contextmanager
    def _threads(self, queue: _JobQueue[Any]) -> Iterator[int]:
        """Have threads within that do the jobs of a queue, and tell how many could be started.

        At the end they are told to stop, and waited for.
        """
        names = [f"jessymem-scan-{number}" for number in range(self.n_workers)]
        threads = [Thread(target=queue.run, name=name) for name in names]
        n_started = 0
        try:
            for thread in threads:
                try:
                    thread.start()
                except RuntimeError:  # the system, or a limit of this user, has no more
                    break
                n_started += 1
            queue.give_up(self.n_workers - n_started)
            yield n_started
        finally:
            self.stop[0] = 1
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            self.stop[0] = 0


class _JobQueue(Generic[R]):
    """The jobs of one scan: threads take one after the other, and leave the results here.

    Attributes
    ----------
    changed : threading.Event
        Set when a thread has nothing more to do, or has done a job that somebody waits for.
    n_running : int
        Threads that are still running.
    error : BaseException or None
        What the first one that failed has raised.
    """

    def __init__(
        self,
        work: Callable[[Job], R],
        jobs: Iterator[Job],
        n_workers: int,
        stop: NDArray[np.int64],
        is_awaited: bool,
        reader: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.changed = Event()
        self.n_running = n_workers
        self.error: BaseException | None = None
        self._work = work
        self._jobs = enumerate(jobs)
        self._stop = stop
        self._is_awaited = is_awaited
        self._reader = reader
        self._lock = Lock()
        self._room = Semaphore(_N_AHEAD * n_workers)
        self._done: dict[int, tuple[Job, R]] = {}
        self._n_taken = 0

    def run(self) -> None:
        """Do jobs until there are none, or all are to stop; who fails stops the others."""
        try:
            with self._reader():
                while not self._stop[0]:
                    if self._is_awaited and not self._room.acquire(timeout=_ROOM_SECONDS):
                        continue
                    with self._lock:
                        position, job = next(self._jobs, (-1, None))
                    if job is None:
                        break
                    self._done[position] = job, self._work(job)
                    if self._is_awaited:
                        self.changed.set()
        except BaseException as error:
            self._stop[0] = 1
            if self.error is None:
                self.error = error
        finally:
            with self._lock:
                self.n_running -= 1
            self.changed.set()

    def give_up(self, n_threads: int) -> None:
        """Count no longer on so many threads, which could not be started."""
        with self._lock:
            self.n_running -= n_threads

    def take(self) -> list[tuple[Job, R]]:
        """Return the next jobs that are done without a gap, each with what it came to."""
        taken = []
        while self._n_taken in self._done:
            taken.append(self._done.pop(self._n_taken))
            self._n_taken += 1
        if taken and self._is_awaited:
            self._room.release(len(taken))
        return taken


def count_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
