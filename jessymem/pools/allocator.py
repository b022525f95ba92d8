"""`PoolAllocator`: blocks of memory within a budget.

What nearly always happens is one kernel call. What those leave over (a pool to make, pages to give
back, something to evict, a record to write) is the business of `jessymem.pools.supply`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from typing import Any, Final, NoReturn
from weakref import WeakMethod

import numpy as np

from jessymem import osmem
from jessymem.budget import Budget
from jessymem.config import DEFAULT_POOLS, MIB, MemoryConfig, PoolConfig
from jessymem.forks import renew_in_forked_children
from jessymem.kernels import _jit, allocation, blocks, release
from jessymem.kernels import schema as s
from jessymem.kernels.schema import ANY_SIZE, CALM_LIMIT, REQUEST_BYTES_LIMIT
from jessymem.logger import logger
from jessymem.pools import failures
from jessymem.pools.arguments import as_handles, as_lengths, as_size, as_sizes
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.seeing import Seeing
from jessymem.pools.supply import Request, Supply
from jessymem.pools.survey import recover
from jessymem.pools.views import Views
from jessymem.pressure import PressureLog

# Bound once: they stand in the way of every allocation.
_as_offset: Final = int.__new__
_is_enabled_for: Final = logging.getLogger("jessymem").isEnabledFor
_DEBUG: Final = logging.DEBUG


class PoolAllocator(Seeing):
    """Hands out blocks of memory, with no lock, to any number of threads.

    Parameters
    ----------
    pools : sequence of PoolConfig or of (size_mb, block_size)
        They lie in one private mapping, which is committed where it is touched.
    limit_mb : int
        The budget in MiB. It may be less than the pools' address space: the budget holds.
    zero_on_reuse : bool
        Whether blocks that were used before are handed out zeroed. Fresh ones always are.
    evict : callable, optional
        Called with a number of bytes before an allocation would take use past 85 % of the budget,
        to free so many of whatever else is charged.

    Raises
    ------
    ConfigError
        If a setting makes no sense.
    AllocationFailed
        "os_refused": the system refuses the address space.

    Notes
    -----
    The best-fitting pool serves a request; a full one passes it to the next larger. What is larger
    than the largest block takes several of those in a row. Where nothing fits, a new pool is made,
    which goes back to the system once it is empty.

    A forked child has a copy of everything: what it allocates and gives back, the parent does not
    see.

    Examples
    --------
    >>> allocator = PoolAllocator([(1, 4096)], limit_mb=4)
    >>> offset = allocator.allocate(100)
    >>> view = allocator.view(offset, 100)
    >>> view[:5] = b"hello"
    >>> allocator.deallocate(offset)  # the view keeps the block until it is let go
    """

    def __init__(
        self,
        pools: Sequence[PoolConfig | tuple[int, int]] = DEFAULT_POOLS,
        limit_mb: int = 280,
        *,
        zero_on_reuse: bool = True,
        evict: Callable[[int], object] | None = None,
    ) -> None:
        config = MemoryConfig(
            total_memory_mb=limit_mb, pool_configs=pools, zero_on_reuse=zero_on_reuse
        )
        self._set_up(config, Budget(config.limit_bytes, {}), PressureLog(config), evict)
        renew_in_forked_children(self)

    @classmethod
    def within(
        cls,
        config: MemoryConfig,
        budget: Budget,
        pressure: PressureLog,
        evict: Callable[[int], object] | None = None,
    ) -> PoolAllocator:
        """Make the allocator of a manager, whose budget it shares."""
        allocator = cls.__new__(cls)
        allocator._set_up(config, budget, pressure, evict)
        return allocator

    def _set_up(
        self,
        config: MemoryConfig,
        budget: Budget,
        pressure: PressureLog,
        evict: Callable[[int], object] | None,
    ) -> None:
        self._budget = budget
        self._supply = Supply(config, budget, pressure, evict)
        self._table = self._supply.table
        self._zeroes = config.zero_on_reuse
        self._is_closed = False
        follow_up = WeakMethod(self._follow_up)  # no cycle: memory goes with the last reference
        self._views = Views(self._table, lambda flags: (do := follow_up()) and do(flags))
        self._argument: Any = None
        self._claim: Callable[..., Any] = _not_awake
        self._free: Callable[..., Any] = _not_awake

    # -- blocks ------------------------------------------------------------------------------------

    def allocate(self, size: int) -> MmapOffset:
        """Take a block of at least `size` bytes.

        Parameters
        ----------
        size : int
            In bytes, at least 1.

        Returns
        -------
        MmapOffset
            What `view` and `deallocate` want. The block begins on a multiple of 64 bytes and reads
            as zeros (unless ``zero_on_reuse=False``).

        Raises
        ------
        LimitExceeded
            If use would pass the critical threshold of the budget.
        AllocationFailed
            "pool_full", "fragmented", "no_pool": nothing fits and no pool could be made for it;
            "os_refused": the system has no memory left.
        InvalidAccess
            If the allocator is closed.
        ValueError, TypeError
            If `size` is no positive integer.

        Notes
        -----
        The first call of a process compiles the kernels, or loads them from their cache.
        """
        handle = s.BAD_SIZE
        try:
            if type(size) is int and 0 < size <= REQUEST_BYTES_LIMIT:
                handle = self._claim(self._argument, size, CALM_LIMIT)
                if handle >= 0 and not _is_enabled_for(_DEBUG):
                    return _as_offset(MmapOffset, handle)
            return self._allocate_slowly(size, handle)
        except BaseException:
            if handle >= 0:  # an interrupt; what was given back already is no longer that handle's
                self._undo(handle)
            raise

    def deallocate(self, offset: MmapOffset, size: int | None = None) -> None:
        """Give a block back.

        It may be handed out again at once; where a view on it lives, when the last one is gone.

        Parameters
        ----------
        offset : MmapOffset or int
            As `allocate` returned it, or its integer. One without a generation is not checked for
            staleness.
        size : int, optional
            What was asked for, to be checked.

        Raises
        ------
        InvalidAccess
            If it was given back before, is stale, was never handed out, lies inside a block, past
            the end or in no pool, if `size` is not its own, or if the allocator is closed. Nothing
            is changed.
        TypeError
            If `offset` is none, or `size` no integer.
        """
        if type(offset) is MmapOffset and size is None and offset >= 0:
            code = self._free(self._argument, offset, ANY_SIZE)
            if code == 0 and not _is_enabled_for(_DEBUG):
                return
            self._after_free(code, offset, ANY_SIZE)
        else:
            self._deallocate_slowly(offset, size)

    def view(self, offset: MmapOffset, size: int) -> memoryview:
        """Return the first `size` bytes of a block.

        Returns
        -------
        memoryview
            Writable, format "B", shape ``(size,)``; a fresh one each call. Valid for as long as it
            is held, also after `deallocate` and `close`: the block is handed out to nobody else
            before the last view on it is gone.

        Raises
        ------
        OutOfBounds
            If `size` is more than was allocated.
        InvalidAccess, TypeError
            As `deallocate`.
        ValueError
            If `size` is negative.
        """
        handle, n_bytes = self._resolve(offset), as_size(size, at_least=0)
        self._check_open()
        return memoryview(self._views.owner_of(handle, n_bytes))

    def allocate_many(
        self, sizes: Iterable[int] | np.typing.NDArray[np.integer[Any]]
    ) -> np.typing.NDArray[np.int64]:
        """Take a block for each of `sizes`, or none at all, in one call without the GIL.

        Parameters
        ----------
        sizes : sequence of int, or ndarray of integers, shape (n,)
            In bytes, each at least 1.

        Returns
        -------
        ndarray of int64, shape (n,)
            Packed offsets: `MmapOffset.from_packed` tells what is in one, and every call that takes
            an MmapOffset takes an element too.

        Raises
        ------
        LimitExceeded, AllocationFailed, InvalidAccess
            As `allocate`.
        ValueError, TypeError
            If `sizes` are no positive integers in one dimension.
        """
        wanted = as_sizes(sizes)
        self._wake()
        handles = np.zeros(len(wanted) + 1, np.int64)
        claimed = handles[: len(wanted)]
        try:
            # An interrupt comes after the kernel, when all that it claimed is noted.
            code = allocation.allocate_many(self._argument, wanted, CALM_LIMIT, handles)
            if code != s.OK:
                attempt = partial(
                    self._closed_or, allocation.allocate_many, wanted, s.CRITICAL_LIMIT, handles
                )
                request = Request(
                    wanted.tolist(),
                    n_failing=lambda: int(wanted[handles[-1]]),
                    undo=lambda result: None,  # is done below
                )
                self._supply.claim(attempt, request)
            if self._is_closed:
                raise failures.closed()
            if _is_enabled_for(_DEBUG):
                for handle, n_bytes in zip(claimed.tolist(), wanted.tolist(), strict=True):
                    _log_block("allocated", MmapOffset.from_packed(handle), n_bytes)
        except BaseException:
            for handle in filter(None, claimed.tolist()):
                release.deallocate(self._argument, handle, ANY_SIZE)
            if self._is_closed:
                self._leave()
            raise
        return claimed

    def deallocate_many(self, offsets: Iterable[int] | np.typing.NDArray[np.int64]) -> None:
        """Give many blocks back, or none at all, in one call without the GIL.

        Parameters
        ----------
        offsets : ndarray of int64, shape (n,), or sequence of MmapOffset
            Each with its generation.

        Raises
        ------
        InvalidAccess
            As `deallocate`, for the first one that is wrong, also if it is there twice.
        TypeError, ValueError
            If they are no packed offsets.
        """
        handles = as_handles(offsets)
        self._check_open()
        self._wake()
        failed = np.zeros(1, np.int64)
        code = release.deallocate_many(self._argument, handles, failed)
        if self._is_closed:
            self._leave()  # closing may have passed blocks by that were on their way out or back
        if code < 0:
            raise failures.wrong_block(
                s.IS_CLOSED if self._is_closed else int(code),
                MmapOffset.from_packed(handles[failed[0]]),
                ANY_SIZE,
                self._table,
            )
        self._follow_up(int(code))
        if _is_enabled_for(_DEBUG):
            for handle in handles.tolist():
                _log_block("deallocated", MmapOffset.from_packed(handle), None)

    def allocate_array(
        self, shape: int | Sequence[int], dtype: np.typing.DTypeLike = np.float64
    ) -> np.typing.NDArray[Any]:
        """Return an array in a block of its own.

        Parameters
        ----------
        shape : int or sequence of int
        dtype : dtype-like

        Returns
        -------
        ndarray
            C-contiguous, aligned to 64 bytes, zero unless ``zero_on_reuse=False``. The block goes
            back by itself when the array and every view of it are gone, also after `close`.

        Raises
        ------
        LimitExceeded, AllocationFailed, InvalidAccess
            As `allocate`.
        TypeError
            If `dtype` holds Python objects.
        ValueError
            If a length is negative.
        """
        kind = np.dtype(dtype)
        if kind.hasobject or kind.subdtype is not None:
            raise TypeError(f"{kind} cannot lie in a block: it holds Python objects, or is a shape")
        self._check_open()
        lengths = as_lengths(shape)
        n_bytes = prod(lengths) * kind.itemsize
        if not n_bytes:
            return np.zeros(lengths, kind)
        offset = self.allocate(n_bytes)
        try:
            owner = self._views.owner_of(int(offset), n_bytes)
        finally:
            self.deallocate(offset)  # from here on the block waits for its only owner
        return owner.view(kind).reshape(lengths)

    # -- pools -------------------------------------------------------------------------------------

    def add_pool(self, size_mb: int, block_size: int) -> int:
        """Make a further pool, for as long as the allocator lives.

        Returns
        -------
        int
            Its id.

        Raises
        ------
        ConfigError
            As `PoolConfig`.
        AllocationFailed
            "no_pool": there is no room for its bookkeeping; "os_refused".
        InvalidAccess
            If the allocator is closed.
        """
        config = PoolConfig(size_mb, block_size)
        n_bytes = config.size_mb * MIB
        with self._budget.changing():
            self._check_open()
            memory = osmem.private_memory(n_bytes)
            return self._table.add(config.block_size, n_bytes, memory, 0, s.POOL_FIXED)

    @property
    def words(self) -> Any:
        """What the kernels in `jessymem.kernels` take, to be called from compiled code.

        Lifetime: whoever uses it keeps the allocator. ``docs/memory.md`` shows how.

        Raises
        ------
        InvalidAccess
            If the allocator is closed.
        """
        self._check_open()
        self._wake()
        return self._argument

    def trim(self) -> int:
        """Give the pages of freed blocks, and empty grown pools, back to the system.

        It happens by itself before a request is refused for want of them.

        Returns
        -------
        int
            The bytes given back.

        Raises
        ------
        InvalidAccess
            If the allocator is closed.
        """
        self._check_open()
        if self._argument is None:
            return 0
        self._views.take_in()
        return self._supply.trim()

    def close(self) -> None:
        """Take every block back; a second call does nothing.

        Views stay valid, and what they are on is charged until they are gone. Afterwards calls for
        memory raise InvalidAccess.
        """
        with self._budget.changing():
            if self._is_closed:
                return
            self._is_closed = True
            self._claim = self._free = _closed
            state = self._table.state
            state[s.CALM_LIMIT] = state[s.CRITICAL_LIMIT] = -1
        self._leave()

    # -- the slow way to a block -------------------------------------------------------------------

    def _allocate_slowly(self, size: int, handle: int) -> MmapOffset:
        """Do what the short way leaves: check, wake, make room, record, raise."""
        n_bytes = as_size(size)
        by_pages = False
        try:
            if handle < 0:
                self._wake()
                self._views.take_in()
                by_pages = n_bytes > int(self._table.state[s.INLINE_LIMIT])
                zero = int(self._zeroes and not by_pages)
                handle = s.NO_POOL
                if by_pages:
                    handle = self._closed_or(allocation.allocate_any, n_bytes, CALM_LIMIT, zero)
                if handle < 0:
                    attempt = partial(
                        self._closed_or, allocation.allocate_any, n_bytes, s.CRITICAL_LIMIT, zero
                    )
                    request = Request([n_bytes], n_failing=lambda: n_bytes, undo=self._undo)
                    handle = self._supply.claim(attempt, request)
            offset = MmapOffset.from_packed(handle)
            if self._is_closed:
                raise failures.closed()
            if by_pages and self._zeroes:
                self._zero_by_pages(offset, n_bytes)
            _log_block("allocated", offset, n_bytes)
        except BaseException:
            if handle >= 0:
                self._undo(handle)
            raise
        return offset

    def _undo(self, handle: int) -> None:
        release.deallocate(self._argument, handle, ANY_SIZE)
        if self._is_closed:
            self._leave()

    def _closed_or(self, kernel: Callable[..., Any], *arguments: Any) -> int:
        return s.IS_CLOSED if self._is_closed else int(kernel(self._argument, *arguments))

    def _zero_by_pages(self, offset: MmapOffset, n_bytes: int) -> None:
        """Make a large allocation read as zeros: new pages in place of the old ones."""
        block_bytes = int(self._table.rows[offset.pool_id]["block_bytes"])
        whole = -(-n_bytes // block_bytes) * block_bytes
        is_alone = block_bytes >= osmem.page_size()  # on its pages
        if not is_alone or not self._table.give_back(offset.pool_id, offset.offset, whole):
            memory = self._table.memory_at(offset.pool_id, offset.offset, n_bytes)
            np.frombuffer(memory, np.uint8)[:] = 0

    # -- the slow way back -------------------------------------------------------------------------

    def _deallocate_slowly(self, offset: MmapOffset | int, size: int | None) -> None:
        n_bytes = ANY_SIZE if size is None else as_size(size)
        handle = self._resolve(offset)
        code = self._free(self._argument, handle, n_bytes)
        self._after_free(code, MmapOffset.from_packed(handle), n_bytes)

    def _after_free(self, code: int, offset: MmapOffset, n_bytes: int) -> None:
        if code == s.IS_AWAKENING:
            self._wake()
            code = self._free(self._argument, int(offset), n_bytes)
        if code < 0:
            raise failures.wrong_block(code, offset, n_bytes, self._table)
        self._follow_up(code)
        _log_block("deallocated", offset, None)

    def _follow_up(self, flags: int) -> None:
        """Do what a kernel noted while it gave something back; waits for nobody."""
        if flags & s.IS_REARMED:
            self._supply.note_fall()
        if flags & s.IS_EMPTY:
            self._supply.note_empty()
        if self._is_closed:
            with self._budget.changing_if_idle() as is_idle:
                if is_idle:
                    self._supply.leave_when_empty()

    def _resolve(self, offset: MmapOffset | int) -> int:
        """Return the handle of `offset`: of one without a generation, its present owner's."""
        if not isinstance(offset, MmapOffset):
            offset = MmapOffset.from_packed(offset)
        self._wake()
        if offset.is_checked:
            return int(offset)
        self._check_open()
        pool, at = min(offset.pool_id, s.N_POOL_IDS), min(offset.offset, REQUEST_BYTES_LIMIT)
        handle = int(blocks.resolve(self._argument, pool, at))
        if handle < 0:
            raise failures.wrong_block(handle, offset, ANY_SIZE, self._table)
        if offset.generation not in (-1, handle & s.HANDLE_GENERATION_MASK):
            raise failures.wrong_block(s.STALE, offset, ANY_SIZE, self._table)
        return handle

    # -- the rest ----------------------------------------------------------------------------------

    def _leave(self) -> None:
        """After `close`: take back what is still handed out, and let go of what nobody views."""
        with self._budget.changing() as is_nested:
            if self._argument is None:
                self._table.let_go()
            elif not self._table.is_gone:
                for pool in self._table.pool_ids:
                    release.retire_pool(self._argument, pool)
                if not is_nested:
                    self._supply.leave_when_empty(always_trim=True)

    def _check_open(self) -> None:
        if self._is_closed:
            raise failures.closed()

    def _wake(self) -> None:
        """Compile, and count in the shared words from now on; the first time only."""
        # The claim is set last: who sees it has all of it, also in a child that was forked here.
        if self._argument is not None and self._claim is not _not_awake:
            return
        self._check_open()
        _jit.promote(_jit.MEMORY)
        with self._budget.lock.hold():
            self._check_open()
            if self._argument is None:
                self._supply.attach()
                self._argument = self._table.argument
            if self._claim is _not_awake:
                words = self._argument
                self._free = _jit.entry_of(release.deallocate, words, 0, ANY_SIZE)
                self._claim = _jit.entry_of(allocation.allocate, words, 1, CALM_LIMIT)

    def after_fork(self) -> None:
        """Renew locks in a forked child; see `recount`."""
        self._budget.after_fork(set())
        self.recount()

    def recount(self) -> None:
        """Set counters right in a forked child: the parent's threads may have been half-way."""
        if self._argument is not None:
            found = recover(self._table)
            self._budget.recount(found.n_block_bytes, found.n_retained)
            self._views.take_in()

    def __reduce__(self) -> NoReturn:
        """Refuse: a pickle would come without the memory."""
        raise TypeError("a PoolAllocator cannot be pickled: its memory belongs to this process")


def _not_awake(*arguments: Any) -> int:
    """Stand in for the kernels before they are compiled."""
    return s.IS_AWAKENING


def _closed(*arguments: Any) -> int:
    """Stand in for the kernels of a closed allocator."""
    return s.IS_CLOSED


def _log_block(event: str, offset: MmapOffset, n_bytes: int | None) -> None:
    if not _is_enabled_for(_DEBUG):
        return
    logger.debug(
        "%s %s",
        event,
        offset,
        extra={
            "event": event,
            "pool": offset.pool_id,
            "offset": offset.offset,
            "generation": offset.generation,
            "n_bytes": n_bytes,
        },
    )
