"""Plain V1 metadata to LAYER rows: one pass over bytes that nobody vouches for.

Every read is preceded by a check that the bytes are there; a count or length is compared with its
limit before it is used. Called by `jessymem.regions.layout` where a file has no extension, and by
`verify`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels._jit import PARSING, Int, kernel, on_promotion
from jessymem.kernels.schema import (
    BAD_ENTRY,
    BAD_EXTENT,
    BAD_FREQUENCY,
    BAD_KEYWORD_COUNT,
    BAD_KEYWORD_LENGTH,
    BAD_METADATA_SIZE,
    FAULT,
    KEYWORD_LENGTH_BYTES,
    LAYER,
    LAYER_ENTRY,
    LAYER_EXTENT,
    MAX_KEYWORDS,
    MAX_METADATA_BYTES,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ENTRY_BYTES = LAYER_ENTRY.itemsize
_EXTENT_BYTES = LAYER_EXTENT.itemsize
_DEPTH = LAYER_ENTRY.fields["depth"][1]  # type: ignore[index]
_FREQUENCY = LAYER_ENTRY.fields["frequency"][1]  # type: ignore[index]
_KEYWORD_COUNT = LAYER_ENTRY.fields["keyword_count"][1]  # type: ignore[index]
_SIZE = LAYER_EXTENT.fields["content_size"][1]  # type: ignore[index]


@kernel
def read_word(data: NDArray[Any], at: Int, n_bytes: Int) -> Int:
    """Read `n_bytes` (1 to 8) at `at`, little-endian; eight may come out negative."""
    value = np.int64(0)
    for i in range(n_bytes):
        value |= np.int64(data[at + i]) << np.int64(8 * i)
    return value


@kernel
def is_finite(bits: Int) -> bool:
    """Tell whether the 32-bit float with these bits is a number and not infinite."""
    return (bits >> 23) & 0xFF != 0xFF


@kernel
def report(fault: NDArray[Any], offset: Int, expected: Int, got: Int, code: Int) -> Int:
    """Note what was found where; return `code`."""
    fault[0]["offset"] = offset
    fault[0]["expected"] = expected
    fault[0]["got"] = got
    return code


@kernel
def report_end(fault: NDArray[Any], offset: Int, n_wanted: Int, n_bytes: Int) -> Int:
    """Note that `n_wanted` bytes at `offset` run past the end of the file or the limit."""
    if n_bytes > MAX_METADATA_BYTES:
        return report(fault, offset, MAX_METADATA_BYTES, offset + n_wanted, BAD_METADATA_SIZE)
    return report(fault, offset, n_wanted, max(n_bytes - offset, 0), BAD_ENTRY)


@kernel
def skip_keywords(data: NDArray[Any], at: Int, n_keywords: Int, fault: NDArray[Any]) -> Int:
    """Step over `n_keywords` prefixed strings; return the offset behind them, or a code."""
    end = min(data.shape[0], MAX_METADATA_BYTES)
    for _ in range(n_keywords):
        if end - at < KEYWORD_LENGTH_BYTES:
            return report_end(fault, at, KEYWORD_LENGTH_BYTES, data.shape[0])
        length = read_word(data, at, KEYWORD_LENGTH_BYTES)
        if end - at - KEYWORD_LENGTH_BYTES < length:
            left = end - at - KEYWORD_LENGTH_BYTES
            return report(fault, at, left, length, BAD_KEYWORD_LENGTH)
        at += KEYWORD_LENGTH_BYTES + length
    return at


@kernel
def parse_entries(
    data: NDArray[Any],
    start: Int,
    rows: NDArray[Any],
    frequency_bits: NDArray[Any],
    fault: NDArray[Any],
) -> Int:
    """Fill `rows` and `frequency_bits` from the plain entries at `start`; return where they end.

    On a broken rule return a negative BAD_* code, with entry, offset, expected and got in
    ``fault[0]``. Keywords are left where they are: a row tells where in the file they begin and how
    long they are.
    """
    end = min(data.shape[0], MAX_METADATA_BYTES)
    at: Int = np.int64(start)
    for i in range(rows.shape[0]):
        fault[0]["entry"] = i
        if end - at < _ENTRY_BYTES:
            return report_end(fault, at, _ENTRY_BYTES, data.shape[0])
        bits = read_word(data, at + _FREQUENCY, 4)
        if not is_finite(bits):
            return report(fault, at + _FREQUENCY, 0, bits, BAD_FREQUENCY)
        n_keywords = read_word(data, at + _KEYWORD_COUNT, 4)
        if n_keywords > MAX_KEYWORDS:
            return report(fault, at + _KEYWORD_COUNT, MAX_KEYWORDS, n_keywords, BAD_KEYWORD_COUNT)
        rows[i]["layer_num"] = read_word(data, at, 2)
        rows[i]["depth"] = read_word(data, at + _DEPTH, 1)
        frequency_bits[i] = bits
        keywords_at = at + _ENTRY_BYTES
        at = skip_keywords(data, keywords_at, n_keywords, fault)
        if at < 0:
            return at
        rows[i]["keyword_count"] = n_keywords
        rows[i]["keywords_offset"] = keywords_at
        rows[i]["keywords_size"] = at - keywords_at
        if end - at < _EXTENT_BYTES:
            return report_end(fault, at, _EXTENT_BYTES, data.shape[0])
        content = read_word(data, at, 8)
        n_bytes = read_word(data, at + _SIZE, 4)
        if content < 0 or content > data.shape[0]:
            return report(fault, at, data.shape[0], content, BAD_EXTENT)
        if n_bytes > data.shape[0] - content:
            return report(fault, at + _SIZE, data.shape[0] - content, n_bytes, BAD_EXTENT)
        rows[i]["content_offset"] = content
        rows[i]["content_end"] = content + n_bytes
        at += _EXTENT_BYTES
    return at


@on_promotion(PARSING)
def _call_first() -> None:
    data = np.zeros(1, np.uint8)
    data.flags.writeable = False  # as a region's bytes
    parse_entries(data, 0, np.zeros(1, LAYER), np.zeros(1, "<u4"), np.zeros(1, FAULT))
