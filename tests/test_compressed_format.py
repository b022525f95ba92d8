"""Files with compressed layers: their bytes, and what is refused of them."""

from __future__ import annotations

import sys
from importlib import import_module

import numpy as np
import pytest
import xxhash
from support import naive
from support.compressed import (
    COMPRESSED,
    CONTENTS,
    frame_at,
    get_frame,
    noise_of,
    raw,
    set_frame,
    small_texts,
    text_of,
)
from support.layout import check_refused, load
from support.naive import put, resign, set_field, set_row_field

from jessymem import ConfigError, LayerId, MmapRegion, OutOfBounds, RegionFormatError, zstd
from jessymem.kernels import schema as s
from jessymem.zstd import BadFrame, Deflater, as_compression, inflate

LIBRARY = import_module(zstd._MODULE)
RAW = raw()
WITH_DICTIONARY = raw(contents=small_texts())
AT_1 = 2**62


def contents_of(region):
    layers = region.list_layers()
    return {each.layer: bytes(region.content_of(region.find_row(each))) for each in layers}


def test_every_layer_comes_back(tmp_path):
    region = load(RAW)
    assert contents_of(region) == CONTENTS
    assert region.verify_integrity()
    assert region.metadata.version == 2
    assert region.read_array("L01-06").tolist() == np.arange(4_000).reshape(-1, 8).tolist()


def test_what_does_not_become_shorter_stays_plain():
    region = load(RAW)
    found = {info.layer_id.layer: info for info in region.metadata.layers}
    assert {number for number, info in found.items() if info.compression} == COMPRESSED
    for number, info in found.items():
        assert info.size == len(CONTENTS[number])
        if number in COMPRESSED:
            assert info.stored_size <= info.size * 7 / 8
        else:
            assert info.stored_size == info.size
            assert bytes(region.read_content(info.offset, info.size)) == CONTENTS[number]


def test_without_anything_to_compress_it_is_a_file_of_version_1():
    plain = {0: b"", 1: b"short", 2: noise_of(2, 500)}
    assert naive.get_field(raw(contents=plain), "magic") == naive.MAGIC


def test_a_reader_of_version_1_takes_no_stored_bytes_for_content(tmp_path):
    # One that is told nothing but the magic of version 1, by hand.
    old = resign(set_field(RAW, "magic", naive.MAGIC))
    with pytest.raises(RegionFormatError):
        load(old)
    plain = put(old, 100, bytes(156))  # without the extension
    with pytest.raises(RegionFormatError) as caught:
        load(plain)
    assert caught.value.field == "layer 0 content_end"


def test_the_stored_bytes_are_a_frame_of_zstandard():
    start, size = (get_frame(RAW, 0, f"stored_{each}") for each in ("offset", "size"))
    stored = RAW[start : start + size]
    assert LIBRARY.decompress(stored) == CONTENTS[0]
    assert get_frame(RAW, 0, "stored_xxh3") == xxhash.xxh3_64_intdigest(stored)


def frame_rule(which, field, value, expected):
    data = resign(set_frame(RAW, which, field, value))
    return data, f"frame {which} {field}", frame_at(RAW, which, field), expected, value


_NUMBERS = "one frame for each compressed layer, in their order"
_EXPANSION = "1 to 32,768 bytes of content for each byte"
FRAME_RULES = {
    "another number": frame_rule(1, "layer_num", 2, _NUMBERS),
    "a number twice": frame_rule(1, "layer_num", 0, _NUMBERS),
    "another codec": frame_rule(0, "codec", 2, "1: zstd"),
    "no codec": frame_rule(0, "codec", 0, "1: zstd"),
    "a dictionary where there is none": frame_rule(2, "uses_dictionary", 1, "<= 0"),
    "stored behind the file": frame_rule(
        0, "stored_offset", 2**64 - 1, f"<= {len(RAW)}, the file's length"
    ),
    "a bomb": frame_rule(4, "stored_size", 36, _EXPANSION),
    "nothing is stored": frame_rule(0, "stored_size", 0, _EXPANSION),
}


@pytest.mark.parametrize("rule", FRAME_RULES.values(), ids=FRAME_RULES)
def test_a_broken_frame_is_refused(rule, tmp_path):
    check_refused(*rule, tmp_path)


@pytest.mark.parametrize(
    ("which", "field", "value", "name"),
    [
        (0, "stored_offset", len(RAW), "layer 0 content_end"),
        (4, "stored_size", 2**32 - 1, "layer 9 content_end"),
        (0, "stored_offset", 256, "layer 0 content_offset"),
        (1, "stored_offset", get_frame(RAW, 0, "stored_offset"), "layer 1 content_offset"),
    ],
)
def test_stored_bytes_lie_where_contents_may(which, field, value, name):
    with pytest.raises(RegionFormatError) as caught:
        load(resign(set_frame(RAW, which, field, value)))
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_frames", 0),
        ("n_frames", 9),
        ("n_frames", 2**64 - 1),
        ("frames_offset", 256),
        ("frames_offset", 2**64 - 8),
        ("dictionary_offset", 300),
        ("dictionary_size", 2**20 + 1),
        ("dictionary_size", 2**64 - 1),
    ],
)
def test_what_the_extension_says_of_frames_must_be_possible(field, value):
    with pytest.raises(RegionFormatError):
        load(resign(set_field(RAW, field, value)))


@pytest.mark.parametrize(("row", "number"), [(2, 2), (3, 3)])
def test_a_marked_row_without_a_frame_is_refused(row, number):
    marked = set_row_field(RAW, row, "content_offset", AT_1)
    with pytest.raises(RegionFormatError) as caught:
        load(resign(set_row_field(marked, row, "content_end", AT_1 + 5)))
    assert caught.value.field.endswith("layer_num")


@pytest.mark.parametrize("end", [AT_1, AT_1 - 1, 2**64 - 1, AT_1 + 2**32, AT_1 + 2**31])
def test_a_compressed_layer_is_not_empty_nor_too_long(end):
    with pytest.raises(RegionFormatError) as caught:
        load(resign(set_row_field(RAW, 0, "content_end", end)))
    assert caught.value.field == "frame 0 stored_size"


def test_four_gib_out_of_a_hundred_bytes_are_refused_before_anything_is_read():
    bomb = set_row_field(RAW, 5, "content_end", AT_1 + 2**32 - 1)
    with pytest.raises(RegionFormatError, match="32,768 bytes of content for each byte"):
        load(resign(bomb))


@pytest.mark.parametrize("field", ["extension_magic", "header_xxh3", "metadata_xxh3"])
def test_an_extension_that_does_not_hold_is_refused_not_ignored(field):
    at = naive.EXTENSION_FIELDS[field][0]
    damaged = put(RAW, at, bytes([RAW[at] ^ 1]))
    with pytest.raises(RegionFormatError):
        load(damaged)


def test_metadata_that_do_not_hold_are_refused_not_ignored():
    damaged = bytearray(RAW)
    damaged[300] ^= 1
    with pytest.raises(RegionFormatError) as caught:
        load(bytes(damaged))
    assert caught.value.field == "metadata_xxh3"


# -- what is found when a layer is read ------------------------------------------------------------


def stored_damage(which, change):
    """Change a frame's stored bytes, as a hostile writer would: the checksum holds."""
    start, size = (get_frame(RAW, which, f"stored_{each}") for each in ("offset", "size"))
    stored = change(RAW[start : start + size])
    data = put(RAW, start, stored)
    data = set_frame(data, which, "stored_size", len(stored))
    return resign(set_frame(data, which, "stored_xxh3", xxhash.xxh3_64_intdigest(stored)))


def other_length(stored):
    return LIBRARY.compress(CONTENTS[0][:-1])


def no_length(stored):
    flag = LIBRARY.CompressionParameter.content_size_flag
    return LIBRARY.compress(CONTENTS[0], options={flag: 0})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda stored: stored[:-1], id="truncated"),
        pytest.param(lambda stored: stored[:4], id="a magic alone"),
        pytest.param(lambda stored: bytes(len(stored)), id="zeros"),
        pytest.param(lambda stored: b"\x28\xb5\x2f\xfd" + stored[4:30], id="cut"),
        other_length,
        no_length,
    ],
)
def test_stored_bytes_that_are_no_such_frame_name_the_layer(change):
    region = load(stored_damage(0, change))
    with pytest.raises(RegionFormatError) as caught:
        region.content_of(0)
    assert caught.value.field == "layer 0 frame"
    assert bytes(region.content_of(1)) == CONTENTS[1]  # others are read
    with pytest.raises(RegionFormatError):
        region.verify_integrity()


def test_a_frame_with_something_behind_it_is_none():
    first = stored_damage(5 - 1, lambda stored: stored)  # the last one may grow to the file's end
    start = get_frame(first, 4, "stored_offset")
    stored = first[start:] + b"x"
    data = first[:start] + stored
    data = set_field(set_frame(data, 4, "stored_size", len(stored)), "total_size", len(data))
    data = set_frame(data, 4, "stored_xxh3", xxhash.xxh3_64_intdigest(stored))
    region = load(resign(data))
    with pytest.raises(RegionFormatError) as caught:
        region.content_of(region.find_row(LayerId(1, 9)))
    assert caught.value.field == "layer 9 frame"


def test_a_window_that_takes_much_memory_is_refused():
    window = LIBRARY.CompressionParameter.window_log
    content = text_of(1, 2**16) * 144  # 9 MiB
    frame = LIBRARY.compress(content, options={window: 27})
    with pytest.raises(BadFrame, match="frame of Zstandard"):
        b"".join(inflate(iter([frame]), len(content), None, "x"))
    narrow = Deflater(22, None, "x").deflate(content)
    assert b"".join(inflate(iter([narrow]), len(content), None, "x")) == content


@pytest.mark.parametrize("kind", ["stored_xxh3", "content_xxh3"])
def test_a_checksum_that_does_not_hold_names_the_layer(kind):
    if kind == "stored_xxh3":
        at = get_frame(RAW, 1, "stored_offset") + 100
        data = put(RAW, at, bytes([RAW[at] ^ 1]))
    else:
        data = resign(set_row_field(RAW, 1, "content_xxh3", 5))
    region = load(data)
    with pytest.raises(RegionFormatError) as caught:
        region.content_of(1)
    assert caught.value.field == f"layer 1 {kind}"
    with pytest.raises(RegionFormatError):
        region.verify_integrity()
    if kind == "stored_xxh3":
        with pytest.raises(RegionFormatError):
            region.verify_integrity("stored")
    else:
        region.verify_integrity("stored")  # which does not look at contents


def test_bytes_between_stored_ones_are_zeros(tmp_path):
    plain = naive.get_row_field(RAW, 4, "content_offset")  # of noise, on a boundary
    data = put(RAW, plain - 1, b"\1")
    with pytest.raises(RegionFormatError) as caught:
        load(data).verify_integrity()
    assert caught.value.field == "padding of contents"


def test_a_file_that_is_rewritten_leads_nowhere_else(tmp_path):
    path = tmp_path / "region.mmap"
    path.write_bytes(RAW)
    region = MmapRegion.from_file(1, path)
    with path.open("r+b") as file:  # in place: the mapping sees it
        for row, offset, end in ((0, 0, len(RAW)), (1, 0, 100), (5, AT_1, AT_1 + 2**31)):
            file.seek(naive.field_offset(RAW, row, "content_offset"))
            file.write(offset.to_bytes(8, "little") + end.to_bytes(8, "little"))
    assert bytes(region.content_of(0)) == CONTENTS[0]
    assert bytes(region.content_of(1)) == CONTENTS[1]
    with pytest.raises(OutOfBounds):
        region.private_rows()


# -- dictionaries ----------------------------------------------------------------------------------


def test_many_small_layers_share_a_dictionary_where_that_pays():
    contents = small_texts()
    region = load(WITH_DICTIONARY)
    assert contents_of(region) == contents
    assert region.verify_integrity()
    assert 0 < len(region.frames.dictionary) <= s.MAX_DICTIONARY_BYTES
    stored = sum(info.stored_size for info in region.metadata.layers)
    n_bytes = sum(map(len, contents.values()))
    assert stored + len(region.frames.dictionary) < n_bytes / 3
    assert not naive.get_field(raw(contents=dict(list(contents.items())[:50])), "dictionary_size")


@pytest.mark.parametrize("change", ["another", "none"])
def test_a_wrong_dictionary_names_the_layer(change):
    at = naive.get_field(WITH_DICTIONARY, "dictionary_offset")
    size = naive.get_field(WITH_DICTIONARY, "dictionary_size")
    wrong = WITH_DICTIONARY[at : at + size][::-1] if change == "another" else bytes(size)
    region = load(resign(put(WITH_DICTIONARY, at, wrong)))
    with pytest.raises(RegionFormatError) as caught:
        region.content_of(0)
    assert caught.value.field in ("layer 0 frame", "layer 0 content_xxh3")


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", ["", "gzip", "zstd:0", "zstd:23", "zstd:", "zstd:-1", "zstd:3.5", 3, True, b"zstd"]
)
def test_what_is_no_compression_is_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        as_compression(wrong)
    assert (caught.value.field, caught.value.value) == ("compress", wrong)


def test_a_higher_level_is_shorter():
    texts = {0: text_of(3, 400_000)}
    assert len(raw("zstd:19", texts)) < len(raw("zstd:1", texts)) < len(raw("none", texts))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, zstd._MODULE, None)
    with pytest.raises(ConfigError, match=r"jessymem\[zstd\]"):
        as_compression("zstd")
    region = load(RAW)  # it loads, and what is plain is read
    assert bytes(region.content_of(region.find_row(LayerId(1, 4)))) == CONTENTS[4]
    with pytest.raises(ConfigError, match=r"L01-00 .* is compressed: .*jessymem\[zstd\]"):
        region.content_of(0)
    region.verify_integrity("stored")
