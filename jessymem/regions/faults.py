"""Broken rules of the format, as errors: where in which file, what was expected, what is there."""

from __future__ import annotations

from typing import Any, Final

from jessymem.errors import RegionFormatError
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.named_tuples import NamedTuple

#: What a file holds may be long; the error's `got` has it whole.
MAX_SHOWN_CHARS: Final = 200


class Source(NamedTuple):
    """Whose bytes these are, for messages."""

    dimension: DimensionId | None
    path: str


def field_offset(table_offset: int, row: int, field: str) -> int:
    """Return the offset in the file of one field of one row of the table."""
    return table_offset + row * s.LAYER_BYTES + int(s.LAYER.fields[field][1])  # type: ignore[index]


def broken(source: Source, field: str, offset: int, expected: Any, got: Any) -> RegionFormatError:
    """Return the error for one broken rule; `offset` counts from the file's start."""
    who = f"{source.dimension}: " if source.dimension is not None else ""
    shown = f"expected {show(expected)}, got {show(got)}"
    return RegionFormatError(
        f"{who}{source.path}: {field} at byte {offset}: {shown}",
        field=field,
        offset=offset,
        expected=expected,
        got=got,
        dimension=source.dimension,
        path=source.path,
    )


def show(value: Any) -> str:
    """Return what is in a file as a message may have it."""
    shown = value if isinstance(value, str) else repr(value)
    if len(shown) <= MAX_SHOWN_CHARS:
        return shown
    return f"{shown[:MAX_SHOWN_CHARS]}... ({len(shown):,} characters)"


def broken_header(source: Source, field: str, expected: Any, got: Any) -> RegionFormatError:
    """Return the error for a field of the header."""
    at = s.HEADER.fields[field][1]  # type: ignore[index]
    return broken(source, field, at, expected, got)


def broken_extension(source: Source, field: str, expected: Any, got: Any) -> RegionFormatError:
    """Return the error for a field of the extension."""
    at = s.EXTENSION.fields[field][1]  # type: ignore[index]
    return broken(source, field, s.RESERVED_OFFSET + at, expected, got)


_ENTRY_FAULTS: Final = {
    s.BAD_ENTRY: ("entry", "{} bytes"),
    s.BAD_FREQUENCY: ("frequency", "a finite number"),
    s.BAD_KEYWORD_COUNT: ("keyword_count", "<= {}"),
    s.BAD_KEYWORD_LENGTH: ("keyword length", "<= {}, the bytes that follow"),
    s.BAD_EXTENT: ("content extent", "<= {}, within the file"),
    s.BAD_METADATA_SIZE: ("metadata", "<= {} bytes"),
}


def broken_entry(source: Source, code: int, fault: Any) -> RegionFormatError:
    """Return the error for what `parse_entries` noted in `fault`."""
    field, expected = _ENTRY_FAULTS[code]
    name = f"entry {fault['entry']} {field}"
    got = int(fault["got"]) & (2**64 - 1)  # a u64 of the file may have come out negative
    return broken(source, name, int(fault["offset"]), expected.format(fault["expected"]), got)
