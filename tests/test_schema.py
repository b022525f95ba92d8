"""The dtypes are the format: sizes, offsets and limits, spelled out once more by hand."""

import re
import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from support import naive

from jessymem.kernels import schema as s
from jessymem.regions.layout import packing_of

DOCS = Path(__file__).parent.parent / "docs" / "format.md"

ON_DISK = {
    "HEADER": s.HEADER,
    "LAYER_ENTRY": s.LAYER_ENTRY,
    "LAYER_EXTENT": s.LAYER_EXTENT,
    "EXTENSION": s.EXTENSION,
    "LAYER": s.LAYER,
    "FRAME": s.FRAME,
}
IN_MEMORY = {
    "REGION": s.REGION,
    "LOCATION": s.LOCATION,
    "FAULT": s.FAULT,
    "SPAN": s.SPAN,
    "NEEDLE": s.NEEDLE,
    "SEARCH": s.SEARCH,
    "HIT": s.HIT,
}


@pytest.mark.parametrize(
    ("dtype", "n_bytes"),
    [
        (s.HEADER, 256),
        (s.LAYER_ENTRY, 11),
        (s.LAYER_EXTENT, 12),
        (s.EXTENSION, 156),
        (s.LAYER, 64),
        (s.FRAME, 24),
        (s.REGION, 128),
        (s.LOCATION, 32),
        (s.FAULT, 32),
        (s.SPAN, 32),
        (s.NEEDLE, 120),
        (s.SEARCH, 80),
        (s.HIT, 16),
        (s.DIRECTORY, 8),
        (s.LAYER_INDEX, 2),
    ],
)
def test_sizes(dtype, n_bytes):
    assert dtype.itemsize == n_bytes


@pytest.mark.parametrize("dtype", (ON_DISK | IN_MEMORY).values(), ids=ON_DISK | IN_MEMORY)
def test_fields_follow_each_other_without_a_gap(dtype):
    at = 0
    for name in dtype.names:
        field, offset = dtype.fields[name][:2]
        assert (name, offset) == (name, at)
        at += field.itemsize
    assert at == dtype.itemsize


@pytest.mark.parametrize(
    "dtype", [s.LAYER, s.REGION, s.LOCATION], ids=["LAYER", "REGION", "LOCATION"]
)
def test_words_of_rows_are_aligned(dtype):
    for name in dtype.names:
        field, offset = dtype.fields[name][:2]
        assert offset % field.base.alignment == 0, name


@pytest.mark.parametrize("dtype", ON_DISK.values(), ids=ON_DISK)
def test_numbers_on_disk_are_little_endian_and_say_so(dtype):
    spelled = {name: code for name, code, *_ in dtype.descr}
    for name, code in spelled.items():
        assert code[0] == ("<" if dtype[name].itemsize > 1 and code[1] != "V" else "|"), name


@pytest.mark.parametrize(
    ("dtype", "fields", "start"),
    [
        (s.HEADER, naive.HEADER_FIELDS, 0),
        (s.EXTENSION, naive.EXTENSION_FIELDS, 100),
        (s.LAYER, naive.ROW_FIELDS, 0),
        (s.FRAME, naive.FRAME_FIELDS, 0),
    ],
    ids=["HEADER", "EXTENSION", "LAYER", "FRAME"],
)
def test_offsets_are_those_of_the_table_written_by_hand(dtype, fields, start):
    by_hand = {name: (at - start, struct.calcsize(code)) for name, (at, code) in fields.items()}
    here = {name: (dtype.fields[name][1], dtype[name].itemsize) for name in by_hand}
    assert here == by_hand
    assert set(dtype.names) - set(by_hand) <= {"reserved"}


def test_struct_codes_have_the_sizes_of_the_dtypes():
    assert naive.HEADER.size == s.HEADER_BYTES
    assert naive.ENTRY.size == s.LAYER_ENTRY.itemsize
    assert naive.EXTENT.size == s.LAYER_EXTENT.itemsize
    assert s.MIN_ENTRY_BYTES == 23
    assert (s.RESERVED_OFFSET, s.CHECKED_HEADER_BYTES) == (100, 248)


@pytest.mark.parametrize("dtype", ON_DISK.values(), ids=ON_DISK)
def test_a_record_is_packed_as_numpy_has_it(dtype):
    raw = np.random.default_rng(len(dtype)).bytes(dtype.itemsize)
    values = packing_of(dtype).unpack(raw)
    as_numpy = np.frombuffer(raw, dtype)[0].item()
    assert str(values) == str(as_numpy)  # a float that is no number is unlike itself
    assert packing_of(dtype).pack(*values) == raw


def test_limits():
    assert (s.MAX_DIMENSION, s.MAX_LAYER, s.MAX_LAYERS) == (65_535, 65_535, 65_536)
    assert (s.MAX_NAME_BYTES, s.MAX_KEYWORDS) == (64, 4_096)
    assert s.MAX_METADATA_BYTES == 64 * 1024 * 1024
    assert s.MAX_CONTENT_BYTES == 0xFFFFFFFF
    assert s.ALIGNMENT == 64
    assert s.MAGIC == b"JESSY_MMAP_V1\0\0\0" == naive.MAGIC
    assert s.COMPRESSED_MAGIC == b"JESSY_MMAP_V2\0\0\0"
    assert s.EXTENSION_MAGIC == b"JMX1"
    assert s.MAX_EXPANSION == 128 * 1024 // 4
    assert s.COMPRESSED_AT == 2**62


def test_a_layer_id_packs_into_the_bits_that_its_numbers_need():
    assert s.MAX_LAYER == (1 << s.LAYER_BITS) - 1
    assert s.MAX_DIMENSION << s.LAYER_BITS | s.MAX_LAYER == np.iinfo(s.LAYER["parent"]).max


def test_what_an_index_holds_where_numbers_have_gaps_is_never_a_row():
    n_rows_with_gaps = s.MAX_LAYERS - 1
    assert n_rows_with_gaps - 1 < s.NO_LAYER <= np.iinfo(s.LAYER_INDEX).max


def test_codes_are_distinct_and_negative():
    source = Path(s.__file__).read_text(encoding="utf-8")
    section = source.partition("# -- what kernels return -")[2].partition("\n# -- ")[0]
    codes = [int(code) for code in re.findall(r"^[A-Z_]+: Final = (-\d+)", section, re.M)]
    assert len(codes) == len(set(codes)) == 29
    assert max(codes) < s.OK == 0


def test_every_region_state_has_a_name():
    states = {
        value
        for name, value in vars(s).items()
        if name.startswith("REGION_") and name not in ("REGION_STATES", "REGION_BYTES")
    }
    assert states == set(s.REGION_STATES)


def test_a_big_endian_machine_is_refused_at_import(monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(ImportError, match="little-endian"):
        runpy.run_path(s.__file__)


# -- the documentation -----------------------------------------------------------------------------

TYPES = {"u8": "|u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "f32": "<f4"}


def documented_tables():
    """Return the tables of docs/format.md that have offsets: rows of (offset, type, field)."""
    pattern = r"\| offset \| type \| field \| meaning \|\n\|[-:|]+\|\n((?:\|.*\n)+)"
    for table in re.findall(pattern, DOCS.read_text(encoding="utf-8")):
        yield [
            (int(offset), code, field)
            for offset, code, field in re.findall(r"^\| (\d+) \| (\S+) \| (\w+) \|", table, re.M)
        ]


def test_the_tables_of_the_documentation_are_the_dtypes():
    tables = list(documented_tables())
    assert len(tables) == 6
    starts = [0, 0, 0, s.RESERVED_OFFSET, 0, 0]
    order = [s.HEADER, s.LAYER_ENTRY, s.LAYER_EXTENT, s.EXTENSION, s.LAYER, s.FRAME]
    for table, dtype, start in zip(tables, order, starts, strict=True):
        here = []
        for field in dtype.names:
            code = dtype[field].str
            spelled = next((name for name, other in TYPES.items() if other == code), None)
            spelled = spelled or f"bytes[{dtype[field].itemsize}]"
            here.append((start + dtype.fields[field][1], spelled, field))
        assert table == here


def test_the_limits_of_the_documentation_are_the_constants():
    told = re.findall(r"^\| ([A-Z_]+) \| (\d+) \|", DOCS.read_text(encoding="utf-8"), re.M)
    assert {name: int(value) for name, value in told} == {
        name: getattr(s, name)
        for name in [*(name for name in vars(s) if name.startswith("MAX_")), "ALIGNMENT"]
    }
