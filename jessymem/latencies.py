"""How long things take: samples that are taken without a lock, and counted when somebody looks.

Whoever measures appends to a queue, in one step of the interpreter. Where many samples wait, the
next one that is taken counts them, unless another thread is at it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from time import perf_counter_ns
from typing import Final

from jessymem.histograms import LatencyHistogram, no_samples
from jessymem.locks import Hold, Lock

#: With this begins the name of what is a step of a crystallization.
STEP_PREFIX: Final = "crystallization_"

#: What a manager measures, in the order in which it is shown.
KINDS: Final = (
    "read",
    "batch",
    "allocation",
    "inflation",
    "load",
    "reload",
    "crystallization",
    *(f"{STEP_PREFIX}{step}" for step in ("lock", "write", "publish")),
)

#: So many samples may wait to be counted.
_N_WAITING: Final = 512


class Latencies:
    """Samples of several kinds; many threads may add to them at once.

    Parameters
    ----------
    kinds : sequence of str
    """

    def __init__(self, kinds: Sequence[str] = KINDS) -> None:
        self._waiting: dict[str, deque[int]] = {kind: deque() for kind in kinds}
        # What is counted, and what was taken out of the queue to be counted: one value, so that
        # no interrupt finds a sample in both, or in neither.
        self._books: dict[str, tuple[LatencyHistogram | None, list[int]]] = {
            kind: (None, []) for kind in kinds
        }
        self._lock = Lock()

    def add(self, kind: str, n_ns: int) -> None:
        """Note a sample, in nanoseconds."""
        waiting = self._waiting[kind]
        waiting.append(n_ns)
        if len(waiting) > _N_WAITING and not self._lock.is_mine():
            self._count_if_free()

    @contextmanager
    def measuring(self, kind: str) -> Iterator[None]:
        """Note how long what is within takes; nothing, where it fails."""
        start = perf_counter_ns()
        yield
        self.add(kind, perf_counter_ns() - start)

    def histograms(self) -> dict[str, LatencyHistogram]:
        """Count what was noted by now; return a histogram of each kind, in the order of kinds."""
        if not self._lock.is_mine():  # else this interrupts a count
            with self._lock.hold():
                self._count()
        return {kind: counted or no_samples() for kind, (counted, _) in self._books.items()}

    def after_fork(self) -> None:
        """Renew the lock in a forked child, which goes on counting."""
        self._lock = Lock()

    def _count_if_free(self) -> None:
        """Count, unless another thread is at it."""
        hold: Hold | None = None
        try:
            hold = self._lock.hold_if_free()
            if hold is not None:
                self._count()
        finally:
            hold = None  # a traceback keeps this frame

    def _count(self) -> None:
        """Take what waits into the histograms; under the lock."""
        for kind, waiting in self._waiting.items():
            counted, taken = self._books[kind]
            # From one to the other in one step of the interpreter.
            taken.extend(islice(iter(waiting.popleft, None), len(waiting)))
            if taken:
                more = LatencyHistogram.of(taken)
                self._books[kind] = more if counted is None else counted + more, []
