"""`Supply`: the slow way to a block, and back.

Where the kernel alone does not serve: because a threshold of the budget would be passed, pages have
to be cleared or trimmed, a pool has to be made, others have to evict, something is to be recorded
or refused. Arrays change under the budget's lock; evicting and recording wait for whatever they
like, so they never happen under it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from operator import setitem
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakMethod

import numpy as np

import jessymem
from jessymem.budget import Budget
from jessymem.config import MemoryConfig
from jessymem.errors import AllocationFailed, InvalidAccess, JessyMemoryError, LimitExceeded
from jessymem.kernels import _jit, memory, release
from jessymem.kernels import schema as s
from jessymem.kernels.transactions import NOT_PLAIN, PlainState
from jessymem.logger import DEBUG
from jessymem.pools import failures
from jessymem.pools.growth import GROWTH_BYTES, GrownPool, Growth
from jessymem.pools.offsets import MmapOffset, unpack
from jessymem.pools.records import Records, is_enabled_for
from jessymem.pools.survey import survey
from jessymem.pools.table import PoolTable
from jessymem.pools.trimmer import Trimmer
from jessymem.pools.views import Views
from jessymem.pressure import Level, PressureLog

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NOTHING_FITS: Final = (s.POOL_FULL, s.FRAGMENTED, s.NO_POOL)


class Request:
    """One block that is wanted, or many together, and what was claimed for them.

    Parameters
    ----------
    sizes : int or ndarray of int64
        In bytes.
    zero : int
        Whether the kernel clears a single block; many are cleared as the words say.

    Attributes
    ----------
    claimed : list of int, or ndarray of int64
        The handles; 0, or a code, where nothing is claimed.
    """

    __slots__ = ("_handles", "_zero", "claimed", "sizes")

    def __init__(self, sizes: int | NDArray[np.int64], zero: int = 0) -> None:
        self.sizes = sizes
        self._zero = zero
        self.claimed: Any = [0]
        self._handles: Any = None
        if not isinstance(sizes, int):
            self._handles = np.zeros(len(sizes) + 1, np.int64)
            self.claimed = self._handles[: len(sizes)]

    def claim(self, table: PoolTable, limit_at: int) -> int:
        """Claim up to the limit in that word; return OK or the code why nothing was claimed.

        What was claimed is noted at once: an interrupt of Python finds it.
        """
        if not isinstance(self.sizes, int):
            return int(
                table.allocation.allocate_many(table.argument, self.sizes, limit_at, self._handles)
            )
        wanted = self.sizes, limit_at, self._zero
        result: Any = NOT_PLAIN
        if type(argument := table.argument) is PlainState:
            note = partial(setitem, self.claimed, 0)
            result = argument.call(table.allocation.allocate_any, *wanted, note=note)
        if result is NOT_PLAIN:
            claim: Any = table.allocation.allocate_any
            claimed = map(claim, (table.argument,), *((each,) for each in wanted))
            deque(map(setitem, (self.claimed,), (0,), claimed), 0)  # in one step of C
        return s.OK if self.claimed[0] > 0 else int(self.claimed[0])

    @property
    def each(self) -> list[int]:
        """The sizes one by one."""
        return [self.sizes] if isinstance(self.sizes, int) else self.sizes.tolist()

    @property
    def n_failing(self) -> int:
        """After a failure: what a new pool must hold at once."""
        if isinstance(self.sizes, int):
            return self.sizes
        return int(self.sizes[self._handles[-1]])


class Supply:
    """Serves one allocator.

    Attributes
    ----------
    table : PoolTable
    views : Views
    evict : callable or None
    is_closed : bool
    n_failures : int
        Calls for memory that were refused.
    """

    def __init__(
        self,
        config: MemoryConfig,
        budget: Budget,
        pressure: PressureLog,
        evict: Callable[[int], object] | None,
        placement: jessymem.hints.Placement | None = None,
    ) -> None:
        configs: Any = config.pool_configs
        self.table = PoolTable(configs, config.limit_bytes, placement)
        # Weak: memory goes with the last reference, and waits for no collector of cycles.
        self.views = Views(self.table, WeakMethod(self.follow_up))
        self.evict = evict
        self.is_closed = False
        self.n_failures = 0
        self._budget = budget
        self._pressure = pressure
        self._growth = Growth(self.table, budget, pressure)
        self._trimmer = Trimmer(self.table)
        self._records = Records(self.table, budget, pressure)
        self._zeroes = config.zero_on_reuse
        self._evicting: set[int] = set()  # threads
        state = self.table.state
        state[s.ZERO_ON_REUSE] = config.zero_on_reuse

    def start(self) -> PlainState | memory.Words:
        """Count in the shared words from now on; return what kernels take at present.

        Raises
        ------
        InvalidAccess
            If the allocator is closed, or what this interrupts is changing the budget: its numbers
            may be half-way.
        """
        self.check_open()
        if self.table.argument is None and self._budget.lock.is_mine():
            raise InvalidAccess(
                "blocks cannot be handed out for the first time in the middle of a call that "
                "changes the budget"
            )
        if self.table.argument is None:
            with self._budget.lock.hold():
                self.check_open()
                if self.table.argument is None:
                    self._attach()
        if type(state := self.table.argument) is PlainState and _jit.is_promoted(_jit.MEMORY):
            state.close()  # as it has been, but for an interrupt in `_attach`
        return self.table.argument

    def _attach(self) -> None:
        state = self.table.state
        keep, follow = partial(getattr, self.table.arena, "mappings"), WeakMethod(self._follow)
        plain = PlainState(state, memory.argument_of, keep, follow)
        self._budget.attach(state, plain)
        self._budget.trim = WeakMethod(self._trimmer.trim)
        self._budget.count_waiting = WeakMethod(self._count_waiting)
        self._budget.on_fall = self._pressure.rearm
        self._pressure.attach(state, self.evict is not None)
        self.table.argument = plain
        if plain.is_compiled:  # by now
            self._follow(plain.argument)

    def _count_waiting(self) -> int:
        return survey(self.table).n_waiting

    def _follow(self, argument: memory.Words) -> None:
        """Give kernels what compiled ones take, from now on."""
        if self.table.argument is not None:
            self._budget.argument = self.table.argument = argument

    # -- the way to a block ------------------------------------------------------------------------

    def allocate(self, n_bytes: int, handle: int) -> int:
        """Take a block, or keep the one that the kernel has taken; return its handle.

        `handle` is that one, or the code why there is none. Raises as `PoolAllocator.allocate`;
        nothing is claimed then.
        """
        is_large = n_bytes > int(self.table.state[s.INLINE_LIMIT])
        request = Request(n_bytes, int(self._zeroes and not is_large))
        request.claimed[0] = handle
        try:
            if handle < 0:
                if self.views.has_ended:
                    self.views.collect_ended()
                is_untried = is_large or handle == s.NOT_STARTED
                if not is_untried or self._attempt(request, s.QUIET_LIMIT) != s.OK:
                    self._claim(request)
                handle = int(request.claimed[0])
                if is_large and self._zeroes:
                    with suppress(KeyError):  # closed meanwhile, and unmapped
                        self.table.clear(*unpack(handle)[:2], n_bytes)
            if self.is_closed:
                raise failures.closed()
            if is_enabled_for(DEBUG):
                self._record(request)
            return handle  # in here: an interrupt may come before it too
        except BaseException:
            self._undo(request)
            raise

    def allocate_many(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Take a block for each size, or none; return their handles.

        Raises as `PoolAllocator.allocate_many`; nothing is claimed then.
        """
        request = Request(sizes)
        try:
            if self._attempt(request, s.QUIET_LIMIT) != s.OK:
                self._claim(request)
            if self.is_closed:
                raise failures.closed()
            if is_enabled_for(DEBUG):
                self._record(request)
            claimed: NDArray[np.int64] = request.claimed
            return claimed
        except BaseException:
            self._undo(request)
            raise

    def _claim(self, request: Request) -> None:
        """Claim up to the critical threshold, with whatever helps; raise if nothing does."""
        sizes = request.each
        n_bytes = sum(sizes)
        # Of many, most are alike.
        cost = sum(n * self.table.cost_of(size) for size, n in Counter(sizes).items())
        is_possible = cost <= self._pressure.critical.above_bytes
        if is_possible:
            self._evict_ahead(cost)
        risen: list[Level] = []
        made: list[GrownPool] = []
        try:
            with self._budget.changing() as is_nested:
                if not is_possible:
                    raise self._over_limit(n_bytes)
                if not is_nested:
                    self._growth.release_empty_pools()
                while (code := self._attempt(request, s.CRITICAL_LIMIT)) != s.OK:
                    self._remove_obstacle(code, request, n_bytes, made, is_nested=is_nested)
                risen += self._pressure.observe(self._budget.total)
        except JessyMemoryError as error:
            if made:
                self._release_empty_pools()
            if isinstance(error, LimitExceeded):
                with self._budget.lock.hold():
                    risen += self._pressure.refuse()
            if not isinstance(error, InvalidAccess):
                with self._budget.lock.hold():
                    self.n_failures += 1
                self._records.write_failure(error, n_bytes)
            raise
        finally:
            for pool in made:
                self._records.write_pool(pool)
            if risen:
                self._records.write_levels(risen, n_bytes)

    def _attempt(self, request: Request, limit_at: int) -> int:
        return s.IS_CLOSED if self.is_closed else request.claim(self.table, limit_at)

    def _evict_ahead(self, cost: int) -> None:
        """Have others evict to below the warning threshold before that for eviction is passed."""
        thread = get_ident()
        if self.evict is None or thread in self._evicting or self._budget.lock.is_mine():
            return
        after = self._budget.total + cost
        if after > self._pressure.eviction.above_bytes:
            try:
                self._evicting.add(thread)
                self.evict(after - self._pressure.warning.above_bytes)
            finally:
                self._evicting.discard(thread)

    def _remove_obstacle(
        self,
        code: int,
        request: Request,
        n_bytes: int,
        made: list[GrownPool],
        *,
        is_nested: bool,
    ) -> None:
        """Remove the reason why nothing was claimed, or raise it; under the lock."""
        self.check_open()
        if code in _NOTHING_FITS:
            pool = self._growth.make_pool(code, request.n_failing, may_change=not is_nested)
            if pool is not None:
                made.append(pool)
                return
        if code != s.RETAINED or is_nested or not self._trimmer.trim():
            raise self._over_limit(n_bytes)

    def _over_limit(self, n_bytes: int) -> LimitExceeded:
        found = survey(self.table)
        total, waiting = self._budget.total, self._budget.waiting_bytes + found.n_waiting
        limit = self._pressure.critical.above_bytes
        return LimitExceeded(
            f"{n_bytes:,} bytes do not fit: {total:,} of {self._budget.limit_bytes:,} are in use, "
            f"blocks may fill {limit:,}; {waiting:,} are waiting for views to be dropped, and "
            f"{found.n_retained:,} of freed pages are retained",
            bound="critical_threshold",
            current=total,
            limit=limit,
            requested=n_bytes,
            waiting=waiting,
        )

    def _record(self, request: Request) -> None:
        for handle, n_bytes in zip(map(int, request.claimed), request.each, strict=True):
            self._records.write_block("allocated", MmapOffset.from_packed(handle), n_bytes)

    def _undo(self, request: Request) -> None:
        for handle in map(int, request.claimed):
            if handle > 0:
                self.undo(handle)

    def undo(self, handle: int) -> None:
        """Release what was claimed by a call that then failed."""
        release.deallocate(self.table.argument, handle, s.ANY_SIZE)
        if self.is_closed:
            self.retire_blocks()

    # -- freeing -----------------------------------------------------------------------------------

    def deallocate_many(self, handles: NDArray[np.int64]) -> None:
        """Free many blocks, or none; raises as `PoolAllocator.deallocate_many`."""
        failed = np.zeros(1, np.int64)
        requested: list[int | None] = []
        if is_enabled_for(DEBUG):
            requested = list(map(self.table.requested_by, handles.tolist()))
        code = int(release.deallocate_many(self.table.argument, handles, failed))
        if self.is_closed:
            self.retire_blocks()  # which may have passed by blocks that were on their way
        if code < 0:
            code = s.IS_CLOSED if self.is_closed else code
            offset = MmapOffset.from_packed(handles[failed[0]])
            raise self.record_misuse(failures.wrong_block(code, offset, s.ANY_SIZE, self.table))
        self.follow_up(code)
        if requested:
            for handle, n_requested in zip(handles.tolist(), requested, strict=True):
                offset = MmapOffset.from_packed(handle)
                self._records.write_block("deallocated", offset, n_requested)

    def end_deallocation(
        self, code: int, handle: int, n_bytes: int, n_requested: int | None = None
    ) -> None:
        """Do what remains after the kernel freed a block, or raise why it did not.

        `n_requested` is what was asked for, where a record is to tell.
        """
        if code < 0:
            offset = MmapOffset.from_packed(handle)
            raise self.record_misuse(failures.wrong_block(code, offset, n_bytes, self.table))
        self.follow_up(code)
        if n_requested is not None:
            self._records.write_block("deallocated", MmapOffset.from_packed(handle), n_requested)

    def record_misuse(self, error: JessyMemoryError) -> JessyMemoryError:
        """Record why a block was not freed; return that."""
        self._records.write_misuse(error)
        return error

    def follow_up(self, flags: int) -> None:
        """Do what a kernel noted when it freed something; waits for nobody.

        Where others are busy with the budget, the next slow call does it.
        """
        if not (flags & (s.IS_REARMED | s.IS_EMPTY) or self.is_closed):
            return
        with self._budget.changing_if_idle() as is_idle:
            if is_idle and flags & s.IS_REARMED:
                self._pressure.rearm(self._budget.total)
            if is_idle and flags & s.IS_EMPTY:
                self._growth.release_empty_pools()
            if is_idle and self.is_closed:
                self._unmap_when_unused()

    def _release_empty_pools(self) -> None:
        with self._budget.changing_if_idle() as is_idle:
            if is_idle:
                self._growth.release_empty_pools()

    # -- pools and pages ---------------------------------------------------------------------------

    def add_pool(self, block_bytes: int, n_bytes: int) -> int:
        """Make a further pool; return its id. Raises as `PoolAllocator.add_pool`."""
        with self._budget.changing() as is_nested:
            self.check_open()
            if is_nested:
                raise AllocationFailed(
                    "no further pool: what this interrupts may be making one",
                    reason="no_pool",
                    requested=n_bytes,
                )
            mapped = self.table.arena.map_pool(n_bytes, block_bytes)
            return self.table.add(block_bytes, n_bytes, mapped, 0, s.POOL_FIXED)

    def trim(self) -> int:
        """Return freed pages and unmap empty pools; return how many bytes."""
        if self.table.argument is None:
            return 0
        self.views.collect_ended()
        with self._budget.changing() as is_nested:
            if is_nested:
                return 0
            return self._trimmer.trim() + self._growth.release_empty_pools()

    # -- the end -----------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise InvalidAccess if the allocator is closed."""
        if self.is_closed:
            raise failures.closed()

    def close(self) -> None:
        """Let nobody claim any more, and free every block."""
        with self._budget.changing():
            if self.is_closed:
                return
            self.is_closed = True
            self._pressure.detach()
            state = self.table.state
            state[s.QUIET_LIMIT] = state[s.CRITICAL_LIMIT] = -1
        self.retire_blocks()

    def retire_blocks(self) -> None:
        """After `close`: free what is still handed out, and unmap what nobody views."""
        with self._budget.changing() as is_nested:
            if self.table.argument is None:
                self.table.unmap()
            elif not self.table.is_unmapped:
                for pool in self.table.pool_ids:
                    if not self.table.is_unused(pool):
                        release.retire_pool(self.table.argument, pool)
                if not is_nested:
                    self._unmap_when_unused(always_trim=True)

    def _unmap_when_unused(self, *, always_trim: bool = False) -> None:
        """After `close`: return pages, and the mappings once no block is in use any more.

        Looking through all blocks for each that is freed would be quadratic: while others are in
        use it waits until there is something to return. A kernel that is still at work has counted
        its block off, so its pool cannot be closed yet.
        """
        if self.table.is_unmapped:
            return
        state = self.table.state
        is_in_use = state[s.USED] > state[s.OF_REGIONS]
        if is_in_use and not always_trim and state[s.RESIDENT] - state[s.USED] < GROWTH_BYTES:
            return
        self._trimmer.trim()
        are_closed = [self._growth.close_pool(pool) for pool in self.table.pool_ids]
        if all(are_closed):
            self.table.unmap()
