"""Where a needle is in the bytes of layers: vectors first, and a linear way where they do not pay.

Three bytes of the needle, the rarest where that is known, are compared at 64 positions together;
where all three are, the rest is. Where that happens too often to pay, the two-way algorithm
(Crochemore and Perrin, "Two-way string-matching", J. ACM 38, 1991) is used for the rest of the
stretch: at most two comparisons a byte, and no memory. The letters of a needle that is *folded* are
small ones of ASCII, and stand for capitals too. Works on SPAN rows that `jessymem.scanning`
has made and vouches for. Needle and search are given to inner kernels as addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels import atomics, memory, vectors
from jessymem.kernels._jit import SEARCHING, Int, kernel, on_promotion
from jessymem.kernels.schema import (
    CASE_BIT,
    HIT,
    HITS_FULL,
    N_PROBES,
    NEEDLE,
    OK,
    SEARCH,
    SPAN,
    WORD_BYTES,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Of a layer, for which the way of searching is chosen anew, and which nothing interrupts.
STRETCH_BYTES: Final = 256 * 1024
#: And no shorter than so many needles, since each stretch may read one beyond its end.
_STRETCH_NEEDLES: Final = 4

#: Words compared in vain that a byte searched may cost before the linear way is the quicker one.
_WORDS_PER_BYTE: Final = 1
_WORDS_AT_LEAST: Final = 1_024

_HIT_BYTES: Final = HIT.itemsize

_CAPITALS: Final = ord("A"), ord("Z")


def _offset(dtype: np.dtype[Any], name: str) -> int:
    return int(dtype.fields[name][1])  # type: ignore[index]


_ADDRESS: Final = _offset(NEEDLE, "address")
_N_BYTES: Final = _offset(NEEDLE, "n_bytes")
_CRITICAL: Final = _offset(NEEDLE, "critical")
_PERIOD: Final = _offset(NEEDLE, "period")
_IS_PERIODIC: Final = _offset(NEEDLE, "is_periodic")
_IS_FOLDED: Final = _offset(NEEDLE, "is_folded")
_AT: Final = _offset(SEARCH, "at")
_MATCHED: Final = _offset(SEARCH, "matched")
_HITS: Final = _offset(SEARCH, "hits")
_CAPACITY: Final = _offset(SEARCH, "capacity")
_N_HITS: Final = _offset(SEARCH, "n_hits")
_CONTENT: Final = _offset(SEARCH, "address")
_LAYER: Final = _offset(SEARCH, "layer")


# -- comparing -------------------------------------------------------------------------------------


@kernel(inline=True)
def count_equal(address: Int, other: Int, n_bytes: Int) -> Int:
    """Return how far two pieces of memory are equal: `n_bytes`, or up to a word that differs."""
    at = np.int64(0)
    while at + WORD_BYTES <= n_bytes:
        if memory.load_i64(address + at) != memory.load_i64(other + at):
            return at
        at += WORD_BYTES
    while at < n_bytes and memory.load_u8(address + at) == memory.load_u8(other + at):
        at += 1
    return at


@kernel(inline=True)
def load_folded(address: Int, fold: Int) -> Int:
    """Load the byte at `address`, a capital with the bits of `fold` set: CASE_BIT, or none."""
    value = memory.load_u8(address)
    if _CAPITALS[0] <= value <= _CAPITALS[1]:
        value |= fold
    return value


@kernel(inline=True)
def count_equal_folded(address: Int, other: Int, n_bytes: Int, fold: Int) -> Int:
    """Return how far the bytes at `address`, folded, are those at `other`: up to `n_bytes`."""
    at = np.int64(0)
    while at < n_bytes and load_folded(address + at, fold) == memory.load_u8(other + at):
        at += 1
    return at


@kernel(inline=True)
def fold_of(needle: Int) -> Int:
    """Return what is set in a capital before it is compared with a needle."""
    return np.int64(CASE_BIT) if memory.load_i64(needle + _IS_FOLDED) != 0 else np.int64(0)


@kernel(inline=True)
def note_hit(search: Int, at: Int) -> bool:
    """Count a find, and write it down where finds are wanted; tell whether no more can be.

    Where only their number is wanted, the capacity is without end.
    """
    n_hits = memory.load_i64(search + _N_HITS)
    hits = memory.load_i64(search + _HITS)
    if hits != 0:
        hit = hits + n_hits * _HIT_BYTES
        memory.store_i64(hit, memory.load_i64(search + _LAYER))
        memory.store_i64(hit + WORD_BYTES, at)
    memory.store_i64(search + _N_HITS, n_hits + 1)
    return bool(n_hits + 1 >= memory.load_i64(search + _CAPACITY))


# -- by vectors ------------------------------------------------------------------------------------


@kernel(inline=True)
def skip_misses(needle: Int, address: Int, end: Int) -> Int:
    """Return the first of the blocks of 256 positions from `address` on that may hold a find.

    Where none does, the address behind the last whole block before `end`.
    """
    while address + vectors.ANY <= end and not vectors.match_any(address, needle):
        address += vectors.ANY
    return address


@kernel(inline=True)
def match_rest(needle: Int, address: Int, n_positions: Int) -> Int:
    """Return the mask of up to 15 positions, compared one by one with the needle's first byte."""
    mask, fold = np.int64(0), fold_of(needle)
    first = memory.load_u8(memory.load_i64(needle + _ADDRESS))
    for i in range(n_positions):
        if load_folded(address + i, fold) == first:
            mask |= np.int64(1) << np.int64(i)
    return mask


@kernel(inline=True)
def match_block(needle: Int, content: Int, at: Int, end: Int) -> tuple[Int, Int]:
    """Return which positions from `at` on may be finds, and how many were looked at.

    Bit i is position ``at + i``. No byte is read of which no find from 0 to `end` consists.
    """
    n_left = end - at
    if n_left >= vectors.MANY:
        return vectors.match_many(content + at, needle), np.int64(vectors.MANY)
    if end >= vectors.MANY:
        mask = vectors.match_many(content + end - vectors.MANY, needle)
        return shift_down(mask, vectors.MANY - n_left), n_left
    if n_left >= vectors.FEW:
        return vectors.match_few(content + at, needle), np.int64(vectors.FEW)
    if end >= vectors.FEW:
        mask = vectors.match_few(content + end - vectors.FEW, needle)
        return shift_down(mask, vectors.FEW - n_left), n_left
    return match_rest(needle, content + at, n_left), n_left


@kernel(inline=True)
def shift_down(mask: Int, n_bits: Int) -> Int:
    """Return `mask` without its lowest `n_bits` (1 to 63) bits, the others moved down."""
    return (np.int64(mask) >> np.int64(n_bits)) & ~(np.int64(-1) << np.int64(64 - n_bits))


@kernel
def search_by_vectors(needle: Int, search: Int, end: Int) -> Int:
    """Search until no find can begin before `end`; return OK or HITS_FULL.

    Gives up where it does not pay: `at` of the search tells how far it has come.
    """
    content = memory.load_i64(search + _CONTENT)
    start = at = memory.load_i64(search + _AT)
    wanted, n_bytes = memory.load_i64(needle + _ADDRESS), memory.load_i64(needle + _N_BYTES)
    fold = fold_of(needle)
    looked_at = at  # up to here blocks are known to hold something
    n_words = np.int64(-_WORDS_AT_LEAST)
    while at < end and n_words <= _WORDS_PER_BYTE * (at - start):
        if at >= looked_at and at + vectors.ANY <= end:
            at = skip_misses(needle, content + at, content + end) - content
            looked_at = at + vectors.ANY
            if at >= end:
                break
        mask, n_positions = match_block(needle, content, at, end)
        while mask != 0:
            i = atomics.count_trailing_zeros(mask)
            mask ^= np.int64(1) << np.int64(i)
            n_equal = n_bytes
            if n_bytes > N_PROBES or n_positions < vectors.FEW:
                if fold != 0:
                    n_equal = count_equal_folded(content + at + i, wanted, n_bytes, fold)
                    n_words += 1 + n_equal
                else:
                    n_equal = count_equal(content + at + i, wanted, n_bytes)
                    n_words += 1 + n_equal // WORD_BYTES
            if n_equal == n_bytes and note_hit(search, at + i):
                memory.store_i64(search + _AT, at + i + 1)
                return np.int64(HITS_FULL)
        at += n_positions
    memory.store_i64(search + _AT, at)
    return np.int64(OK)


@kernel
def count_by_vectors(needle: Int, content: Int, at: Int, end: Int) -> Int:
    """Count the positions from `at` to `end` at which all probes of the needle are.

    There have to be at least 64 positions from 0 to `end`.
    """
    n_found = np.int64(0)
    while at + vectors.MANY <= end:
        n_found += atomics.count_ones(vectors.match_many(content + at, needle))
        at += vectors.MANY
    if at < end:
        mask = vectors.match_many(content + end - vectors.MANY, needle)
        n_found += atomics.count_ones(shift_down(mask, vectors.MANY - (end - at)))
    return n_found


# -- the linear way --------------------------------------------------------------------------------


@kernel
def search_linearly(needle: Int, search: Int, end: Int) -> Int:
    """Search until no find can begin before `end`; return OK or HITS_FULL."""
    content = memory.load_i64(search + _CONTENT)
    at, matched = memory.load_i64(search + _AT), memory.load_i64(search + _MATCHED)
    wanted, n_bytes = memory.load_i64(needle + _ADDRESS), memory.load_i64(needle + _N_BYTES)
    critical, period = memory.load_i64(needle + _CRITICAL), memory.load_i64(needle + _PERIOD)
    n_kept = n_bytes - period if memory.load_i64(needle + _IS_PERIODIC) != 0 else np.int64(0)
    code, fold = np.int64(OK), fold_of(needle)
    while at < end and code == OK:
        address = content + at
        i = max(critical, matched)
        while i < n_bytes and memory.load_u8(wanted + i) == load_folded(address + i, fold):
            i += 1
        if i < n_bytes:
            at += i - critical + 1
            matched = np.int64(0)
            continue
        i = critical - 1
        while i >= matched and memory.load_u8(wanted + i) == load_folded(address + i, fold):
            i -= 1
        if i < matched and note_hit(search, at):
            code = np.int64(HITS_FULL)
        at += period
        matched = n_kept
    memory.store_i64(search + _AT, at)
    memory.store_i64(search + _MATCHED, matched)
    return code


@kernel
def last_suffix(wanted: Int, n_bytes: Int, is_reversed: bool) -> tuple[Int, Int]:
    """Return where a needle's last suffix in lexical order begins, and that suffix's period.

    With `is_reversed` bytes are ordered the other way round.
    """
    start, candidate, i, period = np.int64(0), np.int64(1), np.int64(0), np.int64(1)
    while candidate + i < n_bytes:
        here = memory.load_u8(wanted + start + i)
        there = memory.load_u8(wanted + candidate + i)
        if here == there:
            i += 1
            if i == period:
                candidate += period
                i = np.int64(0)
        elif (there < here) != is_reversed:
            candidate += i + 1
            i = np.int64(0)
            period = candidate - start
        else:
            start = candidate
            candidate = start + 1
            i = np.int64(0)
            period = np.int64(1)
    return start, period


# -- for Python ------------------------------------------------------------------------------------


@kernel
def factorize(needle: NDArray[Any]) -> None:
    """Fill in what the linear way needs to know of a NEEDLE, in time proportional to its length."""
    wanted, n_bytes = needle[0]["address"], needle[0]["n_bytes"]
    critical, period = last_suffix(wanted, n_bytes, False)
    other, other_period = last_suffix(wanted, n_bytes, True)
    if other > critical:
        critical, period = other, other_period
    is_periodic = (
        critical + period <= n_bytes and count_equal(wanted, wanted + period, critical) == critical
    )
    needle[0]["critical"] = critical
    needle[0]["period"] = period if is_periodic else max(critical, n_bytes - critical) + 1
    needle[0]["is_periodic"] = 1 if is_periodic else 0


@kernel
def count_bytes(pieces: NDArray[Any], counts: NDArray[Any]) -> None:
    """Count how often each byte occurs in SPAN rows; `counts` is int64, shape (256,)."""
    for i in range(pieces.shape[0]):
        address = np.int64(pieces[i]["address"])
        for at in range(pieces[i]["n_bytes"]):
            counts[memory.load_u8(address + at)] += 1


@kernel
def search_on(
    spans: NDArray[Any], needle: NDArray[Any], search: NDArray[Any], stop: NDArray[Any]
) -> Int:
    """Go on with a search until its end, until its array of finds is full, or until ``stop[0]``.

    Return OK, or HITS_FULL: more may follow. `n_hits` of the search tells how many finds there are.
    """
    wanted, state = needle.ctypes.data, search.ctypes.data
    n_bytes = np.int64(needle[0]["n_bytes"])
    stretch = max(np.int64(STRETCH_BYTES), _STRETCH_NEEDLES * n_bytes)
    is_counted = search[0]["hits"] == 0 and n_bytes <= N_PROBES
    code: Int = np.int64(OK)
    last_span, last_end = np.int64(search[0]["last_span"]), np.int64(search[0]["last_end"])
    span = np.int64(search[0]["span"])
    while span < last_span or (span == last_span and search[0]["at"] < last_end):
        content = np.int64(spans[span]["address"])
        end: Int = np.int64(spans[span]["n_bytes"]) - n_bytes + 1
        if span == last_span:
            end = min(end, last_end)
        search[0]["address"] = content
        search[0]["layer"] = spans[span]["layer"]
        while search[0]["at"] < end:
            if atomics.load(stop, 0) != 0:
                return code
            at: Int = np.int64(search[0]["at"])
            piece_end: Int = min(at + stretch, end)
            if is_counted and piece_end >= vectors.MANY:
                search[0]["n_hits"] += count_by_vectors(wanted, content, at, piece_end)
                search[0]["at"] = piece_end
                continue
            if search[0]["matched"] == 0:
                code = search_by_vectors(wanted, state, piece_end)
            if code == OK and search[0]["at"] < piece_end:
                code = search_linearly(wanted, state, piece_end)
                if code == OK:
                    search[0]["matched"] = 0
            if code != OK:
                return code
        span += 1
        search[0]["span"] = span
        search[0]["at"] = search[0]["matched"] = 0
    return code


@on_promotion(SEARCHING)
def _call_first() -> None:
    spans = np.zeros(1, SPAN)
    needle, search, stop = np.zeros(1, NEEDLE), np.zeros(1, SEARCH), np.zeros(1, np.int64)
    spans["address"] = needle["address"] = stop.ctypes.data
    spans["n_bytes"] = needle["n_bytes"] = 1
    search["capacity"] = 1
    factorize(needle)
    count_bytes(spans, np.zeros(256, np.int64))
    search_on(spans, needle, search, stop)
