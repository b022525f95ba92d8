"""`PoolAllocator`: blocks of memory within a budget.

What nearly always happens is one kernel call. What those leave over (a pool to make, pages to
return, something to evict, a record to write) is the business of `jessymem.pools.supply`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from math import prod
from time import perf_counter_ns
from typing import Any, Final, NoReturn

import numpy as np

import jessymem
from jessymem.budget import Budget
from jessymem.config import (
    DEFAULT_POOLS,
    MIB,
    MemoryConfig,
    PoolConfig,
    naming_fields,
    placement_of,
)
from jessymem.errors import InvalidAccess, clears_frames, without_frames
from jessymem.forks import renew_in_forked_children
from jessymem.kernels import _jit, blocks, release
from jessymem.kernels import schema as s
from jessymem.kernels.schema import ANY_SIZE, REQUEST_BYTES_LIMIT
from jessymem.kernels.transactions import PlainState
from jessymem.latencies import Latencies
from jessymem.pools import failures
from jessymem.pools.arguments import as_handles, as_lengths, as_size, as_sizes
from jessymem.pools.claims import CLOSED, NOT_STARTED, Claims, claims_on
from jessymem.pools.counts import PoolCounts
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.records import is_enabled_for
from jessymem.pools.shared import OpenBlocks
from jessymem.pools.supply import Supply
from jessymem.pools.survey import (
    recover,
)
from jessymem.pressure import PressureLog

# Bound once: every allocation uses them.
_as_offset: Final = int.__new__
_is_enabled_for: Final = is_enabled_for
_DEBUG: Final = logging.DEBUG

#: One allocation from Python in so many is measured, the first always.
ALLOCATION_PERIOD: Final = 1024


class PoolAllocator(PoolCounts):
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
    huge_pages : {"never", "thp", "2MB", "1GB"}
    numa : {"none", "interleave", "local"}
        As those of `MemoryConfig`.

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
    which is unmapped once it is empty.

    Every method that wants memory raises `LimitExceeded` if use would pass the critical threshold
    of the budget, and `AllocationFailed` where there is none: "pool_full", "fragmented", "no_pool"
    if nothing fits and no pool could be made for it, "os_refused" if the system has no memory left.
    Every method that takes an offset raises `InvalidAccess`, and changes nothing, if the block was
    freed before, is stale, was never handed out, lies inside a block, past the end or in no
    pool. Sizes and offsets that are no such integers raise `ValueError` or `TypeError`. Whatever
    changes or hands out memory raises `InvalidAccess` once the allocator is closed; what only looks
    works on.

    The first calls of a process run in plain Python, until a thread has compiled the kernels, or
    has loaded them from their cache: ``docs/memory.md`` says when.

    A signal handler or finalizer may call everything too. In the middle of a call that changes the
    budget it makes no pool, evicts nothing and returns no pages, so it may be refused what its
    caller would get.

    A forked child has a copy of everything: what it allocates and frees, the parent does not
    see.

    Examples
    --------
    >>> offset = allocator.allocate(100)
    >>> allocator.view(offset, 100)[:5] = b"hello"
    >>> bytes(allocator.view(offset, 5))
    b'hello'
    """

    def __init__(
        self,
        pools: Sequence[PoolConfig | tuple[int, int]] = DEFAULT_POOLS,
        limit_mb: int = 280,
        *,
        zero_on_reuse: bool = True,
        evict: Callable[[int], object] | None = None,
        huge_pages: str = "never",
        numa: str = "none",
    ) -> None:
        with naming_fields({"total_memory_mb": "limit_mb", "pool_configs": "pools"}):
            config = MemoryConfig(
                total_memory_mb=limit_mb,
                pool_configs=pools,
                zero_on_reuse=zero_on_reuse,
                huge_pages=huge_pages,
                numa=numa,
            )
        budget, placement = Budget(config.limit_bytes, {}), placement_of(config)
        self._set_up(config, budget, PressureLog(config), evict, placement=placement)
        renew_in_forked_children(self)

    @classmethod
    def within(
        cls,
        config: MemoryConfig,
        budget: Budget,
        pressure: PressureLog,
        evict: Callable[[int], object] | None = None,
        latencies: Latencies | None = None,
        placement: jessymem.hints.Placement | None = None,
    ) -> PoolAllocator:
        """Make the allocator of a manager, whose budget it shares, latencies and placement."""
        allocator = cls.__new__(cls)
        allocator._set_up(config, budget, pressure, evict, latencies, placement)
        return allocator

    def _set_up(
        self,
        config: MemoryConfig,
        budget: Budget,
        pressure: PressureLog,
        evict: Callable[[int], object] | None,
        latencies: Latencies | None = None,
        placement: jessymem.hints.Placement | None = None,
    ) -> None:
        self._budget = budget
        self.latencies = Latencies(("allocation",)) if latencies is None else latencies
        self._gate: Iterator[bool] = iter(())  # the first is measured
        self._supply = Supply(config, budget, pressure, evict, placement)
        self._table = self._supply.table
        self._views = self._supply.views
        self._open = OpenBlocks(self._table.smallest_block_bytes)
        # What the fast way calls, and what it hands over first.
        self._words: Any = None
        self._claims: Claims = NOT_STARTED
        self._release: Callable[..., Any] = _not_started

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

        Examples
        --------
        >>> allocator.allocate(5_000).pool_id  # of blocks of 64 KiB
        1
        """
        handle, start = s.BAD_SIZE, 0
        try:
            if type(size) is int and 0 < size <= REQUEST_BYTES_LIMIT:
                if next(self._gate, True):
                    self._gate = repeat(False, ALLOCATION_PERIOD - 1)
                    start = perf_counter_ns()
                handle = self._claims[size]
                if handle >= 0 and not _is_enabled_for(_DEBUG):
                    if start:
                        self.latencies.add("allocation", perf_counter_ns() - start)
                    return _as_offset(MmapOffset, handle)
            n_bytes = as_size(size)
            if self._claims is NOT_STARTED:
                self._start()
            handle = self._supply.allocate(n_bytes, handle)
            if start:
                self.latencies.add("allocation", perf_counter_ns() - start)
            return _as_offset(MmapOffset, handle)
        except BaseException:
            if handle >= 0:  # an interrupt; what was freed already is no longer that handle's
                self._supply.undo(handle)
            raise

    def deallocate(self, offset: MmapOffset, size: int | None = None) -> None:
        """Free a block.

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
            If `size` is not what was asked for, and as above.

        Examples
        --------
        >>> view = allocator.view(offset := allocator.allocate(5), 5)
        >>> allocator.deallocate(offset)  # and the block is freed with its last view
        >>> allocator.usage[0]
        4096
        """
        is_recorded = _is_enabled_for(_DEBUG)
        if type(offset) is MmapOffset and size is None and offset >= 0 and not is_recorded:
            code = self._release(self._words, offset, ANY_SIZE)
            if code == 0:
                return
            if code != s.NOT_STARTED:
                self._supply.end_deallocation(code, offset, ANY_SIZE)
                return
        n_bytes = ANY_SIZE if size is None else as_size(size)
        try:
            handle = self._resolve(offset)
        except InvalidAccess as error:
            self._supply.record_misuse(error)
            raise
        n_requested = self._table.requested_by(handle) if is_recorded else None
        code = self._release(self._words, handle, n_bytes)
        if code == s.NOT_STARTED:
            code = int(release.deallocate(self._table.argument, handle, n_bytes))
        self._supply.end_deallocation(code, handle, n_bytes, n_requested)

    @clears_frames
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

        Examples
        --------
        >>> view = allocator.view(allocator.allocate(5), 5)
        >>> view[:] = b"hello"
        >>> bytes(view[:2])
        b'he'
        """
        handle, n_bytes = self._resolve(offset), as_size(size, at_least=0)
        self._supply.check_open()
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
            As `allocate`; no block is taken then.

        Examples
        --------
        >>> offsets = allocator.allocate_many([100, 5_000, 100])
        >>> [MmapOffset.from_packed(each).pool_id for each in offsets]
        [0, 1, 0]
        """
        try:
            wanted = as_sizes(sizes)
            self._start()
            return self._supply.allocate_many(wanted)
        except BaseException as error:
            raise without_frames(error)  # noqa: B904  # it has its cause

    @clears_frames
    def deallocate_many(self, offsets: Iterable[int] | np.typing.NDArray[np.int64]) -> None:
        """Free many blocks, or none at all, in one call without the GIL.

        What is raised is about the first one that is wrong, also if it is there twice.

        Parameters
        ----------
        offsets : ndarray of int64, shape (n,), or sequence of MmapOffset
            Each with its generation.

        Examples
        --------
        >>> offsets = allocator.allocate_many(np.full(200, 64))
        >>> allocator.deallocate_many(offsets)
        >>> allocator.usage[0]
        0
        """
        handles = as_handles(offsets)
        self._supply.check_open()
        self._start()
        self._supply.deallocate_many(handles)

    @clears_frames
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
        TypeError
            If `dtype` holds Python objects.
        ValueError
            If a length is negative.

        Examples
        --------
        >>> scores = allocator.allocate_array((100, 10), "f4")
        >>> scores.shape, float(scores.sum()), allocator.usage[0]
        ((100, 10), 0.0, 4096)
        """
        kind = np.dtype(dtype)
        if kind.hasobject or kind.subdtype is not None:
            raise TypeError(f"{kind} cannot lie in a block: it holds Python objects, or is a shape")
        self._supply.check_open()
        lengths = as_lengths(shape)
        n_bytes = prod(lengths) * kind.itemsize
        if not n_bytes:
            return np.zeros(lengths, kind)
        offset: MmapOffset | None = None
        try:
            offset = self.allocate(n_bytes)
            owner = self._views.owner_of(int(offset), n_bytes, frees=True)
        except BaseException:
            if offset is not None:
                self._supply.undo(offset)  # nothing, if it was freed already
            raise
        return owner.view(kind).reshape(lengths)

    # -- pools -------------------------------------------------------------------------------------

    @clears_frames
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
            "no_pool": there is no space for its bookkeeping; "os_refused".

        Examples
        --------
        >>> pool_id = allocator.add_pool(1, 2**18)
        >>> allocator.allocate(200_000).pool_id == pool_id
        True
        """
        config = PoolConfig(size_mb, block_size)
        return self._supply.add_pool(config.block_size, config.size_mb * MIB)

    @clears_frames
    def trim(self) -> int:
        """Return the pages of freed blocks, and empty grown pools, to the system.

        It happens by itself before a request is refused for want of them.

        Returns
        -------
        int
            The bytes returned.

        Examples
        --------
        >>> allocator.deallocate(allocator.allocate(50_000))
        >>> allocator.trim()
        65536
        """
        self._supply.check_open()
        return self._supply.trim()

    @clears_frames
    def close(self) -> None:
        """Take every block back; a second call does nothing.

        Views stay valid, and what they are on is charged until they are gone.

        Examples
        --------
        >>> allocator.close()
        >>> allocator.pools
        []
        """
        self._claims, self._release = CLOSED, _closed
        self._supply.close()
        self._claims, self._release = CLOSED, _closed  # again: a thread may just have started

    # -- what it shows -----------------------------------------------------------------------------

    @property
    @clears_frames
    def words(self) -> Any:
        """What the kernels in `jessymem.kernels` take, to be called from compiled code.

        Lifetime: whoever uses it keeps the allocator. ``docs/memory.md`` shows how.

        Examples
        --------
        >>> from jessymem.kernels import blocks
        >>> int(blocks.address_of(allocator.words, allocator.allocate(100))) % 64
        0
        """
        self._supply.check_open()
        _jit.promote(_jit.MEMORY)
        self._start()
        return self._table.argument

    def __repr__(self) -> str:
        """Show what is in use."""
        used, limit = self._budget.total, self._budget.limit_bytes
        return f"<PoolAllocator {used:,} of {limit:,} bytes>"

    def _repr_html_(self) -> str:
        """Show it in a notebook's cell."""
        return jessymem.notebooks.show_allocator(self)

    def __reduce__(self) -> NoReturn:
        """Refuse: a pickle would come without the memory."""
        raise TypeError("a PoolAllocator cannot be pickled: its memory belongs to this process")

    # -- inside ------------------------------------------------------------------------------------

    @clears_frames
    def _start(self) -> None:
        """Count in the words from now on; once kernels are compiled, let the fast way call them."""
        if self._claims is not NOT_STARTED:
            return
        words = self._supply.start()
        if type(words) is PlainState or not _jit.is_promoted(_jit.MEMORY):
            return
        entries = (
            _jit.entry_of(release.deallocate, words, 0, ANY_SIZE),
            claims_on(words, self._table.allocation),
        )
        self._words = words
        # The claims are set last: who sees them has all of it, also in a child forked here.
        self._release, self._claims = entries
        if self._supply.is_closed:  # meanwhile
            self._claims, self._release = CLOSED, _closed

    def _resolve(self, offset: MmapOffset | int) -> int:
        """Return the handle of `offset`: of one without a generation, its present owner's."""
        if not isinstance(offset, MmapOffset):
            offset = MmapOffset.from_packed(offset)
        self._start()
        if offset.is_checked:
            return int(offset)
        self._supply.check_open()
        pool, at = min(offset.pool_id, s.N_POOL_IDS), min(offset.offset, REQUEST_BYTES_LIMIT)
        handle = int(blocks.resolve(self._table.argument, pool, at))
        if handle < 0:
            raise failures.wrong_block(handle, offset, ANY_SIZE, self._table)
        if offset.generation not in (-1, handle & s.HANDLE_GENERATION_MASK):
            raise failures.wrong_block(s.STALE, offset, ANY_SIZE, self._table)
        return handle

    def after_fork(self) -> None:
        """Renew locks in a forked child; see `recount`."""
        self._budget.after_fork(set())
        self.latencies.after_fork()
        self.recount()

    def recount(self) -> None:
        """Set counters right in a forked child: the parent's threads may have been half-way."""
        if self._table.argument is not None:
            found = recover(self._table)
            self._budget.recount(found.n_block_bytes, found.n_retained)
            self._views.collect_ended()


def _not_started(*arguments: Any) -> int:
    """Take the place of the kernels before they are compiled: the slow way calls plain ones."""
    return s.NOT_STARTED


def _closed(*arguments: Any) -> int:
    """Take the place of the kernels of a closed allocator."""
    return s.IS_CLOSED
