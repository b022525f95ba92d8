"""How long reads take and how many run at once, measured without slowing them down.

A read asks its thread's *gate*, an iterator. While the gate yields, nothing is measured; when it is
exhausted, or the thread has none yet, the read takes the measured way and arms a new one. No lock
is taken anywhere.
"""

from __future__ import annotations

from _thread import _local, get_ident
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any, Final
from weakref import ref

from jessymem.engine.policies import Mark
from jessymem.latencies import Latencies

#: One read of a thread in so many is measured, its first always.
PERIOD: Final = 1024

#: The average is over the latest so many measured reads.
N_KEPT: Final = 4096


class _Presence:
    """Belongs to a thread, and ends with it."""

    __slots__ = ("__weakref__",)


class Gates(_local):
    """Each thread's own gate: not a context variable, which copied contexts would share.

    Attributes
    ----------
    gate : iterator
    presence : _Presence or None
        Of a thread that reads single layers; it counts as a reader for as long as it lives.
    """

    gate: Iterator[Any] = iter(())  # exhausted: a thread's first read is due
    presence: _Presence | None = None


class ReadSampler:
    """One manager's samples.

    Parameters
    ----------
    make_gate : callable
        Returns an iterator of so many values as it is asked for: `policies.Policy.gate`.
    latencies : Latencies, optional
        Where samples are counted, beside those of other kinds.

    Attributes
    ----------
    gates : Gates
        ``next(sampler.gates.gate)`` raises StopIteration where a read is to be measured; what it
        yields otherwise is to be written to the mark of what is read.
    """

    def __init__(
        self, make_gate: Callable[[int], Iterator[Any]], latencies: Latencies | None = None
    ) -> None:
        self.latencies = Latencies() if latencies is None else latencies
        self.gates = Gates()
        self._make_gate = make_gate
        self._latencies_ns: deque[int] = deque(maxlen=N_KEPT)
        self._readers: set[int] = set()
        self._present: dict[int, ref[_Presence]] = {}  # by thread
        self._reader_counts: set[int] = set()

    def is_due(self, mark: Mark) -> bool:
        """Tell whether this read is to be measured; if not, note it in `mark`."""
        try:
            mark[0] = next(self.gates.gate)
        except StopIteration:
            return True
        return False

    @contextmanager
    def measured_read(self, mark: Mark) -> Iterator[None]:
        """Measure one single read, arm the gate for those that follow, and note it in `mark`.

        A read that fails is neither measured nor noted.
        """
        with self.reader():
            start = perf_counter_ns()
            yield
            n_ns = perf_counter_ns() - start
            self._latencies_ns.append(n_ns)
            self.latencies.add("read", n_ns)
            if self.gates.presence is None:
                self._note_presence()
            gate = self.gates.gate = self._make_gate(PERIOD)
            mark[0] = next(gate)

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
            self._reader_counts.add(len(self._readers | self._present.keys()))
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

    def note_reader(self) -> None:
        """Count this thread as a reader for as long as it lives."""
        if self.gates.presence is None:
            self._note_presence()
        with self.reader():
            pass

    def after_fork(self) -> None:
        """Forget readers that were threads of the parent."""
        self._readers, self._present = set(), {}
        self.gates.presence = None

    def _note_presence(self) -> None:
        thread, present = get_ident(), self._present
        presence = _Presence()

        def forget(ended: ref[_Presence]) -> None:
            if present.get(thread) is ended:  # another thread may have its number by now
                del present[thread]

        present[thread] = ref(presence, forget)
        self.gates.presence = presence
