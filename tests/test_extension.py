"""Files that carry an extension, broken: with checksums that hold, and with ones that do not.

If the checksums hold the file is refused; if not, its plain entries are read.
"""

from __future__ import annotations

import re
import struct

import pytest
from support import naive
from support.layout import RICH, START, check_refused, contents_of, ignored_fields, lay_out, load
from support.naive import Draft, put, resign, set_field, set_row_field, write_plain
from support.regions import region_file

from jessymem import MmapManager, MmapRegion, RegionFormatError, osmem

# -- hostile extensions: every checksum holds ------------------------------------------------------

TABLE = naive.get_field(RICH, "table_offset")
HEAP = naive.get_field(RICH, "heap_offset")
HEAP_SIZE = naive.get_field(RICH, "heap_size")


def field_rule(field, value, expected):
    at = naive.EXTENSION_FIELDS[field][0]
    return resign(set_field(RICH, field, value)), field, at, expected, value


def row_rule(row, field, value, expected, number=None):
    raw = resign(set_row_field(RICH, row, field, value))
    name = f"layer {(0, 2, 5)[row] if number is None else number} {field}"
    return raw, name, naive.field_offset(RICH, row, field), expected, value


EXTENSION_RULES = {
    "generation 0": field_rule("generation", 0, f"1 to {2**63 - 1}"),
    "generation 2**63": field_rule("generation", 2**63, f"1 to {2**63 - 1}"),
    "contents in the header": field_rule("content_start", 255, f"256 to {len(RICH)}"),
    "contents behind the file": field_rule("content_start", len(RICH) + 1, f"256 to {len(RICH)}"),
    "contents at 2**64 - 1": field_rule("content_start", 2**64 - 1, f"256 to {len(RICH)}"),
    "no bytes for the table": field_rule("content_start", 256, "325 to 64"),
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
    "frames in version 1": field_rule("n_frames", 1, "0 to 0"),
    "frames somewhere, and none": field_rule("frames_offset", 512, "0 to 0"),
    "a dictionary in version 1": field_rule("dictionary_size", 1, "0 to 0"),
    "a dictionary somewhere, and none": field_rule("dictionary_offset", 512, "0 to 0"),
    "deleted layers of no delta": field_rule("n_deleted", 1, "0 to 0"),
    "deleted layers somewhere, and none": field_rule("deleted_offset", 300, "0 to 0"),
}
# "no bytes for the table" is told of the table, whose bounds then cross.
EXTENSION_RULES["no bytes for the table"] = (
    *EXTENSION_RULES["no bytes for the table"][:1],
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
    "keywords without bytes": row_rule(0, "keyword_count", 3, "bytes for every keyword's length"),
    "name at 2**32 - 1": row_rule(
        0, "name_offset", 2**32 - 1, f"inside the heap of {HEAP_SIZE} bytes with its size"
    ),
    "name one byte past the heap": row_rule(
        0,
        "name_offset",
        HEAP_SIZE - len("one") + 1,
        f"inside the heap of {HEAP_SIZE} bytes with its size",
    ),
    "keywords at 2**32 - 1": row_rule(
        0, "keywords_offset", 2**32 - 1, f"inside the heap of {HEAP_SIZE} bytes with its size"
    ),
}
ROW_RULES["keywords without bytes"] = (
    ROW_RULES["keywords without bytes"][0],
    "layer 0 keywords_size",
    naive.field_offset(RICH, 0, "keywords_size"),
    "bytes for every keyword's length",
    10,
)
for kind in ("name", "keywords"):
    ROW_RULES[f"{kind}_size 2**32 - 1"] = (
        resign(set_row_field(RICH, 0, f"{kind}_size", 2**32 - 1)),
        f"layer 0 {kind}_offset",
        naive.field_offset(RICH, 0, f"{kind}_offset"),
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


CROWDED = set_row_field(set_row_field(RICH, 1, "name_offset", 0), 1, "name_size", HEAP_SIZE)
OVERLAPPING = set_row_field(
    RICH, 2, "content_offset", naive.get_row_field(RICH, 0, "content_offset")
)


def test_many_that_are_loaded_together_break_the_rules_that_one_breaks(tmp_path):
    """Among others, whose rows are checked with theirs; those without rows have none to check."""
    broken = [rule[0] for rule in ROW_RULES.values()]
    broken += [CROWDED, OVERLAPPING, set_row_field(RICH, 1, "frequency", float("nan"))]
    expected, whole = {}, {}
    for number, raw in enumerate([*broken, RICH, lay_out()] * 2, 20):
        at = region_file(tmp_path, f"D{number}")
        at.parent.mkdir()
        at.write_bytes(resign(set_field(raw, "dimension_id", number)))
        if raw in broken:
            with pytest.raises(RegionFormatError) as caught:
                MmapRegion.from_file(number, at)
            expected[number] = str(caught.value)
        else:
            whole[number] = MmapRegion.from_file(number, at).list_layers()
    with MmapManager(64, base_path=tmp_path) as manager:
        report = manager.load_all()
        assert report.loaded == tuple(whole)
        assert {number: why for number, why in report.skipped if number >= 20} == expected
        assert {number: manager.list_layers(number) for number in whole} == whole
        charged = len(whole) * osmem.page_size()
        assert manager.get_stats().total_allocated_bytes == charged
        assert manager.get_stats().waiting_bytes == 0


def test_contents_may_be_in_any_order_also_where_many_are_loaded(tmp_path):
    raw = RICH
    for field in ("content_offset", "content_end"):
        first, last = (naive.get_row_field(RICH, row, field) for row in (0, 2))
        raw = set_row_field(set_row_field(raw, 0, field, last), 2, field, first)
    for number in (20, 21):
        at = region_file(tmp_path, f"D{number}")
        at.parent.mkdir()
        at.write_bytes(resign(set_field(raw, "dimension_id", number)))
    with MmapManager(64, base_path=tmp_path) as manager:
        assert manager.load_all().loaded == (20, 21)
        assert manager.access_layer("L20-05") == b"first"
        assert manager.access_layer("L21-00") == b"third" * 30


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
    assert caught.value.offset == naive.field_offset(RICH, 1, "frequency")
    assert caught.value.expected == "a finite number"


def test_content_longer_than_a_plain_entry_can_say(tmp_path):
    # A sparse file of 4 GiB and a header: nothing of it is read but the metadata.
    raw = lay_out((0, b"x"))
    start, end = 384, 384 + 2**32
    raw = set_row_field(raw, 0, "content_end", end)
    raw = resign(set_field(raw, "total_size", end))
    path = tmp_path / "region.mmap"
    with path.open("wb") as file:
        file.write(raw)
        try:
            file.truncate(end)
        except OSError:
            pytest.skip("no disk space for a sparse file of 4 GiB")
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
    assert caught.value.offset == naive.field_offset(raw, 0, "depth")
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
    assert caught.value.offset == naive.field_offset(raw, row, field)
    assert caught.value.expected == f"{plain}, as the plain entry says"
    assert caught.value.got == value


def test_a_frequency_is_compared_bit_by_bit():
    raw = lay_out((0, b"", {"frequency": 0.0}))
    with pytest.raises(RegionFormatError, match="frequency"):
        load(resign(set_row_field(raw, 0, "frequency", -0.0))).verify_integrity("metadata")


def test_keywords_that_differ_from_the_plain_entry_do_not_verify():
    at = naive.field_offset(RICH, 2, "keywords_offset")
    (offset,) = struct.unpack_from("<I", RICH, at)
    raw = resign(put(RICH, HEAP + offset + 4, b"C"))
    region = load(raw)
    assert region.get_layer_info("L01-05").keywords == ("C",)
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("metadata")
    assert caught.value.field == "layer 5 keywords"


def test_keywords_that_do_not_fill_their_block():
    (offset,) = struct.unpack_from("<I", RICH, naive.field_offset(RICH, 2, "keywords_offset"))
    for length in (0, 2, 2**32 - 1):
        region = load(resign(put(RICH, HEAP + offset, struct.pack("<I", length))))
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
        (offset,) = struct.unpack_from("<I", RICH, naive.field_offset(RICH, 0, f"{field}_offset"))
        at = HEAP + offset + (4 if field == "keywords" else 0)
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
    assert caught.value.offset == naive.field_offset(RICH, 0, "content_xxh3")


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
