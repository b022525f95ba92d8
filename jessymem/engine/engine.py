"""`Engine`: the published state of one manager, its one writer, and what stays in memory.

Locks, in the order in which they are taken: a region file's (`RegionFiles.writing`), the writer
lock, the budget's. Numba's and the import system's come before ours: nothing is imported or
compiled, no record written and no foreign function called while the writer lock or the budget's is
held. A call that interrupts another call of its own thread (a signal handler's, or a finalizer's
that the garbage collector ran) waits for neither: see `writing` and `afterwards`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakMethod, ref

from jessymem import osmem
from jessymem.budget import Budget
from jessymem.config import MemoryConfig
from jessymem.core_dimensions import IMMUTABLE, SLOTS
from jessymem.engine import records
from jessymem.engine.crystallizing import Crystallizing
from jessymem.engine.loading import Loader
from jessymem.engine.policies import Mark, make_policy
from jessymem.engine.sampling import ReadSampler
from jessymem.engine.snapshot import Publication, Snapshot
from jessymem.errors import (
    DimensionNotFound,
    DuplicateDimension,
    InvalidAccess,
    JessyMemoryError,
    LimitExceeded,
    RegionIOError,
    empty_frames,
)
from jessymem.forks import renew_in_forked_children
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.locks import Hold, Lock
from jessymem.pressure import Level, PressureLog
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import LayerTable, LoadedDimension

if TYPE_CHECKING:
    from jessymem.pools.allocator import PoolAllocator
    from jessymem.pools.stored import StoredBlock

#: How long readers that are in the middle of something may delay a load or an allocation.
_PATIENCE_SECONDS: Final = 0.1
_POLL_SECONDS: Final = 0.0002

#: After so many evictions that freed nothing, somebody holds a whole state: no more would.
_N_IN_VAIN: Final = 2

#: Where nothing could go, so many allocations do not ask again, as long as nothing else is loaded.
_N_SPARED: Final = 255

_EVICTABLE: Final = (s.REGION_MAPPED, s.REGION_COPIED)


class Engine:
    """What a manager holds.

    Attributes
    ----------
    snapshot : Snapshot
        The published state; readers bind it once.
    lock : Lock
        The writer lock.
    budget, loader, policy, sampler, pressure
        As their classes say.
    pinned : set of DimensionId
    present_allocator : PoolAllocator or None
        None: nobody has wanted blocks yet.
    n_evictions, n_reloads : int
    is_closed : bool
    """

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self.budget = Budget(config.limit_bytes, SLOTS)
        self.loader = Loader(config, self.budget)
        self.pressure = PressureLog(config)
        self.policy = make_policy(config.eviction_policy)
        self.sampler = ReadSampler(self.policy.gate)
        self.snapshot = self._empty = Snapshot.empty(SLOTS)
        self._renew_lock()
        self.pinned: set[DimensionId] = set()
        self.n_evictions = self.n_reloads = 0
        self.is_closed = False
        self.present_allocator: PoolAllocator | None = None
        self._kept: dict[object, frozenset[DimensionId]] = {}
        self._crystallizing: list[ref[Crystallizing]] = []
        self._records: list[records.Record] = []  # of the write that is going on
        self._is_allocating = False
        self._is_hopeless = False  # nothing could go when it was asked for last
        self._n_spared = 0
        renew_in_forked_children(self)
        if config.taking == "lease":
            from jessymem import leases

            leases.prepare()

    # -- one writer --------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise InvalidAccess once closed; asked *after* a snapshot is bound, which then has all.

        The other way round a close in between would be answered as a layer that is not there.
        """
        if self.is_closed:
            raise InvalidAccess(f"the manager of {self.loader.base} is closed")

    def _renew_lock(self) -> None:
        self.lock = Lock()
        self.budget.is_below_other_lock = self.lock.is_mine

    def writing(self) -> Writing:
        """Hold the writer lock; see `Writing`."""
        return Writing(self)

    def interrupts(self) -> bool:
        """Tell whether this was called in the middle of another call of its own thread."""
        return self.lock.is_wanted() or self.budget.lock.is_wanted()

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do what frees something: now, or as soon as the call that this one interrupts is done.

        Raises
        ------
        Exception
            What `action` raises; done later, that is recorded instead.
        """
        if self.interrupts():
            self.budget.postpone(partial(self._do_late, action))
        else:
            action()

    def _do_late(self, action: Callable[[], None]) -> None:
        try:
            self.afterwards(action)
        except JessyMemoryError as error:
            records.of_postponed(error)()

    def give_up(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do something under the writer lock that frees something, as `afterwards` does."""

        def write() -> None:
            with self.writing():
                action(*arguments)

        self.afterwards(write)

    def record(self, record: records.Record | None) -> None:
        """Write a record once the writer lock is free; within `writing` only."""
        if record is not None:
            self._records.append(record)

    # -- publishing: under the writer lock ---------------------------------------------------------

    def publish(self, *loaded: tuple[LoadedDimension, int]) -> None:
        """Publish tables of dimensions, each with its region id, at once."""
        self._is_hopeless = False
        gates = self.sampler.gates
        self.snapshot = self.snapshot.with_published(
            Publication(each, region_id, self._mark_for(each), gates) for each, region_id in loaded
        )

    def withdraw(self, dimension: DimensionId) -> None:
        """Publish that a dimension is not loaded."""
        region_id = self.snapshot.region_id_of(dimension)
        self.snapshot = self.snapshot.without(dimension)
        self.budget.retire(region_id)
        self.policy.forget(int(dimension))
        self.pinned.discard(dimension)

    def publish_base(self, region: MmapRegion, region_id: int) -> None:
        """Publish a file's layers, with those over them that are being learned."""
        dimension = region.dimension_id
        old = self.snapshot.find(dimension)
        old_id = None if old is None else self.snapshot.region_id_of(dimension)
        if old is None:
            self.publish((region, region_id))
        else:
            self.publish_over(old, region, region_id)
        del old
        if old_id is not None:
            self.budget.retire(old_id)

    def publish_over(self, old: LoadedDimension, region: MmapRegion, region_id: int) -> None:
        """Publish a new base with what is learned in `old` over it; its old blocks are freed."""
        with self.allocating():
            fresh, replaced = old.rebased(region, self.allocator)
        self.publish((fresh, region_id))
        self.free(replaced)

    def _mark_for(self, loaded: LoadedDimension) -> Mark:
        if loaded.resident is None:
            return [None]
        return self.policy.admit(int(loaded.dimension_id))

    # -- loading: under the writer lock ------------------------------------------------------------

    def load(self, dimension: DimensionId, given: Path | None = None) -> int:
        """Map a dimension's file and publish it; see `MmapManager.load_dimension`."""
        start = perf_counter()
        old = self.snapshot.find(dimension)
        if old is not None and not old.is_replaceable:
            raise DuplicateDimension(f"{dimension} is loaded, from {old.path}", dimension=dimension)
        if old is not None:
            self.check_not_crystallizing(dimension)
        del old
        home = given or self.loader.path_of(dimension)
        region, region_id = self.map(dimension, home)
        self.publish_base(region, region_id)
        self.loader.note_home(dimension, given)
        self.record(records.of_region("dimension_loaded", region, seconds=perf_counter() - start))
        return region_id

    def simulate(self, dimension: DimensionId) -> None:
        """Publish the bundled layers of a core dimension."""
        with self._recording_failure(dimension, self.loader.path_of(dimension)):
            region, region_id = self.loader.simulate(dimension)
        self.publish_base(region, region_id)

    def refresh(self, dimension: DimensionId) -> bool:
        """Adopt a newer file; see `MmapManager.refresh`."""
        evicted = self.snapshot.get(dimension)
        old = self.bring_back(dimension)
        if old.edition != evicted.edition:
            return True
        base, state = old.base, old.state
        del old, evicted
        if base is None or base.path is None:
            raise DimensionNotFound(
                f"{dimension} is {s.REGION_STATES[state]}: there is no file to refresh it from",
                dimension=dimension,
                path=None,
            )
        self.check_not_crystallizing(dimension)
        home = self.loader.home_of(dimension)
        with self._recording_failure(dimension, home):
            identify = partial(self.loader.identify, dimension)
            if self.loader.use_newest(dimension, home, identify) == base.identity:
                return False
        region, region_id = self.map(dimension, home)
        if region.edition == base.edition:
            return False
        del base
        self.publish_base(region, region_id)
        self.record(records.of_region("dimension_refreshed", region))
        return True

    def unload(self, dimension: DimensionId) -> None:
        """Take a dimension's layers away from new reads; see `MmapManager.unload_dimension`."""
        loaded = self.snapshot.get(dimension)
        self.check_not_crystallizing(dimension)
        unwritten = loaded.unwritten
        if unwritten:
            named = ", ".join(map(str, unwritten[:5])) + (" ..." if len(unwritten) > 5 else "")
            raise InvalidAccess(
                f"{dimension}: {len(unwritten)} layers are not on disk ({named}): "
                "crystallize or discard them first",
                dimension=dimension,
            )
        self.withdraw(dimension)
        self.loader.note_home(dimension, None)
        self.free(layer.block for layer in loaded.learned.values())
        table = loaded.resident
        if table is not None:
            self.record(records.of_region("dimension_unloaded", table))

    def map(self, dimension: DimensionId, home: Path) -> tuple[MmapRegion, int]:
        """Map the file that counts at `home`, evicting others if that is what it takes.

        Returns the region and its new region id; nothing is published.
        """
        with self._recording_failure(dimension, home):
            while True:
                try:
                    return self.loader.use_newest(
                        dimension, home, partial(self.map_file, dimension)
                    )
                except RegionIOError as error:
                    # Each mapping holds a descriptor.
                    is_out_of_them = error.errno in (errno.EMFILE, errno.ENFILE)
                    if not is_out_of_them or not self.make_room(1, wanted=dimension):
                        raise
                    empty_frames(error)

    def map_file(self, dimension: DimensionId, where: Path) -> tuple[MmapRegion, int]:
        """Do as `map` does, for one file."""
        try:
            return self.loader.map(dimension, where)
        except LimitExceeded as error:
            if error.limit != self.budget.limit_bytes:
                raise  # it is the headroom of the core dimensions that is short
            missing = error.current + error.requested - error.limit
            if not self.make_room(missing, wanted=dimension):
                raise
        return self.loader.map(dimension, where)

    @contextmanager
    def _recording_failure(self, dimension: DimensionId, where: Path) -> Iterator[None]:
        try:
            yield
        except JessyMemoryError as error:
            self.record(records.of_failed_load(dimension, where, error))
            raise

    # -- what stays in memory: under the writer lock -----------------------------------------------

    def bring_back(self, dimension: DimensionId) -> LayerTable:
        """Return a loaded dimension's table, mapping its file again if it was evicted."""
        loaded = self.snapshot.get(dimension)
        table = loaded.resident
        if table is not None:
            return table
        start = perf_counter()
        region, region_id = self._remap(loaded)
        self.publish((region, region_id))
        self.n_reloads += 1
        self.record(records.of_region("dimension_reloaded", region, seconds=perf_counter() - start))
        return region

    def bring_all_back(self, layer_ids: Iterable[LayerId]) -> Snapshot:
        """Return a state in which each of `layer_ids` that is loaded is in memory.

        Within `keeping` their dimensions, or one would have to go for the other.
        """
        for layer_id in layer_ids:
            loaded = self.snapshot.find(layer_id.dimension)
            if loaded is not None and loaded.resident is None and loaded.has_layer(layer_id.layer):
                self.bring_back(layer_id.dimension)
        return self.snapshot

    def _remap(self, evicted: LoadedDimension) -> tuple[MmapRegion, int]:
        dimension = evicted.dimension_id
        region_id = self.snapshot.region_id_of(dimension)
        viewed = evicted.still_viewed()
        if viewed is not None and self.budget.reclaim(region_id):
            return viewed, region_id
        del viewed
        # Another process may have written meanwhile.
        return self.map(dimension, self.loader.home_of(dimension))

    def make_room(self, n_bytes: int, wanted: DimensionId | None = None) -> bool:
        """Evict the coldest regions until so many bytes are free; tell whether they are.

        For a load (of `wanted`) nothing goes where all that may go would not be enough; for an
        allocation whatever can be had is welcome.
        """
        sizes = {
            int(region.dimension_id): osmem.round_to_pages(region.size)
            for region in self.snapshot.resident
            if region.dimension_id != wanted and self._may_go(region)
        }
        self._is_hopeless = not sizes
        if wanted is not None and sum(sizes.values()) < n_bytes:
            return False
        target = self._used() - n_bytes
        deadline = monotonic() + _PATIENCE_SECONDS
        n_in_vain = 0
        while sizes and n_in_vain < _N_IN_VAIN and self._used() > target:
            dimension = self.policy.choose(sizes.keys())
            del sizes[dimension]
            region_id = self.evict(DimensionId(dimension))
            # A reader of an older state holds all of it, and needs no lock to drop it again.
            # Who holds something for longer is not waited for, nor are more regions evicted.
            while self.budget.is_charged(region_id) and monotonic() < deadline:
                sleep(_POLL_SECONDS)
            n_in_vain += self.budget.is_charged(region_id)
        return self._used() <= target

    def evict(self, dimension: DimensionId) -> int:
        """Keep a region's names only; return its region id.

        Nothing here may hold the region when this returns.
        """
        region = self.snapshot.get(dimension).base
        region_id = self.snapshot.region_id_of(dimension)
        self.publish((EvictedRegion(region), region_id))
        self.policy.forget(int(dimension))
        self.budget.retire(region_id)
        self.n_evictions += 1
        self.record(records.of_region("dimension_evicted", region))
        return region_id

    def _used(self) -> int:
        """Return what the budget counts, with all that was released until now."""
        with self.budget.changing():
            return self.budget.total

    def _may_go(self, region: LayerTable) -> bool:
        dimension = region.dimension_id
        return (
            region.state in _EVICTABLE
            and region.base is region
            and dimension not in IMMUTABLE
            and dimension not in self.pinned
            and not any(dimension in kept for kept in self._kept.copy().values())
            and not region.is_viewed
        )

    def pin(self, dimension: DimensionId) -> None:
        """Keep a dimension in memory."""
        self.bring_back(dimension)
        self.pinned.add(dimension)

    def unpin(self, dimension: DimensionId) -> None:
        """Let a dimension be evicted again."""
        self.pinned.discard(dimension)
        self._is_hopeless = False

    @contextmanager
    def keeping(self, dimensions: Iterable[DimensionId]) -> Iterator[None]:
        """Let none of `dimensions` be evicted within; under any lock or none."""
        kept = frozenset(dimensions)
        token = object()
        # No lock: who leaves may still hold what a writer waits for.
        self._kept[token] = kept
        try:
            yield
        finally:
            self._kept.pop(token, None)  # a forked child starts without

    # -- crystallizations: under the writer lock ---------------------------------------------------

    def note_crystallizing(self, crystallizing: Crystallizing) -> None:
        """Note that a crystallization has begun.

        Raises InvalidAccess where this thread is in the middle of another one of the dimension.
        """
        mine = crystallizing.dimension, crystallizing.thread
        running = self._running()
        if any((each.dimension, each.thread) == mine for each in running):
            raise InvalidAccess(
                f"{mine[0]}: this call interrupts another one that is writing the file",
                dimension=mine[0],
            )
        self._crystallizing = list(map(ref, [*running, crystallizing]))

    def check_not_crystallizing(self, dimension: DimensionId, layer: Any = None) -> None:
        """Raise InvalidAccess where a dimension, or one learned layer of it, is being written."""
        for each in self._running():
            if each.dimension == dimension and (layer is None or id(layer) in each.layers):
                who = dimension if layer is None else LayerId(dimension, layer.number)
                kind = "dimension" if layer is None else "layer"
                raise InvalidAccess(f"{who} is being crystallized by another thread", **{kind: who})

    def _running(self) -> list[Crystallizing]:
        found = [each() for each in self._crystallizing]
        return [each for each in found if each is not None and not each.is_over]

    # -- blocks ------------------------------------------------------------------------------------

    def allocator(self) -> PoolAllocator:
        """Return the allocator, which is made when it is first wanted.

        Raises InvalidAccess where there is none and the manager is closed.
        """
        if self.present_allocator is not None:
            return self.present_allocator
        from jessymem.pools.allocator import PoolAllocator

        evict = WeakMethod(self._make_room_for_blocks)  # no cycle
        made = PoolAllocator.within(
            self.config,
            self.budget,
            self.pressure,
            lambda n_bytes: (make_room := evict()) and make_room(n_bytes),
        )
        with self.budget.changing():
            if self.present_allocator is None:
                self.check_open()
                self.present_allocator = made
            return self.present_allocator

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """Let what is allocated within, under the writer lock, evict others."""
        try:
            self._is_allocating = True
            yield
        finally:
            self._is_allocating = False

    def free(self, blocks: Iterable[StoredBlock | None]) -> None:
        """Free the blocks of what was replaced; those that are viewed wait."""
        if self.present_allocator is not None:
            from jessymem.pools import stored

            stored.free(self.present_allocator, blocks)

    def _make_room_for_blocks(self, n_bytes: int) -> None:
        """Evict before an allocation."""
        if self.lock.is_mine():
            if self._is_allocating:  # else it interrupts a write: nothing may change under that
                self.make_room(n_bytes)
            return
        target = self.budget.total - n_bytes
        if self._is_hopeless and self._n_spared < _N_SPARED:
            self._n_spared += 1
            return
        with suppress(InvalidAccess), self.writing():  # closed: the allocation will say so
            # Others may have made room while this one waited for the lock.
            missing = self._used() - target
            if missing > 0:
                self.make_room(missing)
            self._n_spared = 0

    # -- ends --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unload everything and free every block; see `MmapManager.close`."""
        with self.lock.hold():
            with self.budget.changing():  # so that no allocator is made any more
                was_closed, self.is_closed = self.is_closed, True
                allocator = self.present_allocator
            if allocator is not None:
                allocator.close()
            region_ids = self.snapshot.region_ids()
            lost = [layer for loaded in self.snapshot.loaded for layer in loaded.unwritten]
            self.snapshot = self._empty
            for region_id in region_ids:
                self.budget.retire(region_id)
        if not was_closed:
            for record in records.of_close(self.loader.base, lost):
                record()
        if self.budget.has_postponed:
            self.budget.do_postponed()

    def after_fork(self) -> None:
        """Renew locks in a forked child, and make good what other threads had begun."""
        self._renew_lock()
        self._kept.clear()
        self._crystallizing = []
        self._records = []
        self._is_allocating = False
        snapshot = self.snapshot
        for loaded in snapshot.loaded:
            loaded.forget_crystallizing()
        resident = {snapshot.region_id_of(region.dimension_id) for region in snapshot.resident}
        self.budget.after_fork(resident)
        if self.present_allocator is not None:
            self.present_allocator.recount()
        self.sampler.after_fork()


class Writing:
    """Holds an engine's writer lock; afterwards come the records of what was done under it.

    Within it, one thing is read, copied and published. So a call that interrupts it, in its own
    thread, may not write.
    """

    __slots__ = ("_engine", "_hold", "_risen")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._risen: list[Level] = []
        self._hold: Hold | None = None

    def __enter__(self) -> None:
        """Wait for the lock.

        Raises
        ------
        InvalidAccess
            If the manager is closed; or where this interrupts a call of its own thread that is
            writing, or for which the thread that writes may be waiting.
        """
        engine = self._engine
        if engine.lock.is_wanted():
            raise InvalidAccess("this call interrupts another one of its thread that writes")
        is_free_to_wait = not engine.budget.lock.is_wanted()
        try:
            self._hold = engine.lock.hold() if is_free_to_wait else engine.lock.hold_if_free()
            if self._hold is None:
                raise InvalidAccess(
                    "another thread is writing, and may wait for what this call interrupts"
                )
            engine.check_open()
            self._observe_pressure()
        except BaseException:
            self._hold = None  # the traceback keeps this frame
            raise

    def __exit__(self, *exception: object) -> None:
        """Release it, and write the records."""
        engine, budget = self._engine, self._engine.budget
        try:
            if exception[1] is None:
                self._observe_pressure()
        finally:
            written, engine._records = engine._records, []
            self._hold = None
        try:
            for record in written:
                record()
            if self._risen:
                waiting = budget.waiting_bytes
                engine.pressure.record(self._risen, budget.total, waiting_bytes=waiting)
        finally:
            if budget.has_postponed:
                budget.do_postponed()

    def _observe_pressure(self) -> None:
        engine = self._engine
        used = engine.budget.total
        if not engine.pressure.is_quiet(used):
            with engine.budget.changing():
                self._risen += engine.pressure.observe(engine.budget.total)
