"""`write_layout`: layers to the bytes of a region, format version 1, see docs/format.md."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from jessymem.errors import RegionFormatError
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.regions import faults
from jessymem.regions.drafts import LayerDraft
from jessymem.regions.layout import Edition, Extension

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ENTRY: Final = struct.Struct("<HBfI")  # LAYER_ENTRY
_EXTENT: Final = struct.Struct("<QI")  # LAYER_EXTENT
_LENGTH: Final = struct.Struct("<I")
_CHECKSUM: Final = struct.Struct("<Q")


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
    drafts = sorted(drafts, key=lambda draft: draft.layer)
    keywords = [_join_keywords(draft.keywords) for draft in drafts]
    entries_size = len(drafts) * s.MIN_ENTRY_BYTES + sum(map(len, keywords))
    table_offset = _align(s.HEADER_BYTES + entries_size)
    heap_offset = table_offset + len(drafts) * s.LAYER_BYTES
    rows, heap = _fill_table(dimension, drafts, keywords)
    gone = np.array(deleted, s.DELETED).tobytes()
    deleted_offset = heap_offset + len(heap)
    content_start = _align(deleted_offset + len(gone))
    if content_start > s.MAX_METADATA_BYTES:
        raise _too_much(dimension, content_start)
    contents, total_size = _place_contents(drafts, rows, content_start)
    metadata = bytearray(content_start - s.HEADER_BYTES)
    entries = _join_entries(drafts, keywords, rows)
    metadata[: len(entries)] = entries
    at = table_offset - s.HEADER_BYTES
    metadata[at : at + rows.nbytes] = rows.tobytes()
    at = heap_offset - s.HEADER_BYTES
    metadata[at : at + len(heap)] = heap
    at = deleted_offset - s.HEADER_BYTES
    metadata[at : at + len(gone)] = gone
    extension = Extension(
        generation=generation,
        created_at=created_at,
        table_offset=table_offset,
        heap_offset=heap_offset,
        heap_size=len(heap),
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
    record = np.zeros(1, s.EXTENSION)
    record["extension_magic"] = s.EXTENSION_MAGIC
    for field, value in extension._asdict().items():
        record[field] = value
    header = np.zeros(1, s.HEADER)
    header["dimension_id"] = dimension
    header["dimension_name_len"] = len(name)
    header["dimension_name"] = name
    header["total_size"] = total_size
    header["layer_count"] = n_layers
    header["magic"] = s.MAGIC
    header["reserved"] = record.tobytes()
    raw = header.tobytes()[: s.CHECKED_HEADER_BYTES]
    return raw + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(raw))


def _too_much(dimension: DimensionId, n_bytes: int) -> RegionFormatError:
    """Return the error for names, keywords and tables that take more than the format allows."""
    source = faults.Source(dimension, "what is to be written")
    expected = f"<= {s.MAX_METADATA_BYTES:,} bytes of names, keywords and tables"
    return faults.broken(source, "metadata", s.HEADER_BYTES, expected, n_bytes)


def _fill_table(
    dimension: DimensionId, drafts: Sequence[LayerDraft], keywords: Sequence[bytes]
) -> tuple[NDArray[Any], bytes]:
    """Make the rows, all but their extents, and the heap that they point into."""
    rows = np.zeros(len(drafts), s.LAYER)
    texts = {
        "name": [draft.name for draft in drafts],
        "keywords": keywords,
        "array": [draft.array_header for draft in drafts],
    }
    sizes = {kind: np.array([len(text) for text in texts[kind]], "u8") for kind in texts}
    ends = np.cumsum(sum(sizes.values()))
    if len(drafts) and int(ends[-1]) > s.MAX_METADATA_BYTES:
        raise _too_much(dimension, int(ends[-1]))
    starts = ends - sum(sizes.values())
    for kind, n_bytes in sizes.items():
        rows[f"{kind}_offset"] = np.where(n_bytes, starts, 0) if kind == "array" else starts
        rows[f"{kind}_size"] = n_bytes
        starts = starts + n_bytes
    rows["layer_num"] = [draft.layer for draft in drafts]
    rows["depth"] = [draft.depth for draft in drafts]
    rows["frequency"] = [draft.frequency for draft in drafts]
    rows["encoding"] = [draft.encoding for draft in drafts]
    rows["keyword_count"] = [len(draft.keywords) for draft in drafts]
    rows["parent"] = [int(draft.parent or 0) for draft in drafts]
    rows["content_xxh3"] = [_checksum(draft) for draft in drafts]
    return rows, b"".join(chain.from_iterable(zip(*texts.values(), strict=True)))


def _checksum(draft: LayerDraft) -> int:
    if draft.content_xxh3 is not None:
        return draft.content_xxh3
    return xxhash.xxh3_64_intdigest(draft.content)


def _place_contents(
    drafts: Sequence[LayerDraft], rows: NDArray[Any], content_start: int
) -> tuple[list[Any], int]:
    """Give every content its aligned offset in `rows`; return the pieces and their end."""
    pieces: list[Any] = []
    end = content_start
    for i, draft in enumerate(drafts):
        start = _align(end) if len(draft.content) else end
        pieces += [bytes(start - end), draft.content]
        end = start + len(draft.content)
        rows[i]["content_offset"] = start
        rows[i]["content_end"] = end
    return pieces, end


def _join_entries(
    drafts: Sequence[LayerDraft], keywords: Sequence[bytes], rows: NDArray[Any]
) -> bytes:
    starts = rows["content_offset"].tolist()
    return b"".join(
        _ENTRY.pack(draft.layer, draft.depth, draft.frequency, len(draft.keywords))
        + block
        + _EXTENT.pack(start, len(draft.content))
        for draft, block, start in zip(drafts, keywords, starts, strict=True)
    )


def _join_keywords(keywords: Sequence[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(keyword)) + keyword for keyword in keywords)


def _align(offset: int) -> int:
    return -(-offset // s.ALIGNMENT) * s.ALIGNMENT
