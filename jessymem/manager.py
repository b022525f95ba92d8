"""`MmapManager`: one method per verb of the contract; the work is done in the rooms below it.

A process that only maps and reads should start quickly: rooms that it may never enter are imported
by the methods that lead there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import WeakMethod

import jessymem
from jessymem import osmem
from jessymem.batches import BatchVerbs
from jessymem.budget import Budget
from jessymem.config import MemoryConfig
from jessymem.core_dimensions import CORE_DIMENSIONS, SLOTS
from jessymem.errors import (
    DimensionNotFound,
    DuplicateDimension,
    InvalidAccess,
    JessyMemoryError,
    lets_go,
)
from jessymem.eviction import make_policy
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    as_dimension_id,
)
from jessymem.kernels import schema as s
from jessymem.learning.finding import base_of, learned_of, log_lost, unwritten_in
from jessymem.learning.verbs import LearningVerbs
from jessymem.loading import Loader, log_region, log_simulation, logged_failure
from jessymem.locks import Hold, Lock
from jessymem.logger import logger
from jessymem.pools.verbs import MemoryVerbs
from jessymem.pressure import Level, PressureLog
from jessymem.processes import editions_in, renew_in_forked_children, reopen
from jessymem.reading import ReadingVerbs
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import LayerTable
from jessymem.residency import ResidencyVerbs
from jessymem.sampling import ReadSampler
from jessymem.scanning.verbs import ScanningVerbs
from jessymem.snapshot import Snapshot


class MmapManager(
    ResidencyVerbs, LearningVerbs, ScanningVerbs, BatchVerbs, ReadingVerbs, MemoryVerbs
):
    """Maps region files and hands out their layers with no copy and no lock.

    Threads may share a manager. Readers never wait: they see a layer's old state or its new one,
    whatever loads, unloads or is replaced beside them. Writers take turns. A context manager:
    leaving it closes it.

    Parameters
    ----------
    config : MemoryConfig or int
        Settings, or just the budget in MiB.
    base_path : path-like, optional
        Directory of the region files, in place of the configuration's.

    Raises
    ------
    ConfigError
        Naming the field that makes no sense.

    Notes
    -----
    Lifetime: a view that was handed out stays valid and unchanged for as long as someone holds it,
    after `unload_dimension`, `refresh` and `close` too. Its memory counts in the budget until then.

    A manager pickles as its configuration and the generations that it has loaded; the copy maps the
    same files anew. A forked child goes on reading what was loaded.

    Examples
    --------
    >>> with MmapManager(280, base_path="no/such/directory") as manager:
    ...     report = manager.load_core_dimensions()  # bundled content stands in for files
    ...     manager.access_layer("L01-00").nbytes
    432
    """

    def __init__(
        self,
        config: MemoryConfig | int = 280,
        *,
        base_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._config = MemoryConfig.of(config, base_path)
        self._budget = Budget(self._config.limit_bytes, SLOTS)
        self._loader = Loader(self._config, self._budget)
        self._pressure = PressureLog(self._config)
        self._allocator = None
        self._empty = Snapshot.empty(SLOTS)
        self._snapshot = self._empty
        self._policy = make_policy(self._config.eviction_policy)
        self._pinned = set()
        self._kept = {}
        self._crystallizing = []
        self._is_hopeless = False
        self._n_spared = self._n_evictions = self._n_reloads = 0
        self._sampler = ReadSampler(self._policy.gate)
        self._gates = self._sampler.gates
        self._closed = False
        self._lock = Lock()
        self._postponed: deque[Callable[[], None]] = deque()
        self._budget.afterwards = WeakMethod(self._do_postponed)
        renew_in_forked_children(self)

    # -- finding and loading -----------------------------------------------------------------------

    def discover(self) -> list[DimensionId]:
        """Return the dimensions that have a region file under the base path, ascending.

        Raises
        ------
        RegionIOError
            If the directory cannot be listed; one that does not exist holds nothing.
        """
        self._check_open()
        return self._loader.discover()

    @lets_go
    def load_dimension(
        self, dimension_id: DimensionLike, path: str | os.PathLike[str] | None = None
    ) -> int:
        """Map a dimension's region file and publish its layers.

        Parameters
        ----------
        dimension_id : DimensionId, int or str
        path : path-like, optional
            By default ``D01/region.mmap`` and so on under the base path. What is learned in the
            dimension is crystallized into the file that it was loaded from.

        Returns
        -------
        int
            The region id: unique among all loads of this manager.

        Raises
        ------
        DuplicateDimension
            If it is loaded; one that is simulated is replaced.
        DimensionNotFound
            If there is no file.
        RegionFormatError
            If the file breaks the format.
        RegionIOError
            If it cannot be opened, mapped or read.
        LimitExceeded
            If it does not fit the budget, also after evicting what may go; or a core file does not
            fit its slot and the headroom.
        AllocationFailed
            If the system has no memory left (``load_mode="copy"``).
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If `dimension_id` or `path` is none.
        """
        dimension = as_dimension_id(dimension_id)
        home = None if path is None else osmem.as_path(path).absolute()
        with self._writing():
            return self._load(dimension, home)

    @lets_go
    def load_core_dimensions(self) -> jessymem.LoadReport:
        """Load D01 to D14; what cannot be loaded is skipped with a warning.

        Where no core file exists and ``simulation="auto"``, or with ``"always"``, the bundled
        layers stand in for them; they are listed as skipped all the same, since nothing was loaded
        from a file.

        Returns
        -------
        LoadReport

        Raises
        ------
        InvalidAccess
            If the manager is closed.
        """
        return self._load_several(list(CORE_DIMENSIONS))

    @lets_go
    def load_all(self) -> jessymem.LoadReport:
        """Load the core dimensions, as `load_core_dimensions` does, and every other one on disk.

        Returns
        -------
        LoadReport

        Raises
        ------
        InvalidAccess
            If the manager is closed.
        RegionIOError
            If the base path cannot be listed.
        """
        core = list(CORE_DIMENSIONS)
        return self._load_several(core + [found for found in self.discover() if found not in core])

    @lets_go
    def refresh(self, dimension_id: DimensionLike) -> bool:
        """Adopt the newer file that another process published under the loaded one's name.

        Readers go on meanwhile; views that are held keep the old file's bytes.

        Returns
        -------
        bool
            False if the file is still the same, or neither of a higher generation nor, at the same
            one, created later. Plain V1 files have no generations: there another file under the
            name counts as newer.

        Raises
        ------
        DimensionNotFound
            If the dimension is not loaded from a file, or the file is gone.
        RegionFormatError, RegionIOError, LimitExceeded, AllocationFailed
            As `load_dimension`; the old file stays loaded.
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If `dimension_id` is none.
        """
        dimension = as_dimension_id(dimension_id)
        with self._writing():
            old = self._standing_for(dimension)
            if isinstance(old, EvictedRegion):
                evicted, old = old, self._bring_back(dimension)
                if old.edition != evicted.edition:
                    return True
            base, state = base_of(old), old.state
            del old
            if base is None or base.path is None:
                raise DimensionNotFound(
                    f"{dimension} is {s.REGION_STATES[state]}: there is no file to refresh it from",
                    dimension=dimension,
                    path=None,
                )
            self._check_calm(dimension)
            home = self._loader.home_of(dimension)
            with logged_failure(dimension, home):
                identify = partial(self._loader.identify, dimension)
                if self._loader.with_newest(dimension, home, identify) == base.identity:
                    return False
                region, region_id = self._map_newest(dimension, home)
            if region.generation != 0 and region.edition[:2] <= base.edition[:2]:
                return False
            del base
            self._publish_base(region, region_id)
            log_region("dimension_refreshed", region)
            return True

    @lets_go
    def unload_dimension(self, dimension_id: DimensionLike) -> None:
        """Take a dimension's layers away from new reads; views that are held stay valid.

        Raises
        ------
        DimensionNotFound
            If it is not loaded.
        InvalidAccess
            If it has learned layers, which would be lost: crystallize or discard them first. Or if
            the manager is closed.
        ValueError, TypeError
            If `dimension_id` is none.
        """
        dimension = as_dimension_id(dimension_id)
        self._give_up(partial(self._unload, dimension))

    def _unload(self, dimension: DimensionId) -> None:
        with self._writing():
            region = self._standing_for(dimension)
            self._check_calm(dimension)
            self._check_nothing_is_lost(region)
            region_id = self._snapshot.region_id_of(dimension)
            self._snapshot = self._snapshot.without(dimension)
            self._budget.retire(region_id)
            self._policy.forget(int(dimension))
            self._pinned.discard(dimension)
            self._loader.settle(dimension, None)
            self._give_back(layer.block for layer in learned_of(region).values())
            if isinstance(region, LayerTable):
                log_region("dimension_unloaded", region)
            del region

    def close(self) -> None:
        """Unload everything and take every block back; a second call does nothing.

        Learned layers that were not crystallized are gone; a record at warning names them. Views
        that are held stay valid. Afterwards every call but `get_stats`, `dump_state` and
        `is_loaded` raises InvalidAccess.
        """
        self._give_up(self._close)

    def _close(self) -> None:
        with self._lock.hold():
            with self._budget.lock.hold():  # so that no allocator is made any more
                was_closed, self._closed = self._closed, True
                allocator = self._allocator
            if allocator is not None:
                allocator.close()
            region_ids = self._snapshot.region_ids()
            lost = [layer for region in self._snapshot.loaded for layer in unwritten_in(region)]
            self._snapshot = self._empty
            for region_id in region_ids:
                self._budget.retire(region_id)
            if was_closed:
                return
            log_lost(lost)
            logger.info("closed", extra={"event": "closed", "base_path": str(self._loader.base)})

    # -- seeing ------------------------------------------------------------------------------------

    @property
    def config(self) -> MemoryConfig:
        """The settings in force."""
        return self._config

    def get_stats(self) -> jessymem.MemoryStats:
        """Return what the manager measured of itself; works on a closed one too."""
        from jessymem import diagnostics

        return diagnostics.collect_stats(self)

    def dump_state(self) -> dict[str, Any]:
        """Return the whole state, ready for `json.dumps`; works on a closed manager too.

        Returns
        -------
        dict
            Keys "config", "budget", "pools", "regions", "layers", "counters", "waiting".
        """
        from jessymem import diagnostics

        return diagnostics.dump_state(self)

    # -- the rest of being an object ---------------------------------------------------------------

    def __enter__(self) -> MmapManager:
        """Return the manager itself."""
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Show where it looks and what it holds."""
        state = "closed" if self._closed else f"{len(self._snapshot.loaded)} dimensions"
        return f"<MmapManager {self._loader.base} {state}>"

    @lets_go
    def __reduce__(self) -> tuple[Callable[..., MmapManager], tuple[Any, ...]]:
        """Pickle as configuration and loaded generations; what is being learned stays here."""
        snapshot = self._snapshot
        self._check_open()
        loaded = editions_in(snapshot, self._loader)
        return reopen, (type(self), MemoryConfig.of(self._config, self._loader.base), loaded)

    # -- inside ------------------------------------------------------------------------------------

    def _writing(self) -> Writing:
        return Writing(self)

    def _interrupts(self) -> bool:
        """Tell whether this was called in the middle of another call of its own thread.

        By a signal handler, say, or by a finalizer that the garbage collector ran. It must not wait
        then: whoever it would wait for may be waiting for what was interrupted.
        """
        return self._budget.lock.is_mine() or self._lock.is_mine()

    def _give_up(self, action: Callable[[], None]) -> None:
        """Do what gives something back: now, or as soon as what it interrupts is done."""
        if self._interrupts():
            self._postponed.append(action)
        else:
            action()

    def _do_postponed(self) -> None:
        while self._postponed and not self._interrupts():
            try:
                action = self._postponed.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                action()
            except JessyMemoryError as error:
                logger.warning(
                    "not done after what it interrupted: %s",
                    str(error),
                    extra={"event": "postponed_failed", "error": type(error).__name__},
                )

    def _observe_pressure(self) -> list[Level]:
        with self._budget.lock.hold():
            return self._pressure.observe(self._budget.total)

    def _make_allocator(self) -> jessymem.PoolAllocator:
        from jessymem.pools.allocator import PoolAllocator

        with self._budget.lock.hold():
            if self._allocator is None:
                self._check_open()
                evict = WeakMethod(self._make_room_for_blocks)  # no cycle
                self._allocator = PoolAllocator.within(
                    self._config,
                    self._budget,
                    self._pressure,
                    lambda n_bytes: (make_room := evict()) and make_room(n_bytes),
                )
            return self._allocator

    def _load(self, dimension: DimensionId, home: Path | None = None) -> int:
        start = perf_counter()
        old = self._snapshot.region_of(dimension)
        if old is not None and old.state not in (s.REGION_SIMULATED, s.REGION_LEARNED):
            raise DuplicateDimension(f"{dimension} is loaded, from {old.path}", dimension=dimension)
        if old is not None:
            self._check_calm(dimension)
        del old
        home = home or self._loader.path_of(dimension)
        with logged_failure(dimension, home):
            region, region_id = self._map_newest(dimension, home)
        self._publish_base(region, region_id)
        self._loader.settle(dimension, home)
        log_region("dimension_loaded", region, seconds=perf_counter() - start)
        return region_id

    def _load_simulated(self, dimension: DimensionId) -> None:
        with logged_failure(dimension, self._loader.path_of(dimension)):
            region, region_id = self._loader.simulate(dimension)
        self._publish_base(region, region_id)

    def _publish_base(self, region: MmapRegion, region_id: int) -> None:
        """Publish a file's layers, with those over them that are being learned."""
        dimension = region.dimension_id
        old = self._snapshot.region_of(dimension)
        replaced = None if old is None else self._snapshot.region_id_of(dimension)
        with self._laid_over(region, learned_of(old)) as standing:
            del old
            self._place((standing, region_id))
            del standing
        if replaced is not None:
            self._budget.retire(replaced)

    def _load_several(self, dimensions: list[DimensionId]) -> jessymem.LoadReport:
        from jessymem.stats import LoadReport

        start = perf_counter()
        loaded: list[DimensionId] = []
        simulated: list[DimensionId] = []
        skipped: list[tuple[DimensionId, str]] = []
        with self._writing():
            simulate = self._loader.wants_simulation()
            for dimension in dimensions:
                try:
                    if not simulate or dimension not in CORE_DIMENSIONS:
                        self._load(dimension)
                        loaded.append(dimension)
                    elif self.is_loaded(dimension):
                        skipped.append((dimension, "is loaded"))
                    else:
                        self._load_simulated(dimension)
                        simulated.append(dimension)
                        skipped.append((dimension, "simulated"))
                except JessyMemoryError as error:
                    skipped.append((dimension, str(error)))
            if simulated:
                log_simulation(simulated, self._loader.base)
        return LoadReport(tuple(loaded), tuple(skipped), perf_counter() - start)

    def _after_fork(self) -> None:
        self._lock = Lock()
        self._kept.clear()
        self._rest_all()
        snapshot = self._snapshot
        resident = {snapshot.region_id_of(region.dimension_id) for region in snapshot.resident}
        self._budget.after_fork(resident)
        if self._allocator is not None:
            self._allocator.recount()
        self._sampler.after_fork()


class Writing:
    """Holds a manager's writer lock, and records afterwards which thresholds were passed."""

    __slots__ = ("_hold", "_manager", "_risen")

    def __init__(self, manager: MmapManager) -> None:
        self._manager = manager
        self._risen: list[Level] = []
        self._hold: Hold | None = None

    def __enter__(self) -> None:
        """Wait for the lock.

        Raises InvalidAccess if the manager is closed; or where this interrupts a call of its own
        thread, and the lock is another's.
        """
        manager = self._manager
        is_free_to_wait = manager._lock.is_mine() or not manager._budget.lock.is_mine()
        self._hold = manager._lock.hold() if is_free_to_wait else manager._lock.hold_if_free()
        if self._hold is None:
            raise InvalidAccess(
                "another thread is writing, and what this call interrupts may be what it waits for"
            )
        try:
            manager._check_open()
            self._risen += manager._observe_pressure()
        except BaseException:
            self._hold = None
            raise

    def __exit__(self, *exception: object) -> None:
        """Give it back."""
        manager = self._manager
        if not exception[1]:
            self._risen += manager._observe_pressure()
        self._hold = None
        budget = manager._budget
        manager._pressure.record(self._risen, budget.total, waiting_bytes=budget.waiting_bytes)
        manager._do_postponed()
