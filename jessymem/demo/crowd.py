"""Many threads reading at once: what they read together in a second, against one thread alone."""

from __future__ import annotations

import random
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter, process_time
from typing import Final, NamedTuple

from jessymem.ids import LayerId
from jessymem.manager import MmapManager

#: Reads between two looks at the clock, at least.
_PASS_READS: Final = 2_048

#: A thread that has a CPU for less of the time than this is waiting for others.
IDLE_SHARE: Final = 0.9
_CPU_TICK: Final = 1e-6


@dataclass(frozen=True)
class CrowdReport:
    """What a crowd of readers came to.

    Attributes
    ----------
    n_threads : int
    alone_per_second, together_per_second : float
        Reads of one thread, and of all threads together: medians over the rounds.
    cpu_share : float
        For how much of the time the one thread had a CPU. Where others had it too often, seconds
        are those of this process on a CPU, here and in the loss.
    loss : float
        The share of throughput that is lost when all read: median over the rounds, each against
        what one thread reads just before and just after it. Negative where all read more.
    spread : float
        How far, from the median, the losses of half of the rounds lie: what is noise.
    """

    n_threads: int
    alone_per_second: float
    together_per_second: float
    loss: float
    spread: float
    cpu_share: float = 1.0


class Throughput(NamedTuple):
    """What threads read in a second, and in a second that the process has a CPU."""

    per_second: float
    per_cpu_second: float

    @property
    def cpu_share(self) -> float:
        """For how much of the time the process had a CPU; above 1 where it had several."""
        return self.per_second / self.per_cpu_second


def measure_crowd(
    manager: MmapManager,
    layers: Sequence[LayerId],
    n_threads: int,
    window_seconds: float,
    n_rounds: int = 9,
) -> CrowdReport:
    """Compare the throughput of many readers with that of one; a read is the same in both.

    Each thread reads all layers in a random order of its own, again and again: it asks for the view
    and looks at its last byte. Threads warm up, then start together; the clock runs until the last
    one ends.

    Parameters
    ----------
    manager : MmapManager
    layers : sequence of LayerId
        Loaded, and none of them empty.
    n_threads : int
    window_seconds : float
        How long threads go on to begin another pass.
    n_rounds : int

    Returns
    -------
    CrowdReport
    """
    ones: list[Throughput] = []
    crowds: list[Throughput] = []
    for i in range(n_rounds):
        passes = partial(_begin_pass, manager, layers, i * n_threads)
        ones.append(measure_throughput(passes, 1, window_seconds))
        crowds.append(measure_throughput(passes, n_threads, window_seconds))
    ones.append(measure_throughput(passes, 1, window_seconds))
    share = statistics.median(each.cpu_share for each in ones)
    by_cpu = int(share < IDLE_SHARE)
    alone, together = [each[by_cpu] for each in ones], [each[by_cpu] for each in crowds]
    beside = [(before + after) / 2 for before, after in pairwise(alone)]
    losses = [1 - many / one for one, many in zip(beside, together, strict=True)]
    loss = statistics.median(losses)
    return CrowdReport(
        n_threads=n_threads,
        alone_per_second=statistics.median(alone),
        together_per_second=statistics.median(together),
        loss=loss,
        spread=statistics.median(abs(each - loss) for each in losses),
        cpu_share=share,
    )


def _begin_pass(
    manager: MmapManager, layers: Sequence[LayerId], seed: int, number: int
) -> Callable[[], int]:
    order = [*layers] * -(-_PASS_READS // len(layers))
    random.Random(seed + number).shuffle(order)
    access = manager.access_layer

    def read_all() -> int:
        for layer in order:
            access(layer)[-1]
        return len(order)

    return read_all


def measure_throughput(
    begin_reading: Callable[[int], Callable[[], int]], n_threads: int, window_seconds: float
) -> Throughput:
    """Return how much all threads together read in a second.

    Parameters
    ----------
    begin_reading : callable
        Called in each thread with its number; returns a pass, which reads and says how much. Each
        thread makes one pass before the clock starts.
    n_threads : int
    window_seconds : float
        How long threads go on to begin another pass.

    Returns
    -------
    Throughput
    """
    begin = cpu_begin = 0.0
    ends: list[tuple[float, float]] = []
    counts: list[int] = []
    errors: list[BaseException] = []

    def start_clock() -> None:
        nonlocal begin, cpu_begin
        begin, cpu_begin = perf_counter(), process_time()

    barrier = threading.Barrier(n_threads, action=start_clock)

    def read(number: int) -> None:
        try:
            read_all = begin_reading(number)
            read_all()
            barrier.wait()
            deadline = begin + window_seconds
            n_reads = 0
            while not n_reads or perf_counter() < deadline:
                n_reads += read_all()
            ends.append((perf_counter(), process_time()))
            counts.append(n_reads)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        # The others only found the barrier broken.
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    end, cpu_end = map(max, zip(*ends, strict=True))
    # The clock of CPU time may stand still during a short window.
    cpu_seconds = max(cpu_end - cpu_begin, _CPU_TICK)
    return Throughput(sum(counts) / (end - begin), sum(counts) / cpu_seconds)
