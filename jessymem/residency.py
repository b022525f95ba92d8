"""What stays in memory: regions make room under pressure and come back when they are read.

Room is made before a writer copies the snapshot, never within; a manager's lock is held, the
budget's is not.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Final

from jessymem import osmem
from jessymem.budget import Budget
from jessymem.core_dimensions import IMMUTABLE
from jessymem.errors import (
    InvalidAccess,
    LimitExceeded,
    lets_go,
)
from jessymem.eviction import Mark, Policy
from jessymem.ids import DimensionId, DimensionLike, LayerId, as_dimension_id
from jessymem.kernels import schema as s
from jessymem.loading import Loader, log_region, logged_failure
from jessymem.locks import Lock
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import LayerTable
from jessymem.snapshot import Placed, Snapshot, Standing

#: How long readers that are in the middle of something may delay a load or an allocation.
_PATIENCE_SECONDS: Final = 0.1
_POLL_SECONDS: Final = 0.0002

#: After so many evictions that freed nothing, somebody holds a whole state: no more would.
_N_IN_VAIN: Final = 2

#: Where nothing could go, so many allocations do not ask again, as long as nothing else is loaded.
_N_SPARED: Final = 255

_EVICTABLE: Final = (s.REGION_MAPPED, s.REGION_COPIED)


class ResidencyVerbs:
    """The part of a manager that decides what stays in memory."""

    _lock: Lock
    _snapshot: Snapshot
    _budget: Budget
    _loader: Loader
    _policy: Policy
    _pinned: set[DimensionId]
    _kept: dict[object, frozenset[DimensionId]]
    _is_hopeless: bool  # nothing could go when it was asked for last, and nothing has changed since
    _n_spared: int
    _n_evictions: int
    _n_reloads: int

    if TYPE_CHECKING:

        def _writing(self) -> AbstractContextManager[None]: ...
        def _check_open(self) -> None: ...
        def _give_up(self, action: Callable[[], None]) -> None: ...
        def _standing_for(
            self, dimension: DimensionId, snapshot: Snapshot | None = None
        ) -> Standing: ...

    @lets_go
    def pin(self, dimension_id: DimensionLike) -> None:
        """Keep a dimension in memory, whatever the pressure, until `unpin` or its unloading.

        One that was evicted is mapped again. Pinning twice is pinning once.

        Raises
        ------
        DimensionNotFound
            If it is not loaded.
        LimitExceeded, RegionIOError, RegionFormatError, AllocationFailed
            As `load_dimension`, where it has to be mapped again.
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If `dimension_id` is none.
        """
        dimension = as_dimension_id(dimension_id)
        with self._writing():
            self._bring_back(dimension)
            self._pinned.add(dimension)

    @lets_go
    def unpin(self, dimension_id: DimensionLike) -> None:
        """Let a dimension be evicted again; nothing to do for one that is not pinned.

        Raises
        ------
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If `dimension_id` is none.
        """
        dimension = as_dimension_id(dimension_id)
        self._give_up(partial(self._unpin, dimension))

    def _unpin(self, dimension: DimensionId) -> None:
        with self._writing():
            self._pinned.discard(dimension)
            self._is_hopeless = False

    # -- inside ------------------------------------------------------------------------------------

    def _place(self, *standings: tuple[Standing, int]) -> None:
        """Publish what stands for dimensions from now on, each with its region id, at once.

        Raises InvalidAccess where a handler of a record has closed the manager in this thread.
        """
        self._check_open()
        self._is_hopeless = False
        self._snapshot = self._snapshot.with_regions(
            Placed(region, region_id, self._new_mark(region)) for region, region_id in standings
        )

    def _new_mark(self, region: Standing) -> Mark:
        if isinstance(region, EvictedRegion):
            return [None]
        return self._policy.admit(int(region.dimension_id))

    def _bring_back(self, dimension: DimensionId) -> LayerTable:
        """Return a loaded dimension's table, mapping its file again if it was evicted."""
        with self._writing():
            standing = self._standing_for(dimension)
            if not isinstance(standing, EvictedRegion):
                return standing
            start = perf_counter()
            region, region_id = self._remap(standing)
            self._place((region, region_id))
            self._n_reloads += 1
            log_region("dimension_reloaded", region, seconds=perf_counter() - start)
            return region

    def _bring_back_if_loaded(self, dimension: DimensionId) -> LayerTable | None:
        """Do as `_bring_back` does; return None where a dimension is not loaded (any more)."""
        with self._writing():
            return self._bring_back(dimension) if dimension in self._snapshot else None

    def _bring_all_back(self, layer_ids: Iterable[LayerId]) -> Snapshot:
        """Return a state in which each of `layer_ids` that is loaded is in memory.

        Within `_keeping` their dimensions, or one would have to go for the other.
        """
        with self._writing():
            for layer_id in layer_ids:
                standing = self._snapshot.region_of(layer_id.dimension)
                if isinstance(standing, EvictedRegion) and standing.has_layer(layer_id.layer):
                    self._bring_back(layer_id.dimension)
            return self._snapshot

    def _remap(self, evicted: EvictedRegion) -> tuple[MmapRegion, int]:
        dimension = evicted.dimension_id
        region_id = self._snapshot.region_id_of(dimension)
        viewed = evicted.still_viewed()
        if viewed is not None and self._budget.reclaim(region_id):
            return viewed, region_id
        del viewed
        home = self._loader.home_of(dimension)
        with logged_failure(dimension, home):
            return self._map_newest(dimension, home)  # another process may have written meanwhile

    def _map_newest(self, dimension: DimensionId, home: Path) -> tuple[MmapRegion, int]:
        """Map the file that counts at `home`."""
        return self._loader.with_newest(dimension, home, partial(self._map, dimension))

    def _map(self, dimension: DimensionId, where: Path) -> tuple[MmapRegion, int]:
        """Map a file, evicting others if that is what it takes."""
        try:
            return self._loader.map(dimension, where)
        except LimitExceeded as error:
            if error.limit != self._budget.limit_bytes:
                raise  # it is the headroom of the core dimensions that is short
            missing = error.current + error.requested - error.limit
            if not self._make_room(missing, wanted=dimension):
                raise
        return self._loader.map(dimension, where)

    def _make_room(self, n_bytes: int, wanted: DimensionId | None = None) -> bool:
        """Evict the coldest regions until so many bytes are free; tell whether they are.

        For a load (of `wanted`) nothing goes where all that may go would not be enough; for an
        allocation whatever can be had is welcome.
        """
        sizes = {
            int(region.dimension_id): osmem.round_to_pages(region.size)
            for region in self._snapshot.resident
            if self._may_go(region) and region.dimension_id != wanted
        }
        self._is_hopeless = not sizes
        if wanted is not None and sum(sizes.values()) < n_bytes:
            return False
        target = self._used() - n_bytes
        deadline = monotonic() + _PATIENCE_SECONDS
        n_in_vain = 0
        while sizes and n_in_vain < _N_IN_VAIN and self._used() > target:
            dimension = self._policy.choose(sizes.keys())
            del sizes[dimension]
            region_id = self._evict(DimensionId(dimension))
            # A reader of an older state holds all of it, and needs no lock to let go of it again.
            # Who holds something for longer is not waited for, nor are more regions given up.
            while self._budget.is_charged(region_id) and monotonic() < deadline:
                sleep(_POLL_SECONDS)
            n_in_vain += self._budget.is_charged(region_id)
        return self._used() <= target

    def _used(self) -> int:
        """Return what the budget counts, with all that was released until now."""
        with self._budget.lock.hold():
            return self._budget.total

    def _may_go(self, region: LayerTable) -> bool:
        dimension = region.dimension_id
        return (
            isinstance(region, MmapRegion)
            and region.state in _EVICTABLE
            and dimension not in IMMUTABLE
            and dimension not in self._pinned
            and not any(dimension in kept for kept in self._kept.copy().values())
            and not is_viewed(region)
        )

    def _evict(self, dimension: DimensionId) -> int:
        """Keep a region's names only; return its region id.

        Nothing here may hold the region when this returns.
        """
        region = self._snapshot.region_of(dimension)
        region_id = self._snapshot.region_id_of(dimension)
        if not isinstance(region, MmapRegion):
            raise AssertionError("only what a file has may go")
        self._place((EvictedRegion(region), region_id))
        self._policy.forget(int(dimension))
        self._budget.retire(region_id)
        self._n_evictions += 1
        log_region("dimension_evicted", region)
        return region_id

    def _make_room_for_blocks(self, n_bytes: int) -> None:
        """Evict before an allocation; called without any lock."""
        target = self._budget.total - n_bytes
        if self._is_hopeless and self._n_spared < _N_SPARED:
            self._n_spared += 1
            return
        with suppress(InvalidAccess), self._writing():  # closed: the allocation will say so
            # Others may have made room while this one waited for the lock.
            missing = self._used() - target
            if missing > 0:
                self._make_room(missing)
            self._n_spared = 0

    @contextmanager
    def _keeping(self, dimensions: Iterable[DimensionId]) -> Iterator[None]:
        """Let none of `dimensions` be evicted within."""
        kept = frozenset(dimensions)
        token = object()
        # No lock: who leaves may still hold what a writer waits for.
        self._kept[token] = kept
        try:
            yield
        finally:
            self._kept.pop(token, None)  # a forked child starts without


def is_viewed(region: MmapRegion) -> bool:
    """Tell whether anybody holds a view of a region's bytes: its memory would not come free.

    Every view cut from the region's own shares one buffer object with it, whose references tell how
    many there are. Where an interpreter counts differently, a viewed region is evicted in vain, and
    taken back as it is when it is read again.
    """
    return _count_references(region.reader[0]) > _N_UNVIEWED


def _count_references(view: memoryview) -> int:
    """Count the references to a view's buffer object, those of counting included."""
    for buffer in gc.get_referents(view):
        if type(buffer).__name__ == "managedbuffer":
            return sys.getrefcount(buffer)
    return 0


#: What is counted where a view is the only one: interpreters differ in how many are of counting.
_N_UNVIEWED: Final = _count_references(memoryview(b""))
