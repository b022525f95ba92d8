"""Plain V1 metadata to LAYER rows: one pass over bytes that nobody vouches for.

Every read is preceded by a check that the bytes are there; a count or length is compared with its
limit before it is used. Called by `jessymem.regions.entries` where a file has no extension, and by
`verify`. As plain Python it takes memoryviews, which are quicker there than arrays: `plain_rows`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from jessymem.kernels._jit import PARSING, Int, kernel, on_promotion
from jessymem.kernels.instructions import fields_at, lowered
from jessymem.kernels.schema import (
    BAD_ENTRY,
    BAD_EXTENT,
    BAD_FREQUENCY,
    BAD_KEYWORD_COUNT,
    BAD_KEYWORD_LENGTH,
    BAD_METADATA_SIZE,
    COMPRESSED_AT,
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

#: A region's bytes: an array of uint8, or a memoryview of one.
Bytes: TypeAlias = Any

#: PARSED[n], or its columns by name.
Rows: TypeAlias = Any


def _with_field(dtype: np.dtype[Any], name: str, kind: str) -> np.dtype[Any]:
    """Return a packed dtype with one field's type replaced by another of the same size."""
    fields = [(each, kind if each == name else dtype[each]) for each in dtype.names or ()]
    return np.dtype(fields)


#: LAYER with its frequency as bits, so that it is copied as it is.
PARSED: Final = _with_field(LAYER, "frequency", "<u4")

_ENTRY_BYTES: Final = LAYER_ENTRY.itemsize
_EXTENT_BYTES: Final = LAYER_EXTENT.itemsize
_FREQUENCY: Final = LAYER_ENTRY.fields["frequency"][1]  # type: ignore[index]
_KEYWORD_COUNT: Final = LAYER_ENTRY.fields["keyword_count"][1]  # type: ignore[index]
_SIZE: Final = LAYER_EXTENT.fields["content_size"][1]  # type: ignore[index]
_EXPONENT_BITS: Final = 0x7F800000  # all set: infinite or no number

#: A frequency comes as bits, and an offset is signed, as numbers of kernels are.
_ENTRY: Final = struct.Struct("<HBII")
_EXTENT: Final = struct.Struct("<qI")
_LENGTH: Final = struct.Struct("<I")

if (_ENTRY.size, _EXTENT.size, _LENGTH.size) != (
    _ENTRY_BYTES,
    _EXTENT_BYTES,
    KEYWORD_LENGTH_BYTES,
):
    raise AssertionError("an entry's parts are read whole")


@lowered(*fields_at(_with_field(LAYER_ENTRY, "frequency", "<u4")))
def entry_at(data: Bytes, at: Int) -> tuple[Int, Int, Int, Int]:
    """Return what precedes an entry's keywords: number, depth, frequency's bits, count."""
    return _ENTRY.unpack_from(data, at)  # type: ignore[arg-type]


@lowered(*fields_at(_with_field(LAYER_EXTENT, "content_offset", "<i8")))
def extent_at(data: Bytes, at: Int) -> tuple[Int, Int]:
    """Return what follows an entry's keywords: offset and size of the content."""
    return _EXTENT.unpack_from(data, at)  # type: ignore[arg-type]


@lowered(*fields_at(np.dtype([("length", "<u4")])))
def length_at(data: Bytes, at: Int) -> tuple[Int]:
    """Return the length that precedes a keyword."""
    return _LENGTH.unpack_from(data, at)  # type: ignore[arg-type]


def plain_rows(rows: NDArray[Any]) -> Mapping[str, memoryview]:
    """Return LAYER rows as `parse_entries` takes them where it is not compiled."""
    names = PARSED.names or ()
    return {name: memoryview(rows.view(PARSED)[name]) for name in names}


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
def skip_keywords(data: Bytes, at: Int, n_keywords: Int, fault: NDArray[Any]) -> Int:
    """Step over `n_keywords` prefixed strings; return the offset behind them, or a code."""
    n_bytes = len(data)
    end = min(n_bytes, MAX_METADATA_BYTES)
    for _ in range(n_keywords):
        left = end - at - KEYWORD_LENGTH_BYTES
        if left < 0:
            return report_end(fault, at, KEYWORD_LENGTH_BYTES, n_bytes)
        (length,) = length_at(data, at)
        if length > left:
            return report(fault, at, left, length, BAD_KEYWORD_LENGTH)
        at += KEYWORD_LENGTH_BYTES + length
    return at


@kernel
def parse_entry(data: Bytes, at: Int, rows: Rows, i: Int, fault: NDArray[Any]) -> Int:
    """Fill row `i` from the plain entry at `at`; return where it ends, or a BAD_* code."""
    n_bytes = len(data)
    end = min(n_bytes, MAX_METADATA_BYTES)
    if end - at < _ENTRY_BYTES:
        return report_end(fault, at, _ENTRY_BYTES, n_bytes)
    number, depth, bits, n_keywords = entry_at(data, at)
    if bits & _EXPONENT_BITS == _EXPONENT_BITS:
        return report(fault, at + _FREQUENCY, 0, bits, BAD_FREQUENCY)
    if n_keywords > MAX_KEYWORDS:
        return report(fault, at + _KEYWORD_COUNT, MAX_KEYWORDS, n_keywords, BAD_KEYWORD_COUNT)
    keywords_at = at + _ENTRY_BYTES
    at = keywords_at
    if n_keywords > 0:
        at = skip_keywords(data, keywords_at, n_keywords, fault)
        if at < 0:
            return at
    if end - at < _EXTENT_BYTES:
        return report_end(fault, at, _EXTENT_BYTES, n_bytes)
    content, size = extent_at(data, at)
    if content != COMPRESSED_AT:  # that may be there is for `check_rows` to say
        if content < 0 or content > n_bytes:
            return report(fault, at, n_bytes, content, BAD_EXTENT)
        if size > n_bytes - content:
            return report(fault, at + _SIZE, n_bytes - content, size, BAD_EXTENT)
    rows["layer_num"][i] = number
    rows["depth"][i] = depth
    rows["frequency"][i] = bits
    rows["keyword_count"][i] = n_keywords
    rows["keywords_offset"][i] = keywords_at
    rows["keywords_size"][i] = at - keywords_at
    rows["content_offset"][i] = content
    rows["content_end"][i] = content + size
    return at + _EXTENT_BYTES


@kernel
def parse_entries(
    data: Bytes, start: Int, rows: Rows, first: Int, last: Int, fault: NDArray[Any]
) -> Int:
    """Fill rows `first` to `last` from the plain entries at `start`; return where they end.

    On a broken rule return a negative BAD_* code, with entry, offset, expected and got in
    ``fault[0]``. Keywords are left where they are: a row tells where in the file they begin and how
    long they are.
    """
    at = start
    for i in range(first, last):
        at = parse_entry(data, at, rows, i, fault)
        if at < 0:
            fault[0]["entry"] = i
            return at
    return at


@on_promotion(PARSING)
def _call_first() -> None:
    data = np.zeros(1, np.uint8)
    data.flags.writeable = False  # as a region's bytes
    parse_entries(data, 0, np.zeros(1, PARSED), 0, 1, np.zeros(1, FAULT))
