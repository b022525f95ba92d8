"""The bytes of a file that is written: given in pieces, written by few calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

#: At most so many bytes are written by one call, and so many buffers; pieces that are shorter than
#: the third are put together first, into buffers of the fourth and of no more than the last in all.
_WRITE_CHUNK_BYTES: Final = 2**30
_N_BUFFERS: Final = 1_000
_SHORT_PIECE_BYTES: Final = 2**16
_BUFFER_BYTES: Final = 2**18
_GATHERED_BYTES: Final = 2**24


class Parts:
    """A piece whose bytes are made when they are wanted, one part after the other.

    Parameters
    ----------
    n_bytes : int
        How many they are together.
    make : callable
        Returns an iterator over the parts; what it raises goes to who copies them.
    """

    __slots__ = ("_make", "_n_bytes")

    def __init__(self, n_bytes: int, make: Callable[[], Iterator[Any]]) -> None:
        self._n_bytes = n_bytes
        self._make = make

    def __len__(self) -> int:
        """Return how many bytes it is."""
        return self._n_bytes

    def __iter__(self) -> Iterator[Any]:
        """Yield the parts, made anew."""
        return self._make()


def in_parts(pieces: Iterable[Any]) -> Iterator[Any]:
    """Yield the bytes of `pieces`, those of `Parts` as they are made."""
    for piece in pieces:
        if isinstance(piece, Parts):
            yield from piece
        else:
            yield piece


def gather(pieces: Iterable[Any]) -> Iterable[Any]:
    """Return the bytes of `pieces` in few of them, where that takes little memory.

    For who goes through them more than once. What is no list is made while it is gone through, and
    stays as it is.
    """
    if not isinstance(pieces, list) or sum(map(len, pieces)) > _GATHERED_BYTES:
        return pieces
    return list(_gathered(pieces))


def _gathered(pieces: Iterable[Any]) -> Iterator[memoryview]:
    """Yield the bytes of `pieces`, of which short ones are put together."""
    short = bytearray()
    for piece in pieces:
        if len(piece) < _SHORT_PIECE_BYTES:
            short += piece
            if len(short) < _BUFFER_BYTES:
                continue
            piece = b""
        if short:
            yield memoryview(short)
            short = bytearray()
        if len(piece):
            yield memoryview(piece).cast("B")
    if short:
        yield memoryview(short)


def parts(pieces: Iterable[Any], max_bytes: int) -> Iterator[memoryview]:
    """Yield the bytes of `pieces`, in parts of at most so many."""
    for buffer in _gathered(pieces):
        for start in range(0, len(buffer), max_bytes):
            yield buffer[start : start + max_bytes]


def batches(pieces: Iterable[Any]) -> Iterator[list[memoryview]]:
    """Yield the bytes of `pieces` as lists of buffers, each for one call that writes them."""
    batch: list[memoryview] = []
    n_bytes = n_gathered = 0
    for part in parts(pieces, _WRITE_CHUNK_BYTES):
        is_full = (
            n_bytes + len(part) > _WRITE_CHUNK_BYTES
            or len(batch) == _N_BUFFERS
            or n_gathered >= _GATHERED_BYTES
        )
        if is_full and batch:
            yield batch
            batch, n_bytes, n_gathered = [], 0, 0
        batch.append(part)
        n_bytes += len(part)
        n_gathered += len(part) if isinstance(part.obj, bytearray) else 0
    if batch:
        yield batch


def without_first(buffers: list[memoryview], n_bytes: int) -> list[memoryview]:
    """Return what is left of `buffers` after so many bytes."""
    at = 0
    while at < len(buffers) and n_bytes >= len(buffers[at]):
        n_bytes -= len(buffers[at])
        at += 1
    left = buffers[at:]
    if n_bytes:
        left[0] = left[0][n_bytes:]
    return left
