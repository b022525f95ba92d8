"""`write_layout`: layers to the bytes of a region, format versions 1 and 2, see docs/format.md."""

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
from jessymem.regions.layout import (
    EXTENSION_RECORD,
    HEADER_RECORD,
    Edition,
    Extension,
    packing_of,
)

_ENTRY: Final = packing_of(s.LAYER_ENTRY)
_EXTENT: Final = packing_of(s.LAYER_EXTENT)
_LENGTH: Final = struct.Struct("<I")
_CHECKSUM: Final = struct.Struct("<Q")
_ROW: Final = packing_of(s.LAYER)
_FRAME: Final = packing_of(s.FRAME)


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
    dictionary: bytes = b"",
) -> tuple[int, list[Any]]:
    """Lay out a region of `drafts`; return its length and the pieces that, in order, are its bytes.

    Contents are referred to, not copied. `drafts` are written in the order of their numbers, which
    must differ. With `follows`, the edition of another file, it is a delta; with `replaces` one in
    the place of those from that generation on; with `deleted` one that says which layers before it
    are gone, by their numbers, ascending. With compressed layers among them it is one of version
    2; `dictionary` is the one that their frames share.

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
    n_frames = sum(draft.frame is not None for draft in drafts)
    frames_offset = _align(deleted_offset + len(gone), s.FRAME_ALIGNMENT)
    dictionary_offset = frames_offset + n_frames * s.FRAME.itemsize
    content_start = _align(dictionary_offset + len(dictionary))
    if content_start > s.MAX_METADATA_BYTES:
        raise _too_much(dimension, content_start)
    laid_out = _lay_out(drafts, keywords, content_start)
    entries, rows, heap, frames, contents, total_size = laid_out
    metadata = bytearray(content_start - s.HEADER_BYTES)
    parts = (s.HEADER_BYTES, entries), (table_offset, rows), (heap_offset, heap)
    more = (deleted_offset, gone), (frames_offset, frames), (dictionary_offset, dictionary)
    for start, part in (*parts, *more):
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
        frames_offset=frames_offset if n_frames else 0,
        n_frames=n_frames,
        dictionary_offset=dictionary_offset if dictionary else 0,
        dictionary_size=len(dictionary),
    )
    header = _encode_header(dimension, name, total_size, len(drafts), extension)
    return total_size, [header, metadata, *contents]


def _encode_header(
    dimension: DimensionId, name: bytes, total_size: int, n_layers: int, extension: Extension
) -> bytes:
    reserved = EXTENSION_RECORD.pack(s.EXTENSION_MAGIC, *extension, 0)
    facts = dimension, len(name), name, total_size, n_layers
    magic = s.COMPRESSED_MAGIC if extension.n_frames else s.MAGIC
    raw = HEADER_RECORD.pack(*facts, magic, reserved)[: s.CHECKED_HEADER_BYTES]
    return raw + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(raw))


def _too_much(dimension: DimensionId, n_bytes: int) -> RegionFormatError:
    """Return the error for names, keywords and tables that take more than the format allows."""
    source = faults.Source(dimension, "what is to be written")
    expected = f"<= {s.MAX_METADATA_BYTES:,} bytes of names, keywords and tables"
    return faults.broken(source, "metadata", s.HEADER_BYTES, expected, n_bytes)


def _lay_out(
    drafts: Sequence[LayerDraft], keywords: Sequence[bytes], content_start: int
) -> tuple[bytes, bytes, bytes, bytes, list[Any], int]:
    """Return plain entries, rows, heap, frames, and the pieces of contents with their end.

    What is compressed is not aligned, all else is.

    One pass over all: of many layers, each column for itself would take as long, and of a single
    one ten times as long.
    """
    entries: list[bytes] = []
    rows: list[bytes] = []
    heap: list[bytes] = []
    frames: list[bytes] = []
    pieces: list[Any] = []
    end, in_heap = content_start, 0
    for draft, block in zip(drafts, keywords, strict=True):
        name, array, content = draft.name, draft.array_header, draft.content
        n_bytes, n_keywords = len(content), len(draft.keywords)
        frame = draft.frame
        start = _align(end) if n_bytes and frame is None else end
        pieces += (bytes(start - end), content)
        end = start + n_bytes
        first, last = start, end
        if frame is not None:
            uses = bool(frame.dictionary)
            frames.append(
                _FRAME.pack(start, frame.stored_xxh3, n_bytes, draft.layer, frame.codec, uses)
            )
            first, last = s.COMPRESSED_AT, s.COMPRESSED_AT + frame.n_bytes
        entries += (
            _ENTRY.pack(draft.layer, draft.depth, draft.frequency, n_keywords),
            block,
            _EXTENT.pack(first, last - first),
        )
        heap += (name, block, array)
        keywords_at = in_heap + len(name)
        array_at = keywords_at + len(block)
        row = (
            *(first, last, _checksum(draft), int(draft.parent or 0), draft.frequency, draft.layer),
            *(draft.depth, draft.encoding, n_keywords, in_heap, len(name), keywords_at, len(block)),
            *(array_at if array else 0, len(array)),
        )
        rows.append(_ROW.pack(*row))
        in_heap = array_at + len(array)
    return *map(b"".join, (entries, rows, heap, frames)), pieces, end  # type: ignore[return-value]


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


def _align(offset: int, alignment: int = s.ALIGNMENT) -> int:
    return -(-offset // alignment) * alignment
