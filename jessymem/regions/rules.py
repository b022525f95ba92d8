"""What every row of a layer table must obey, checked over whole columns before any row is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels import schema as s
from jessymem.regions import faults
from jessymem.regions.faults import Source

if TYPE_CHECKING:
    from jessymem.regions.layout import Layout


def check_rows(layout: Layout, source: Source) -> None:
    """Check every row of a table against the region; raise RegionFormatError at the first fault."""
    for field, wrong, expected in _rules(layout):
        if wrong.any():
            row = int(wrong.argmax())
            raise _broken(layout, row, field, expected, source)
    _check_overlap(layout, source)


def _rules(layout: Layout) -> Iterator[tuple[str, Any, str]]:
    """Yield (field, where it is wrong, what is expected); each relies on those before it."""
    rows, heap_size, total = layout.rows, len(layout.heap), layout.header.total_size
    numbers = rows["layer_num"]
    again = np.zeros(len(rows), bool)
    again[1:] = numbers[1:] <= numbers[:-1]
    yield "layer_num", again, "each number once, ascending"
    starts, ends = rows["content_offset"], rows["content_end"]
    yield "content_end", ends > total, f"<= {total}, the file's length"
    yield "content_offset", starts > ends, "<= content_end"
    inside = (ends > starts) & (starts < layout.content_start)
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
        yield f"{kind}_offset", past, f"inside the heap of {heap_size} bytes with its size"
    lengths = rows["keyword_count"] * s.KEYWORD_LENGTH_BYTES
    yield "keywords_size", lengths > rows["keywords_size"], "room for every keyword's length"
    is_array = rows["encoding"] == s.ENCODING_ARRAY
    for field in ("array_offset", "array_size"):
        yield field, ~is_array & (rows[field] != 0), "zero where the layer is no array"
    yield "array_size", is_array & (rows["array_size"] == 0), "a description of the array"
    too_long = rows["array_size"] > s.MAX_ARRAY_HEADER_BYTES
    yield "array_size", too_long, f"<= {s.MAX_ARRAY_HEADER_BYTES}"
    # Otherwise a small file could name its heap 65,536 times over.
    together = np.cumsum(sum(sizes.values())) > heap_size
    yield "name_size", together, f"all that rows point at in a heap of {heap_size} bytes"


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


def _broken(layout: Layout, row: int, field: str, expected: str, source: Source) -> Exception:
    record = layout.rows[row]
    if layout.table_offset is None:  # where its plain entry begins
        place = int(record["keywords_offset"]) - s.LAYER_ENTRY.itemsize
    else:
        place = faults.row_place(layout.table_offset, row, field)
    name = f"layer {record['layer_num']} {field}"
    return faults.broken(source, name, place, expected, record[field].item())
