"""How long reads take and how many run at once, measured without slowing them down.

A read asks its thread's *gate*, an iterator. While the gate yields, nothing is measured; when it is
exhausted, or the thread has none yet, the read takes the measured way and arms a new one. No lock
is taken anywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from threading import get_ident, local
from time import perf_counter_ns
from typing import Final

#: One read of a thread in so many is measured, its first always.
PERIOD: Final = 1024

#: The average is over the latest so many measured reads.
N_KEPT: Final = 4096


class Gates(local):
    """Each thread's own gate: not a context variable, which copied contexts would share."""

    gate: Iterator[None] = iter(())  # exhausted: a thread's first read is due


class ReadSampler:
    """One manager's samples.

    Attributes
    ----------
    gates : Gates
        ``next(sampler.gates.gate)`` raises StopIteration where a read is to be measured.
    """

    def __init__(self) -> None:
        self.gates = Gates()
        self._latencies_ns: deque[int] = deque(maxlen=N_KEPT)
        self._readers: set[int] = set()
        self._reader_counts: set[int] = set()

    def is_due(self) -> bool:
        """Tell whether this read is to be measured."""
        try:
            next(self.gates.gate)
        except StopIteration:
            return True
        return False

    @contextmanager
    def measured_read(self) -> Iterator[None]:
        """Measure one single read, and arm the gate for those that follow; not if it fails."""
        with self.reader():
            start = perf_counter_ns()
            yield
            self._latencies_ns.append(perf_counter_ns() - start)
            self.gates.gate = repeat(None, PERIOD - 1)

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Count this thread as a reader; nested, it counts once."""
        thread = get_ident()
        if thread in self._readers:
            yield
            return
        try:
            self._readers.add(thread)
            # Each number that was seen is kept, not the highest: `max(old, new)` would lose a race.
            self._reader_counts.add(len(self._readers))
            yield
        finally:
            self._readers.discard(thread)

    @property
    def average_latency_us(self) -> float:
        """Mean of the measured reads in microseconds, 0.0 before the first."""
        latencies = self._latencies_ns.copy()  # iterating fails where another thread appends
        return sum(latencies) / len(latencies) / 1000 if latencies else 0.0

    @property
    def n_samples(self) -> int:
        """How many measured reads the average is over."""
        return len(self._latencies_ns)

    @property
    def peak_readers(self) -> int:
        """The highest number of readers at one moment."""
        return max(self._reader_counts.copy(), default=0)

    def after_fork(self) -> None:
        """Forget readers that were threads of the parent."""
        self._readers = set()
