"""`write_layout`: layers to the bytes of a region, format version 1, see docs/format.md."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xxhash

from jessymem.errors import RegionFormatError
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.regions import faults
from jessymem.regions.drafts import LayerDraft
from jessymem.regions.layout import Edition, Extension

_ENTRY: Final = struct.Struct("<HBfI")  # LAYER_ENTRY
_EXTENT: Final = struct.Struct("<QI")  # LAYER_EXTENT
_LENGTH: Final = struct.Struct("<I")
_CHECKSUM: Final = struct.Struct("<Q")
_ROW: Final = struct.Struct("<QQQIfHBBIIIIIII")  # LAYER


def write_layout(
    dimension: DimensionId,
    name: bytes,
    drafts: Sequence[LayerDraft],
    generation: int,
    created_at: int,
    *,
    follows: Edition | None = None,
    flags: int = 0,
    replaces: int = 0,
    deleted: Sequence[int] = (),
) -> tuple[int, list[Any]]:
    """Lay out a region of `drafts`; return its length and the pieces that, in order, are its bytes.

    Contents are referred to, not copied. `drafts` are written in the order of their numbers, which
    must differ. With `follows`, the edition of another file, it is a delta; with `replaces` one in
    the place of those from that generation on; with `deleted` one that says which layers before it
    are gone, by their numbers, ascending.

    Raises
    ------
    RegionFormatError
        If the metadata would pass MAX_METADATA_BYTES.
    """
    drafts = sorted(drafts, key=_layer)
    keywords = [_join_keywords(draft.keywords) for draft in drafts]
    entries_size = len(drafts) * s.MIN_ENTRY_BYTES + sum(map(len, keywords))
    table_offset = _align(s.HEADER_BYTES + entries_size)
    heap_offset = table_offset + len(drafts) * s.LAYER_BYTES
    heap_size = sum(map(_heap_bytes, drafts, keywords))
    gone = np.array(deleted, s.DELETED).tobytes()
    deleted_offset = heap_offset + heap_size
    content_start = _align(deleted_offset + len(gone))
    if content_start > s.MAX_METADATA_BYTES:
        raise _too_much(dimension, content_start)
    entries, rows, heap, contents, total_size = _lay_out(drafts, keywords, content_start)
    metadata = bytearray(content_start - s.HEADER_BYTES)
    parts = (s.HEADER_BYTES, entries), (table_offset, rows), (heap_offset, heap)
    for start, part in (*parts, (deleted_offset, gone)):
        at = start - s.HEADER_BYTES
        metadata[at : at + len(part)] = part
    extension = Extension(
        generation=generation,
        created_at=created_at,
        table_offset=table_offset,
        heap_offset=heap_offset,
        heap_size=heap_size,
        content_start=content_start,
        metadata_xxh3=xxhash.xxh3_64_intdigest(metadata),
        follows_generation=follows.generation if follows else 0,
        follows_created_at=follows.made_ns if follows else 0,
        follows_size=follows.n_bytes if follows else 0,
        flags=flags,
        replaces=replaces,
        deleted_offset=deleted_offset if gone else 0,
        n_deleted=len(deleted),
    )
    header = _encode_header(dimension, name, total_size, len(drafts), extension)
    return total_size, [header, metadata, *contents]


def _encode_header(
    dimension: DimensionId, name: bytes, total_size: int, n_layers: int, extension: Extension
) -> bytes:
    padding, checksum = bytes(s.EXTENSION["padding"].itemsize), 0
    record = np.array((s.EXTENSION_MAGIC, *extension, padding, checksum), s.EXTENSION)
    reserved = record.tobytes()
    facts = dimension, len(name), name.ljust(s.MAX_NAME_BYTES, b"\0"), total_size, n_layers
    raw = np.array((*facts, s.MAGIC, reserved), s.HEADER).tobytes()[: s.CHECKED_HEADER_BYTES]
    return raw + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(raw))


def _too_much(dimension: DimensionId, n_bytes: int) -> RegionFormatError:
    """Return the error for names, keywords and tables that take more than the format allows."""
    source = faults.Source(dimension, "what is to be written")
    expected = f"<= {s.MAX_METADATA_BYTES:,} bytes of names, keywords and tables"
    return faults.broken(source, "metadata", s.HEADER_BYTES, expected, n_bytes)


def _lay_out(
    drafts: Sequence[LayerDraft], keywords: Sequence[bytes], content_start: int
) -> tuple[bytes, bytes, bytes, list[Any], int]:
    """Return plain entries, rows, heap, and the pieces of contents, each aligned, with their end.

    One pass over all: of many layers, each column for itself would take as long, and of a single
    one ten times as long.
    """
    entries: list[bytes] = []
    rows: list[bytes] = []
    heap: list[bytes] = []
    pieces: list[Any] = []
    end, in_heap = content_start, 0
    for draft, block in zip(drafts, keywords, strict=True):
        name, array, content = draft.name, draft.array_header, draft.content
        n_bytes, n_keywords = len(content), len(draft.keywords)
        start = _align(end) if n_bytes else end
        pieces += (bytes(start - end), content)
        end = start + n_bytes
        entries += (
            _ENTRY.pack(draft.layer, draft.depth, draft.frequency, n_keywords),
            block,
            _EXTENT.pack(start, n_bytes),
        )
        heap += (name, block, array)
        keywords_at = in_heap + len(name)
        array_at = keywords_at + len(block)
        row = (
            *(start, end, _checksum(draft), int(draft.parent or 0), draft.frequency, draft.layer),
            *(draft.depth, draft.encoding, n_keywords, in_heap, len(name), keywords_at, len(block)),
            *(array_at if array else 0, len(array)),
        )
        rows.append(_ROW.pack(*row))
        in_heap = array_at + len(array)
    return b"".join(entries), b"".join(rows), b"".join(heap), pieces, end


def _layer(draft: LayerDraft) -> int:
    return draft.layer


def _heap_bytes(draft: LayerDraft, keywords: bytes) -> int:
    return len(draft.name) + len(keywords) + len(draft.array_header)


def _checksum(draft: LayerDraft) -> int:
    if draft.content_xxh3 is not None:
        return draft.content_xxh3
    return xxhash.xxh3_64_intdigest(draft.content)


def _join_keywords(keywords: Sequence[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(keyword)) + keyword for keyword in keywords)


def _align(offset: int) -> int:
    return -(-offset // s.ALIGNMENT) * s.ALIGNMENT
