"""`verify_layout`: a region's bytes against their checksums, and against themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash

from jessymem.kernels import schema as s
from jessymem.regions import faults, layout
from jessymem.regions.faults import Source
from jessymem.regions.layout import Layout

if TYPE_CHECKING:
    from jessymem.regions.layout import Bytes

#: A gap may be as long as the file: it is looked at piece by piece.
_CHUNK_BYTES: Final = 2**20


def verify_layout(data: Bytes, level: str, source: Source) -> None:
    """Read a region's bytes again and compare every checksum up to `level`, and table with entries.

    Unlike `read_layout` it lets no checksum pass: one that fails is an error. Plain V1 files have
    none; theirs is a check of the structure and the texts.
    """
    header = layout.read_header(data, source)
    extension = layout.read_extension(data, header, source)
    if extension is None:
        _verify_no_extension(data, source)
    if level == "header":
        return
    whole = None if header.version == 1 else layout.read_layout(data, source)
    plain = layout.read_plain(data, header, source, whole)
    _verify_texts(plain, source)
    if extension is None:
        return
    at = s.RESERVED_OFFSET + s.EXTENSION.fields["metadata_xxh3"][1]  # type: ignore[index]
    _verify_sum(source, "metadata_xxh3", at, data, s.HEADER_BYTES, extension.content_start)
    extended = layout.extended_layout(data, header, extension)
    # Copied: what is checked is what is used, whoever rewrites the file meanwhile.
    extended = extended._replace(rows=extended.rows.copy())
    layout.check_rows(extended, source)
    _verify_texts(extended, source)
    _verify_arrays(extended, source)
    _verify_same(extended, plain, extension.table_offset, source)
    if level != "metadata":
        inflates = level == "full"
        _verify_contents(data, extended, extension.table_offset, source, inflates=inflates)


def _verify_no_extension(data: Bytes, source: Source) -> None:
    """Check that a file that counts as plain has no damaged extension."""
    at, end = s.RESERVED_OFFSET, s.RESERVED_OFFSET + len(s.EXTENSION_MAGIC)
    checked = bytearray(data[: s.CHECKED_HEADER_BYTES])
    magic, checked[at:end] = bytes(checked[at:end]), s.EXTENSION_MAGIC
    if magic == s.EXTENSION_MAGIC:
        _verify_sum(source, "header_xxh3", s.CHECKED_HEADER_BYTES, data, 0, s.CHECKED_HEADER_BYTES)
    told = int(data[s.CHECKED_HEADER_BYTES : s.HEADER_BYTES].view("<u8")[0])
    if xxhash.xxh3_64_intdigest(checked) == told:  # all of it holds once the magic is put right
        raise faults.broken_extension(source, "extension_magic", s.EXTENSION_MAGIC, magic)


def _verify_sum(source: Source, field: str, at: int, data: Bytes, start: int, end: int) -> None:
    expected = int(data[at : at + 8].view("<u8")[0])
    got = xxhash.xxh3_64_intdigest(data[start:end])
    if got != expected:
        raise faults.broken(source, field, at, f"{expected:#018x}", f"{got:#018x}")


def _verify_texts(tables: Layout, source: Source) -> None:
    """Check that every name and keyword is UTF-8."""
    for row in tables.rows:
        texts = {
            "name": [layout.row_text(tables, row, "name").tobytes()],
            "keywords": layout.split_keywords(tables, row, source),
        }
        for field, pieces in texts.items():
            for piece in pieces:
                try:
                    piece.decode()
                except UnicodeDecodeError:
                    name = f"layer {row['layer_num']} {field}"
                    at = tables.heap_offset + int(row[f"{field}_offset"])
                    raise faults.broken(source, name, at, "UTF-8", piece) from None


def _verify_arrays(tables: Layout, source: Source) -> None:
    """Check that every array's description is one, and of so many bytes as there are."""
    for row in tables.rows[tables.rows["encoding"] == s.ENCODING_ARRAY]:
        layout.read_form(tables, row, source)


def _verify_same(extended: Layout, plain: Layout, table_offset: int, source: Source) -> None:
    """Check that table and plain entries tell the same of every layer."""
    fields = ("layer_num", "depth", "frequency", "keyword_count", "keywords_size")
    for field in (*fields, "content_offset", "content_end"):
        mine, other = extended.rows[field], plain.rows[field]
        differs = mine != other
        if field == "frequency":  # minus zero is not zero
            differs |= np.signbit(mine) != np.signbit(other)
        if differs.any():
            row = int(differs.argmax())
            at = faults.field_offset(table_offset, row, field)
            name = f"layer {extended.rows[row]['layer_num']} {field}"
            expected = f"{plain.rows[row][field].item()}, as the plain entry says"
            raise faults.broken(source, name, at, expected, extended.rows[row][field].item())
    for row, twin in zip(extended.rows, plain.rows, strict=True):
        wanted = layout.row_text(extended, row, "keywords").tobytes()
        found = layout.row_text(plain, twin, "keywords").tobytes()
        if found != wanted:
            name, at = f"layer {row['layer_num']} keywords", int(twin["keywords_offset"])
            raise faults.broken(source, name, at, wanted, found)


def _verify_contents(
    data: Bytes, extended: Layout, table_offset: int, source: Source, *, inflates: bool
) -> None:
    """Compare every content with its checksum, and what lies between contents with zero."""
    rows, frames = layout.stored_rows(extended, source), None
    if extended.frames is not None:
        from jessymem.regions.frames import Frames

        frames = Frames(extended, memoryview(data), source)
    order = np.argsort(rows["content_offset"], kind="stable").tolist()
    last_end = extended.content_start
    for i in order:
        row = rows[i]
        number, start, end = row["layer_num"], int(row["content_offset"]), int(row["content_end"])
        _verify_zeros(data, last_end, start, source)
        if frames is not None and frames.has(i):
            frames.verify(i, inflates=inflates)
        else:
            at = faults.field_offset(table_offset, i, "content_xxh3")
            _verify_sum(source, f"layer {number} content_xxh3", at, data, start, end)
        last_end = max(last_end, end)
    _verify_zeros(data, last_end, len(data), source)


def _verify_zeros(data: Bytes, start: int, end: int, source: Source) -> None:
    for first in range(start, end, _CHUNK_BYTES):
        used = data[first : min(first + _CHUNK_BYTES, end)] != 0
        if used.any():
            at = first + int(used.argmax())
            raise faults.broken(source, "padding of contents", at, "zeros", int(data[at]))
