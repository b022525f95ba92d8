"""The parsing kernel and its plain twin: their codes, their places, and that all forms are one."""

import random
import struct
from types import FunctionType

import numpy as np
import pytest
from support import naive
from support.internals import few_entries
from support.naive import Draft, put, write_plain

from jessymem import RegionFormatError
from jessymem.kernels import _jit, parse
from jessymem.kernels import schema as s
from jessymem.regions import entries
from jessymem.regions.faults import Source


def plain_twins(module):
    """Return a module's kernels as plain Python that calls plain Python, compiled or not."""
    twins = {name: getattr(value, "py_func", value) for name, value in vars(module).items()}
    for name, value in list(twins.items()):
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            twins[name] = FunctionType(value.__code__, twins, name, value.__defaults__)
    return twins


PLAIN = plain_twins(parse)


@pytest.fixture(params=["kernel", "twin"])
def parse_entries(request):
    """Return the kernel, compiled or not, and what stands in for it where it is not."""
    return parse.parse_entries if request.param == "kernel" else entries.parse_entries


def run(raw, n_layers, parse_entries):
    """Parse; return the code or end, the fault, the rows and the frequencies' bits."""
    data = np.frombuffer(raw, np.uint8)
    rows = np.zeros(n_layers, s.LAYER)
    bits = np.zeros(n_layers, "<u4")
    fault = np.zeros(1, s.FAULT)
    with np.errstate(all="raise"):
        end = int(parse_entries(data, s.HEADER_BYTES, rows, bits, fault))
    return end, fault[0].item(), rows, bits


@pytest.mark.parametrize("n_bytes", range(1, 9))
def test_read_word_is_little_endian(n_bytes):
    data = np.arange(1, 20, dtype=np.uint8)
    for at in (0, 3, 11):
        wanted = int.from_bytes(data[at : at + n_bytes].tobytes(), "little")
        assert parse.read_word(data, at, n_bytes) == wanted


def test_read_word_of_eight_bytes_may_be_negative():
    data = np.frombuffer(b"\xfe" + b"\xff" * 7, np.uint8)
    assert parse.read_word(data, 0, 8) == -2
    assert parse.read_word(data, 0, 4) == 2**32 - 2


@pytest.mark.parametrize(
    ("bits", "finite"),
    [
        (0x00000000, True),
        (0x80000000, True),
        (0x00000001, True),
        (0x7F7FFFFF, True),
        (0xFF7FFFFF, True),
        (0x7F800000, False),
        (0xFF800000, False),
        (0x7F800001, False),
        (0x7FC00000, False),
        (0xFFFFFFFF, False),
    ],
)
def test_is_finite(bits, finite):
    assert parse.is_finite(bits) == finite
    assert np.isfinite(np.array(bits, "u4").view("f4")) == finite


CODES = {
    "an entry cut off": (
        write_plain([Draft(keywords=[bytes(30)])], tail=bytes(4)),
        2,
        s.BAD_ENTRY,
        (1, 313, 11, 4),
    ),
    "too many keywords": (
        write_plain([Draft(), Draft(keyword_count=s.MAX_KEYWORDS + 1)]),
        2,
        s.BAD_KEYWORD_COUNT,
        (1, 286, 4_096, 4_097),
    ),
    "a keyword too long": (
        write_plain([Draft(keywords=[b"word"], keyword_length=17)]),
        1,
        s.BAD_KEYWORD_LENGTH,
        (0, 267, 16, 17),
    ),
    "content behind the file": (
        write_plain([Draft(content_offset=280)]),
        1,
        s.BAD_EXTENT,
        (0, 267, 279, 280),
    ),
    "content offset negative": (
        write_plain([Draft(content_offset=2**64 - 2)]),
        1,
        s.BAD_EXTENT,
        (0, 267, 279, -2),
    ),
    "content past the end": (
        write_plain([Draft(content_offset=279, content_size=1)]),
        1,
        s.BAD_EXTENT,
        (0, 275, 0, 1),
    ),
    "frequency not finite": (
        write_plain([Draft(frequency=float("inf"))]),
        1,
        s.BAD_FREQUENCY,
        (0, 259, 0, 0x7F800000),
    ),
}


@pytest.mark.parametrize(("raw", "n_layers", "code", "fault"), CODES.values(), ids=CODES)
def test_codes_and_faults(raw, n_layers, code, fault, parse_entries):
    assert run(raw, n_layers, parse_entries)[:2] == (code, fault)


@pytest.mark.parametrize("n_left", range(23))
def test_a_file_cut_anywhere_in_an_entry_is_refused(n_left, parse_entries):
    raw = write_plain([Draft(3, content_offset=0), Draft(4)])[: 279 + n_left]
    end, fault, _, _ = run(raw, 2, parse_entries)
    assert end == s.BAD_ENTRY
    assert fault == ((1, 279, 11, n_left) if n_left < 11 else (1, 290, 12, n_left - 11))


@pytest.mark.parametrize("n_left", range(9))
def test_a_file_cut_anywhere_in_a_keyword_is_refused(n_left, parse_entries):
    raw = write_plain([Draft(keywords=[b"words"])])[: 267 + n_left]
    end, fault, _, _ = run(raw, 1, parse_entries)
    assert end == (s.BAD_ENTRY if n_left < 4 else s.BAD_KEYWORD_LENGTH)
    assert fault == ((0, 267, 4, n_left) if n_left < 4 else (0, 267, n_left - 4, 5))


def test_metadata_that_pass_their_limit(parse_entries):
    data = np.zeros(s.MAX_METADATA_BYTES + 1, np.uint8)
    length = s.MAX_METADATA_BYTES - 271
    start = write_plain([Draft(keywords=[b""], keyword_length=length)])
    data[:271] = np.frombuffer(start[:271], np.uint8)
    end, fault, _, _ = run(data, 1, parse_entries)
    assert end == s.BAD_METADATA_SIZE
    assert fault == (0, s.MAX_METADATA_BYTES, s.MAX_METADATA_BYTES, s.MAX_METADATA_BYTES + 12)


def test_rows_tell_where_everything_lies(parse_entries):
    drafts = [
        Draft(65_535, b"abc", 255, -0.5, [b"one", b"", b"three"]),
        Draft(0, b"", 0, 1e-40),
    ]
    raw = write_plain(drafts, tail=b"more")
    end, fault, rows, bits = run(raw, 2, parse_entries)
    assert end == 256 + 23 + 12 + 8 + 23
    assert fault[1:] == (0, 0, 0)
    assert bits.view("<f4").tolist() == [-0.5, np.float32(1e-40)]
    first, second = rows
    assert first["layer_num"] == 65_535 and first["depth"] == 255
    assert (first["keyword_count"], first["keywords_offset"]) == (3, 267)
    block = raw[267 : 267 + int(first["keywords_size"])]
    assert block == b"\3\0\0\0one\0\0\0\0\5\0\0\0three"
    assert (first["content_offset"], first["content_end"]) == (end, end + 3)
    assert second["content_offset"] == second["content_end"] == end + 3
    assert second["keywords_size"] == 0
    for field in ("name_offset", "name_size", "parent", "content_xxh3", "encoding"):
        assert not rows[field].any()
    assert not rows["array_offset"].any() and not rows["array_size"].any()


def test_parsing_goes_on_where_it_ended(parse_entries):
    raw = write_plain([Draft(i, b"x", keywords=[b"word"] * i) for i in range(9)])
    wanted = run(raw, 9, parse_entries)
    data, fault = np.frombuffer(raw, np.uint8), np.zeros(1, s.FAULT)
    rows, bits, end = np.zeros(9, s.LAYER), np.zeros(9, "<u4"), s.HEADER_BYTES
    for some in (slice(0, 4), slice(4, 5), slice(5, 9)):
        end = parse_entries(data, end, rows[some], bits[some], fault)
    assert end == wanted[0]
    assert rows.tobytes() == wanted[2].tobytes() and bits.tobytes() == wanted[3].tobytes()


def test_no_rows_read_nothing(parse_entries):
    assert run(b"", 0, parse_entries)[0] == 256


def random_file(rng):
    """Make a file whose entries are nearly right, then damage it or not."""
    drafts = [
        Draft(
            rng.randrange(65_536),
            rng.randbytes(rng.randrange(9)),
            rng.randrange(256),
            rng.uniform(-9, 9),
            [rng.randbytes(rng.randrange(6)) for _ in range(rng.randrange(4))],
        )
        for _ in range(rng.randrange(6))
    ]
    raw = write_plain(drafts)
    for _ in range(rng.randrange(4) if len(raw) > 256 else 0):
        piece = rng.choice([rng.randbytes(1), b"\xff" * 4, b"\0" * 4, b"\1\0\0\0"])
        raw = put(raw, rng.randrange(256, len(raw)), piece)
    return raw[: rng.randrange(256, len(raw) + 1)] if rng.random() < 0.2 else raw, len(drafts)


def compare(raw, n_layers):
    kernel = run(raw, n_layers, parse.parse_entries)
    plain = run(raw, n_layers, PLAIN["parse_entries"])
    twin = run(raw, n_layers, entries.parse_entries)
    assert kernel[:2] == plain[:2] == twin[:2]
    for one, other in zip(kernel[2:], plain[2:], strict=True):
        assert one.tobytes() == other.tobytes()
    if kernel[0] > 0:
        for one, other in zip(kernel[2:], twin[2:], strict=True):
            assert one.tobytes() == other.tobytes()
    return kernel[0]


def compare_many():
    rng = random.Random(20)
    seen = {compare(*random_file(rng)) for _ in range(800)}
    seen |= {compare(bytes(256) + rng.randbytes(rng.randrange(300)), 3) for _ in range(400)}
    assert {code for code in seen if code < 0} == {
        s.BAD_ENTRY,
        s.BAD_KEYWORD_COUNT,
        s.BAD_KEYWORD_LENGTH,
        s.BAD_EXTENT,
        s.BAD_FREQUENCY,
    }
    assert max(seen) > 256


def test_plain_python_and_compiled_agree():
    if not _jit.promote(_jit.PARSING):
        pytest.skip("kernels are not compiled in this process")
    assert hasattr(parse.parse_entries, "py_func")
    compare_many()


def test_the_kernel_and_its_plain_twin_agree():
    compare_many()


@pytest.mark.parametrize("n_more", [-1, 0, 1, 300])
def test_files_of_several_batches_are_read_alike(n_more):
    n_layers = few_entries() + n_more
    drafts = [Draft(i, b"x", i % 256, i / 7, [b"word"] * (i % 3)) for i in range(n_layers)]
    raw = write_plain(drafts)
    data, source = np.frombuffer(raw, np.uint8), Source(None, "memory")
    rows, end = entries.read_entries(data, n_layers, source)
    wanted_end, _, wanted, bits = run(raw, n_layers, PLAIN["parse_entries"])
    wanted["frequency"] = bits.view("<f4")
    assert (rows.tobytes(), end) == (wanted.tobytes(), wanted_end)
    broken = put(raw, wanted_end - 4, b"\xff" * 4)  # the last entry's content_size
    with pytest.raises(RegionFormatError) as caught:
        entries.read_entries(np.frombuffer(broken, np.uint8), n_layers, source)
    assert caught.value.field == f"entry {n_layers - 1} content extent"
    assert caught.value.offset == wanted_end - 4


def test_no_file_of_layers_alone_waits_for_a_compiler():
    assert s.MAX_LAYERS < entries.WORTH_COMPILING


def test_the_kernel_and_the_naive_reader_agree(parse_entries):
    rng = random.Random(21)
    n_compared = 0
    for _ in range(400):
        raw, n_layers = random_file(rng)
        raw = put(raw, 72, struct.pack("<Q", len(raw)))
        end, _, rows, bits = run(raw, n_layers, parse_entries)
        if end < 0:
            continue
        n_compared += 1
        layers = naive.read_plain(raw).layers
        assert rows["layer_num"].tolist() == [layer.layer for layer in layers]
        assert rows["depth"].tolist() == [layer.depth for layer in layers]
        assert bits.view("<f4").tolist() == [layer.frequency for layer in layers]
        for row, layer in zip(rows, layers, strict=True):
            assert raw[int(row["content_offset"]) : int(row["content_end"])] == layer.content
            assert row["keyword_count"] == len(layer.keywords)
    assert n_compared > 100
