"""The oracle for region files: a slow, obvious reader of plain V1, and a writer that breaks fields.

Written from the format's table alone with `struct`: nothing of the package is imported, no offset
is shared with it. `resign` makes the checksums of a broken file hold again, as malice would.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

COMPRESSED_MAGIC = b"JESSY_MMAP_V2\0\0\0"
MAGIC = b"JESSY_MMAP_V1\0\0\0"
HEADER = struct.Struct("<II64sQI16s156s")
ENTRY = struct.Struct("<HBfI")
EXTENT = struct.Struct("<QI")

# -- reading ---------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """One layer as a plain V1 file tells it."""

    layer: int
    depth: int
    frequency: float
    keywords: tuple[bytes, ...]
    content: bytes


class Region(NamedTuple):
    """A plain V1 file: its layers in the order of their entries."""

    dimension: int
    name: bytes
    layers: list[Layer]


def read_plain(raw: bytes) -> Region:
    """Read a region file that obeys the format; checks next to nothing."""
    dimension, name_len, name, total_size, layer_count, magic, _ = HEADER.unpack_from(raw)
    assert (magic, total_size) in ((MAGIC, len(raw)), (COMPRESSED_MAGIC, len(raw)))
    at, layers = HEADER.size, []
    for _ in range(layer_count):
        layer, depth, frequency, keyword_count = ENTRY.unpack_from(raw, at)
        at += ENTRY.size
        keywords = []
        for _ in range(keyword_count):
            (length,) = struct.unpack_from("<I", raw, at)
            keywords.append(raw[at + 4 : at + 4 + length])
            at += 4 + length
        start, size = EXTENT.unpack_from(raw, at)
        at += EXTENT.size
        layers.append(Layer(layer, depth, frequency, tuple(keywords), raw[start : start + size]))
    return Region(dimension, name[:name_len], layers)


# -- writing ---------------------------------------------------------------------------------------


@dataclass
class Draft:
    """A layer to be written; the fields from `keyword_count` on replace what would be true."""

    layer: int = 0
    content: bytes = b""
    depth: int = 0
    frequency: float = 1.0
    keywords: Sequence[bytes] = ()
    keyword_count: int | None = None
    keyword_length: int | None = None  # of the first keyword
    content_offset: int | None = None
    content_size: int | None = None


def write_plain(
    drafts: Sequence[Draft] = (),
    *,
    dimension: int = 1,
    name: bytes = b"",
    name_len: int | None = None,
    total_size: int | None = None,
    layer_count: int | None = None,
    magic: bytes = MAGIC,
    reserved: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """Make a plain V1 file: entries as they come, contents packed behind them, then `tail`."""
    entries_size = sum(
        ENTRY.size + sum(4 + len(keyword) for keyword in draft.keywords) + EXTENT.size
        for draft in drafts
    )
    start = HEADER.size + entries_size
    entries = contents = b""
    for draft in drafts:
        entries += ENTRY.pack(
            draft.layer, draft.depth, draft.frequency, _or(draft.keyword_count, len(draft.keywords))
        )
        for i, keyword in enumerate(draft.keywords):
            length = len(keyword) if i else _or(draft.keyword_length, len(keyword))
            entries += struct.pack("<I", length) + keyword
        entries += EXTENT.pack(
            _or(draft.content_offset, start + len(contents)),
            _or(draft.content_size, len(draft.content)),
        )
        contents += draft.content
    body = entries + contents + tail
    header = HEADER.pack(
        dimension,
        _or(name_len, len(name)),
        name,
        _or(total_size, HEADER.size + len(body)),
        _or(layer_count, len(drafts)),
        magic,
        reserved,
    )
    return header + body


def _or(given: int | None, truth: int) -> int:
    return truth if given is None else given


# -- breaking --------------------------------------------------------------------------------------

HEADER_FIELDS = {
    "dimension_id": (0, "<I"),
    "dimension_name_len": (4, "<I"),
    "dimension_name": (8, "<64s"),
    "total_size": (72, "<Q"),
    "layer_count": (80, "<I"),
    "magic": (84, "<16s"),
}
EXTENSION_FIELDS = {
    "extension_magic": (100, "<4s"),
    "generation": (104, "<Q"),
    "created_at": (112, "<Q"),
    "table_offset": (120, "<Q"),
    "heap_offset": (128, "<Q"),
    "heap_size": (136, "<Q"),
    "content_start": (144, "<Q"),
    "metadata_xxh3": (152, "<Q"),
    "follows_generation": (160, "<Q"),
    "follows_created_at": (168, "<Q"),
    "follows_size": (176, "<Q"),
    "flags": (184, "<Q"),
    "replaces": (192, "<Q"),
    "deleted_offset": (200, "<Q"),
    "n_deleted": (208, "<Q"),
    "frames_offset": (216, "<Q"),
    "n_frames": (224, "<Q"),
    "dictionary_offset": (232, "<Q"),
    "dictionary_size": (240, "<Q"),
    "header_xxh3": (248, "<Q"),
}
FRAME_BYTES = 24
FRAME_FIELDS = {
    "stored_offset": (0, "<Q"),
    "stored_xxh3": (8, "<Q"),
    "stored_size": (16, "<I"),
    "layer_num": (20, "<H"),
    "codec": (22, "<B"),
    "uses_dictionary": (23, "<B"),
}
ROW_BYTES = 64
ROW_FIELDS = {
    "content_offset": (0, "<Q"),
    "content_end": (8, "<Q"),
    "content_xxh3": (16, "<Q"),
    "parent": (24, "<I"),
    "frequency": (28, "<f"),
    "layer_num": (32, "<H"),
    "depth": (34, "<B"),
    "encoding": (35, "<B"),
    "keyword_count": (36, "<I"),
    "name_offset": (40, "<I"),
    "name_size": (44, "<I"),
    "keywords_offset": (48, "<I"),
    "keywords_size": (52, "<I"),
    "array_offset": (56, "<I"),
    "array_size": (60, "<I"),
}


def get_field(raw: bytes, field: str) -> Any:
    """Read one field of the header or the extension."""
    at, code = (HEADER_FIELDS | EXTENSION_FIELDS)[field]
    return struct.unpack_from(code, raw, at)[0]


def set_field(raw: bytes, field: str, value: Any) -> bytes:
    """Put `value` into one field of the header or the extension."""
    at, code = (HEADER_FIELDS | EXTENSION_FIELDS)[field]
    return put(raw, at, struct.pack(code, value))


def field_offset(raw: bytes, row: int, field: str) -> int:
    """Return where in the file a field of one row of the table lies."""
    return get_field(raw, "table_offset") + row * ROW_BYTES + ROW_FIELDS[field][0]


def get_row_field(raw: bytes, row: int, field: str) -> Any:
    """Read one field of one row of the table."""
    return struct.unpack_from(ROW_FIELDS[field][1], raw, field_offset(raw, row, field))[0]


def set_row_field(raw: bytes, row: int, field: str, value: Any) -> bytes:
    """Put `value` into one field of one row of the table."""
    return put(raw, field_offset(raw, row, field), struct.pack(ROW_FIELDS[field][1], value))


def put(raw: bytes, at: int, piece: bytes) -> bytes:
    """Replace the bytes at `at`."""
    return raw[:at] + piece + raw[at + len(piece) :]


def resign(raw: bytes, *, contents: bool = False) -> bytes:
    """Make the checksums of header and metadata hold again; of the contents too if asked for."""
    if contents:
        for row in range(get_field(raw, "layer_count")):
            start, end = (get_row_field(raw, row, f"content_{at}") for at in ("offset", "end"))
            raw = set_row_field(raw, row, "content_xxh3", xxhash.xxh3_64_intdigest(raw[start:end]))
    metadata = raw[HEADER.size : get_field(raw, "content_start")]
    raw = set_field(raw, "metadata_xxh3", xxhash.xxh3_64_intdigest(metadata))
    return set_field(raw, "header_xxh3", xxhash.xxh3_64_intdigest(raw[:248]))


# -- what the process holds ------------------------------------------------------------------------
