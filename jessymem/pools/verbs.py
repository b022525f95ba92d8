"""The manager's memory verbs: each is the allocator's, which is made when it is first wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import jessymem


class MemoryVerbs:
    """What a manager offers beside reading: blocks of memory within its budget.

    They lie in pools, configured by ``MemoryConfig.pool_configs``; `PoolAllocator` has the details.
    """

    _allocator: jessymem.PoolAllocator | None

    def _make_allocator(self) -> jessymem.PoolAllocator:
        raise NotImplementedError

    def allocate(self, size: int) -> jessymem.MmapOffset:
        """Take a block of at least `size` bytes; see `PoolAllocator.allocate`.

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
            If the manager is closed.
        ValueError, TypeError
            If `size` is no positive integer.
        """
        return (self._allocator or self._make_allocator()).allocate(size)

    def deallocate(self, offset: jessymem.MmapOffset, size: int | None = None) -> None:
        """Give a block back, at once or with the last view on it; see `PoolAllocator.deallocate`.

        Raises
        ------
        InvalidAccess
            If it was given back before, is stale, was never handed out, lies inside a block, past
            the end or in no pool, if `size` is not its own, or if the manager is closed. Nothing is
            changed.
        ValueError, TypeError
            If `offset` is none, or `size` no size.
        """
        (self._allocator or self._make_allocator()).deallocate(offset, size)

    def view(self, offset: jessymem.MmapOffset, size: int) -> memoryview:
        """Return the first `size` bytes of a block, writable; see `PoolAllocator.view`.

        Returns
        -------
        memoryview
            Format "B", shape ``(size,)``; a fresh one each call. Valid for as long as it is held,
            also after `deallocate` and `close`.

        Raises
        ------
        OutOfBounds
            If `size` is more than was allocated.
        InvalidAccess, ValueError, TypeError
            As `deallocate`.
        """
        return (self._allocator or self._make_allocator()).view(offset, size)

    def allocate_many(
        self, sizes: Iterable[int] | np.typing.NDArray[np.integer[Any]]
    ) -> np.typing.NDArray[np.int64]:
        """Take a block for each of `sizes`, or none; see `PoolAllocator.allocate_many`.

        Returns
        -------
        ndarray of int64, shape (n,)
            Packed offsets.

        Raises
        ------
        LimitExceeded, AllocationFailed, InvalidAccess, ValueError, TypeError
            As `allocate`.
        """
        return (self._allocator or self._make_allocator()).allocate_many(sizes)

    def deallocate_many(self, offsets: Iterable[int] | np.typing.NDArray[np.int64]) -> None:
        """Give many blocks back, or none; see `PoolAllocator.deallocate_many`.

        Raises
        ------
        InvalidAccess, ValueError, TypeError
            As `deallocate`, for the first one that is wrong.
        """
        (self._allocator or self._make_allocator()).deallocate_many(offsets)

    def allocate_array(
        self, shape: int | Sequence[int], dtype: np.typing.DTypeLike = np.float64
    ) -> np.typing.NDArray[Any]:
        """Return an array in a block of its own; see `PoolAllocator.allocate_array`.

        Returns
        -------
        ndarray
            C-contiguous and aligned to 64 bytes. Its block goes back by itself when the array and
            every view of it are gone, also after `close`.

        Raises
        ------
        LimitExceeded, AllocationFailed, InvalidAccess, ValueError, TypeError
            As `allocate`; TypeError also for a dtype with Python objects.
        """
        return (self._allocator or self._make_allocator()).allocate_array(shape, dtype)

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
            If the manager is closed.
        """
        return (self._allocator or self._make_allocator()).trim()
