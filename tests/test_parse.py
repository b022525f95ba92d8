"""The parser of plain entries: its codes, their offsets, and that both its forms do the same."""

import os
import random
import struct
import subprocess
import sys

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

PLAIN = _jit.plain_forms(parse)


@pytest.fixture(params=["kernel", "plain"])
def parse_entries(request):
    """Return the kernel, compiled or not, and its plain form."""
    return parse.parse_entries if request.param == "kernel" else PLAIN["parse_entries"]


def run(raw, n_layers, parse_entries):
    """Parse; return the code or end, the fault and the rows."""
    data, rows = np.frombuffer(raw, np.uint8), np.zeros(n_layers, s.LAYER)
    fault = np.zeros(1, s.FAULT)
    end = run_on(data, s.HEADER_BYTES, rows, slice(0, n_layers), fault, parse_entries)
    return end, fault[0].item(), rows


def run_on(data, start, rows, some, fault, parse_entries):
    """Parse `some` rows, given to each form as it takes them."""
    is_compiled = hasattr(parse_entries, "py_func")
    columns = rows.view(parse.PARSED) if is_compiled else parse.plain_rows(rows)
    data = data if is_compiled else memoryview(data)
    return int(parse_entries(data, start, columns, some.start, some.stop, fault))


def test_records_are_little_endian_and_need_no_alignment():
    raw = b"\0" + struct.pack("<HBII", 0xFFFE, 0xFD, 0xFFFFFFFC, 3) + struct.pack("<qI", -2, 2**31)
    forms = [(parse.entry_at, parse.extent_at, parse.length_at, memoryview(raw))]
    if _jit.promote(_jit.PARSING):
        import numba

        records = [parse.entry_at, parse.extent_at, parse.length_at]
        compiled = [numba.njit(lambda data, at, f=f: f(data, at)) for f in records]
        forms.append((*compiled, np.frombuffer(raw, np.uint8)))
    for entry_at, extent_at, length_at, data in forms:
        assert entry_at(data, 1) == (0xFFFE, 0xFD, 0xFFFFFFFC, 3)
        assert extent_at(data, 12) == (-2, 2**31)
        assert length_at(data, 8) == (3,)


def test_rows_that_are_parsed_are_rows_of_layers():
    assert parse.PARSED.itemsize == s.LAYER.itemsize
    for name in s.LAYER.names:
        assert parse.PARSED.fields[name][1] == s.LAYER.fields[name][1]


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
def test_frequencies_are_finite_and_kept_bit_for_bit(bits, finite, parse_entries):
    raw = put(write_plain([Draft()]), s.HEADER_BYTES + 3, bits.to_bytes(4, "little"))
    end, fault, rows = run(raw, 1, parse_entries)
    assert (end > 0) == finite == bool(np.isfinite(np.array(bits, "u4").view("f4")))
    if finite:
        assert rows.view(parse.PARSED)["frequency"] == bits
    else:
        assert (end, fault[3]) == (s.BAD_FREQUENCY, bits)


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
    end, fault, _ = run(raw, 2, parse_entries)
    assert end == s.BAD_ENTRY
    assert fault == ((1, 279, 11, n_left) if n_left < 11 else (1, 290, 12, n_left - 11))


@pytest.mark.parametrize("n_left", range(9))
def test_a_file_cut_anywhere_in_a_keyword_is_refused(n_left, parse_entries):
    raw = write_plain([Draft(keywords=[b"words"])])[: 267 + n_left]
    end, fault, _ = run(raw, 1, parse_entries)
    assert end == (s.BAD_ENTRY if n_left < 4 else s.BAD_KEYWORD_LENGTH)
    assert fault == ((0, 267, 4, n_left) if n_left < 4 else (0, 267, n_left - 4, 5))


def test_metadata_that_pass_their_limit(parse_entries):
    data = np.zeros(s.MAX_METADATA_BYTES + 1, np.uint8)
    length = s.MAX_METADATA_BYTES - 271
    start = write_plain([Draft(keywords=[b""], keyword_length=length)])
    data[:271] = np.frombuffer(start[:271], np.uint8)
    end, fault, _ = run(data, 1, parse_entries)
    assert end == s.BAD_METADATA_SIZE
    assert fault == (0, s.MAX_METADATA_BYTES, s.MAX_METADATA_BYTES, s.MAX_METADATA_BYTES + 12)


def test_rows_tell_where_everything_lies(parse_entries):
    drafts = [
        Draft(65_535, b"abc", 255, -0.5, [b"one", b"", b"three"]),
        Draft(0, b"", 0, 1e-40),
    ]
    raw = write_plain(drafts, tail=b"more")
    end, fault, rows = run(raw, 2, parse_entries)
    assert end == 256 + 23 + 12 + 8 + 23
    assert fault[1:] == (0, 0, 0)
    assert rows["frequency"].tolist() == [-0.5, np.float32(1e-40)]
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
    rows, end = np.zeros(9, s.LAYER), s.HEADER_BYTES
    for some in (slice(0, 4), slice(4, 5), slice(5, 9)):
        end = run_on(data, end, rows, some, fault, parse_entries)
    assert (end, rows.tobytes()) == (wanted[0], wanted[2].tobytes())


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
    assert kernel[:2] == plain[:2]
    assert kernel[2].tobytes() == plain[2].tobytes()
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


@pytest.mark.parametrize("n_more", [-1, 0, 1, 300])
def test_files_of_several_batches_are_read_alike(n_more):
    n_layers = few_entries() + n_more
    drafts = [Draft(i, b"x", i % 256, i / 7, [b"word"] * (i % 3)) for i in range(n_layers)]
    raw = write_plain(drafts)
    data, source = np.frombuffer(raw, np.uint8), Source(None, "memory")
    rows, end = entries.read_entries(data, n_layers, source)
    wanted_end, _, wanted = run(raw, n_layers, PLAIN["parse_entries"])
    assert (rows.tobytes(), end) == (wanted.tobytes(), wanted_end)
    broken = put(raw, wanted_end - 4, b"\xff" * 4)  # the last entry's content_size
    with pytest.raises(RegionFormatError) as caught:
        entries.read_entries(np.frombuffer(broken, np.uint8), n_layers, source)
    assert caught.value.field == f"entry {n_layers - 1} content extent"
    assert caught.value.offset == wanted_end - 4


def test_no_file_of_layers_alone_waits_for_numba():
    assert s.MAX_LAYERS < entries.WORTH_STARTING


PARSE_OFTEN = """
import sys
import numpy as np
from jessymem.kernels import _jit, parse
from jessymem.regions import entries
from jessymem.regions.faults import Source
raw = np.frombuffer(open(sys.argv[1], "rb").read(), np.uint8)
entries.WORTH_STARTING = entries.WORTH_LOADING = 1_000
for _ in range(int(sys.argv[2])):
    rows, _ = entries.read_entries(raw, 50, Source(None, "memory"))
    assert rows["layer_num"].tolist() == list(range(50))
print("numba" in sys.modules)
"""


@pytest.mark.processes
@pytest.mark.parametrize(("n_times", "starts"), [(10, False), (11, True)])
def test_files_that_are_parsed_one_after_the_other_count_together(tmp_path, n_times, starts):
    path = tmp_path / "plain"
    path.write_bytes(write_plain([Draft(i, keywords=[b"word"]) for i in range(50)]))
    command = [sys.executable, "-c", PARSE_OFTEN, str(path), str(n_times)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert answer.strip() == str(starts and not _jit.is_disabled())


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_a_thread_that_parses_plainly_is_not_disturbed_by_promotion(monkeypatch):
    _jit.promote(_jit.PARSING)
    raw = np.frombuffer(write_plain([Draft(i, keywords=[b"word"]) for i in range(9)]), np.uint8)
    wanted, _ = entries.read_entries(raw, 9, Source(None, "memory"))
    # As a thread sees it that has asked just before.
    monkeypatch.setattr(_jit, "is_promoted", lambda *group: False)
    monkeypatch.setattr(_jit, "promote", lambda *group: False)
    rows, _ = entries.read_entries(raw, 9, Source(None, "memory"))
    assert rows.tobytes() == wanted.tobytes()


PARSE_ONCE = """
import sys
import numpy as np
from jessymem.kernels import _jit, parse
from jessymem.regions import entries
from jessymem.regions.faults import Source
_jit.promote(_jit.READING)
raw = np.frombuffer(open(sys.argv[1], "rb").read(), np.uint8)
entries.WORTH_LOADING, entries.WORTH_COMPILING = map(int, sys.argv[2:])
entries.read_entries(raw, 50, Source(None, "memory"))
print(_jit.is_promoted(_jit.PARSING))
"""


@pytest.mark.processes
@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_once_numba_is_in_use_the_cache_decides(tmp_path):
    path = tmp_path / "plain"
    path.write_bytes(write_plain([Draft(i) for i in range(50)]))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def parses_compiled(*worth):
        command = [sys.executable, "-c", PARSE_ONCE, str(path), *map(str, worth)]
        return subprocess.check_output(command, env=environment, text=True).strip() == "True"

    assert not parses_compiled(50, 51)
    assert parses_compiled(50, 50)  # and caches it
    assert parses_compiled(50, 51)
    assert not parses_compiled(51, 51)


def test_the_kernel_and_the_naive_reader_agree(parse_entries):
    rng = random.Random(21)
    n_compared = 0
    for _ in range(400):
        raw, n_layers = random_file(rng)
        raw = put(raw, 72, struct.pack("<Q", len(raw)))
        end, _, rows = run(raw, n_layers, parse_entries)
        if end < 0:
            continue
        n_compared += 1
        layers = naive.read_plain(raw).layers
        assert rows["layer_num"].tolist() == [layer.layer for layer in layers]
        assert rows["depth"].tolist() == [layer.depth for layer in layers]
        assert rows["frequency"].tolist() == [layer.frequency for layer in layers]
        for row, layer in zip(rows, layers, strict=True):
            assert raw[int(row["content_offset"]) : int(row["content_end"])] == layer.content
            assert row["keyword_count"] == len(layer.keywords)
    assert n_compared > 100
