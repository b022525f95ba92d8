"""`Engine`: the published state of one manager, its one writer, and what stays in memory.

Locks, in the order in which they are taken: a region file's (`RegionFiles.writing`), the writer
lock, the budget's. Numba's and the import system's come before ours: nothing is imported or
compiled, no record written and no foreign function called while the writer lock or the budget's is
held. A call that interrupts another call of its own thread (a signal handler's, or a finalizer's
that the garbage collector ran) waits for neither: see `writing` and `afterwards`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import WeakMethod, ref

from jessymem import descriptors
from jessymem.budget import Budget
from jessymem.config import MIB, MemoryConfig
from jessymem.core_dimensions import IMMUTABLE, slots_of
from jessymem.engine import records
from jessymem.engine.crystallizing import Crystallizing
from jessymem.engine.gathering import Gathering
from jessymem.engine.inflated import InflatedLayers
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
    clears_frames,
    empty_frames,
)
from jessymem.forks import renew_in_forked_children
from jessymem.histograms import NS
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.latencies import Latencies
from jessymem.locks import Hold, Lock, Unready, before_import
from jessymem.logger import logger
from jessymem.pressure import Level, PressureLog
from jessymem.regions.chain import RegionChain
from jessymem.regions.deltas import Chain
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.files import RegionFiles
from jessymem.regions.layout import Edition
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import LayerTable, LoadedDimension

if TYPE_CHECKING:
    from jessymem.pools.allocator import PoolAllocator
    from jessymem.pools.stored import StoredBlock

T = TypeVar("T")

#: How long readers that are in the middle of something may delay a load or an allocation.
_PATIENCE_SECONDS: Final = 0.1
_POLL_SECONDS: Final = 0.0002

#: A look of the watcher takes about 12 ms where 30,000 dimensions are loaded.
_LOOK_SECONDS: Final = 0.05

#: After so many evictions that freed nothing, somebody holds a whole state: no more would.
_N_IN_VAIN: Final = 2

#: Where nothing could go, so many allocations do not ask again, as long as nothing else is loaded.
_N_SPARED: Final = 255

#: So many files can be opened beside those that are mapped, as far as others can be evicted.
_N_SPARE_DESCRIPTORS: Final = 12
_N_FILES_A_MAP: Final = 4  # with its lease, its deltas, and what others open

_EVICTABLE: Final = (s.REGION_MAPPED, s.REGION_COPIED)


class Watcher(Protocol):
    """Looks at an engine now and then."""

    def stop(self) -> None:
        """Look no more."""


class Engine:
    """What a manager holds.

    Attributes
    ----------
    config : MemoryConfig
        The settings in force.
    snapshot : Snapshot
        The published state; readers bind it once.
    lock : Lock
        The writer lock.
    budget, loader, policy, sampler, latencies, pressure, inflated
        As their classes say.
    pinned : set of DimensionId
    present_allocator : PoolAllocator or None
        None: nobody has wanted blocks yet.
    watcher : Watcher or None
        Who is to stop when it is closed.
    n_evictions, n_reloads : int
    is_closed : bool
    """

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        slots = slots_of(config)
        self.budget = Budget(config.limit_bytes, slots)
        self.latencies = Latencies()
        self.inflated = InflatedLayers(
            WeakMethod(self.allocator), WeakMethod(self._note_droppable), self.latencies
        )
        self.loader = Loader(config, self.budget, self.inflated)
        self.pressure = PressureLog(config)
        self.policy = make_policy(config.eviction_policy)
        self.sampler = ReadSampler(self.policy.gate, self.latencies)
        self.snapshot = self._empty = Snapshot.empty(slots)
        self._renew_lock()
        self.pinned: set[DimensionId] = set()
        self.n_evictions = self.n_reloads = self._n_maps = 0
        self.is_closed = False
        self.present_allocator: PoolAllocator | None = None
        self.watcher: Watcher | None = None
        self._kept: dict[object, frozenset[DimensionId]] = {}
        self._crystallizing: list[ref[Crystallizing]] = []
        self.gathering = Gathering()
        self._is_allocating = False
        self._is_hopeless = False  # nothing could go when it was asked for last
        self._n_spared = 0
        renew_in_forked_children(self)
        if config.taking == "lease":
            from jessymem import leases

            leases.prepare()

    # -- one writer --------------------------------------------------------------------------------

    def check_open(self, about: DimensionId | LayerId | str | None = None) -> None:
        """Raise InvalidAccess once closed; asked *after* a snapshot is bound, which then has all.

        The other way round a close in between would be answered as a layer that is not there.

        Parameters
        ----------
        about : DimensionId, LayerId, str or None
            What was asked for, which the error names.
        """
        if not self.is_closed:
            return
        fault = f"the manager of {self.loader.place} is closed"
        if about is None:
            raise InvalidAccess(fault)
        details: dict[str, Any] = {}
        if not isinstance(about, str):
            details["layer" if isinstance(about, LayerId) else "dimension"] = about
        raise InvalidAccess(f"{about}: {fault}", **details)

    def _renew_lock(self) -> None:
        self.lock = Lock()
        self.budget.is_below_other_lock = self.lock.is_mine

    def writing(self) -> Writing:
        """Hold the writer lock; see `Writing`. What may map a file goes through `write`."""
        return Writing(self)

    def write(self, action: Callable[..., T], *arguments: Any) -> T:
        """Return what `action` returns, called under the writer lock.

        It is called again where it lacked something that is not imported, or compiled, under a
        lock: so up to there it must have changed nothing that it cannot find again.
        """
        while True:
            try:
                with self.writing():
                    return action(*arguments)
            except Unready as error:
                prepare = error.prepare
                empty_frames(error)
            prepare()

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
        self.afterwards(partial(self.write, action, *arguments))

    def record(self, record: records.Record | None) -> None:
        """Write a record, if there is one; `logger` does so once this thread holds no lock."""
        if record is not None:
            record()

    # -- publishing: under the writer lock ---------------------------------------------------------

    def publish(self, *loaded: tuple[LoadedDimension, int]) -> None:
        """Publish tables of dimensions, each with its region id, and what was gathered, at once."""
        self._is_hopeless = False
        gates = self.sampler.gates
        gathered = self.gathering.take() if self.gathering else []
        self.snapshot = self.snapshot.with_published(
            Publication(each, region_id, self._mark_for(each), gates)
            for each, region_id in (*(each[:2] for each in gathered), *loaded)
        )
        for *_, record in gathered:
            self.record(record)

    def withdraw(self, dimension: DimensionId) -> None:
        """Publish that a dimension is not loaded."""
        charge_ids = self._charge_ids_of(dimension)
        self.snapshot = self.snapshot.without(dimension)
        self.budget.retire(charge_ids)
        self.policy.forget(int(dimension))
        self.pinned.discard(dimension)

    def publish_base(self, region: MmapRegion | RegionChain, region_id: int) -> None:
        """Publish files' layers, with those over them that are being learned.

        What those have replaced is freed, or waits for its last view.
        """
        dimension = region.dimension_id
        old = self.snapshot.find(dimension)
        old_ids = self._charge_ids_of(dimension)
        replaced: list[Any] = []
        fresh: LayerTable = region
        if old is not None:
            with self.allocating():
                fresh, replaced = old.rebased(region, self.allocator)
        self.publish((fresh, region_id))
        del old
        self.free(replaced)
        self.budget.retire(set(old_ids) - set(fresh.charge_ids))

    def _charge_ids_of(self, dimension: DimensionId) -> tuple[int, ...]:
        """Return what is charged for a dimension that is in memory."""
        loaded = self.snapshot.find(dimension)
        table = None if loaded is None else loaded.resident
        return () if table is None else table.charge_ids

    def _mark_for(self, loaded: LoadedDimension) -> Mark:
        """Return where reads are noted: nowhere for what can never go, which no policy knows."""
        table, dimension = loaded.resident, int(loaded.dimension_id)
        if table is not None and _is_evictable(table):
            return self.policy.admit(dimension)
        self.policy.forget(dimension)
        return [None]

    # -- loading: under the writer lock ------------------------------------------------------------

    def load(
        self,
        dimension: DimensionId,
        given: Path | None = None,
        edition: Edition | None = None,
        *,
        is_gathered: bool = False,
    ) -> int:
        """Map a dimension's files and publish them; see `MmapManager.load_dimension`.

        With an `edition` as they were then, where they have grown since. Gathered, a dimension that
        is new is published with the next publication: once for many, unless room has to be made,
        since what is not published cannot go. It may be refused then; see `Gathering`.
        """
        start = perf_counter()
        old = self.snapshot.find(dimension)
        if old is not None and not old.is_replaceable:
            raise DuplicateDimension(f"{dimension} is loaded, from {old.path}", dimension=dimension)
        if old is not None:
            self.check_not_crystallizing(dimension)
            is_gathered = False
        del old
        home = given or self.loader.path_of(dimension)
        region, region_id = self.map(dimension, home, edition=edition, checks_rows=not is_gathered)
        self.loader.note_home(dimension, given)
        seconds = perf_counter() - start
        self.latencies.add("load", int(seconds * NS))
        record = records.of_region("dimension_loaded", region, seconds=seconds)
        if is_gathered:
            self.gathering.add((region, region_id, record))
        else:
            self.publish_base(region, region_id)
            self.record(record)
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
            if self.loader.use_newest(dimension, home, identify) == base.identities:
                return False
        region, region_id = self.map(dimension, home, base.members)
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

    def map(
        self,
        dimension: DimensionId,
        home: Path,
        held: Sequence[MmapRegion] = (),
        edition: Edition | None = None,
        *,
        checks_rows: bool = True,
    ) -> tuple[MmapRegion | RegionChain, int]:
        """Map the files that count at `home`, evicting others if that is what it takes.

        Returns the region and its new region id; nothing is published.

        Parameters
        ----------
        held : sequence of MmapRegion
            What is mapped of them already.
        edition : Edition or None
            Where the files have grown beyond it, they are mapped as they were then.
        checks_rows : bool
            As for `Loader.map`.
        """

        def use(files: RegionFiles, chain: Chain) -> tuple[MmapRegion | RegionChain, int]:
            chain = chain if edition is None else chain.up_to(edition)
            take = partial(self.loader.map, checks_rows=checks_rows)
            load = partial(take, dimension, files, chain, held)
            return self.making_room(dimension, load)

        self._spare_descriptors(dimension)
        with self._recording_failure(dimension, home):
            while True:
                try:
                    return self.loader.use_newest(dimension, home, use)
                except RegionIOError as error:
                    # Each mapping holds a descriptor.
                    is_out_of_them = error.errno in descriptors.OUT_OF_DESCRIPTORS
                    if not is_out_of_them or not self.make_room(1, dimension, drops=False):
                        raise
                    empty_frames(error)

    def _spare_descriptors(self, wanted: DimensionId) -> None:
        """Evict the coldest, if any may go, until what opens files for a moment could do so.

        Writes, references and imports do, and could evict nothing themselves.
        """
        self._n_maps += 1
        if self._n_maps < descriptors.limit() // _N_FILES_A_MAP:
            return  # it could hardly be: then the load itself fails, and evicts
        while not descriptors.are_spare(_N_SPARE_DESCRIPTORS):
            if not self.make_room(1, wanted, drops=False):
                return  # no reason to refuse what can be mapped

    def making_room(self, dimension: DimensionId, load: Callable[[], T]) -> T:
        """Return what `load` does, evicting others where their memory is what it lacks."""
        for _ in range(s.MAX_DELTAS + 1):  # files are charged one by one
            try:
                return load()
            except LimitExceeded as error:
                if error.bound == "core_headroom":
                    raise
                missing = error.current + error.requested - error.limit
                if not (self.make_room(missing, wanted=dimension) or self._is_let_go(missing)):
                    raise
                empty_frames(error)
        return load()

    def _is_let_go(self, n_bytes: int) -> bool:
        """Wait for a look of the watcher, which holds what was just unloaded; tell whether it did.

        Within a moment: what somebody views for longer is waited for by nobody.
        """
        if self.watcher is None:
            return False
        target, deadline = self.used() - n_bytes, monotonic() + _LOOK_SECONDS
        while self.used() > target and monotonic() < deadline:
            sleep(_POLL_SECONDS)
        return self.used() <= target

    @contextmanager
    def _recording_failure(self, dimension: DimensionId, where: Path) -> Iterator[None]:
        try:
            yield
        except Unready:
            raise  # it is tried again
        except JessyMemoryError as error:
            self.record(records.of_failed_load(dimension, where, error))
            raise

    # -- what stays in memory: under the writer lock -----------------------------------------------

    def adopt(self, config: MemoryConfig) -> None:
        """Go on with these settings, which differ in the budget alone; it has that by now.

        Under the budget's lock too. May be done twice.
        """
        self.config = config
        self.loader.adopt(config)
        self.pressure.resize(config, self.budget.total)
        slots = slots_of(config)
        self._empty = Snapshot.empty(slots)
        self.snapshot = self.snapshot.with_capacities(slots)
        self._is_hopeless = False

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
        seconds = perf_counter() - start
        self.latencies.add("reload", int(seconds * NS))
        self.record(records.of_region("dimension_reloaded", region, seconds=seconds))
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

    def _remap(self, evicted: LoadedDimension) -> tuple[MmapRegion | RegionChain, int]:
        dimension = evicted.dimension_id
        viewed = evicted.still_viewed()
        if viewed and len(viewed) == evicted.n_members:
            with suppress(LimitExceeded):  # of its tables, which went
                return self.loader.assemble(viewed)
        # Another process may have written meanwhile.
        return self.map(dimension, self.loader.home_of(dimension), viewed)

    def make_room(
        self,
        n_bytes: int,
        wanted: DimensionId | None = None,
        *,
        drops: bool = True,
        all_or_none: bool = False,
    ) -> bool:
        """Evict the coldest regions until so many bytes are free; tell whether they are.

        What is inflated goes first, unless it is mappings that are to go.

        For a load (of `wanted`), or if it is to be `all_or_none`, nothing goes where all that may
        go would not be enough; for an allocation whatever can be had is welcome.
        """
        if self.gathering:
            self.publish()
        n_inflated = self.inflated.n_bytes if drops else 0
        all_or_none |= wanted is not None
        if all_or_none and not self._could_free(n_bytes - n_inflated, wanted):
            return False
        target = self.used() - n_bytes
        while n_inflated and (missing := self.used() - target) > 0:
            n_inflated = self.inflated.drop(missing)
        deadline = monotonic() + _PATIENCE_SECONDS
        n_in_vain = n_evicted = 0
        while n_in_vain < _N_IN_VAIN and self.used() > target:
            dimension = self.policy.choose(lambda each: self._freed_by(each, wanted) > 0)
            if dimension is None:
                self._is_hopeless = not n_evicted
                break
            n_evicted += 1
            charge_ids = self.evict(DimensionId(dimension))
            # A reader of an older state holds all of it, and needs no lock to drop it again.
            # Who holds something for longer is not waited for, nor are more regions evicted.
            while self.budget.is_charged(charge_ids) and monotonic() < deadline:
                sleep(_POLL_SECONDS)
            n_in_vain += self.budget.is_charged(charge_ids)
        return self.used() <= target

    def evict(self, dimension: DimensionId) -> tuple[int, ...]:
        """Keep a region's names only; return what was charged for it.

        Nothing here may hold the region when this returns.
        """
        region = self.snapshot.get(dimension).base
        charge_ids: tuple[int, ...] = region.charge_ids
        self.publish_evicted(region, self.snapshot.region_id_of(dimension))
        self.budget.retire(charge_ids)
        return charge_ids

    def publish_evicted(self, region: MmapRegion | RegionChain, region_id: int) -> None:
        """Publish the names of a region."""
        self.publish((EvictedRegion(region), region_id))
        self.n_evictions += 1
        self.record(records.of_region("dimension_evicted", region))

    def used(self) -> int:
        """Return what the budget counts, with all that was released until now."""
        with self.budget.changing():
            return self.budget.total

    def _could_free(self, n_bytes: int, wanted: DimensionId | None) -> bool:
        """Tell whether evicting all that may go would free so many bytes."""
        n_freed = 0
        if n_bytes <= 0:
            return True
        for dimension in self.policy:
            n_freed += self._freed_by(dimension, wanted)
            if n_freed >= n_bytes:
                return True
        self._is_hopeless = not n_freed
        return False

    def _freed_by(self, dimension: int, wanted: DimensionId | None) -> int:
        """Return the bytes that evicting a dimension would free; 0: it may not go."""
        loaded = self.snapshot.slot_of(dimension)
        region = None if loaded is None else loaded.loaded.resident
        if region is None or dimension == wanted or not self._may_go(region):
            return 0
        return region.n_charged

    def _may_go(self, region: LayerTable) -> bool:
        dimension = region.dimension_id
        return (
            _is_evictable(region)
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

    @clears_frames
    def allocator(self) -> PoolAllocator:
        """Return the allocator, which is made when it is first wanted.

        Raises InvalidAccess where there is none and the manager is closed.
        """
        if self.present_allocator is not None:
            return self.present_allocator
        before_import("jessymem.pools.allocator")
        # What frees a block is there before any is handed out.
        before_import("jessymem.pools.stored")
        from jessymem.pools import stored as stored
        from jessymem.pools.allocator import PoolAllocator

        evict = WeakMethod(self._make_room_for_blocks)  # no cycle
        while True:
            config = self.config
            made = PoolAllocator.within(
                config,
                self.budget,
                self.pressure,
                lambda n_bytes: (make_room := evict()) and make_room(n_bytes),
                self.latencies,
                self.loader.placement,
            )
            with self.budget.changing():
                if self.present_allocator is None:
                    self.check_open()
                    if config is not self.config:
                        continue  # the budget is another one by now
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

    def is_cold(self, dimension: DimensionId) -> bool:
        """Tell whether what is known of accesses calls a dimension cold: so is one that went."""
        if self.config.compress_cold == "none" or dimension in self.pinned:
            return False
        loaded = self.snapshot.find(dimension)
        if loaded is None or loaded.resident is None:
            return True
        return self.policy.is_cold(int(dimension))

    def check_inflatable(self, layer_id: LayerId, n_bytes: int) -> None:
        """Raise LimitExceeded where contents, of this layer or first of it, could never fit."""
        limit = self.pressure.critical.above_bytes
        if n_bytes > limit:
            raise LimitExceeded(
                f"{layer_id}: {n_bytes:,} bytes to be inflated together do not fit; blocks may "
                f"fill {limit:,}",
                bound="critical_threshold",
                current=self.budget.total,
                limit=limit,
                requested=n_bytes,
                waiting=self.budget.waiting_bytes,
                layer=layer_id,
            )

    def _note_droppable(self) -> None:
        """Note that there is something again that can go."""
        self._is_hopeless = False

    def _make_room_for_blocks(self, n_bytes: int) -> None:
        """Evict before an allocation."""
        if self.lock.is_mine():
            if self._is_allocating:  # else it interrupts a write: nothing may change under that
                self.make_room(n_bytes)
            return
        target = self.budget.total - n_bytes
        if self._is_hopeless and self._n_spared < _N_SPARED and not len(self.inflated):
            self._n_spared += 1
            return
        with suppress(InvalidAccess), self.writing():  # closed: the allocation will say so
            # Others may have made room while this one waited for the lock.
            missing = self.used() - target
            if missing > 0:
                self.make_room(missing)
            self._n_spared = 0

    def _live_charge_ids(self) -> set[int]:
        """Return all that is charged for what is loaded."""
        in_memory = {each for table in self.snapshot.resident for each in table.charge_ids}
        names = (table for loaded in self.snapshot.loaded for table in loaded.name_tables)
        return in_memory | {each.charge.id for each in names if each and each.charge}

    # -- ends --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unload everything and free every block; see `MmapManager.close`."""
        with self.lock.hold():
            with self.budget.changing():  # so that no allocator is made any more
                was_closed, self.is_closed = self.is_closed, True
                allocator = self.present_allocator
            if allocator is not None:
                allocator.close()
            charge_ids = self._live_charge_ids()
            lost = [layer for loaded in self.snapshot.loaded for layer in loaded.unwritten]
            self.snapshot, self.gathering = self._empty, Gathering()
            self.budget.retire(charge_ids)
        try:
            if not was_closed:
                if self.watcher is not None:
                    self.watcher.stop()
                self.loader.close()
                for record in records.of_close(self.loader.place, lost):
                    record()
        finally:
            if self.budget.has_postponed:
                self.budget.do_postponed()

    def after_fork(self) -> None:
        """Renew locks in a forked child, and make good what other threads had begun."""
        self._renew_lock()
        self._kept.clear()
        self._crystallizing = []
        self.gathering = Gathering()
        self._is_allocating = False
        self.watcher = None  # the parent's
        snapshot = self.snapshot
        for loaded in snapshot.loaded:
            loaded.forget_crystallizing()
        self.budget.after_fork(self._live_charge_ids())
        if self.present_allocator is not None:
            self.present_allocator.recount()
        self.inflated.after_fork()
        # It may just have been resized by another thread.
        self.adopt(replace(self.config, total_memory_mb=self.budget.limit_bytes // MIB))
        self.sampler.after_fork()
        self.latencies.after_fork()


def _is_evictable(region: LayerTable) -> bool:
    """Tell whether a region could be mapped again as it is: what is learned could not."""
    is_file = region.state in _EVICTABLE and region.base is region
    return is_file and region.dimension_id not in IMMUTABLE


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
            self._hold = None
        try:
            logger.write_waiting(failing=exception[1])
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
