"""Region bytes to tables: format versions 1 and 2, see docs/format.md.

Reading trusts nothing. The order is fixed: header, then extension or plain entries, then every row,
and no number of the file is used before it was compared with what the file's length allows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import xxhash

from jessymem.errors import RegionFormatError
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.locks import before_import
from jessymem.logger import logger
from jessymem.named_tuples import NamedTuple
from jessymem.regions import faults
from jessymem.regions.faults import Source as Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.regions.arrays import ArrayForm

    Bytes = NDArray[np.uint8]

#: How a field without gaps beside it is packed, by its kind and length; other bytes as they are.
_PACKED: Final = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "f4": "f"}


def packing_of(record: np.dtype[Any]) -> struct.Struct:
    """Return how a record is packed, as NumPy has it but in a tenth of the time."""
    fields = [record[at] for at in range(len(record.names or ()))]
    codes = [_PACKED.get(f"{each.kind}{each.itemsize}", f"{each.itemsize}s") for each in fields]
    return struct.Struct("<" + "".join(codes))


HEADER_RECORD: Final = packing_of(s.HEADER)
EXTENSION_RECORD: Final = packing_of(s.EXTENSION)
_LENGTH: Final = struct.Struct("<I")
_MAX_U64: Final = 2**64 - 1
_N_HELD: Final = 100  # so many numbers are taken one by one
NONE_DELETED: Final = np.zeros(0, s.DELETED)

#: A table that is yet to be checked: its rows, copied, and of the region the size of the heap, the
#: file's length and where contents begin.
Unchecked: TypeAlias = tuple["np.typing.NDArray[np.uint8]", int, int, int]

#: A table of more rows gains nothing from being checked with others.
_N_FEW_ROWS: Final = 256


class Edition(NamedTuple):
    """What tells a region from one that is published before or after it; the later is greater."""

    generation: int
    made_ns: int  # when it was created, by its own account; plain V1: when its file was modified
    n_bytes: int


class Header(NamedTuple):
    """The checked fields of a header."""

    dimension: DimensionId
    name: str
    total_size: int
    layer_count: int
    version: int = 1  # of the format; 2: layers are compressed


class Extension(NamedTuple):
    """The checked fields of an extension."""

    generation: int
    created_at: int
    table_offset: int
    heap_offset: int
    heap_size: int
    content_start: int
    metadata_xxh3: int
    follows_generation: int = 0
    follows_created_at: int = 0
    follows_size: int = 0
    flags: int = 0
    replaces: int = 0
    deleted_offset: int = 0
    n_deleted: int = 0
    frames_offset: int = 0
    n_frames: int = 0
    dictionary_offset: int = 0
    dictionary_size: int = 0


class Layout(NamedTuple):
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
    table_offset: int | None = None  # in the file; None: the rows were parsed
    heap_offset: int = 0  # in the file
    follows: Edition | None = None  # of a delta: the edition of the file that it follows
    flags: int = 0  # FLAG_*
    replaces: int = 0  # the lowest generation of the deltas in whose place it is; 0: of none
    deleted: NDArray[np.uint16] = NONE_DELETED  # of a delta: numbers of layers before it, ascending
    deleted_offset: int = 0  # in the file
    frames: NDArray[Any] | None = None  # FRAME[n], copied; None: no layer is compressed
    frames_offset: int = 0  # in the file
    dictionary: bytes = b""  # that frames share; empty: there is none
    unchecked: Unchecked | None = None  # what is yet to be checked; None: nothing

    @property
    def is_extended(self) -> bool:
        """Whether the file carries a table and checksums."""
        return self.generation > 0


# -- reading ---------------------------------------------------------------------------------------


def read_layout(
    data: Bytes,
    source: Source,
    n_bytes: int | None = None,
    *,
    checks_rows: bool = True,
    is_own: bool = False,
) -> Layout:
    """Check a region's bytes and return its tables.

    `data` is the whole file, or with its length `n_bytes` all in front of the contents.

    An extension whose checksums fail is ignored with a warning: the plain entries are read
    instead, but of a file with compressed layers, which cannot be read without. What `is_own` was
    just written and read back: that its rows are in order was seen to.

    Parameters
    ----------
    checks_rows : bool
        False: where an extension has few rows, they are yet to be checked, with those of others
        (`are_sound`), and not to be used before.

    Raises
    ------
    RegionFormatError
        At the first broken rule.
    """
    header = read_header(data, source, n_bytes)
    extension = read_extension(data, header, source)
    if header.version > 1:
        return _read_compressed(data, header, extension, source, is_own=is_own)
    if extension is not None and is_own:
        return extended_layout(data, header, extension)
    if extension is not None and _metadata_xxh3(data, extension) == extension.metadata_xxh3:
        layout = extended_layout(data, header, extension)
        if not checks_rows and len(layout.rows) <= _N_FEW_ROWS and not len(layout.deleted):
            rows = np.array(layout.rows.view(np.uint8))
            limits = len(layout.heap), header.total_size, layout.content_start
            return layout._replace(unchecked=(rows, *limits))
        check_rows(layout, source)
        return layout
    if extension is not None:
        _warn_ignored(source, "metadata_xxh3")
    return read_plain(data, header, source)


def _read_compressed(
    data: Bytes, header: Header, extension: Extension | None, source: Source, *, is_own: bool
) -> Layout:
    """Do as `read_layout` for a file with compressed layers, all of whose checksums must hold."""
    if extension is None:  # or `find_extension` has raised
        raise faults.broken_extension(source, "extension_magic", s.EXTENSION_MAGIC, b"")
    if not is_own:
        found = _metadata_xxh3(data, extension)
        if found != extension.metadata_xxh3:
            expected = f"{extension.metadata_xxh3:#018x}"
            raise faults.broken_extension(source, "metadata_xxh3", expected, f"{found:#018x}")
    layout = extended_layout(data, header, extension)
    if not is_own:
        check_rows(layout, source)
    return layout


def read_header(data: Bytes, source: Source, n_bytes: int | None = None) -> Header:
    """Check the header against the format, the dimension asked for and the file's length.

    `data` is the whole file, or with its length `n_bytes` the beginning of it.
    """
    n_bytes = len(data) if n_bytes is None else n_bytes
    if len(data) < s.HEADER_BYTES:
        raise faults.broken(source, "header", 0, f"{s.HEADER_BYTES} bytes", f"{len(data)} bytes")
    broken = partial(faults.broken_header, source)
    number, name_size, name, total_size, n_layers, magic, _ = HEADER_RECORD.unpack_from(data)
    if magic not in s.VERSIONS:
        raise broken("magic", s.MAGIC, magic)
    if not 1 <= number <= s.MAX_DIMENSION:
        raise broken("dimension_id", f"1 to {s.MAX_DIMENSION}", number)
    if source.dimension is not None and number != source.dimension:
        raise broken("dimension_id", int(source.dimension), number)
    if name_size > s.MAX_NAME_BYTES:
        raise faults.broken_header(
            source, "dimension_name_len", f"<= {s.MAX_NAME_BYTES}", name_size
        )
    if any(name[name_size:]):
        raise faults.broken_header(
            source, "dimension_name", "zeros behind the name", name[name_size:]
        )
    try:
        text = name[:name_size].decode()
    except UnicodeDecodeError:
        raise broken("dimension_name", "UTF-8", name[:name_size]) from None
    if total_size != n_bytes:
        raise faults.broken_header(
            source, "total_size", f"{n_bytes}, the file's length", total_size
        )
    fitting = min(s.MAX_LAYERS, (n_bytes - s.HEADER_BYTES) // s.MIN_ENTRY_BYTES)
    if n_layers > fitting:
        raise broken("layer_count", f"<= {fitting}", n_layers)
    return Header(DimensionId(number), text, total_size, n_layers, s.VERSIONS[magic])


def read_extension(data: Bytes, header: Header, source: Source) -> Extension | None:
    """Return the extension if one is announced and the header's checksum holds."""
    try:
        return find_extension(data, header, source)
    except _NotHeld:
        if header.version > 1:
            raise
        _warn_ignored(source, "header_xxh3")
        return None


class _NotHeld(RegionFormatError):
    """The header's checksum does not hold."""


def find_extension(data: Bytes, header: Header, source: Source) -> Extension | None:
    """Return the extension if one is announced; raise RegionFormatError where it is damaged."""
    magic, *fields, header_xxh3 = EXTENSION_RECORD.unpack_from(data, s.RESERVED_OFFSET)
    if magic != s.EXTENSION_MAGIC:
        if header.version > 1:
            raise faults.broken_extension(source, "extension_magic", s.EXTENSION_MAGIC, magic)
        return None
    found = xxhash.xxh3_64_intdigest(data[: s.CHECKED_HEADER_BYTES])
    if found != header_xxh3:
        fault = faults.broken_extension(source, "header_xxh3", f"{found:#018x}", header_xxh3)
        raise _NotHeld(fault.message, **fault.details)
    extension = Extension(*fields)
    table_bytes = header.layer_count * s.LAYER_BYTES
    entries_end = s.HEADER_BYTES + header.layer_count * s.MIN_ENTRY_BYTES
    limit = min(header.total_size, s.MAX_METADATA_BYTES)
    # Each bound uses only what the lines above it have checked.
    _require(source, "generation", extension.generation, 1, s.MAX_GENERATION)
    _require(source, "content_start", extension.content_start, s.HEADER_BYTES, limit)
    end = extension.content_start
    _require(source, "table_offset", extension.table_offset, entries_end, end - table_bytes)
    if extension.table_offset % s.ALIGNMENT:
        expected = f"a multiple of {s.ALIGNMENT}"
        raise faults.broken_extension(source, "table_offset", expected, extension.table_offset)
    table_end = extension.table_offset + table_bytes
    _require(source, "heap_offset", extension.heap_offset, table_end, end)
    _require(source, "heap_size", extension.heap_size, 0, end - extension.heap_offset)
    follows, limit = extension.follows_generation, extension.generation - 1
    _require(source, "follows_generation", follows, 0, limit)
    if not follows:
        _require(source, "follows_created_at", extension.follows_created_at, 0, 0)
    low, high = (s.HEADER_BYTES, _MAX_U64) if follows else (0, 0)
    _require(source, "follows_size", extension.follows_size, low, high)
    _require(source, "flags", extension.flags, 0, s.KNOWN_FLAGS)
    _require(source, "replaces", extension.replaces, 0, limit)
    _require(source, "n_deleted", extension.n_deleted, 0, s.MAX_LAYERS if follows else 0)
    taken = extension.heap_offset + extension.heap_size
    taken = _require_behind(source, extension, "deleted_offset", taken, end)
    is_compressed, least = header.version > 1, int(header.version > 1)
    _require(source, "n_frames", extension.n_frames, least, header.layer_count * is_compressed)
    taken = _require_behind(source, extension, "frames_offset", taken, end)
    if extension.frames_offset % s.FRAME_ALIGNMENT:
        expected = f"a multiple of {s.FRAME_ALIGNMENT}"
        raise faults.broken_extension(source, "frames_offset", expected, extension.frames_offset)
    most = s.MAX_DICTIONARY_BYTES * is_compressed
    _require(source, "dictionary_size", extension.dictionary_size, 0, most)
    _require_behind(source, extension, "dictionary_offset", taken, end)
    return extension


def _lengths(extension: Extension) -> dict[str, int]:
    """Return how long the parts behind the heap are, in bytes, by the field that says where."""
    return {
        "deleted_offset": extension.n_deleted * s.DELETED.itemsize,
        "frames_offset": extension.n_frames * s.FRAME.itemsize,
        "dictionary_offset": extension.dictionary_size,
    }


def _require_behind(source: Source, extension: Extension, field: str, taken: int, end: int) -> int:
    """Check that a part lies behind what precedes it, 0 where it is empty; return where it ends."""
    n_bytes, start = _lengths(extension)[field], getattr(extension, field)
    low, high = (taken, end - n_bytes) if n_bytes else (0, 0)
    _require(source, field, start, low, high)
    return start + n_bytes if n_bytes else taken


def is_header_whole(data: Bytes) -> bool:
    """Tell whether a header's checksum holds."""
    if len(data) < s.HEADER_BYTES:
        return False
    told = int(data[s.CHECKED_HEADER_BYTES : s.HEADER_BYTES].view("<u8")[0])
    return told == xxhash.xxh3_64_intdigest(data[: s.CHECKED_HEADER_BYTES])


def read_edition(extension: Extension, total_size: int) -> Edition:
    """Return which edition of its file an extension is of."""
    return Edition(extension.generation, extension.created_at, total_size)


def read_predecessor(extension: Extension) -> Edition | None:
    """Return the edition that a delta follows; None: the file is no delta."""
    if not extension.follows_generation:
        return None
    return Edition(
        extension.follows_generation, extension.follows_created_at, extension.follows_size
    )


def read_plain(
    data: Bytes, header: Header, source: Source, extended: Layout | None = None
) -> Layout:
    """Parse the plain entries into a table of their own, sorted by layer number.

    Where compressed layers are stored is in what is `extended`.
    """
    before_import("jessymem.regions.entries")  # files of others; ours carry a table
    from jessymem.regions.entries import read_entries

    rows, end = read_entries(data, header.layer_count, source)
    numbers = rows["layer_num"]
    if np.any(numbers[1:] < numbers[:-1]):
        rows = rows[np.argsort(numbers, kind="stable")]
    layout = Layout(header, rows, data[:end], content_start=end)
    if extended is not None:
        layout = layout._replace(frames=extended.frames, frames_offset=extended.frames_offset)
        layout = layout._replace(dictionary=extended.dictionary)
    check_rows(layout, source)
    return layout


def split_keywords(layout: Layout, row: Any, source: Source) -> list[bytes]:
    """Return a row's keywords; its block of length-prefixed strings must hold just so many."""
    raw = row_text(layout, row, "keywords").tobytes()
    count = int(row["keyword_count"])
    keywords: list[bytes] = []
    at = 0
    while len(keywords) < count and len(raw) - at >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(raw, at)
        if length > len(raw) - at - _LENGTH.size:
            break
        at += _LENGTH.size + length
        keywords.append(raw[at - length : at])
    if len(keywords) != count or at != len(raw):
        name = f"layer {row['layer_num']} keywords"
        offset = layout.heap_offset + int(row["keywords_offset"]) + at
        expected = f"{count} keywords in {len(raw)} bytes"
        raise faults.broken(source, name, offset, expected, f"{len(keywords)} in {at} bytes")
    return keywords


def row_text(layout: Layout, row: Any, field: str) -> Bytes:
    """Return the heap's bytes that `field` ("name", "keywords", "array") of a row points at."""
    start = int(row[f"{field}_offset"])
    return layout.heap[start : start + int(row[f"{field}_size"])]


def read_form(layout: Layout, row: Any, source: Source) -> ArrayForm | None:
    """Return what makes a row's content an array; None where it is not an array.

    Raises RegionFormatError where the description is malformed, or not of so many bytes.
    """
    if row["encoding"] != s.ENCODING_ARRAY:
        return None
    from jessymem.regions.arrays import NoDescription, read_description

    n_bytes = int(row["content_end"]) - int(row["content_offset"])
    try:
        form = read_description(row_text(layout, row, "array").tobytes())
        if form.n_bytes != n_bytes:
            raise NoDescription(f"an array of the content's {n_bytes} bytes", form.n_bytes)
    except NoDescription as error:
        offset = layout.heap_offset + int(row["array_offset"])
        name = f"layer {row['layer_num']} array"
        raise faults.broken(source, name, offset, error.expected, error.got) from None
    return form


def empty_index(n_numbers: int) -> NDArray[np.uint16]:
    """Return an index that leads to no row; NumPy would give up the GIL to fill it."""
    nowhere = s.NO_LAYER.to_bytes(s.LAYER_INDEX.itemsize, "little")
    return np.frombuffer(bytearray(nowhere) * n_numbers, s.LAYER_INDEX)


def fill_index(index: NDArray[np.uint16], numbers: NDArray[np.uint16], first: int) -> None:
    """Let layer numbers lead to rows, the first of them to row `first`."""
    if len(numbers) > _N_HELD:
        index[numbers] = np.arange(first, first + len(numbers), dtype=s.LAYER_INDEX)
        return
    for row, number in enumerate(numbers.tolist(), first):  # NumPy would give up the GIL
        index[number] = row


def build_index(rows: NDArray[Any]) -> NDArray[np.uint16] | None:
    """Map layer_num to row where numbers have gaps; None where each row is its number."""
    numbers = rows["layer_num"].copy()  # read once: a mapped file may be rewritten meanwhile
    if len(numbers) == 0 or int(numbers[-1]) == len(numbers) - 1:
        return None
    # In whatever order they are: they may be yet to be checked.
    last = max(numbers.tolist()) if len(numbers) <= _N_HELD else int(numbers.max())
    index = empty_index(last + 1)
    fill_index(index, numbers, 0)
    return index


def _metadata_xxh3(data: Bytes, extension: Extension) -> int:
    return int(xxhash.xxh3_64_intdigest(data[s.HEADER_BYTES : extension.content_start]))


def extended_layout(data: Bytes, header: Header, extension: Extension) -> Layout:
    """Cut the tables of an extension out of the region, as they lie."""
    start, heap = extension.table_offset, extension.heap_offset
    first, n_deleted = extension.deleted_offset, extension.n_deleted
    deleted = data[first : first + n_deleted * s.DELETED.itemsize]
    return Layout(
        header=header,
        rows=data[start : start + header.layer_count * s.LAYER_BYTES].view(s.LAYER),
        heap=data[heap : heap + extension.heap_size],
        content_start=extension.content_start,
        generation=extension.generation,
        created_at=extension.created_at,
        table_offset=extension.table_offset,
        heap_offset=extension.heap_offset,
        follows=read_predecessor(extension),
        flags=extension.flags,
        replaces=extension.replaces,
        deleted_offset=first,
        # A copy: nobody can change it any more.
        deleted=deleted.copy().view(s.DELETED) if n_deleted else NONE_DELETED,
        **_parts_of_frames(data, extension),
    )


def _parts_of_frames(data: Bytes, extension: Extension) -> dict[str, Any]:
    """Return what a layout says of compressed layers: copies, which nobody can change any more."""
    if not extension.n_frames:
        return {}
    at, first = extension.frames_offset, extension.dictionary_offset
    return {
        "frames": data[at : at + extension.n_frames * s.FRAME.itemsize].copy().view(s.FRAME),
        "frames_offset": at,
        "dictionary": data[first : first + extension.dictionary_size].tobytes(),
    }


def _require(source: Source, field: str, got: int, low: int, high: int) -> None:
    if not low <= got <= high:
        raise faults.broken_extension(source, field, f"{low} to {high}", got)


def _warn_ignored(source: Source, field: str) -> None:
    event = "extension_ignored"
    message = (
        f"{source.dimension}: {field} does not hold in {source.path}; its extension is ignored,"
        " the plain entries are read"
    )
    facts = {"dimension": str(source.dimension), "path": source.path, "field": field}
    logger.warning("%s", message, extra={"event": event, **facts})
    logger.alert(event, source.path, message)


# -- rules -----------------------------------------------------------------------------------------
#
# What every row of a table must obey, checked over whole columns before any row is used.


def check_rows(layout: Layout, source: Source) -> None:
    """Check every row of a table against the region; raise RegionFormatError at the first fault."""
    layout = layout._replace(rows=stored_rows(layout, source))
    heap_size, total = len(layout.heap), layout.header.total_size
    rules = _rules(layout.rows, slice(1), heap_size, total, layout.content_start)
    for field, wrong, expected in rules:
        if wrong.any():
            row = int(wrong.argmax())
            told = expected.format(heap_size=heap_size, total=total)
            raise _broken(layout, row, field, told, source)
    _check_overlap(layout, source)
    _check_deleted(layout, source)


def stored_rows(layout: Layout, source: Source) -> NDArray[np.void]:
    """Return the rows as they lead to what is stored, where that is checked; see `frame_rules`."""
    if layout.frames is None:
        return layout.rows
    from jessymem.regions import frame_rules

    total, has_dictionary = layout.header.total_size, bool(layout.dictionary)
    parts = layout.rows, layout.frames, layout.frames_offset, has_dictionary, total
    return frame_rules.stored_rows(frame_rules.Parts(*parts), source)


def are_sound(tables: Sequence[Unchecked]) -> list[bool]:
    """Tell of each of many tables whether it obeys every rule.

    False also where contents are only not in the order of the rows: `check_rows` looks closer, and
    says what is wrong if anything is.
    """
    n_rows = np.fromiter((len(rows) // s.LAYER_BYTES for rows, *_ in tables), np.intp, len(tables))
    rows = np.concatenate([rows for rows, *_ in tables]).view(s.LAYER)
    first = np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    of_each = np.array([each[1:] for each in tables], np.uint64)
    wrong = np.zeros(len(rows), bool)
    for _, is_wrong, _ in _rules(rows, first, *np.repeat(of_each, n_rows, axis=0).T):
        wrong |= is_wrong
    filled = np.flatnonzero(rows["content_end"] > rows["content_offset"])
    starts, ends = rows["content_offset"][filled], rows["content_end"][filled]
    wrong[filled[1:]] |= (starts[1:] < ends[:-1]) & (first[filled][1:] == first[filled][:-1])
    found = np.ones(len(tables), bool)
    found[np.repeat(np.arange(len(tables)), n_rows)[wrong]] = False
    return found.tolist()


def _rules(
    rows: NDArray[Any], first: Any, heap_size: Any, total: Any, content_start: Any
) -> Iterator[tuple[str, Any, str]]:
    """Yield (field, where it is wrong, what is expected); each relies on those before it.

    Parameters
    ----------
    rows : ndarray of LAYER
        Of one region, or of several.
    first : slice, or ndarray of intp
        Where the region's rows begin; of several, for each row.
    heap_size, total, content_start : int, or ndarray of uint64
        As the region's `Unchecked`; of several, for each row.
    """
    numbers = rows["layer_num"]
    again = np.zeros(len(rows), bool)
    again[1:] = numbers[1:] <= numbers[:-1]
    again[first] = False
    yield "layer_num", again, "each number once, ascending"
    starts, ends = rows["content_offset"], rows["content_end"]
    yield "content_end", ends > total, "<= {total}, the file's length"
    yield "content_offset", starts > ends, "<= content_end"
    inside = (ends > starts) & (starts < content_start)
    yield "content_offset", inside, "behind the metadata"
    too_long = ends - starts > s.MAX_CONTENT_BYTES
    yield "content_end", too_long, f"<= {s.MAX_CONTENT_BYTES} bytes long"
    yield "frequency", ~np.isfinite(rows["frequency"]), "a finite number"
    yield "encoding", rows["encoding"] > s.ENCODING_ARRAY, f"<= {s.ENCODING_ARRAY}"
    nowhere = (rows["parent"] > 0) & (rows["parent"] >> s.LAYER_BITS == 0)
    yield "parent", nowhere, "a layer of dimension 1 or above"
    yield "keyword_count", rows["keyword_count"] > s.MAX_KEYWORDS, f"<= {s.MAX_KEYWORDS}"
    kinds = ("name", "keywords", "array")
    sizes = {kind: rows[f"{kind}_size"].astype("u8") for kind in kinds}
    for kind in kinds:
        past = rows[f"{kind}_offset"] + sizes[kind] > heap_size
        yield f"{kind}_offset", past, "inside the heap of {heap_size} bytes with its size"
    lengths = rows["keyword_count"] * s.KEYWORD_LENGTH_BYTES
    yield "keywords_size", lengths > rows["keywords_size"], "bytes for every keyword's length"
    is_array = rows["encoding"] == s.ENCODING_ARRAY
    for field in ("array_offset", "array_size"):
        yield field, ~is_array & (rows[field] != 0), "zero where the layer is no array"
    yield "array_size", is_array & (rows["array_size"] == 0), "a description of the array"
    too_long = rows["array_size"] > s.MAX_ARRAY_HEADER_BYTES
    yield "array_size", too_long, f"<= {s.MAX_ARRAY_HEADER_BYTES}"
    # Otherwise a small file could name its heap 65,536 times over.
    pointed_at = sizes["name"] + sizes["keywords"] + sizes["array"]
    together = np.cumsum(pointed_at)
    together -= together[first] - pointed_at[first]
    too_much = together > heap_size
    yield "name_size", too_much, "all that rows point at in a heap of {heap_size} bytes"


def _check_overlap(layout: Layout, source: Source) -> None:
    """Check that no byte belongs to two layers; one pass where blocks lie in row order."""
    starts, ends = layout.rows["content_offset"], layout.rows["content_end"]
    filled = np.flatnonzero(ends > starts)
    starts, ends = starts[filled], ends[filled]
    if np.all(starts[1:] >= ends[:-1]):
        return
    order = np.argsort(starts, kind="stable")
    wrong = starts[order][1:] < ends[order][:-1]
    if wrong.any():
        first, second = filled[order[int(wrong.argmax()) :][:2]]
        before = layout.rows[first]
        expected = f">= {before['content_end']}, the end of layer {before['layer_num']}"
        raise _broken(layout, int(second), "content_offset", expected, source)


def _check_deleted(layout: Layout, source: Source) -> None:
    """Check that the numbers of deleted layers ascend, and that no row has one."""
    numbers = layout.deleted
    if not len(numbers):  # NumPy lets go of the GIL for what follows
        return
    wrong = np.isin(numbers, layout.rows["layer_num"])
    wrong[1:] |= numbers[1:] <= numbers[:-1]
    if wrong.any():
        at = int(wrong.argmax())
        expected = "ascending, and the number of no layer in the table"
        offset = layout.deleted_offset + at * s.DELETED.itemsize
        raise faults.broken(source, f"deleted {at}", offset, expected, int(numbers[at]))


def _broken(layout: Layout, row: int, field: str, expected: str, source: Source) -> Exception:
    record = layout.rows[row]
    if layout.table_offset is None:  # where its plain entry begins
        offset = int(record["keywords_offset"]) - s.LAYER_ENTRY.itemsize
    else:
        offset = faults.field_offset(layout.table_offset, row, field)
    name = f"layer {record['layer_num']} {field}"
    return faults.broken(source, name, offset, expected, record[field].item())
