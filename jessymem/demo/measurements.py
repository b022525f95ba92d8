"""What the documents ask of loading and reading, on real layers: one function per target."""

from __future__ import annotations

import os
import random
import statistics
import tracemalloc
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, thread_time
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jessymem.config import MIB, MemoryConfig
from jessymem.demo.crowd import IDLE_SHARE, measure_crowd
from jessymem.ids import DimensionId, LayerId
from jessymem.manager import MmapManager
from jessymem.osmem import FileMapping
from jessymem.stats import MemoryStats

_N_TIMED_READS: Final = 20_000
_N_TIMED_STATS: Final = 200
_N_TIMED_BLOCKS: Final = 20_000
_N_LIVE_BLOCKS: Final = 1_000
_BLOCK_BYTES: Final = 4_096
_N_ALLOCATIONS: Final = 10
_N_SCANS: Final = 3
_LEARNED: Final = tuple(map(DimensionId, range(15, 18)))

#: What a read may allocate: a view, and no copy.
_VIEW_BYTES: Final = 1024


class Measurement(NamedTuple):
    """One thing the documents ask for, and what was found.

    Attributes
    ----------
    key : str
        A short name for programs.
    what : str
    target : str
        As the documents have it.
    value : float
    unit : str
        Of the value: "seconds", "share", "bytes" or "layers".
    is_met : bool
    why : str
        What a miss comes from, as far as that was measured too.
    spread : float
        How far half of the rounds lie from the value, where there are rounds.
    """

    key: str
    what: str
    target: str
    value: float
    unit: str
    is_met: bool
    why: str = ""
    spread: float = 0.0


class Series(NamedTuple):
    """How long each of several calls took, and for what share of that their thread had a CPU."""

    seconds: list[float]
    share: float

    @property
    def percentile_99(self) -> float:
        """What one call in a hundred takes longer than."""
        return statistics.quantiles(self.seconds, n=100)[98]

    @property
    def waited(self) -> str:
        """Whether others had the CPU, in words."""
        if self.share >= IDLE_SHARE:
            return ""
        return _others_had(1 - self.share)


def time_each(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Series:
    """Time calls of a function, one after the other."""
    start, cpu_start = perf_counter(), thread_time()
    seconds = [time_call(function, *each) for each in arguments]
    share = (thread_time() - cpu_start) / (perf_counter() - start)
    return Series(seconds, share)


def judge_identity(n_layers: int, differing: Collection[LayerId]) -> Measurement:
    """Count the layers that are what they were made from."""
    n_same = max(n_layers - len(differing), 0)
    what = "Layers equal to their source, every byte"
    return Measurement("identical", what, f"all {n_layers:,}", n_same, "layers", not differing)


def judge_initialization(seconds: float, why: str = "") -> Measurement:
    """Judge the time from nothing to a manager with the core dimensions loaded."""
    what = "Initialization with the 14 core dimensions"
    return Measurement("initialization", what, "< 100 ms", seconds, "seconds", seconds < 0.1, why)


def judge_loads(loads: Mapping[DimensionId, float], why: str = "") -> Measurement:
    """Judge the slowest load of one dimension, in seconds."""
    slowest = max(loads, key=lambda dimension: loads[dimension])
    seconds = loads[slowest]
    what = f"Load of one dimension, the slowest: {slowest}"
    return Measurement("load", what, "< 50 ms", seconds, "seconds", seconds < 0.05, why)


def judge_memory(stats: MemoryStats) -> Measurement:
    """Compare the most that the budget ever counted with its limit."""
    n_bytes, limit = stats.peak_usage_bytes, stats.total_limit_bytes
    target = f"<= {limit // MIB} MB"
    return Measurement(
        "memory",
        "Memory that the budget counted, at most",
        target,
        n_bytes,
        "bytes",
        n_bytes <= limit,
    )


def measure_zero_copy(manager: MmapManager, layers: Sequence[LayerId]) -> Measurement:
    """Count the layers (none of them empty) whose views lie inside the mapping."""
    n_inside = sum(is_inside_mapping(manager.access_layer(layer)) for layer in layers)
    what = "Zero copy: views inside the mapped file"
    is_met = n_inside == len(layers)
    return Measurement("zero_copy", what, f"all {len(layers):,}", n_inside, "layers", is_met)


def is_inside_mapping(view: memoryview) -> bool:
    """Tell whether a view's bytes lie in the file mapping that keeps it alive."""
    owner: Any = view
    while isinstance(owner, memoryview | np.ndarray):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    return isinstance(owner, FileMapping) and lies_inside(as_array(view), as_array(owner))


def lies_inside(part: NDArray[np.uint8], whole: NDArray[np.uint8]) -> bool:
    """Tell whether all of a part's addresses are addresses of the whole."""
    start, begin = _address(whole), _address(part)
    return start <= begin and begin + part.nbytes <= start + whole.nbytes


def measure_allocation(manager: MmapManager, layers: Sequence[LayerId]) -> Measurement:
    """Measure what one read of the largest layer allocates.

    The least of a few tries counts, since other threads of the process allocate too.
    """
    largest = max(layers, key=lambda layer: len(manager.access_layer(layer)))
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    tries = []
    for _ in range(_N_ALLOCATIONS):
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        view = manager.access_layer(largest)
        tries.append(tracemalloc.get_traced_memory()[1] - before)
    if not was_tracing:
        tracemalloc.stop()
    n_bytes = min(tries)
    what = f"Zero copy: allocated to read {len(view):,} bytes"
    is_met = n_bytes <= _VIEW_BYTES
    return Measurement("allocation", what, "no copy", n_bytes, "bytes", is_met)


def measure_access(manager: MmapManager, layers: Sequence[LayerId]) -> Measurement:
    """Time single reads in random order."""
    order = random.Random(0).choices(layers, k=_N_TIMED_READS)
    series = time_each(manager.access_layer, ((layer,) for layer in order))
    what = f"Layer access, p99 of {len(order):,} at random"
    return _judge_percentile("access", what, "< 1 ms", 0.001, series)


def measure_blocks(manager: MmapManager) -> Measurement:
    """Time blocks being allocated and freed, many of them live."""
    live = deque(manager.allocate(_BLOCK_BYTES) for _ in range(_N_LIVE_BLOCKS))

    def exchange() -> None:
        manager.deallocate(live.popleft())
        live.append(manager.allocate(_BLOCK_BYTES))

    series = time_each(exchange, repeat((), _N_TIMED_BLOCKS))
    manager.deallocate_many(live)
    what = f"Pool allocation and back, p99 of {_N_TIMED_BLOCKS:,}"
    return _judge_percentile("allocate", what, "< 10 us", 1e-5, series)


def measure_crystallization(manager: MmapManager) -> Measurement:
    """Learn the layers of the largest dimension anew, elsewhere, and time their way to disk.

    In turns with a plain write of the same bytes, synced: what that takes is the disk's.
    """
    contents = [bytes(manager.access_layer(layer)) for layer in _largest(manager)]
    n_mb = max(sum(map(len, contents)) / MIB, 1)
    ours, plain, is_same = [], [], True
    with (
        TemporaryDirectory() as folder,
        MmapManager(MemoryConfig(base_path=folder, simulation="never")) as learner,
    ):
        for dimension in _LEARNED:
            learned = learner.create_proto_layers((dimension, content) for content in contents)
            ours.append(time_each(learner.crystallize_dimension, [(dimension,)]))
            where = Path(folder) / f"plain-{dimension}"
            plain.append(time_call(_write_plainly, where, contents))
            is_same &= [bytes(learner.access_layer(layer)) for layer in learned] == contents
    seconds = statistics.median(each.seconds[0] for each in ours) / n_mb
    why = (
        f"the bytes alone, written and synced, took {1e3 * statistics.median(plain) / n_mb:.1f} ms"
    )
    if not is_same:
        why = "what is read back is not what was written"
    what = f"Crystallization of {n_mb:.1f} MB, durable, per MB"
    is_met = is_same and seconds < 0.01
    return Measurement("crystallize", what, "< 10 ms", seconds, "seconds", is_met, why)


def measure_statistics(manager: MmapManager) -> Measurement:
    """Time `get_stats`."""
    series = time_each(manager.get_stats, repeat((), _N_TIMED_STATS))
    what = f"Statistics, p99 of {_N_TIMED_STATS}"
    return _judge_percentile("statistics", what, "< 1 ms", 0.001, series)


def measure_scan(manager: MmapManager) -> Measurement:
    """Add up every byte of the largest dimension; the slowest of a few times counts."""
    layers = _largest(manager)

    def scan() -> int:
        views = (manager.access_layer(layer) for layer in layers)
        return sum(int(as_array(view).sum(dtype=np.uint64)) for view in views)

    series = time_each(scan, repeat((), _N_SCANS))
    what = f"Scan of a dimension, every byte of {layers[0].dimension}"
    seconds = max(series.seconds)
    is_met = seconds < 0.1
    return Measurement("scan", what, "< 100 ms", seconds, "seconds", is_met, series.waited)


def measure_loss(
    manager: MmapManager, layers: Sequence[LayerId], n_threads: int, window_seconds: float
) -> Measurement:
    """Measure what is lost of one thread's throughput when many read."""
    crowd = measure_crowd(manager, layers, n_threads, window_seconds)
    loss, spread = crowd.loss, crowd.spread
    what = f"{n_threads} threads reading, loss against one"
    is_noise = loss - spread < 0.1
    why = "a miss within the noise of the rounds" if is_noise else "a miss beyond the noise"
    if crowd.cpu_share < IDLE_SHARE:
        what = f"{n_threads} threads reading, loss of CPU time"
        why += f"; {_others_had(1 - crowd.cpu_share)}"
    return Measurement("threads", what, "< 10 %", loss, "share", loss < 0.1, why, spread)


def _others_had(share: float) -> str:
    return f"others had the CPU for {share:.0%} of this time"


def _judge_percentile(
    key: str, what: str, target: str, bound: float, series: Series
) -> Measurement:
    seconds = series.percentile_99
    return Measurement(key, what, target, seconds, "seconds", seconds < bound, series.waited)


def _write_plainly(path: Path, contents: Sequence[bytes]) -> None:
    with path.open("xb") as file:
        file.writelines(contents)
        file.flush()
        os.fsync(file.fileno())


def time_call(function: Callable[..., Any], *arguments: Any) -> float:
    """Return how many seconds a call takes."""
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def as_array(view: memoryview | bytes | FileMapping) -> NDArray[np.uint8]:
    """Return the bytes of a view as an array, without a copy."""
    return np.frombuffer(view, np.uint8)


def _largest(manager: MmapManager) -> list[LayerId]:
    """Return the layers of the dimension with the most content."""
    sizes = {dimension: _count_bytes(manager, dimension) for dimension in manager.list_dimensions()}
    return manager.list_layers(max(sizes, key=lambda dimension: sizes[dimension]))


def _count_bytes(manager: MmapManager, dimension: DimensionId) -> int:
    return sum(len(manager.access_layer(layer)) for layer in manager.list_layers(dimension))


def _address(array: NDArray[Any]) -> int:
    return array.ctypes.data
