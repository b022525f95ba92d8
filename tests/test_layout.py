"""Region bytes to tables: every rule of the format, broken once, its limits, and its page.

Files are written by hand (`naive`) or by the package.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support import naive
from support.layout import RICH, START, bytes_of, check_refused, contents_of, lay_out, load
from support.naive import Draft, put, resign, set_row_field, write_plain

from jessymem import DimensionId, MmapRegion, RegionBuilder, RegionFormatError
from jessymem.kernels import _jit
from jessymem.kernels import schema as s

DOCS = Path(__file__).parent.parent / "docs" / "format.md"


def load_zeros(drafts, **fields):
    """Load an entry up to its first keyword's text, then zeros to past the metadata limit."""
    data = np.zeros(s.MAX_METADATA_BYTES + 1_000, np.uint8)
    start = write_plain(drafts, total_size=len(data), **fields)[:271]
    data[:271] = np.frombuffer(start, np.uint8)
    return MmapRegion(DimensionId(1), None, data, s.REGION_COPIED, None)


# -- one broken rule each --------------------------------------------------------------------------

TWO = write_plain([Draft(3, b"three", keywords=[b"word"]), Draft(1, b"one")])

PLAIN_RULES = {
    "no bytes": (b"", "header", 0, "256 bytes", "0 bytes"),
    "a byte short of a header": (TWO[:255], "header", 0, "256 bytes", "255 bytes"),
    "another magic": (
        write_plain(magic=b"JESSY_MMAP_V3"),
        "magic",
        84,
        naive.MAGIC,
        b"JESSY_MMAP_V3\0\0\0",
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
    assert caught.value.offset == naive.field_offset(raw, 2, "content_offset")
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
    for number in range(2):  # each fits, both together have not
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


LONG = lay_out((0, b"", {"name": "x" * 50_000, "keywords": ["y" * 50_000]}))


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
