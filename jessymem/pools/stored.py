"""`StoredBlock`: bytes that are written once and then read: the content of a layer in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jessymem.errors import InvalidAccess
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.shared import SharedBlock, next_start

if TYPE_CHECKING:
    from jessymem.pools.allocator import PoolAllocator


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


def store(blocks: PoolAllocator, contents: Sequence[Sequence[Any]]) -> list[StoredBlock]:
    """Keep bytes, all of them or none: what is small shares blocks, the rest has its own.

    Parameters
    ----------
    blocks : PoolAllocator
    contents : sequence of sequence of bytes-like
        For each, the pieces that make it; together at least one byte.

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
    open_blocks = blocks._open
    smallest = min(sizes)
    is_any_small = smallest <= open_blocks.max_bytes
    opened = open_blocks.take(smallest) if is_any_small else None
    handles: list[int] = []
    try:
        # Per content, which of the blocks that are `wanted` is to hold it; -1: the one `opened`.
        wanted: list[int] = []
        holders: list[int] = []
        full = open_blocks.block_bytes
        holder, n_filled = -1, full if opened is None else opened.n_filled
        for size in sizes:
            if size > open_blocks.max_bytes:
                holders.append(len(wanted))
                wanted.append(size)
                continue
            if n_filled + size > full:
                holder, n_filled = len(wanted), 0
                wanted.append(full)
            holders.append(holder)
            n_filled = next_start(n_filled + size)
        if len(wanted) == 1:  # ten times quicker than a batch of one
            handles.append(int(blocks.allocate(wanted[0])))
        elif wanted:
            handles = blocks.allocate_many(wanted).tolist()
        stored: list[StoredBlock] = []
        current, last = -1, opened
        for which, size, pieces in zip(holders, sizes, contents, strict=True):
            if size > open_blocks.max_bytes:
                owner = blocks._views.owner_of(handles[which], size, pieces)
                stored.append(StoredBlock(handles[which], memoryview(owner), owner.ctypes.data))
                continue
            if which != current:
                last = _share(blocks, handles[which])
                current = which
            stored.append(_put(last, pieces, size))
    except BaseException:
        _free(blocks, handles)
        open_blocks.put_back(opened)
        raise
    # What is interrupted from here on frees all with the last reference.
    open_blocks.put_back(last)
    return stored


def _share(blocks: PoolAllocator, handle: int) -> SharedBlock:
    """Make a block one that is shared; it is freed with the last reference."""
    n_bytes, offset = blocks._open.block_bytes, MmapOffset.from_packed(handle)
    owner = blocks._views.owner_of(handle, n_bytes, ())
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
    for block in stored:
        if block is None:
            continue
        if block.start is None:
            alone.append(block.handle)
        else:
            block.shared = None
    _free(blocks, alone)


def _free(blocks: PoolAllocator, handles: list[int]) -> None:
    for handle in handles:
        with suppress(InvalidAccess):  # closed: its blocks have been freed
            blocks.deallocate(MmapOffset.from_packed(handle))
