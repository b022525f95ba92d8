"""`StoredBlock`: bytes that are written once and then read: the content of a layer in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jessymem.errors import InvalidAccess
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.shared import OpenBlocks, SharedBlock, next_start

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from jessymem.pools.allocator import PoolAllocator

#: In a plan: the block that was open, and is none of those that are wanted.
_OPENED: Final = -1


class StoredBlock:
    """Bytes that are kept in a block of their own, or beside others in a shared one.

    Attributes
    ----------
    handle : int
        Of the block.
    view : memoryview
        Read-only, format "B". The block waits for it and for every view cut from it.
    address : int
        Of the first byte.
    start : int or None
        Where it begins in a shared block; None: the block is its own.
    shared : SharedBlock or None
        Which it holds until it is freed.
    """

    __slots__ = ("address", "handle", "shared", "start", "view")

    def __init__(
        self,
        handle: int,
        view: memoryview,
        address: int,
        start: int | None = None,
        shared: SharedBlock | None = None,
    ) -> None:
        self.handle = handle
        self.view = view
        self.address = address
        self.start = start
        self.shared = shared

    @property
    def offset(self) -> int:
        """Of the first byte, from the start of the pool."""
        return MmapOffset.from_packed(self.handle).offset + (self.start or 0)


def store(
    blocks: PoolAllocator, contents: Sequence[Sequence[Any]], shared_with: OpenBlocks | None = None
) -> list[StoredBlock]:
    """Keep bytes, all of them or none: what is small shares blocks, the rest has its own.

    Parameters
    ----------
    blocks : PoolAllocator
    contents : sequence of sequence of bytes-like
        For each, the pieces that make it; together at least one byte. Of `Parts` the bytes are
        made when they are copied.
    shared_with : OpenBlocks, optional
        Which blocks small contents share; by default those of all others.

    Returns
    -------
    list of StoredBlock

    Raises
    ------
    LimitExceeded, AllocationFailed, InvalidAccess
        As `allocate`.
    """
    blocks._supply.check_open()
    sizes = [sum(map(len, pieces)) for pieces in contents]
    open_blocks = blocks._open if shared_with is None else shared_with
    opened = None if min(sizes) > open_blocks.max_bytes else open_blocks.take(min(sizes))
    handles: list[int] = []
    single: MmapOffset | None = None
    many: NDArray[np.int64] | tuple[int, ...] = ()
    try:
        full = open_blocks.block_bytes
        plan = _plan(open_blocks, sizes, full if opened is None else opened.n_filled)
        if len(plan.wanted) == 1:  # ten times quicker than a batch of one
            single = blocks.allocate(plan.wanted[0])
            handles.append(int(single))
        elif plan.wanted:
            many = blocks.allocate_many(plan.wanted)
            handles = [*map(int, many)]
        stored: list[StoredBlock] = []
        shared, current = opened, _OPENED
        for holder, size, pieces in zip(plan.holders, sizes, contents, strict=True):
            if size > open_blocks.max_bytes:
                owner = blocks._views.owner_of(handles[holder], size, pieces, frees=True)
                stored.append(StoredBlock(handles[holder], memoryview(owner), owner.ctypes.data))
                continue
            if shared is None or holder != current:
                shared, current = _share(blocks, handles[holder]), holder
            stored.append(_put(shared, pieces, size))
    except BaseException:
        _free(blocks, many if single is None else (single,))
        open_blocks.put_back(opened)
        raise
    # What is interrupted from here on frees all with the last reference.
    open_blocks.put_back(shared)
    return stored


def open_blocks(blocks: PoolAllocator) -> OpenBlocks:
    """Return shared blocks of its own, for contents that end together."""
    return OpenBlocks(blocks._open.block_bytes)


class _Plan(NamedTuple):
    """The sizes of the blocks that are `wanted`, and per content which of them holds it."""

    wanted: list[int]
    holders: list[int]


def _plan(open_blocks: OpenBlocks, sizes: list[int], n_filled: int) -> _Plan:
    """Tell which blocks contents of such sizes want beside the open one, which is so far filled."""
    wanted: list[int] = []
    holders: list[int] = []
    holder = _OPENED
    for size in sizes:
        if size > open_blocks.max_bytes:
            holders.append(len(wanted))
            wanted.append(size)
            continue
        if n_filled + size > open_blocks.block_bytes:
            holder, n_filled = len(wanted), 0
            wanted.append(open_blocks.block_bytes)
        holders.append(holder)
        n_filled = next_start(n_filled + size)
    return _Plan(wanted, holders)


def _share(blocks: PoolAllocator, handle: int) -> SharedBlock:
    """Make a block one that is shared; its end frees it, and the end of its owner sees to that."""
    n_bytes, offset = blocks._open.block_bytes, MmapOffset.from_packed(handle)
    owner = blocks._views.owner_of(handle, n_bytes, (), frees=True)
    memory = blocks._table.arena.view(offset.pool_id, offset.offset, n_bytes)
    shared = SharedBlock(handle, owner, memory)
    blocks._views.free_after(shared, handle)
    return shared


def _put(shared: SharedBlock, pieces: Iterable[Any], n_bytes: int) -> StoredBlock:
    start = shared.n_filled
    view = shared.put(pieces, n_bytes)
    return StoredBlock(shared.handle, view, shared.address + start, start, shared)


def free(blocks: PoolAllocator, stored: Iterable[StoredBlock | None]) -> None:
    """Free stored blocks, a shared one with the last that holds it; one that is viewed waits."""
    alone: list[int] = []
    is_any_shared = False
    for block in stored:
        if block is None:
            continue
        if block.start is None:
            alone.append(block.handle)
        else:
            block.shared, is_any_shared = None, True
    if is_any_shared:
        blocks._views.collect_ended()
    _free(blocks, alone)


def _free(blocks: PoolAllocator, handles: Iterable[int]) -> None:
    for handle in map(int, handles):
        with suppress(InvalidAccess):  # closed: its blocks have been freed
            blocks.deallocate(MmapOffset.from_packed(handle))
