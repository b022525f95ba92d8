"""Plain V1 entries to LAYER rows, by the quicker of two twins.

`jessymem.kernels.parse` is compiled; `parse_entries` here does the same in plain Python, several
words at a time, where kernels are not compiled. Both make the same checks in the same order and
report the same codes and faults.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels import _jit, parse
from jessymem.kernels import schema as s
from jessymem.regions import faults
from jessymem.regions.faults import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: LAYER_ENTRY with its frequency as bits, LAYER_EXTENT with a signed offset, a keyword's length.
_ENTRY: Final = struct.Struct("<HBII")
_EXTENT: Final = struct.Struct("<qI")
_LENGTH: Final = struct.Struct("<I")

if (_ENTRY.size, _EXTENT.size) != (s.LAYER_ENTRY.itemsize, s.LAYER_EXTENT.itemsize):
    raise AssertionError("an entry's two parts are read whole")

_FREQUENCY: Final = s.LAYER_ENTRY.fields["frequency"][1]  # type: ignore[index]
_KEYWORD_COUNT: Final = s.LAYER_ENTRY.fields["keyword_count"][1]  # type: ignore[index]
_SIZE: Final = s.LAYER_EXTENT.fields["content_size"][1]  # type: ignore[index]

_EXPONENT_BITS: Final = 0x7F800000  # all set: infinite or no number

#: The columns that `parse_entries` fills, `frequency_bits` apart.
_COLUMNS: Final = (
    "layer_num",
    "depth",
    "keyword_count",
    "keywords_offset",
    "keywords_size",
    "content_offset",
    "content_end",
)

#: So many entries are parsed before it is asked again whether compiled code is worth it.
_FEW: Final = 256

#: From so many layers and keywords on, compiling is quicker than going on in plain Python; and
#: where other kernels are compiled, so that numba has been imported and started.
WORTH_COMPILING: Final = 1_000_000
WORTH_COMPILING_TOO: Final = 16_384


def read_entries(
    data: NDArray[np.uint8], n_layers: int, source: Source
) -> tuple[NDArray[Any], int]:
    """Return the rows of the plain entries, in their order, and the offset behind the last.

    Raises
    ------
    RegionFormatError
        At the first entry that breaks a rule.
    """
    rows = np.zeros(n_layers, s.LAYER)
    frequency_bits = np.zeros(n_layers, "<u4")
    fault = np.zeros(1, s.FAULT)
    first, n_items, at = 0, n_layers, s.HEADER_BYTES
    while first < n_layers:
        # How many keywords there are is not known before: few entries at a time, until it is.
        if n_items >= (WORTH_COMPILING_TOO if _jit.is_promoted() else WORTH_COMPILING):
            _jit.promote(_jit.PARSING)
        is_compiled = _jit.is_promoted(_jit.PARSING)
        last = n_layers if is_compiled else min(first + _FEW, n_layers)
        part = slice(first, last)
        parse_some = parse.parse_entries if is_compiled else parse_entries
        at = int(parse_some(data, at, rows[part], frequency_bits[part], fault))
        if at < 0:
            fault["entry"] += first
            raise faults.broken_entry(source, at, fault[0])
        n_items += int(rows["keyword_count"][part].sum())
        first = last
    rows["frequency"] = frequency_bits.view("<f4")
    return rows, at


def parse_entries(
    data: NDArray[Any],
    start: int,
    rows: NDArray[Any],
    frequency_bits: NDArray[Any],
    fault: NDArray[Any],
) -> int:
    """Do what the kernel of this name does; where a rule is broken, `rows` stay as they were."""
    view = memoryview(data)
    n_bytes, at = len(view), start
    end = min(n_bytes, s.MAX_METADATA_BYTES)
    found, found_bits = [], []
    for i in range(len(rows)):
        fault[0]["entry"] = i
        if end - at < _ENTRY.size:
            return _report_end(fault, at, _ENTRY.size, n_bytes)
        number, depth, bits, n_keywords = _ENTRY.unpack_from(view, at)
        if bits & _EXPONENT_BITS == _EXPONENT_BITS:
            return _report(fault, at + _FREQUENCY, 0, bits, s.BAD_FREQUENCY)
        if n_keywords > s.MAX_KEYWORDS:
            at += _KEYWORD_COUNT
            return _report(fault, at, s.MAX_KEYWORDS, n_keywords, s.BAD_KEYWORD_COUNT)
        keywords_at = at + _ENTRY.size
        at = _skip_keywords(view, keywords_at, n_keywords, fault)
        if at < 0:
            return at
        keywords_size = at - keywords_at
        if end - at < _EXTENT.size:
            return _report_end(fault, at, _EXTENT.size, n_bytes)
        content, size = _EXTENT.unpack_from(view, at)
        if not 0 <= content <= n_bytes:
            return _report(fault, at, n_bytes, content, s.BAD_EXTENT)
        if size > n_bytes - content:
            return _report(fault, at + _SIZE, n_bytes - content, size, s.BAD_EXTENT)
        at += _EXTENT.size
        content_end = content + size
        found.append((number, depth, n_keywords, keywords_at, keywords_size, content, content_end))
        found_bits.append(bits)
    for field, column in zip(_COLUMNS, zip(*found, strict=True), strict=False):  # no rows: none
        rows[field] = column
    frequency_bits[:] = found_bits
    return at


def _skip_keywords(view: memoryview, at: int, n_keywords: int, fault: NDArray[Any]) -> int:
    """Step over `n_keywords` prefixed strings; return the offset behind them, or a code."""
    n_bytes = len(view)
    end = min(n_bytes, s.MAX_METADATA_BYTES)
    for _ in range(n_keywords):
        left = end - at - _LENGTH.size
        if left < 0:
            return _report_end(fault, at, _LENGTH.size, n_bytes)
        (length,) = _LENGTH.unpack_from(view, at)
        if length > left:
            return _report(fault, at, left, length, s.BAD_KEYWORD_LENGTH)
        at += _LENGTH.size + length
    return at


def _report(fault: NDArray[Any], offset: int, expected: int, got: int, code: int) -> int:
    """Note what was found where; return `code`."""
    fault[0]["offset"] = offset
    fault[0]["expected"] = expected
    fault[0]["got"] = got
    return code


def _report_end(fault: NDArray[Any], offset: int, n_wanted: int, n_bytes: int) -> int:
    """Note that `n_wanted` bytes at `offset` run past the end of the file or the limit."""
    if n_bytes > s.MAX_METADATA_BYTES:
        limit = s.MAX_METADATA_BYTES
        return _report(fault, offset, limit, offset + n_wanted, s.BAD_METADATA_SIZE)
    return _report(fault, offset, n_wanted, max(n_bytes - offset, 0), s.BAD_ENTRY)
