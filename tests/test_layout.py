"""Region bytes to tables and back: every rule of the format, broken once; every promise, kept.

Files are written by hand (`naive`) or by the package; those that carry an extension are broken with
checksums that no longer hold (they fall back to the plain entries) and with ones that do.
"""

import logging
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Draft, put, resign, set_field, set_row_field, write_plain

from jessymem import DimensionId, MmapRegion, RegionBuilder, RegionFormatError
from jessymem.kernels import _jit
from jessymem.kernels import schema as s

DOCS = Path(__file__).parent.parent / "docs" / "format.md"

SCRIPTS = [
    "\u00e9t\u00e9",
    "\u0437\u0435\u043c\u043b\u044f",
    "\u03b3\u03b7",
    "\u05d0\u05e8\u05e5",
    "\u0623\u0631\u0636",
    "\u092a\u0943\u0925\u094d\u0935\u0940",
    "\u5730\u7403",
    "\u5730\u7403\u3060",
    "\uc9c0\uad6c",
    "\U0001f30d\u200d\U0001f525",
    "e\u0301 and \u00e9",
    "a\0b",
    "",
]


def load(raw, dimension=1):
    """Load bytes as a region, without a file."""
    data = np.frombuffer(raw, np.uint8)
    return MmapRegion(DimensionId(dimension), None, data, s.REGION_COPIED, None)


def load_zeros(drafts, **fields):
    """Load an entry up to its first keyword's text, then zeros to past the metadata limit."""
    data = np.zeros(s.MAX_METADATA_BYTES + 1_000, np.uint8)
    start = write_plain(drafts, total_size=len(data), **fields)[:271]
    data[:271] = np.frombuffer(start, np.uint8)
    return MmapRegion(DimensionId(1), None, data, s.REGION_COPIED, None)


def bytes_of(region):
    return bytes(region.read_content(0, region.size))


def contents_of(region):
    return {
        info.layer_id.layer: bytes(region.read_content(info.offset, info.size))
        for info in region.metadata.layers
    }


def build(*layers, dimension=1, name="Name"):
    """Lay out a region with an extension; a layer is (number, content) or has keywords beside."""
    builder = RegionBuilder(dimension, name)
    for number, content, *more in layers:
        builder.add_layer(number, content, **(more[0] if more else {}))
    return bytes_of(builder.build_to_memory())


def ignored_fields(caplog):
    """Return which checksum each "extension ignored" record names, and check the records."""
    records = [record for record in caplog.records if record.name == "jessymem"]
    for record in records:
        assert record.levelno == logging.WARNING
        assert record.event == "extension_ignored"
        assert record.dimension == "D01"
        assert record.path and record.path in record.getMessage()
        assert record.field in record.getMessage()
    return [record.field for record in records]


# -- one broken rule each --------------------------------------------------------------------------

TWO = write_plain([Draft(3, b"three", keywords=[b"word"]), Draft(1, b"one")])
ENTRY_0 = 256  # of TWO; its keyword's length at 267, its extent at 275
ENTRY_1 = 287
END = 310

PLAIN_RULES = {
    "no bytes": (b"", "header", 0, "256 bytes", "0 bytes"),
    "a byte short of a header": (TWO[:255], "header", 0, "256 bytes", "255 bytes"),
    "another magic": (
        write_plain(magic=b"JESSY_MMAP_V2"),
        "magic",
        84,
        naive.MAGIC,
        b"JESSY_MMAP_V2\0\0\0",
    ),
    "dimension 0": (write_plain(dimension=0), "dimension_id", 0, "1 to 65535", 0),
    "dimension 65536": (write_plain(dimension=65536), "dimension_id", 0, "1 to 65535", 65536),
    "another dimension": (write_plain(dimension=2), "dimension_id", 0, 1, 2),
    "name too long": (write_plain(name_len=65), "dimension_name_len", 4, "<= 64", 65),
    "bytes behind the name": (
        write_plain(name=b"abc", name_len=2),
        "dimension_name",
        8,
        "zeros behind the name",
        b"c" + bytes(61),
    ),
    "name not UTF-8": (write_plain(name=b"a\xff"), "dimension_name", 8, "UTF-8", b"a\xff"),
    "name cut in a character": (
        write_plain(name=b"\xe5\x9c"),
        "dimension_name",
        8,
        "UTF-8",
        b"\xe5\x9c",
    ),
    "longer than total_size": (TWO + b"\0", "total_size", 72, "319, the file's length", 318),
    "shorter than total_size": (TWO[:-1], "total_size", 72, "317, the file's length", 318),
    "total_size 0": (write_plain(total_size=0), "total_size", 72, "256, the file's length", 0),
    "total_size 2**64 - 1": (
        write_plain(total_size=2**64 - 1),
        "total_size",
        72,
        "256, the file's length",
        2**64 - 1,
    ),
    "a layer and no entry": (write_plain(layer_count=1), "layer_count", 80, "<= 0", 1),
    "more layers than fit": (
        write_plain([Draft()], layer_count=2**32 - 1),
        "layer_count",
        80,
        "<= 1",
        2**32 - 1,
    ),
    "65,537 layers": (
        write_plain(layer_count=65_537, tail=bytes(65_537 * 23)),
        "layer_count",
        80,
        "<= 65536",
        65_537,
    ),
    "the 41st entry": (
        write_plain([*(Draft(i) for i in range(40)), Draft(40, frequency=float("nan"))]),
        "entry 40 frequency",
        256 + 40 * 23 + 3,
        "a finite number",
        0x7FC00000,
    ),
    "file ends before an entry": (
        write_plain([Draft(keywords=[bytes(30)])], layer_count=2),
        "entry 1 entry",
        313,
        "11 bytes",
        0,
    ),
    "file ends in an entry": (
        write_plain([Draft(keywords=[bytes(30)])], layer_count=2, tail=bytes(10)),
        "entry 1 entry",
        313,
        "11 bytes",
        10,
    ),
    "too many keywords": (
        write_plain([Draft(keyword_count=4_097)]),
        "entry 0 keyword_count",
        263,
        "<= 4096",
        4_097,
    ),
    "keyword_count 2**32 - 1": (
        write_plain([Draft(keyword_count=2**32 - 1)]),
        "entry 0 keyword_count",
        263,
        "<= 4096",
        2**32 - 1,
    ),
    "keyword longer than the file": (
        write_plain([Draft(keywords=[b"word"], keyword_length=17)]),
        "entry 0 keyword length",
        267,
        "<= 16, the bytes that follow",
        17,
    ),
    "keyword of 2**32 - 1 bytes": (
        write_plain([Draft(keywords=[b"word"], keyword_length=2**32 - 1)]),
        "entry 0 keyword length",
        267,
        "<= 16, the bytes that follow",
        2**32 - 1,
    ),
    "content begins behind the file": (
        write_plain([Draft(content_offset=280)]),
        "entry 0 content extent",
        267,
        "<= 279, within the file",
        280,
    ),
    "content begins at 2**64 - 1": (
        write_plain([Draft(content_offset=2**64 - 1)]),
        "entry 0 content extent",
        267,
        "<= 279, within the file",
        2**64 - 1,
    ),
    "content begins at 2**63": (
        write_plain([Draft(content_offset=2**63)]),
        "entry 0 content extent",
        267,
        "<= 279, within the file",
        2**63,
    ),
    "content ends behind the file": (
        write_plain([Draft(content=b"abc", content_size=4)]),
        "entry 0 content extent",
        275,
        "<= 3, within the file",
        4,
    ),
    "content of 2**32 - 1 bytes": (
        write_plain([Draft(content=b"abc", content_size=2**32 - 1)]),
        "entry 0 content extent",
        275,
        "<= 3, within the file",
        2**32 - 1,
    ),
    "frequency NaN": (
        write_plain([Draft(frequency=float("nan"))]),
        "entry 0 frequency",
        259,
        "a finite number",
        0x7FC00000,
    ),
    "frequency infinite": (
        write_plain([Draft(), Draft(1, frequency=float("inf"))]),
        "entry 1 frequency",
        282,
        "a finite number",
        0x7F800000,
    ),
    "frequency minus infinite": (
        write_plain([Draft(frequency=float("-inf"))]),
        "entry 0 frequency",
        259,
        "a finite number",
        0xFF800000,
    ),
    "a number twice": (
        write_plain([Draft(7, b"a"), Draft(2, b"b"), Draft(7, b"c")]),
        "layer 7 layer_num",
        302,
        "each number once, ascending",
        7,
    ),
    "content in the metadata": (
        write_plain([Draft(5, b"abc", content_offset=278)]),
        "layer 5 content_offset",
        256,
        "behind the metadata",
        278,
    ),
    "content in the header": (
        write_plain([Draft(5, b"abc", content_offset=0)]),
        "layer 5 content_offset",
        256,
        "behind the metadata",
        0,
    ),
}


def check_refused(raw, field, offset, expected, got, tmp_path):
    """Check that a file is refused, by which rule, and that the error tells all of it."""
    path = tmp_path / "region.mmap"
    path.write_bytes(raw)
    with pytest.raises(RegionFormatError) as caught:
        MmapRegion.from_file(1, path)
    error = caught.value
    assert (error.field, error.offset) == (field, offset)
    assert (error.expected, error.got) == (expected, got)
    assert (error.path, error.dimension) == (str(path), DimensionId(1))
    told = f"D01: {path}: {field} at byte {offset}: expected {expected}, got "
    assert str(error).startswith(told + (got if isinstance(got, str) else repr(got))[:100])
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("rule", PLAIN_RULES.values(), ids=PLAIN_RULES)
def test_plain_rule_broken(rule, tmp_path):
    check_refused(*rule, tmp_path)


@pytest.mark.parametrize(
    ("keyword_count", "offset", "expected", "got"),
    [(4, 279, "4 bytes", 0), (1, 271, "12 bytes", 8)],
    ids=["before a keyword", "in an extent"],
)
def test_file_ends_in_an_entry(keyword_count, offset, expected, got, tmp_path):
    # The extent's twelve zeros are read as the lengths of empty keywords.
    raw = write_plain([Draft(keyword_count=keyword_count, content_offset=0)])
    check_refused(raw, "entry 0 entry", offset, expected, got, tmp_path)


@pytest.mark.parametrize(
    "second",
    [
        Draft(1, b"bbbb", content_offset=305),  # the last byte of the first
        Draft(1, b"bbbb", content_offset=302),  # the same block
        Draft(1, b"b", content_offset=303),  # inside
    ],
    ids=["one byte", "the same", "inside"],
)
@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_overlapping_blocks_are_refused(second, order):
    raw = write_plain([Draft(0, b"aaaa", content_offset=302), second][::order])
    with pytest.raises(RegionFormatError) as caught:
        load(raw)
    assert caught.value.field in ("layer 0 content_offset", "layer 1 content_offset")
    assert caught.value.expected.startswith(">= 30")
    assert caught.value.got in (302, second.content_offset)


def test_an_overlap_is_told_where_the_field_lies(tmp_path):
    raw = write_plain([Draft(0, b"aaaa"), Draft(4, b"bb", content_offset=303)])
    with pytest.raises(RegionFormatError) as caught:
        load(raw)
    assert (caught.value.field, caught.value.offset) == ("layer 4 content_offset", 279)
    raw = resign(set_row_field(RICH, 2, "content_offset", START + 4))
    with pytest.raises(RegionFormatError) as caught:
        load(raw)
    assert caught.value.field == "layer 5 content_offset"
    assert caught.value.offset == naive.row_place(raw, 2, "content_offset")
    assert caught.value.got == START + 4


def test_an_overlap_among_many_blocks_out_of_order_is_found():
    drafts = [Draft(i, b"x" * 10) for i in range(50)][::-1]
    raw = write_plain(drafts)
    load(raw)
    ends = [naive.EXTENT.unpack_from(raw, 256 + 23 * i + 11) for i in range(50)]
    moved = put(raw, 256 + 23 * 20 + 11, struct.pack("<Q", ends[33][0] + 3))
    with pytest.raises(RegionFormatError, match="content_offset"):
        load(moved)


@pytest.mark.parametrize(
    ("n_left", "entry", "n_needed"), [(0, 0, 12), (11, 0, 12), (12, 1, 23), (22, 1, 23)]
)
def test_plain_metadata_end_at_their_limit(n_left, entry, n_needed):
    # The first entry's keyword leaves `n_left` bytes to the limit; the file goes on behind it.
    limit = s.MAX_METADATA_BYTES
    length = limit - n_left - 256 - 11 - 4
    with pytest.raises(RegionFormatError) as caught:
        load_zeros([Draft(keywords=[b""], keyword_length=length)], layer_count=2)
    assert caught.value.field == f"entry {entry} metadata"
    assert caught.value.expected == f"<= {limit} bytes"
    assert caught.value.got == limit - n_left + n_needed


def test_plain_metadata_may_fill_their_limit():
    length = s.MAX_METADATA_BYTES - 256 - 23 - 4
    region = load_zeros([Draft(keywords=[b""], keyword_length=length)])
    assert region.metadata.content_offset == s.MAX_METADATA_BYTES
    assert contents_of(region) == {0: b""}


def test_keyword_beyond_the_limit_of_the_metadata():
    limit = s.MAX_METADATA_BYTES
    with pytest.raises(RegionFormatError) as caught:
        load_zeros([Draft(keywords=[b""], keyword_length=limit)])
    assert (caught.value.field, caught.value.offset) == ("entry 0 keyword length", 267)
    assert caught.value.expected == f"<= {limit - 271}, the bytes that follow"
    assert caught.value.got == limit


# -- hostile extensions: every checksum holds ------------------------------------------------------

RICH = build(
    (0, "first", {"name": "one", "keywords": ["a", "b"]}),
    (2, b"", {"name": "two"}),
    (5, b"third" * 30, {"keywords": ["c"], "parent": "L01-00", "depth": 2}),
)
TABLE = naive.get_field(RICH, "table_offset")
HEAP = naive.get_field(RICH, "heap_offset")
HEAP_SIZE = naive.get_field(RICH, "heap_size")
START = naive.get_field(RICH, "content_start")


def field_rule(field, value, expected):
    at = naive.EXTENSION_FIELDS[field][0]
    return resign(set_field(RICH, field, value)), field, at, expected, value


def row_rule(row, field, value, expected, number=None):
    raw = resign(set_row_field(RICH, row, field, value))
    name = f"layer {(0, 2, 5)[row] if number is None else number} {field}"
    return raw, name, naive.row_place(RICH, row, field), expected, value


EXTENSION_RULES = {
    "generation 0": field_rule("generation", 0, f"1 to {2**63 - 1}"),
    "generation 2**63": field_rule("generation", 2**63, f"1 to {2**63 - 1}"),
    "contents in the header": field_rule("content_start", 255, f"256 to {len(RICH)}"),
    "contents behind the file": field_rule("content_start", len(RICH) + 1, f"256 to {len(RICH)}"),
    "contents at 2**64 - 1": field_rule("content_start", 2**64 - 1, f"256 to {len(RICH)}"),
    "no room for the table": field_rule("content_start", 256, "325 to 64"),
    "table in the entries": field_rule("table_offset", 256, f"325 to {START - 3 * 64}"),
    "table in the contents": field_rule(
        "table_offset", START - 3 * 64 + 1, f"325 to {START - 3 * 64}"
    ),
    "table at 2**64 - 64": field_rule("table_offset", 2**64 - 64, f"325 to {START - 3 * 64}"),
    "table off its boundary": field_rule("table_offset", TABLE - 8, "a multiple of 64"),
    "heap in the table": field_rule("heap_offset", TABLE + 3 * 64 - 1, f"{HEAP} to {START}"),
    "heap in the contents": field_rule("heap_offset", START + 1, f"{HEAP} to {START}"),
    "heap of 2**64 - 1": field_rule("heap_size", 2**64 - 1, f"0 to {START - HEAP}"),
    "heap into the contents": field_rule("heap_size", START - HEAP + 1, f"0 to {START - HEAP}"),
    "padding": field_rule("padding", bytes(87) + b"\1", "zeros"),
}
# "no room for the table" is told of the table, whose bounds then cross.
EXTENSION_RULES["no room for the table"] = (
    *EXTENSION_RULES["no room for the table"][:1],
    "table_offset",
    120,
    "325 to 64",
    TABLE,
)

ROW_RULES = {
    "a number twice": row_rule(1, "layer_num", 0, "each number once, ascending", 0),
    "numbers out of order": row_rule(2, "layer_num", 1, "each number once, ascending", 1),
    "content ends behind the file": row_rule(
        2, "content_end", len(RICH) + 1, f"<= {len(RICH)}, the file's length"
    ),
    "content ends at 2**64 - 1": row_rule(
        2, "content_end", 2**64 - 1, f"<= {len(RICH)}, the file's length"
    ),
    "content ends before it begins": row_rule(2, "content_offset", len(RICH) + 1, "<= content_end"),
    "content begins at 2**64 - 1": row_rule(0, "content_offset", 2**64 - 1, "<= content_end"),
    "content in the metadata": row_rule(0, "content_offset", START - 1, "behind the metadata"),
    "content in the header": row_rule(0, "content_offset", 0, "behind the metadata"),
    "encoding": row_rule(1, "encoding", 3, "<= 2"),
    "parent in dimension 0": row_rule(1, "parent", 65_535, "a layer of dimension 1 or above"),
    "too many keywords": row_rule(0, "keyword_count", 4_097, "<= 4096"),
    "keyword_count 2**32 - 1": row_rule(0, "keyword_count", 2**32 - 1, "<= 4096"),
    "keywords without room": row_rule(0, "keyword_count", 3, "room for every keyword's length"),
    "name at 2**32 - 1": row_rule(
        0, "name_offset", 2**32 - 1, f"inside the heap of {HEAP_SIZE} bytes with its size"
    ),
    "keywords at 2**32 - 1": row_rule(
        0, "keywords_offset", 2**32 - 1, f"inside the heap of {HEAP_SIZE} bytes with its size"
    ),
}
ROW_RULES["keywords without room"] = (
    ROW_RULES["keywords without room"][0],
    "layer 0 keywords_size",
    naive.row_place(RICH, 0, "keywords_size"),
    "room for every keyword's length",
    10,
)
for kind in ("name", "keywords"):
    ROW_RULES[f"{kind}_size 2**32 - 1"] = (
        resign(set_row_field(RICH, 0, f"{kind}_size", 2**32 - 1)),
        f"layer 0 {kind}_offset",
        naive.row_place(RICH, 0, f"{kind}_offset"),
        f"inside the heap of {HEAP_SIZE} bytes with its size",
        naive.get_row_field(RICH, 0, f"{kind}_offset"),
    )


@pytest.mark.parametrize("rule", EXTENSION_RULES.values(), ids=EXTENSION_RULES)
def test_extension_rule_broken(rule, tmp_path, caplog):
    check_refused(*rule, tmp_path)
    assert not ignored_fields(caplog)


@pytest.mark.parametrize("rule", ROW_RULES.values(), ids=ROW_RULES)
def test_row_rule_broken(rule, tmp_path, caplog):
    check_refused(*rule, tmp_path)
    assert not ignored_fields(caplog)


def test_texts_of_all_rows_fit_into_the_heap_together():
    raw = set_row_field(set_row_field(RICH, 1, "name_offset", 0), 1, "name_size", HEAP_SIZE)
    with pytest.raises(RegionFormatError) as caught:
        load(resign(raw))
    assert caught.value.field == "layer 2 name_size"
    assert str(HEAP_SIZE) in caught.value.expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_frequency_in_a_row_is_finite(value):
    with pytest.raises(RegionFormatError) as caught:
        load(resign(set_row_field(RICH, 1, "frequency", value)))
    assert caught.value.field == "layer 2 frequency"
    assert caught.value.offset == naive.row_place(RICH, 1, "frequency")
    assert caught.value.expected == "a finite number"


def test_content_longer_than_a_plain_entry_can_say(tmp_path):
    # A sparse file of 4 GiB and a header: nothing of it is read but the metadata.
    raw = build((0, b"x"))
    start, end = 384, 384 + 2**32
    raw = set_row_field(raw, 0, "content_end", end)
    raw = resign(set_field(raw, "total_size", end))
    path = tmp_path / "region.mmap"
    with path.open("wb") as file:
        file.write(raw)
        try:
            file.truncate(end)
        except OSError:
            pytest.skip("no room for a sparse file of 4 GiB")
    with pytest.raises(RegionFormatError) as caught:
        MmapRegion.from_file(1, path)
    assert caught.value.field == "layer 0 content_end"
    assert caught.value.expected == f"<= {2**32 - 1} bytes long"
    assert caught.value.got == end == start + 2**32


def test_an_extension_that_plain_entries_contradict_loads_but_does_not_verify():
    raw = resign(set_row_field(RICH, 0, "depth", 9))
    region = load(raw)
    assert region.get_layer_info("L01-00").depth == 9
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("metadata")
    assert caught.value.field == "layer 0 depth"
    assert caught.value.offset == naive.row_place(raw, 0, "depth")
    assert (caught.value.expected, caught.value.got) == ("0, as the plain entry says", 9)


@pytest.mark.parametrize(
    ("row", "field", "value", "plain"),
    [
        (2, "layer_num", 6, 5),
        (0, "frequency", 2.5, 1.0),
        (0, "content_offset", START + 1, START),
        (0, "content_end", START + 1, START + 5),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_field_is_compared_with_the_plain_entry(row, field, value, plain):
    raw = resign(set_row_field(RICH, row, field, value))
    region = load(raw)
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("metadata")
    assert caught.value.field.endswith(f" {field}")
    assert caught.value.offset == naive.row_place(raw, row, field)
    assert caught.value.expected == f"{plain}, as the plain entry says"
    assert caught.value.got == value


def test_a_frequency_is_compared_bit_by_bit():
    raw = build((0, b"", {"frequency": 0.0}))
    with pytest.raises(RegionFormatError, match="frequency"):
        load(resign(set_row_field(raw, 0, "frequency", -0.0))).verify_integrity("metadata")


def test_keywords_that_differ_from_the_plain_entry_do_not_verify():
    at = naive.row_place(RICH, 2, "keywords_offset")
    (place,) = struct.unpack_from("<I", RICH, at)
    raw = resign(put(RICH, HEAP + place + 4, b"C"))
    region = load(raw)
    assert region.get_layer_info("L01-05").keywords == ("C",)
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("metadata")
    assert caught.value.field == "layer 5 keywords"


def test_keywords_that_do_not_fill_their_block():
    (place,) = struct.unpack_from("<I", RICH, naive.row_place(RICH, 2, "keywords_offset"))
    for length in (0, 2, 2**32 - 1):
        region = load(resign(put(RICH, HEAP + place, struct.pack("<I", length))))
        with pytest.raises(RegionFormatError, match="1 keywords in 5 bytes"):
            region.get_layer_info("L01-05")
        with pytest.raises(RegionFormatError):
            region.verify_integrity("metadata")
    # The first keyword takes the whole block: nothing is left for the second one's length.
    at = HEAP + naive.get_row_field(RICH, 0, "keywords_offset")
    region = load(resign(put(RICH, at, struct.pack("<I", 6))))
    with pytest.raises(RegionFormatError, match="expected 2 keywords in 10 bytes, got 1 in 10"):
        region.get_layer_info("L01-00")


@pytest.mark.parametrize("field", ["name", "keywords", "keywords_size"])
def test_errors_of_texts_tell_where_in_the_file(field):
    of_row = "keywords_offset" if field == "keywords_size" else f"{field}_offset"
    at = HEAP + naive.get_row_field(RICH, 0, of_row)
    if field == "keywords_size":
        region = load(resign(put(RICH, at, b"\x09")))
        with pytest.raises(RegionFormatError) as caught:
            region.get_layer_info("L01-00")
        assert caught.value.field == "layer 0 keywords"
    else:
        region = load(resign(put(RICH, at + 4 * (field == "keywords"), b"\xff")))
        with pytest.raises(RegionFormatError) as caught:
            region.verify_integrity("metadata")
    assert caught.value.offset == at


def test_names_and_keywords_that_are_no_utf8():
    for field in ("name", "keywords"):
        (place,) = struct.unpack_from("<I", RICH, naive.row_place(RICH, 0, f"{field}_offset"))
        at = HEAP + place + (4 if field == "keywords" else 0)
        region = load(resign(put(RICH, at, b"\xff")))
        info = region.get_layer_info("L01-00")
        assert "\ufffd" in (info.name if field == "name" else info.keywords[0])
        with pytest.raises(RegionFormatError) as caught:
            region.verify_integrity("metadata")
        assert caught.value.field == f"layer 0 {field}"
        assert caught.value.expected == "UTF-8"


def test_what_the_table_may_say_of_its_own():
    # A parent that is not there, is the layer itself, or lies elsewhere; any creation time.
    for parent in (0, 1 << 16, 1 << 16 | 9, 65_535 << 16 | 65_535):
        raw = resign(set_row_field(RICH, 0, "parent", parent))
        assert int(load(raw).get_layer_info("L01-00").parent or 0) == parent
    raw = resign(set_field(RICH, "created_at", 2**64 - 1))
    assert load(raw).metadata.created_at == 2**64 - 1
    assert load(resign(set_row_field(RICH, 0, "encoding", 1))).verify_integrity()
    assert load(resign(set_field(RICH, "generation", 2**63 - 1))).generation == 2**63 - 1


# -- damage: a checksum that does not hold ---------------------------------------------------------


def check_plain_view_of(raw, region):
    """Check that a region shows what the plain entries of `raw` say, and no more."""
    told = naive.read_plain(raw)
    assert region.generation == region.metadata.created_at == 0
    assert not region.layout.is_extended
    assert contents_of(region) == {layer.layer: layer.content for layer in told.layers}
    for layer in told.layers:
        info = region.get_layer_info((1 << 16) | layer.layer)
        assert (info.depth, info.frequency) == (layer.depth, layer.frequency)
        assert info.keywords == tuple(keyword.decode() for keyword in layer.keywords)
        assert (info.name, info.parent) == ("", None)


@pytest.mark.parametrize("field", [f for f in naive.EXTENSION_FIELDS if f != "extension_magic"])
def test_damage_in_the_extension_falls_back_with_a_warning(field, tmp_path, caplog):
    at = naive.EXTENSION_FIELDS[field][0]
    raw = put(RICH, at, bytes([RICH[at] ^ 1]))
    path = tmp_path / "region.mmap"
    path.write_bytes(raw)
    region = MmapRegion.from_file(1, path)
    assert ignored_fields(caplog) == ["header_xxh3"]
    check_plain_view_of(raw, region)
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("header")
    assert (caught.value.field, caught.value.offset) == ("header_xxh3", 248)
    assert re.fullmatch("0x[0-9a-f]{16}", caught.value.expected)
    assert re.fullmatch("0x[0-9a-f]{16}", caught.value.got)


@pytest.mark.parametrize("at", [TABLE, TABLE + 63, HEAP, HEAP + HEAP_SIZE - 1, START - 1])
def test_damage_in_table_or_heap_falls_back_with_a_warning(at, tmp_path, caplog):
    raw = put(RICH, at, bytes([RICH[at] ^ 0x80]))
    path = tmp_path / "region.mmap"
    path.write_bytes(raw)
    region = MmapRegion.from_file(1, path)
    assert ignored_fields(caplog) == ["metadata_xxh3"]
    check_plain_view_of(raw, region)
    assert region.verify_integrity("header")
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("metadata")
    assert (caught.value.field, caught.value.offset) == ("metadata_xxh3", 152)


def test_damage_in_plain_entries_is_what_the_plain_entries_then_say(caplog):
    raw = put(RICH, 256 + 2, b"\7")  # the first entry's depth
    region = load(raw)
    assert ignored_fields(caplog) == ["metadata_xxh3"]
    assert region.get_layer_info("L01-00").depth == 7


def test_damage_in_plain_entries_that_breaks_a_rule_is_refused(caplog):
    with pytest.raises(RegionFormatError, match="keyword_count"):
        load(put(RICH, 256 + 7, b"\xff\xff"))
    assert ignored_fields(caplog) == ["metadata_xxh3"]


def test_damage_in_contents_is_found_by_verify_full_alone(caplog):
    raw = put(RICH, START, b"F")
    region = load(raw)
    assert not ignored_fields(caplog)
    assert region.verify_integrity("header") and region.verify_integrity("metadata")
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("full")
    assert caught.value.field == "layer 0 content_xxh3"
    assert caught.value.offset == naive.row_place(RICH, 0, "content_xxh3")


@pytest.mark.parametrize("at", range(100, 104))
def test_damage_in_the_extension_magic_is_found_by_verify(at):
    region = load(put(RICH, at, bytes([RICH[at] ^ 4])))
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("header")
    assert (caught.value.field, caught.value.offset) == ("extension_magic", 100)


@pytest.mark.parametrize("reserved", [b"\1", b"JMX2", b"jmx1", b"\0JMX1", b"\xff" * 156])
def test_reserved_bytes_of_an_unknown_kind_make_a_plain_file(reserved, caplog):
    raw = write_plain([Draft(4, b"four")], reserved=reserved)
    region = load(raw)
    assert not caplog.records
    assert contents_of(region) == {4: b"four"}
    assert region.verify_integrity()


def test_an_extension_announced_and_empty_is_ignored(caplog):
    region = load(write_plain([Draft(4, b"four")], reserved=b"JMX1"))
    assert ignored_fields(caplog) == ["header_xxh3"]
    assert contents_of(region) == {4: b"four"}


# -- files written by hand load --------------------------------------------------------------------


def test_a_file_written_by_hand_loads(tmp_path):
    raw = write_plain(
        [
            Draft(300, b"\0\xff", 255, 0.25, [b"one", b"", b"two words"]),
            Draft(0, b""),
            Draft(65_535, b"last", 3, -1.5),
            Draft(7, b"x" * 1_000),
        ],
        dimension=65_535,
        name="\u00fcber".encode(),
    )
    path = tmp_path / "any name"
    path.write_bytes(raw)
    region = MmapRegion.from_file(65_535, path)
    assert [layer.layer for layer in region.list_layers()] == [0, 7, 300, 65_535]
    told = naive.read_plain(raw)
    assert contents_of(region) == {layer.layer: layer.content for layer in told.layers}
    metadata = region.metadata
    assert (metadata.version, metadata.generation, metadata.created_at) == (1, 0, 0)
    assert metadata.dimension_name == "\u00fcber"
    assert metadata.total_size == region.size == len(raw)
    assert metadata.content_offset == 256 + 4 * 23 + 3 * 4 + 12
    for layer in told.layers:
        info = region.get_layer_info(65_535 << 16 | layer.layer)
        assert (info.depth, info.frequency) == (layer.depth, layer.frequency)
        assert info.keywords == tuple(keyword.decode() for keyword in layer.keywords)
        assert (info.name, info.parent, info.children) == ("", None, ())
    assert region.verify_integrity("full")


def test_no_layers_at_all():
    for raw in (write_plain(), write_plain(tail=b"unused"), build()):
        region = load(raw)
        assert region.list_layers() == []
        assert region.metadata.layers == ()
        assert region.verify_integrity()
        assert naive.read_plain(raw).layers == []


def test_bytes_that_no_layer_claims_are_allowed_in_plain_files():
    raw = write_plain([Draft(0, b"abc", content_offset=284)], tail=b"0123456789")
    assert contents_of(load(raw)) == {0: raw[284:287]}


@pytest.mark.parametrize("offset", [0, 256, 278, 279, 283])
def test_empty_layers_may_lie_anywhere_in_the_file(offset):
    raw = write_plain([Draft(0, b"", content_offset=offset)], tail=b"abcd")
    assert len(raw) == 283
    assert contents_of(load(raw)) == {0: b""}


def test_an_empty_layer_inside_the_block_of_another_is_no_overlap():
    raw = write_plain([Draft(0, b"abcd"), Draft(1, b"", content_offset=304)])
    assert raw[302:306] == b"abcd"
    assert contents_of(load(raw)) == {0: b"abcd", 1: b""}


def test_blocks_that_touch_are_no_overlap():
    raw = write_plain([Draft(1, b"abcd"), Draft(0, b"efgh")])
    assert contents_of(load(raw)) == {1: b"abcd", 0: b"efgh"}


def test_a_name_of_exactly_64_bytes_needs_no_zero():
    name = "\u5730" * 21 + "x"
    assert len(name.encode()) == 64
    for raw in (write_plain(name=name.encode()), build(name=name)):
        assert load(raw).metadata.dimension_name == name
        assert naive.read_plain(raw).name == name.encode()


def test_a_name_with_a_null_character_is_as_long_as_it_says():
    assert load(write_plain(name=b"a\0b", name_len=3)).metadata.dimension_name == "a\0b"
    assert load(write_plain(name=b"ab", name_len=3)).metadata.dimension_name == "ab\0"


def test_keywords_in_any_script():
    drafts = [Draft(i, b"", keywords=[text.encode() for text in SCRIPTS]) for i in range(3)]
    plain = load(write_plain(drafts))
    raw = build((0, b"", {"keywords": SCRIPTS}))
    for region in (plain, load(raw)):
        assert region.get_layer_info("L01-00").keywords == tuple(SCRIPTS)
        assert region.rows_by_keyword[SCRIPTS[1]][0] == 0
        assert region.verify_integrity()
    assert naive.read_plain(raw).layers[0].keywords == tuple(text.encode() for text in SCRIPTS)


@pytest.mark.parametrize("keyword", [b"\xff", b"ok\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_a_keyword_that_does_not_decode_is_shown_replaced_and_does_not_verify(keyword):
    region = load(write_plain([Draft(9, b"nine", keywords=[b"fine", keyword])]))
    fine, shown = region.get_layer_info("L01-09").keywords
    assert fine == "fine"
    assert shown == keyword.decode(errors="replace") and "\ufffd" in shown
    assert contents_of(region) == {9: b"nine"}
    assert region.verify_integrity("header")
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("metadata")
    assert caught.value.field == "layer 9 keywords"
    assert (caught.value.expected, caught.value.got) == ("UTF-8", keyword)


def test_as_many_keywords_as_are_allowed():
    keywords = [f"k{i}" for i in range(s.MAX_KEYWORDS)]
    for raw in (
        build((0, b"", {"keywords": keywords})),
        write_plain([Draft(keywords=[keyword.encode() for keyword in keywords])]),
    ):
        assert load(raw).get_layer_info("L01-00").keywords == tuple(keywords)


@pytest.mark.parametrize("frequency", [0.0, -0.0, 1e-45, -3.4028234663852886e38, 3.4e38])
def test_every_finite_frequency(frequency):
    stored = struct.unpack("<f", struct.pack("<f", frequency))[0]
    for raw in (
        write_plain([Draft(frequency=frequency)]),
        build((0, b"", {"frequency": frequency})),
    ):
        got = load(raw).get_layer_info("L01-00").frequency
        assert struct.pack("<f", got) == struct.pack("<f", stored)


def test_all_65536_layers(tmp_path, caplog):
    builder = RegionBuilder(1, "Full")
    for number in range(s.MAX_LAYERS):
        builder.add_layer(number, number.to_bytes(2, "little") if number % 2 else b"")
    path = tmp_path / "region.mmap"
    region = builder.build_to_file(path)
    assert len(region.list_layers()) == s.MAX_LAYERS
    assert region.index is None
    raw = path.read_bytes()
    plain = load(put(raw, 100, bytes(156)))
    assert not caplog.records
    assert plain.generation == 0
    told = naive.read_plain(raw).layers
    for some in (region, plain):
        rows = some.layout.rows
        assert rows["layer_num"].tolist() == list(range(s.MAX_LAYERS))
        assert rows["content_offset"].tolist() == region.layout.rows["content_offset"].tolist()
        for number in (0, 1, 255, 40_001, 65_534, 65_535):
            info = some.get_layer_info((1 << 16) | number)
            assert some.read_content(info.offset, info.size) == told[number].content
    assert region.verify_integrity("header")


# -- files written here ----------------------------------------------------------------------------


def test_blocks_lie_on_their_boundaries_and_metadata_before_them():
    raw = build(*((i, b"x" * (i * 37 % 200)) for i in range(20)))
    region = load(raw)
    start = region.metadata.content_offset
    assert start % s.ALIGNMENT == naive.get_field(raw, "table_offset") % s.ALIGNMENT == 0
    for info in region.metadata.layers:
        assert info.offset >= start
        if info.size:
            assert info.offset % s.ALIGNMENT == 0
    last = region.metadata.layers[-1]
    assert last.offset + last.size == len(raw)


def test_equal_layers_in_any_order_make_equal_bytes():
    layers = [(i, bytes([i]) * i, {"keywords": [str(i)]}) for i in (3, 9, 1, 4)]
    assert build(*layers) == build(*layers[::-1])


def test_extension_says_what_was_written():
    builder = RegionBuilder("D01", "Name")
    builder.add_layer(1, "text", name="\u00e9", parent="L02-03", depth=255)
    builder.add_layer(0, b"bytes", frequency=0.1)
    raw = bytes_of(builder.build_to_memory())
    row = {field: naive.get_row_field(raw, 1, field) for field in naive.ROW_FIELDS}
    assert row["parent"] == 2 << 16 | 3
    assert (row["depth"], row["encoding"]) == (255, s.ENCODING_TEXT)
    assert (row["array_offset"], row["array_size"]) == (0, 0)
    assert row["name_size"] == 2
    assert naive.get_row_field(raw, 0, "encoding") == s.ENCODING_BYTES
    assert resign(raw, contents=True) == raw
    assert naive.get_field(raw, "generation") == 1
    assert not any(naive.get_field(raw, "padding"))


# -- round trips -----------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=12)
layer_numbers = st.one_of(st.integers(0, 12), st.integers(0, 65_535), st.just(65_535))
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
layers_to_build = st.dictionaries(
    layer_numbers,
    st.fixed_dictionaries(
        {"content": st.one_of(st.binary(max_size=200), texts)},
        optional={
            "name": texts,
            "frequency": finite,
            "depth": st.integers(0, 255),
            "keywords": st.lists(texts, max_size=4),
            "parent": st.integers(1 << 16, 2**32 - 1),
        },
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("round_trips")


@settings(deadline=None, max_examples=150)
@given(
    dimension=st.integers(1, 65_535),
    name=texts.filter(lambda text: "\0" not in text and len(text.encode()) <= 64),
    layers=layers_to_build,
    mode=st.sampled_from(["map", "copy"]),
)
def test_builder_to_file_to_region_and_to_the_naive_reader(folder, dimension, name, layers, mode):
    layers = {
        number: wanted
        for number, wanted in layers.items()
        if wanted.get("parent") != dimension << 16 | number
    }
    builder = RegionBuilder(dimension, name)
    for number, wanted in layers.items():
        builder.add_layer(number, **wanted)
    path = folder / "region.mmap"
    builder.build_to_file(path)
    region = MmapRegion.from_file(dimension, path, load_mode=mode)
    assert region.verify_integrity("full")
    raw = path.read_bytes()
    told = naive.read_plain(raw)
    assert (told.dimension, told.name) == (dimension, name.encode())
    assert [layer.layer for layer in told.layers] == sorted(layers)
    stripped = load(put(raw, 100, bytes(156)), dimension)
    assert region.metadata.dimension_name == stripped.metadata.dimension_name == name
    assert region.list_layers() == stripped.list_layers()
    for layer in told.layers:
        wanted = layers[layer.layer]
        content = wanted["content"]
        content = content.encode() if isinstance(content, str) else content
        assert layer.content == content
        packed = dimension << 16 | layer.layer
        for source in (region, stripped):
            info = source.get_layer_info(packed)
            assert source.read_content(info.offset, info.size) == content
            assert info.frequency == layer.frequency == wanted.get("frequency", 1.0)
            assert info.depth == layer.depth == wanted.get("depth", 0)
            assert info.keywords == tuple(wanted.get("keywords", ()))
        info = region.get_layer_info(packed)
        assert info.name == wanted.get("name", "")
        assert int(info.parent or 0) == wanted.get("parent", 0)
        assert [keyword.decode() for keyword in layer.keywords] == wanted.get("keywords", [])


plain_drafts = st.lists(
    st.builds(
        Draft,
        layer=layer_numbers,
        content=st.binary(max_size=60),
        depth=st.integers(0, 255),
        frequency=finite,
        keywords=st.lists(st.binary(max_size=9), max_size=4),
    ),
    max_size=12,
    unique_by=lambda draft: draft.layer,
)


@settings(deadline=None, max_examples=150)
@given(drafts=plain_drafts, tail=st.binary(max_size=9), name=texts)
def test_written_by_hand_to_region(drafts, tail, name):
    name = name.encode()
    raw = write_plain(drafts, tail=tail, name=name[:64] if len(name) <= 64 else b"")
    region = load(raw)
    assert [layer.layer for layer in region.list_layers()] == sorted(d.layer for d in drafts)
    told = {layer.layer: layer for layer in naive.read_plain(raw).layers}
    for draft in drafts:
        info = region.get_layer_info(1 << 16 | draft.layer)
        content = bytes(region.read_content(info.offset, info.size))
        assert content == draft.content == told[draft.layer].content
        assert (info.depth, info.frequency) == (draft.depth, draft.frequency)
        replaced = [keyword.decode(errors="replace") for keyword in draft.keywords]
        assert list(info.keywords) == replaced


# -- limits ----------------------------------------------------------------------------------------


def test_metadata_that_pass_their_limit_are_refused_before_anything_is_written(tmp_path):
    builder = RegionBuilder(1, "Large")
    long = "k" * 2**20
    for number in range(33):
        builder.add_layer(number, b"", keywords=[long])
    with pytest.raises(ValueError, match="67,108,864"):
        builder.build_to_file(tmp_path / "new" / "region.mmap")
    assert list(tmp_path.iterdir()) == []


def test_names_that_pass_the_limit_of_the_metadata_are_refused(tmp_path):
    builder = RegionBuilder(1, "Large")
    with pytest.raises(ValueError, match=r"L01-00.*67,108,864"):
        builder.add_layer(0, b"", name="n" * (s.MAX_METADATA_BYTES + 1))
    for number in range(2):  # each has room, both together have not
        builder.add_layer(number, b"", name="n" * (s.MAX_METADATA_BYTES // 2 + 1))
    with pytest.raises(ValueError, match="67,108,864"):
        builder.build_to_file(tmp_path / "region.mmap")


@pytest.mark.parametrize("kind", ["layers", "keywords"])
def test_counts_of_a_small_file_allocate_nothing_large(kind):
    if kind == "layers":
        raw = write_plain([Draft()], layer_count=2**32 - 1)
    else:
        raw = write_plain([Draft(keyword_count=2**32 - 1)])
    tracemalloc.start()
    try:
        with pytest.raises(RegionFormatError):
            load(raw)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


LONG = build((0, b"", {"name": "x" * 50_000, "keywords": ["y" * 50_000]}))


def check_message_is_short(raw):
    with pytest.raises(RegionFormatError) as caught:
        load(resign(raw)).verify_integrity("metadata")
    assert len(str(caught.value)) < 1_000
    assert len(caught.value.got) == 50_000


@pytest.mark.parametrize("field", ["name", "keywords"])
def test_a_message_does_not_grow_with_a_text_of_the_file(field):
    at = naive.get_field(LONG, "heap_offset") + naive.get_row_field(LONG, 0, f"{field}_offset")
    check_message_is_short(put(LONG, at + 9, b"\xff"))


def test_a_message_does_not_grow_with_two_texts_that_differ():
    at = naive.get_field(LONG, "heap_offset") + naive.get_row_field(LONG, 0, "keywords_offset")
    raw = put(LONG, at + 9, b"Y")
    with pytest.raises(RegionFormatError) as caught:
        load(resign(raw)).verify_integrity("metadata")
    assert caught.value.field == "layer 0 keywords"
    assert len(str(caught.value)) < 1_000


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_many_keywords_are_parsed_by_compiled_code(tmp_path):
    drafts = [Draft(i, keywords=[b""] * s.MAX_KEYWORDS * (i < 3)) for i in range(600)]
    (tmp_path / "region.mmap").write_bytes(write_plain(drafts))
    code = (
        "import sys; from jessymem import MmapRegion; from jessymem.regions import entries;"
        "entries.WORTH_STARTING = entries.WORTH_LOADING = 10_000;"
        "MmapRegion.from_file(1, 'region.mmap');"
        "print('numba' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "True"


# -- the documentation -----------------------------------------------------------------------------


def block_after(marker, language):
    """Return the fenced block of docs/format.md that follows a marker."""
    text = DOCS.read_text(encoding="utf-8").split(f"<!-- {marker} -->\n")[1]
    return re.match(rf"\n*```{language}\n(.*?)```", text, re.DOTALL)[1]


def test_the_worked_example_is_what_its_command_makes(tmp_path):
    script = block_after("example", "python")
    made = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    dump = block_after("dump", "text")
    assert made.stdout == dump
    raw = (tmp_path / "tiny.mmap").read_bytes()
    region = MmapRegion.from_file("D07", tmp_path / "tiny.mmap")
    assert region.verify_integrity()
    told = naive.read_plain(raw)
    assert told.layers[0].content in bytes_of(region)
    assert len(told.layers) == len(region.list_layers()) == 2
    shown = bytearray()
    for line in dump.splitlines():
        assert int(line[:5]) == len(shown)
        zeros = re.match(r"00 x ([0-9]+) ", line[7:])
        shown += bytes(int(zeros[1])) if zeros else bytes.fromhex(line[7:55])
    assert shown == raw
