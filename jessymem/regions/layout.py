"""Region bytes to tables, and layers to region bytes: format version 1, see docs/format.md.

Reading trusts nothing. The order is fixed: header, then extension or plain entries, then every row,
and no number of the file is used before it was compared with what the file's length allows.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import xxhash

from jessymem.errors import RegionFormatError
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import _jit, parse
from jessymem.kernels import schema as s

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

logger = logging.getLogger("jessymem")


_ENTRY: Final = struct.Struct("<HBfI")  # LAYER_ENTRY
_EXTENT: Final = struct.Struct("<QI")  # LAYER_EXTENT
_LENGTH: Final = struct.Struct("<I")


class Source(NamedTuple):
    """Whose bytes these are, for messages."""

    dimension: DimensionId | None
    path: str


class Header(NamedTuple):
    """The checked fields of a header."""

    dimension: DimensionId
    name: str
    total_size: int
    layer_count: int


class Extension(NamedTuple):
    """The checked fields of an extension."""

    generation: int
    created_at: int
    table_offset: int
    heap_offset: int
    heap_size: int
    content_start: int
    metadata_xxh3: int


@dataclass(frozen=True)
class Layout:
    """What a region's bytes say: the header's facts and one table of checked rows.

    `rows` is LAYER[n], ascending by layer_num; `heap` the bytes that their name and keyword offsets
    count in. Both are views of the region where it carries an extension.
    """

    header: Header
    rows: NDArray[Any]
    heap: Bytes
    content_start: int
    generation: int = 0
    created_at: int = 0

    @property
    def is_extended(self) -> bool:
        """Whether the file carries a table and checksums."""
        return self.generation > 0


@dataclass(frozen=True)
class LayerDraft:
    """One layer to be written; `content` is anything with a length and a buffer."""

    layer: int
    content: Any
    name: str = ""
    frequency: float = 1.0
    depth: int = 0
    keywords: tuple[str, ...] = ()
    parent: LayerId | None = None
    encoding: int = s.ENCODING_BYTES


# -- reading ---------------------------------------------------------------------------------------


def read_layout(data: Bytes, source: Source) -> Layout:
    """Check a region's bytes and return its tables.

    An extension whose checksums fail is ignored with a warning: the plain entries are read in its
    place.

    Raises
    ------
    RegionFormatError
        At the first broken rule.
    """
    header = read_header(data, source)
    extension = read_extension(data, header, source)
    if extension is not None and _metadata_xxh3(data, extension) == extension.metadata_xxh3:
        layout = _extended_layout(data, header, extension)
        check_rows(layout, source, table_offset=extension.table_offset)
        return layout
    if extension is not None:
        _warn_ignored(source, "metadata_xxh3")
    return read_plain(data, header, source)


def read_header(data: Bytes, source: Source) -> Header:
    """Check the header against the format, the dimension asked for and the file's length."""
    if len(data) < s.HEADER_BYTES:
        raise _broken(source, "header", 0, f"{s.HEADER_BYTES} bytes", f"{len(data)} bytes")
    number, name_size, name, total_size, n_layers, magic, _ = _record(data, 0, s.HEADER)
    if magic != s.MAGIC:
        raise _broken_field(source, "magic", s.MAGIC, magic)
    if not 1 <= number <= s.MAX_DIMENSION:
        raise _broken_field(source, "dimension_id", f"1 to {s.MAX_DIMENSION}", number)
    if source.dimension is not None and number != source.dimension:
        raise _broken_field(source, "dimension_id", int(source.dimension), number)
    if name_size > s.MAX_NAME_BYTES:
        raise _broken_field(source, "dimension_name_len", f"<= {s.MAX_NAME_BYTES}", name_size)
    if any(name[name_size:]):
        raise _broken_field(source, "dimension_name", "zeros behind the name", name[name_size:])
    try:
        text = name[:name_size].decode()
    except UnicodeDecodeError:
        raise _broken_field(source, "dimension_name", "UTF-8", name[:name_size]) from None
    if total_size != len(data):
        raise _broken_field(source, "total_size", f"{len(data)}, the file's length", total_size)
    fitting = min(s.MAX_LAYERS, (len(data) - s.HEADER_BYTES) // s.MIN_ENTRY_BYTES)
    if n_layers > fitting:
        raise _broken_field(source, "layer_count", f"<= {fitting}", n_layers)
    return Header(DimensionId(number), text, total_size, n_layers)


def read_extension(data: Bytes, header: Header, source: Source) -> Extension | None:
    """Return the extension if one is announced and the header's checksum holds."""
    magic, *fields, padding, header_xxh3 = _record(data, s.RESERVED_OFFSET, s.EXTENSION)
    if magic != s.EXTENSION_MAGIC:
        return None
    if xxhash.xxh3_64_intdigest(data[: s.CHECKED_HEADER_BYTES]) != header_xxh3:
        _warn_ignored(source, "header_xxh3")
        return None
    extension = Extension(*fields)
    table_bytes = header.layer_count * s.LAYER_BYTES
    entries_end = s.HEADER_BYTES + header.layer_count * s.MIN_ENTRY_BYTES
    limit = min(header.total_size, s.MAX_METADATA_BYTES)
    # Each bound uses only what the lines above it have checked.
    _require(source, "generation", extension.generation, 1, 2**63 - 1)
    _require(source, "content_start", extension.content_start, s.HEADER_BYTES, limit)
    end = extension.content_start
    _require(source, "table_offset", extension.table_offset, entries_end, end - table_bytes)
    if extension.table_offset % s.ALIGNMENT:
        expected = f"a multiple of {s.ALIGNMENT}"
        raise _broken_extension(source, "table_offset", expected, extension.table_offset)
    table_end = extension.table_offset + table_bytes
    _require(source, "heap_offset", extension.heap_offset, table_end, end)
    _require(source, "heap_size", extension.heap_size, 0, end - extension.heap_offset)
    if any(padding):
        raise _broken_extension(source, "padding", "zeros", padding)
    return extension


def read_plain(data: Bytes, header: Header, source: Source) -> Layout:
    """Parse the plain entries into a table of their own, sorted by layer number."""
    _jit.promote_for(header.layer_count)
    rows = np.zeros(header.layer_count, s.LAYER)
    frequency_bits = np.zeros(header.layer_count, "<u4")
    fault = np.zeros(1, s.FAULT)
    end = int(parse.parse_entries(data, rows, frequency_bits, fault))
    if end < 0:
        raise _broken_entry(source, end, fault[0])
    rows["frequency"] = frequency_bits.view("<f4")
    numbers = rows["layer_num"]
    if np.any(numbers[1:] < numbers[:-1]):
        rows = rows[np.argsort(numbers, kind="stable")]
    layout = Layout(header, rows, data[:end], content_start=end)
    check_rows(layout, source, table_offset=None)
    return layout


def check_rows(layout: Layout, source: Source, table_offset: int | None) -> None:
    """Check every row against the region; `table_offset`: where in the file they lie."""
    rows, heap_size, total = layout.rows, len(layout.heap), layout.header.total_size

    def check(field: str, wrong: Any, expected: str) -> None:
        if wrong.any():
            row = int(wrong.argmax())
            if table_offset is None:  # where its plain entry begins
                place = int(rows[row]["keywords_offset"]) - s.LAYER_ENTRY.itemsize
            else:
                place = _row_place(table_offset, row, field)
            name = f"layer {rows[row]['layer_num']} {field}"
            raise _broken(source, name, place, expected, rows[row][field].item())

    numbers = rows["layer_num"]
    starts, ends = rows["content_offset"], rows["content_end"]
    filled = ends > starts
    again = np.zeros(len(rows), bool)
    again[1:] = numbers[1:] <= numbers[:-1]
    check("layer_num", again, "each number once, ascending")
    check("content_end", ends > total, f"<= {total}, the file's length")
    check("content_offset", starts > ends, "<= content_end")
    check("content_offset", filled & (starts < layout.content_start), "behind the metadata")
    check(
        "content_end", ends - starts > s.MAX_CONTENT_BYTES, f"<= {s.MAX_CONTENT_BYTES} bytes long"
    )
    check("frequency", ~np.isfinite(rows["frequency"]), "a finite number")
    check("encoding", rows["encoding"] > s.ENCODING_ARRAY, f"<= {s.ENCODING_ARRAY}")
    parents = rows["parent"]
    check(
        "parent", (parents > 0) & (parents >> s.LAYER_BITS == 0), "a layer of dimension 1 or above"
    )
    check("keyword_count", rows["keyword_count"] > s.MAX_KEYWORDS, f"<= {s.MAX_KEYWORDS}")
    for field in ("name", "keywords"):
        sizes = rows[f"{field}_size"].astype("u8")
        past = rows[f"{field}_offset"] + sizes > heap_size
        check(f"{field}_offset", past, f"inside the heap of {heap_size} bytes with its size")
    lengths = rows["keyword_count"] * s.KEYWORD_LENGTH_BYTES
    check("keywords_size", lengths > rows["keywords_size"], "room for every keyword's length")
    _check_overlap(rows, starts, ends, filled, source)


def _check_overlap(rows: Any, starts: Any, ends: Any, filled: Any, source: Source) -> None:
    """Check that no byte belongs to two layers; one pass where blocks lie in row order."""
    if not filled.all():
        rows, starts, ends = rows[filled], starts[filled], ends[filled]
    if np.all(starts[1:] >= ends[:-1]):
        return
    order = np.argsort(starts, kind="stable")
    wrong = starts[order][1:] < ends[order][:-1]
    if wrong.any():
        first, second = order[int(wrong.argmax()) :][:2]
        name = f"layer {rows[second]['layer_num']} content_offset"
        expected = f">= {ends[first]}, the end of layer {rows[first]['layer_num']}"
        raise _broken(source, name, int(starts[second]), expected, int(starts[second]))


def split_keywords(block: Bytes, count: int, source: Source) -> list[bytes]:
    """Cut a block of length-prefixed strings into `count` pieces that fill it exactly."""
    raw = block.tobytes()
    keywords, at = [], 0
    for _ in range(count):
        if len(raw) - at < _LENGTH.size:
            break
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if length > len(raw) - at:
            break
        keywords.append(raw[at : at + length])
        at += length
    if len(keywords) != count or at != len(raw):
        expected = f"{count} keywords in {len(raw)} bytes"
        raise _broken(source, "keywords", at, expected, f"{len(keywords)} in {at} bytes")
    return keywords


def row_text(layout: Layout, row: Any, field: str) -> Bytes:
    """Return the heap's bytes that `field` ("name" or "keywords") of a row points at."""
    start = int(row[f"{field}_offset"])
    return layout.heap[start : start + int(row[f"{field}_size"])]


def build_index(rows: NDArray[Any]) -> NDArray[np.uint16] | None:
    """Map layer_num to row where numbers have gaps; None where each row is its number."""
    if len(rows) == 0 or int(rows["layer_num"][-1]) == len(rows) - 1:
        return None
    numbers = rows["layer_num"]
    index = np.full(int(numbers[-1]) + 1, s.NO_LAYER, s.LAYER_INDEX)
    index[numbers] = np.arange(len(rows), dtype=s.LAYER_INDEX)
    return index


# -- verifying -------------------------------------------------------------------------------------


def verify_layout(data: Bytes, level: str, source: Source) -> None:
    """Read a region's bytes again and compare every checksum up to `level`, and table with entries.

    Unlike `read_layout` it lets no checksum pass: one that fails is an error. Plain V1 files have
    none; theirs is a check of the structure and the texts.
    """
    header = read_header(data, source)
    announced = data[s.RESERVED_OFFSET :][: len(s.EXTENSION_MAGIC)].tobytes() == s.EXTENSION_MAGIC
    extension = read_extension(data, header, source)
    if announced and extension is None:
        _verify_sum(source, "header_xxh3", s.CHECKED_HEADER_BYTES, data, 0, s.CHECKED_HEADER_BYTES)
    if level == "header":
        return
    plain = read_plain(data, header, source)
    _verify_texts(plain, source)
    if extension is None:
        return
    at = s.RESERVED_OFFSET + s.EXTENSION.fields["metadata_xxh3"][1]  # type: ignore[index]
    _verify_sum(source, "metadata_xxh3", at, data, s.HEADER_BYTES, extension.content_start)
    layout = _extended_layout(data, header, extension)
    check_rows(layout, source, extension.table_offset)
    _verify_texts(layout, source)
    _verify_same(layout, plain, extension.table_offset, source)
    if level == "full":
        _verify_contents(data, layout, extension.table_offset, source)


def _verify_sum(source: Source, field: str, at: int, data: Bytes, start: int, end: int) -> None:
    expected = int(data[at : at + 8].view("<u8")[0])
    got = xxhash.xxh3_64_intdigest(data[start:end])
    if got != expected:
        raise _broken(source, field, at, f"{expected:#018x}", f"{got:#018x}")


def _verify_texts(layout: Layout, source: Source) -> None:
    for row in layout.rows:
        number = row["layer_num"]
        texts = {"name": [row_text(layout, row, "name").tobytes()]}
        count = int(row["keyword_count"])
        texts["keywords"] = split_keywords(row_text(layout, row, "keywords"), count, source)
        for field, pieces in texts.items():
            for piece in pieces:
                try:
                    piece.decode()
                except UnicodeDecodeError:
                    at = int(row[f"{field}_offset"])
                    raise _broken(source, f"layer {number} {field}", at, "UTF-8", piece) from None


def _verify_same(layout: Layout, plain: Layout, table_offset: int, source: Source) -> None:
    """Check that table and plain entries tell the same of every layer."""
    fields = ("layer_num", "depth", "frequency", "keyword_count", "keywords_size")
    for field in (*fields, "content_offset", "content_end"):
        differs = layout.rows[field] != plain.rows[field]
        if differs.any():
            row = int(differs.argmax())
            at = _row_place(table_offset, row, field)
            name = f"layer {layout.rows[row]['layer_num']} {field}"
            expected = f"{plain.rows[row][field].item()}, as the plain entry says"
            raise _broken(source, name, at, expected, layout.rows[row][field].item())
    for row, twin in zip(layout.rows, plain.rows, strict=True):
        mine, other = row_text(layout, row, "keywords"), row_text(plain, twin, "keywords")
        if mine.tobytes() != other.tobytes():
            name = f"layer {row['layer_num']} keywords"
            at = int(twin["keywords_offset"])
            raise _broken(source, name, at, mine.tobytes(), other.tobytes())


def _verify_contents(data: Bytes, layout: Layout, table_offset: int, source: Source) -> None:
    for i, row in enumerate(layout.rows):
        start, end = int(row["content_offset"]), int(row["content_end"])
        at = _row_place(table_offset, i, "content_xxh3")
        _verify_sum(source, f"layer {row['layer_num']} content_xxh3", at, data, start, end)


# -- writing ---------------------------------------------------------------------------------------


def write_layout(
    dimension: DimensionId,
    name: str,
    drafts: Sequence[LayerDraft],
    generation: int,
    created_at: int,
) -> tuple[int, list[Any]]:
    """Lay out a region of `drafts`; return its length and the pieces that, in order, are its bytes.

    Contents are referred to, not copied. `drafts` are written in the order of their numbers, which
    must differ.

    Raises
    ------
    ValueError
        If the metadata would pass MAX_METADATA_BYTES.
    """
    drafts = sorted(drafts, key=lambda draft: draft.layer)
    keywords = [_join_keywords(draft.keywords) for draft in drafts]
    entries_size = len(drafts) * s.MIN_ENTRY_BYTES + sum(map(len, keywords))
    table_offset = _align(s.HEADER_BYTES + entries_size)
    heap_offset = table_offset + len(drafts) * s.LAYER_BYTES
    rows, heap = _fill_table(drafts, keywords)
    content_start = _align(heap_offset + len(heap))
    if content_start > s.MAX_METADATA_BYTES:
        raise ValueError(
            f"{dimension}: names, keywords and tables of {len(drafts)} layers take "
            f"{content_start:,} bytes, the format allows {s.MAX_METADATA_BYTES:,}"
        )
    contents, total_size = _place_contents(drafts, rows, content_start)
    metadata = bytearray(content_start - s.HEADER_BYTES)
    entries = _join_entries(drafts, keywords, rows)
    metadata[: len(entries)] = entries
    at = table_offset - s.HEADER_BYTES
    metadata[at : at + rows.nbytes] = rows.tobytes()
    at = heap_offset - s.HEADER_BYTES
    metadata[at : at + len(heap)] = heap
    extension = Extension(
        generation=generation,
        created_at=created_at,
        table_offset=table_offset,
        heap_offset=heap_offset,
        heap_size=len(heap),
        content_start=content_start,
        metadata_xxh3=xxhash.xxh3_64_intdigest(metadata),
    )
    header = _encode_header(dimension, name, total_size, len(drafts), extension)
    return total_size, [header, metadata, *contents]


def _encode_header(
    dimension: DimensionId, name: str, total_size: int, n_layers: int, extension: Extension
) -> bytes:
    record = np.zeros(1, s.EXTENSION)
    record["extension_magic"] = s.EXTENSION_MAGIC
    for field, value in extension._asdict().items():
        record[field] = value
    header = np.zeros(1, s.HEADER)
    encoded = name.encode()
    header["dimension_id"] = dimension
    header["dimension_name_len"] = len(encoded)
    header["dimension_name"] = encoded
    header["total_size"] = total_size
    header["layer_count"] = n_layers
    header["magic"] = s.MAGIC
    header["reserved"] = record.tobytes()
    raw = header.tobytes()[: s.CHECKED_HEADER_BYTES]
    return raw + struct.pack("<Q", xxhash.xxh3_64_intdigest(raw))


def _fill_table(
    drafts: Sequence[LayerDraft], keywords: Sequence[bytes]
) -> tuple[NDArray[Any], bytes]:
    """Make the rows, all but their extents, and the heap that they point into."""
    rows = np.zeros(len(drafts), s.LAYER)
    names = [draft.name.encode() for draft in drafts]
    name_sizes = np.array([len(name) for name in names], "u8")
    keyword_sizes = np.array([len(block) for block in keywords], "u8")
    ends = np.cumsum(name_sizes + keyword_sizes)
    if len(drafts) and int(ends[-1]) > s.MAX_METADATA_BYTES:
        raise ValueError(
            f"names and keywords take {int(ends[-1]):,} bytes, "
            f"the format allows {s.MAX_METADATA_BYTES:,}"
        )
    rows["name_offset"] = ends - name_sizes - keyword_sizes
    rows["name_size"] = name_sizes
    rows["keywords_offset"] = ends - keyword_sizes
    rows["keywords_size"] = keyword_sizes
    rows["layer_num"] = [draft.layer for draft in drafts]
    rows["depth"] = [draft.depth for draft in drafts]
    rows["frequency"] = [draft.frequency for draft in drafts]
    rows["encoding"] = [draft.encoding for draft in drafts]
    rows["keyword_count"] = [len(draft.keywords) for draft in drafts]
    rows["parent"] = [int(draft.parent or 0) for draft in drafts]
    rows["content_xxh3"] = [xxhash.xxh3_64_intdigest(draft.content) for draft in drafts]
    return rows, b"".join(part for pair in zip(names, keywords, strict=True) for part in pair)


def _place_contents(
    drafts: Sequence[LayerDraft], rows: NDArray[Any], content_start: int
) -> tuple[list[Any], int]:
    """Give every content its aligned place in `rows`; return the pieces and their end."""
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


def _join_keywords(keywords: Sequence[str]) -> bytes:
    encoded = [keyword.encode() for keyword in keywords]
    return b"".join(_LENGTH.pack(len(keyword)) + keyword for keyword in encoded)


def _align(offset: int) -> int:
    return -(-offset // s.ALIGNMENT) * s.ALIGNMENT


# -- small parts -----------------------------------------------------------------------------------


def _record(data: Bytes, at: int, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Read one record as plain Python values."""
    values: tuple[Any, ...] = np.frombuffer(data[at : at + dtype.itemsize], dtype)[0].item()
    return values


def _row_place(table_offset: int, row: int, field: str) -> int:
    """Return the offset in the file of one field of one row of the table."""
    return table_offset + row * s.LAYER_BYTES + int(s.LAYER.fields[field][1])  # type: ignore[index]


def _metadata_xxh3(data: Bytes, extension: Extension) -> int:
    return int(xxhash.xxh3_64_intdigest(data[s.HEADER_BYTES : extension.content_start]))


def _extended_layout(data: Bytes, header: Header, extension: Extension) -> Layout:
    start, heap = extension.table_offset, extension.heap_offset
    return Layout(
        header=header,
        rows=data[start : start + header.layer_count * s.LAYER_BYTES].view(s.LAYER),
        heap=data[heap : heap + extension.heap_size],
        content_start=extension.content_start,
        generation=extension.generation,
        created_at=extension.created_at,
    )


def _require(source: Source, field: str, got: int, low: int, high: int) -> None:
    if not low <= got <= high:
        raise _broken_extension(source, field, f"{low} to {high}", got)


def _broken(source: Source, field: str, offset: int, expected: Any, got: Any) -> RegionFormatError:
    who = f"{source.dimension}: " if source.dimension is not None else ""
    shown = got if isinstance(got, str) else repr(got)
    return RegionFormatError(
        f"{who}{source.path}: {field} at byte {offset}: expected {expected}, got {shown}",
        field=field,
        offset=offset,
        expected=expected,
        got=got,
        dimension=source.dimension,
        path=source.path,
    )


def _broken_field(source: Source, field: str, expected: Any, got: Any) -> RegionFormatError:
    at = s.HEADER.fields[field][1]  # type: ignore[index]
    return _broken(source, field, at, expected, got)


def _broken_extension(source: Source, field: str, expected: Any, got: Any) -> RegionFormatError:
    at = s.EXTENSION.fields[field][1]  # type: ignore[index]
    return _broken(source, field, s.RESERVED_OFFSET + at, expected, got)


_ENTRY_FAULTS: Final = {
    s.BAD_ENTRY: ("entry", "{} bytes"),
    s.BAD_FREQUENCY: ("frequency", "a finite number"),
    s.BAD_KEYWORD_COUNT: ("keyword_count", "<= {}"),
    s.BAD_KEYWORD_LENGTH: ("keyword length", "<= {}, the bytes that follow"),
    s.BAD_EXTENT: ("content extent", "<= {}, within the file"),
    s.BAD_METADATA_SIZE: ("metadata", "<= {} bytes"),
}


def _broken_entry(source: Source, code: int, fault: Any) -> RegionFormatError:
    field, expected = _ENTRY_FAULTS[code]
    name = f"entry {fault['entry']} {field}"
    got = int(fault["got"]) & (2**64 - 1)  # a u64 of the file may have come out negative
    return _broken(source, name, int(fault["offset"]), expected.format(fault["expected"]), got)


def _warn_ignored(source: Source, field: str) -> None:
    logger.warning(
        "%s: %s does not hold in %s; its extension is ignored, the plain entries are read",
        source.dimension,
        field,
        source.path,
        extra={
            "event": "extension_ignored",
            "dimension": str(source.dimension),
            "path": source.path,
            "field": field,
        },
    )
