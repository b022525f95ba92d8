"""`StoredBlock`: a block that is written once and then read: the content of a layer in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from jessymem.errors import InvalidAccess
from jessymem.pools.offsets import MmapOffset

if TYPE_CHECKING:
    from jessymem.pools.allocator import PoolAllocator


class StoredBlock(NamedTuple):
    """Bytes that are kept in a block.

    Attributes
    ----------
    handle : int
        Of the block, to free it by. It waits then until its views are gone.
    view : memoryview
        Read-only, format "B". The block waits for it and for every view cut from it.
    address : int
        Of the first byte.
    """

    handle: int
    view: memoryview
    address: int


def store(blocks: PoolAllocator, contents: Sequence[Sequence[Any]]) -> list[StoredBlock]:
    """Keep bytes, each in a block of its own, all of them or none.

    Parameters
    ----------
    blocks : PoolAllocator
    contents : sequence of sequence of bytes-like
        Per block, the pieces that fill it; together at least one byte.

    Returns
    -------
    list of StoredBlock

    Raises
    ------
    LimitExceeded, AllocationFailed, InvalidAccess
        As `allocate`.
    """
    sizes = [sum(map(len, pieces)) for pieces in contents]
    handles: list[int] = []
    try:
        if len(sizes) == 1:  # ten times quicker than a batch of one
            handles.append(int(blocks.allocate(sizes[0])))
        else:
            handles = blocks.allocate_many(sizes).tolist()
        owners = [
            blocks._views.owner_of(handle, n_bytes, pieces)
            for handle, n_bytes, pieces in zip(handles, sizes, contents, strict=True)
        ]
        return [
            StoredBlock(handle, memoryview(owner), owner.ctypes.data)
            for handle, owner in zip(handles, owners, strict=True)
        ]
    except BaseException:
        _free(blocks, handles)
        raise


def free(blocks: PoolAllocator, stored: Iterable[StoredBlock | None]) -> None:
    """Free stored blocks; one that is viewed waits."""
    _free(blocks, [block.handle for block in stored if block is not None])


def _free(blocks: PoolAllocator, handles: list[int]) -> None:
    for handle in handles:
        with suppress(InvalidAccess):  # closed: its blocks have been freed
            blocks.deallocate(MmapOffset.from_packed(handle))
