"""`MmapOffset`: where a block lies, and which of its owners is meant."""

from __future__ import annotations

from operator import index
from typing import Any, Final, SupportsIndex

from jessymem.errors import shown
from jessymem.ids import is_bool
from jessymem.kernels import schema as s

# What no handle can say (any offset, no generation) is a negative integer: the three numbers side
# by side, inverted.
_WIDE_BITS: Final = 64
_WIDE_MASK: Final = 2**_WIDE_BITS - 1


class MmapOffset(int):
    """A block that was handed out; an integer, so that arrays of them are arrays of int64.

    Parameters
    ----------
    pool_id : int
    offset : int
        In bytes from the start of the pool.
    generation : int
        Tells a block's owners apart; -1: whoever owns it.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> MmapOffset(0, 4096, 7)
    MmapOffset(pool_id=0, offset=4096, generation=7)
    >>> MmapOffset.from_packed(int(MmapOffset(0, 4096, 7))).offset
    4096
    """

    __slots__ = ()

    def __new__(cls, pool_id: int, offset: int, generation: int = -1) -> MmapOffset:
        """Pack the three numbers."""
        numbers = (index(pool_id), index(offset), index(generation))
        if not (0 <= numbers[0] <= _WIDE_MASK and 0 <= numbers[1] <= _WIDE_MASK):
            raise ValueError(f"pool_id and offset must be 0 or more, not {shown(numbers[:2])}")
        if not -1 <= numbers[2] <= s.HANDLE_GENERATION_MASK:
            raise ValueError(f"generation must be -1 to {s.HANDLE_GENERATION_MASK}")
        return int.__new__(cls, _pack(*numbers))

    @classmethod
    def from_packed(cls, packed: SupportsIndex) -> MmapOffset:
        """Make the offset whose integer is `packed`, such as an element of `allocate_many`'s array.

        Raises
        ------
        ValueError, TypeError
            If it is not a handle.

        Examples
        --------
        >>> (packed,) = allocator.allocate_many([100])
        >>> offset = MmapOffset.from_packed(packed)
        >>> int(offset) == int(packed), offset.pool_id
        (True, 0)
        """
        if is_bool(packed):
            raise TypeError("an offset is an integer, not a bool")
        number = index(packed)
        if not 0 <= number < 2**63:
            raise ValueError(f"{number} is no packed offset: 0 to 2**63 - 1")
        return int.__new__(cls, number)

    @property
    def pool_id(self) -> int:
        """The pool.

        Examples
        --------
        >>> allocator.allocate(100).pool_id, allocator.allocate(5_000).pool_id
        (0, 1)
        """
        return unpack(self)[0]

    @property
    def offset(self) -> int:
        """Bytes from the start of the pool.

        Examples
        --------
        >>> a, b = allocator.allocate(100), allocator.allocate(100)
        >>> abs(b.offset - a.offset) >= 4096, a.offset % 64
        (True, 0)
        """
        return unpack(self)[1]

    @property
    def generation(self) -> int:
        """Which owner of the block; -1: any.

        Examples
        --------
        >>> first = allocator.allocate(100)
        >>> allocator.deallocate(first)
        >>> again = allocator.allocate(100)
        >>> first.offset == again.offset, again.generation - first.generation
        (True, 1)
        """
        return unpack(self)[2]

    @property
    def is_checked(self) -> bool:
        """Whether it names one owner, and an offset at which a block can begin.

        Examples
        --------
        >>> MmapOffset(0, 4096, 7).is_checked, MmapOffset(0, 4096).is_checked
        (True, False)
        """
        return self >= 0

    def __repr__(self) -> str:
        """Show the three numbers."""
        pool_id, offset, generation = unpack(self)
        return f"MmapOffset(pool_id={pool_id}, offset={offset}, generation={generation})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the three numbers."""
        return MmapOffset, unpack(self)


def _pack(pool_id: int, offset: int, generation: int) -> int:
    granule, rest = divmod(offset, s.GRANULE_BYTES)
    if generation < 0 or rest or granule > s.HANDLE_GRANULE_MASK or pool_id >= s.N_POOL_IDS:
        wide = (pool_id << _WIDE_BITS | offset) << _WIDE_BITS | generation + 1
        return ~wide
    return pool_id << s.HANDLE_POOL_SHIFT | granule << s.HANDLE_GENERATION_BITS | generation


def unpack(packed: int) -> tuple[int, int, int]:
    """Return pool id, offset and generation."""
    number = int(packed)
    if number < 0:
        wide = ~number
        return wide >> 2 * _WIDE_BITS, wide >> _WIDE_BITS & _WIDE_MASK, (wide & _WIDE_MASK) - 1
    granule = number >> s.HANDLE_GENERATION_BITS & s.HANDLE_GRANULE_MASK
    generation = number & s.HANDLE_GENERATION_MASK
    return number >> s.HANDLE_POOL_SHIFT, granule * s.GRANULE_BYTES, generation
