"""The one module of the tests that knows private names: what nothing public shows or brings about.

A test asks here only where the public way shows less. When something inside gets another name, this
is the file to edit.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from jessymem import (
    DimensionId,
    MmapManager,
    PoolAllocator,
    leases,
    pickling,
    pieces,
    references,
)
from jessymem.bench import footprint, reading, timing
from jessymem.bench.setting import Setting
from jessymem.engine import locations
from jessymem.kernels import _jit, transactions
from jessymem.kernels import schema as s
from jessymem.pools import growth, table
from jessymem.pools.table import PoolTable
from jessymem.regions import entries
from jessymem.scanning import applying, needles, pairs, scans, searching, workers
from jessymem.status import reader as status_reader

# -- a manager -------------------------------------------------------------------------------------


def snapshot_of(manager: MmapManager) -> Any:
    """Return the state that readers see now."""
    return manager._engine.snapshot


def region_of(manager: MmapManager, dimension: int | str) -> Any:
    """Return what is loaded of a dimension now; None: it is not loaded."""
    number = DimensionId.parse(dimension) if isinstance(dimension, str) else DimensionId(dimension)
    return snapshot_of(manager).find(number)


def mapping_of(manager: MmapManager, dimension: int | str) -> weakref.ref[Any]:
    """Return what tells, by returning None, that a dimension's mapping is gone."""
    return weakref.ref(region_of(manager, dimension).data)


def budget_of(manager: MmapManager) -> Any:
    return manager._engine.budget


def held_limit_of(manager: MmapManager) -> int:
    """Return the limit that kernels keep to: what is held back is for nobody."""
    words = table_of(allocator_of(manager)).state
    return int(words[s.LIMIT] - words[s.HELD_BACK])


def differences_of(manager: MmapManager) -> list[str]:
    """Recount the blocks of a manager; return what a counter says differently."""
    allocator = manager._engine.present_allocator
    return [] if allocator is None else allocator.validate()


def mark_of(manager: MmapManager, dimension: DimensionId) -> Any:
    """Return what readers write into, so that the eviction policy sees what is read."""
    return snapshot_of(manager).mark_of(dimension)


def kept_errors_of(manager: MmapManager) -> Any:
    """Return the errors of dimensions that could not be mapped again."""
    return manager._engine._kept


def pinned_of(manager: MmapManager) -> set[DimensionId]:
    """Return the dimensions that are kept in memory."""
    return manager._engine.pinned


def has_allocator(manager: MmapManager) -> bool:
    """Tell whether blocks were ever asked for."""
    return manager._engine.present_allocator is not None


def allocator_of(manager: MmapManager) -> PoolAllocator:
    """Return a manager's allocator; it is made if there is none yet."""
    return manager._engine.allocator()


def handles_of_learned(manager: MmapManager) -> set[int]:
    """Return the handles of the blocks in which the contents of learned layers lie."""
    learned = [layer for each in snapshot_of(manager).loaded for layer in each.learned.values()]
    return {layer.block.handle for layer in learned if layer.block is not None}


def wants_a_lock(manager: MmapManager) -> bool:
    """Tell whether the calling thread holds a lock of a manager, or waits for one."""
    return manager._engine.interrupts()


def writing(manager: MmapManager) -> AbstractContextManager[Any]:
    """Hold the writers' lock."""
    return manager._engine.writing()


def evict(manager: MmapManager, number: int) -> None:
    """Evict a dimension whatever would keep it."""
    with writing(manager):
        manager._engine.evict(DimensionId(number))


def make_room(manager: MmapManager, n_bytes: int) -> None:
    """Evict what may go until so many bytes are free, as a load does."""
    with writing(manager):
        manager._engine.make_room(n_bytes)


def make_room_for_blocks(manager: MmapManager, n_bytes: int) -> None:
    """Evict as an allocation does."""
    manager._engine._make_room_for_blocks(n_bytes)


def replace_check_open(monkeypatch: Any, manager: MmapManager, make_check: Any) -> None:
    """Let every verb call ``make_check(original)`` where it looks whether the manager is closed."""
    engine = manager._engine
    monkeypatch.setattr(engine, "check_open", make_check(engine.check_open))


def before_each_find(monkeypatch: Any, function: Any) -> None:
    """Call `function` before every single read looks up its layer."""
    find = MmapManager._find

    def find_after(self: MmapManager, layer_id: Any) -> Any:
        function()
        return find(self, layer_id)

    monkeypatch.setattr(MmapManager, "_find", find_after)


def whole_scan(manager: MmapManager, applied: Any, values: Any, threads: Any) -> Any:
    """Return a function that applies a kernel to all layers, as one worker of a scan does."""
    engine = manager._engine
    with engine.sampler.reader():
        (spans,) = scans._states(engine, None, None, threads)
    (job,) = spans.jobs(1, (2**30, 2**30), is_whole=True)
    return lambda: applied._apply(spans, values, threads.stop, job)


def replace_samples(sampler: Any, latencies_ns: Any, reader_counts: Any) -> None:
    """Put what was measured of reads in other containers."""
    sampler._latencies_ns, sampler._reader_counts = latencies_ns, reader_counts


def readers_of(sampler: Any) -> set[int]:
    """Return the threads that are reading now."""
    return sampler._readers


def replace_readers(sampler: Any, readers: set[int]) -> None:
    sampler._readers = readers


def replace_marks(policy: Any, marks: dict[int, Any]) -> None:
    """Give an eviction policy other marks for its dimensions."""
    policy._marks = marks


def admitted(manager: MmapManager) -> list[int]:
    """Return the dimensions that an eviction looks at."""
    return list(manager._engine.policy)


def n_kept(policy: Any) -> int:
    """Return how many entries an eviction policy keeps in whatever it searches."""
    return len(getattr(policy, "_heap", ())) + len(getattr(policy, "_ahead", ()))


def locate_plain(*arguments: Any) -> int:
    """Look ids up as a batch does that is too small for kernels."""
    return locations._locate_plain(*arguments)


def locate_by_columns(snapshot: Any, dimension: Any) -> Any:
    """Look all layers of a dimension up as a scan does that is too small for kernels."""
    return locations._locate_table(snapshot, dimension, snapshot.table_at(dimension))


def edition_of(ref: references.LayerRef) -> Any:
    """Return which edition of a file a reference leads to."""
    return ref._edition


def open_regions() -> Any:
    """Return what references of this process have open, by path and edition."""
    return references._open_regions


def origins() -> Any:
    """Return what stores that came by pickle were mapped from."""
    return pickling._origins


# -- an allocator ----------------------------------------------------------------------------------


def table_of(allocator: PoolAllocator) -> Any:
    """Return the table of pools: the words that kernels share, blocks, and memory behind them."""
    return allocator._table


def empty_table(limit_bytes: int, n_blocks: int) -> PoolTable:
    """Return a table of no pools whose state has rows for so many blocks, and not for millions.

    A test that copies the state and compares it with what it was would spend its time on zeros.
    """
    spare = table._MIN_SPARE
    table._MIN_SPARE = n_blocks  # type: ignore[misc]
    try:
        return PoolTable([], limit_bytes)
    finally:
        table._MIN_SPARE = spare  # type: ignore[misc]


def budget_lock_of(allocator: PoolAllocator) -> Any:
    return allocator._budget.lock


def changing_budget_of(allocator: PoolAllocator) -> AbstractContextManager[bool]:
    """Hold the budget's lock as a call does that changes something: what comes then is nested."""
    return allocator._budget.changing()


def replace_eviction(allocator: PoolAllocator, evict: Any) -> None:
    """Let an allocator that lacks memory call `evict`."""
    allocator._supply.evict = evict


# -- kernels ---------------------------------------------------------------------------------------


def marked_kernels() -> list[Any]:
    """Return every function that is marked as a kernel, as plain Python."""
    return list(_jit._kernels)


def first_calls_of(group: str) -> list[Any]:
    """Return what calls each kernel of a group once, when it is promoted."""
    return _jit._first_calls[group]


def kernel_lock() -> Any:
    """Return the lock under which kernels are compiled."""
    return _jit._lock


class PlainTier:
    """The allocator's kernels as they are before they are compiled; for the time of a test."""

    def __init__(self, monkeypatch: Any) -> None:
        _jit.promote(_jit.MEMORY)
        self._forms = _jit.forms_of(_jit.MEMORY)
        monkeypatch.setattr(_jit, "_forms", {})
        monkeypatch.setattr(_jit, "_ready", _jit._ready - {_jit.MEMORY})
        monkeypatch.setattr(_jit, "_n_items", {})
        for entry in transactions.entries:
            monkeypatch.setattr(sys.modules[entry.__module__], entry.__name__, entry)
        # Else a thread would do it in the middle of a test that makes many calls.
        monkeypatch.setattr(transactions.beside, "promote_beside", lambda *arguments: None)

    def switch(self) -> None:
        """Let compiled kernels take over, as when a thread has compiled them; nothing else does."""
        if self._forms:
            _jit._switch(_jit.MEMORY, self._forms)


def plain_version_of(allocator: PoolAllocator) -> int:
    """Return the version of an allocator's words as plain kernels count them."""
    return int(table_of(allocator).state[s.PLAIN_VERSION])


@contextmanager
def compiling_elsewhere() -> Iterator[None]:
    """Let it look as if another thread were compiling kernels."""
    _jit._promoting.add(-1)
    try:
        yield
    finally:
        _jit._promoting.discard(-1)


def forget_compiled(monkeypatch: Any) -> dict[str, int]:
    """Let no kernel be promoted and no item counted; return the counts of items, by group."""
    counts: dict[str, int] = {}
    monkeypatch.setattr(_jit, "_ready", set())
    monkeypatch.setattr(_jit, "_n_items", counts)
    return counts


def watch_compiled_drivers(monkeypatch: Any) -> list[Any]:
    """Return a list to which each kernel and dtype is added for which a scan compiles."""
    compiled: list[Any] = []
    compile_kernel = applying._compile

    def count(kernel: Any, dtype: Any) -> Any:
        compiled.append((kernel, dtype))
        return compile_kernel(kernel, dtype)

    monkeypatch.setattr(applying, "_compile", count)
    return compiled


# -- the system ------------------------------------------------------------------------------------


def write_chunk_bytes() -> int:
    return pieces._WRITE_CHUNK_BYTES


def set_write_chunk_bytes(n_bytes: int) -> None:
    """At most so many bytes are written by one call."""
    pieces._WRITE_CHUNK_BYTES = n_bytes  # type: ignore[misc]


# -- thresholds, set so that little work passes them -----------------------------------------------


def set_small_scan_bytes(monkeypatch: Any, n_bytes: int) -> None:
    """Below so many bytes a scan starts no thread."""
    monkeypatch.setattr(workers, "_SMALL_BYTES", n_bytes)


def wait_without_polls(monkeypatch: Any) -> None:
    """Let a scan wait for its threads without looking up now and then."""
    monkeypatch.setattr(workers, "_POLL_SECONDS", None)


def set_search_job(monkeypatch: Any, n_bytes: int) -> None:
    """Let a search be cut into pieces of so many bytes."""
    monkeypatch.setattr(searching, "_JOB_BYTES", (n_bytes, n_bytes))


def set_piece_of_pairs(monkeypatch: Any, n_bytes: int) -> None:
    """Let the search by NumPy look at so many bytes at a time, and at each candidate at once."""
    monkeypatch.setattr(pairs, "_PIECE_BYTES", n_bytes)
    monkeypatch.setattr(pairs, "_CANDIDATES_TOGETHER", 2)
    monkeypatch.setattr(pairs, "_BYTES_TOGETHER", 5)


def watch_candidates(search: Any) -> list[int]:
    """Return a list to which a search by NumPy adds how many places it looks at."""
    looked_at: list[int] = []
    look = search._finds_among

    def watch(candidates: Any) -> Any:
        looked_at.extend(len(addresses) for addresses, _ in candidates)
        return look(candidates)

    search._finds_among = watch
    return looked_at


def set_needles_of_a_job(monkeypatch: Any, n_needles: int) -> None:
    monkeypatch.setattr(searching, "_JOB_NEEDLES", n_needles)


def search_by_kernels(monkeypatch: Any) -> None:
    """Let no needle be searched for by NumPy, whether or not kernels are compiled."""
    monkeypatch.setattr(needles, "_MAX_PLAIN_BYTES", 0)


def set_applied_job(monkeypatch: Any, n_bytes: int) -> None:
    """Let the application of a kernel be cut into pieces of so many bytes."""
    monkeypatch.setattr(applying, "_JOB_BYTES", (n_bytes, n_bytes))


def let_turns_be_short(monkeypatch: Any) -> None:
    """Let a benchmark measure for as short a time as may be, in as few rounds."""
    monkeypatch.setattr(Setting, "n_rounds", lambda setting, full: 2)
    monkeypatch.setattr(timing, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(reading, "_N_WINDOWS", 0)


def hide_footprint(monkeypatch: Any, missing: Path) -> None:
    """Let the system not tell how much memory a process takes."""
    monkeypatch.setattr(footprint, "_STATM", missing)
    monkeypatch.setattr(footprint, "_ROLLUP", missing)


def set_grown_share(monkeypatch: Any, share: int) -> None:
    """Let a pool that is added be so large a part of the limit, as its reciprocal."""
    monkeypatch.setattr(growth, "_GROWN_SHARE", share)


def few_entries() -> int:
    """Return up to how many entries are parsed without kernels."""
    return entries._FEW


def let_leases_end_after(monkeypatch: Any, path: Path) -> None:
    """Let the system's time for a lease's end be what a file says."""
    monkeypatch.setattr(leases, "_BREAK_TIME", path)


def before_keeping(monkeypatch: Any, manager: MmapManager, function: Any) -> None:
    """Call `function` once, between a batch's first look and the moment from which it keeps."""
    engine = manager._engine
    keeping = type(engine).keeping

    def keep(self: Any, dimensions: Any) -> Any:
        monkeypatch.setattr(type(engine), "keeping", keeping)
        function()
        return keeping(self, dimensions)

    monkeypatch.setattr(type(engine), "keeping", keep)


def status_record(path: Path) -> Any:
    """What is in a status file, checked, as the record that it is."""
    return status_reader._read_record(path)
