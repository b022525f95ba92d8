"""Search kernels against `bytes.find` in a loop: every way, every position of a find."""

from __future__ import annotations

import functools
import mmap
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import samples
from support.samples import sampled
from support.search import as_needle, as_spans, count_all, find_all, hard_cases, search_all

from jessymem.kernels import _jit, memory, search, vectors
from jessymem.kernels import schema as s

N_EXAMPLES = 60 if _jit.is_disabled() else samples.number(100, of=400)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    _jit.promote(_jit.SEARCHING)


def expected(contents, needle):
    return [(i, at) for i, content in enumerate(contents) for at in find_all(content, needle)]


# -- vectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "n_positions"), [(vectors.match_many, 64), (vectors.match_few, 16)]
)
@given(data=st.data())
@settings(max_examples=N_EXAMPLES // 4, deadline=None)
@sampled
def test_masks_are_of_positions_at_which_every_probe_is(match, n_positions, data):
    content = bytes(data.draw(st.lists(st.sampled_from(b"ab"), min_size=80, max_size=80)))
    offsets = data.draw(st.lists(st.integers(0, 15), min_size=3, max_size=3))
    wanted = bytes(data.draw(st.lists(st.sampled_from(b"ab"), min_size=16, max_size=16)))
    (span,), _kept = as_spans([content])
    needle, _wanted = as_needle(wanted, offsets)
    positions = [
        at for at in range(n_positions) if all(content[at + o] == wanted[o] for o in offsets)
    ]
    mask = int(call(match, int(span["address"]), needle.ctypes.data)) % 2**64
    assert mask == sum(1 << at for at in positions)


@pytest.mark.parametrize("position", [None, 0, 63, 64, 128, 255])
def test_whether_any_of_many_positions_matches(position):
    content = bytearray(300)
    if position is not None:
        content[position] = 0xFF
    (span,), _kept = as_spans([bytes(content)])
    needle, _wanted = as_needle(b"\xff")
    found = call(vectors.match_any, int(span["address"]), needle.ctypes.data)
    assert bool(found) == (position is not None)


def call(function, *arguments):
    """Call a function that is compiled only within others; plain Python has to agree."""
    found = function(*arguments)
    if not _jit.is_disabled():
        assert compiled_caller_of(function)(*arguments) == found
    return found


@functools.cache
def compiled_caller_of(function):
    import numba

    return numba.njit(lambda address, needle: function(address, needle))


@pytest.mark.parametrize("n_bits", [1, 5, 63])
@pytest.mark.parametrize("mask", [-1, 1, 2**62, -(2**63), 0x0F0F])
def test_shifting_a_mask_down(mask, n_bits):
    found = int(search.shift_down(np.int64(mask), n_bits))
    assert found % 2**64 == mask % 2**64 >> n_bits


# -- searches --------------------------------------------------------------------------------------


@given(case=hard_cases(), data=st.data())
@settings(max_examples=N_EXAMPLES, deadline=None)
@sampled
def test_finds_are_those_of_bytes_find(case, data):
    contents, wanted = case
    spans, _kept = as_spans(contents)
    offsets = None
    if len(wanted) > s.N_PROBES:
        position = st.integers(0, len(wanted) - 1)
        offsets = data.draw(st.lists(position, min_size=3, max_size=3))
    needle, _wanted = as_needle(wanted, offsets)
    capacity = data.draw(st.sampled_from([1, 2, 7, 1000]))
    assert search_all(spans, needle, capacity) == expected(contents, wanted)
    assert count_all(spans, needle) == len(expected(contents, wanted))


@given(case=hard_cases(), data=st.data())
@settings(max_examples=N_EXAMPLES, deadline=None)
@sampled
def test_the_linear_way_finds_the_same(case, data):
    contents, wanted = case
    content = contents[0]
    (span,), _kept = as_spans([content])
    needle, _wanted = as_needle(wanted)
    state, hits = np.zeros(1, s.SEARCH), np.zeros(len(content) + 1, s.HIT)
    state["address"], state["hits"] = span["address"], hits.ctypes.data
    state["capacity"] = capacity = data.draw(st.sampled_from([1, 3, 10_000]))
    end = len(content) - len(wanted) + 1
    found = []
    while state["at"][0] < end:
        state["n_hits"] = 0
        code = search.search_linearly(needle.ctypes.data, state.ctypes.data, end)
        n_hits = int(state["n_hits"][0])
        assert code == (s.HITS_FULL if n_hits == capacity else s.OK)
        found += hits[:n_hits]["offset"].tolist()
    assert found == find_all(content, wanted)


@given(case=hard_cases(), n_bytes=st.integers(1, 400))
@settings(max_examples=N_EXAMPLES // 4, deadline=None)
@sampled
def test_pieces_find_together_what_is_there_once(case, n_bytes):
    contents, wanted = case
    spans, _kept = as_spans(contents)
    needle, _wanted = as_needle(wanted)
    cuts = [(i, at) for i, each in enumerate(contents) for at in range(0, len(each) or 1, n_bytes)]
    found = []
    for first, last in zip(cuts, [*cuts[1:], (len(contents), 0)], strict=True):
        found += search_all(spans, needle, piece=(*first, *last))
    assert found == expected(contents, wanted)


@pytest.mark.parametrize("n_bytes", [1, 3, 4, 15, 16, 17, 63, 64, 65, 80, 255, 256, 257, 340])
@pytest.mark.parametrize("n_needle", [1, 2, 3, 4, 9, 70])
def test_a_needle_at_every_position(n_bytes, n_needle):
    wanted = bytes(range(1, n_needle + 1))
    needle, _wanted = as_needle(wanted)
    for at in range(0, n_bytes - n_needle + 1, 7 if _jit.is_disabled() else 1):
        content = bytes(at) + wanted + bytes(n_bytes - n_needle - at)
        spans, _kept = as_spans([content])
        assert search_all(spans, needle) == [(0, at)]
        assert count_all(spans, needle) == 1


def test_a_needle_longer_than_a_layer_and_layers_of_nothing():
    contents = [b"", b"needle", b"", b"needle-needle", b"need", b"le"]
    spans, _kept = as_spans(contents)
    for wanted in (b"needle", b"needle-", b"needle-needle", b"needle-needle-", b"x" * 500):
        needle, _wanted = as_needle(wanted)
        assert search_all(spans, needle) == expected(contents, wanted)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"a" * 40_000, b"a" * 500),
        (b"a" * 9_000, b"a" * 5_000),
        (b"a" * 40_000, b"a" * 499 + b"b" + b"a" * 500),
        (b"ab" * 20_000, b"ab" * 300),
        (b"ab" * 20_000 + b"b", b"ab" * 300 + b"b"),
        ((b"a" * 499 + b"b") * 80, b"a" * 499),
        ((b"a" * 499 + b"b") * 80, (b"a" * 499 + b"b") * 3),
        (b"abaab" * 8_000, b"abaababaab" * 50),
    ],
)
def test_where_the_needle_recurs(content, wanted):
    spans, _kept = as_spans([content])
    for offsets in ([0, 0, 0], None):
        needle, _wanted = as_needle(wanted, offsets)
        assert search_all(spans, needle, 500) == expected([content], wanted)
        assert count_all(spans, needle) == len(expected([content], wanted))


@pytest.mark.skipif(_jit.is_disabled(), reason="too much for plain Python")
def test_work_stays_proportional_to_the_bytes():
    """All equal bytes: the words that the vectors' way compares are bounded, the rest is linear."""
    content, wanted = b"a" * 2_000_000, b"a" * 100_000
    spans, _kept = as_spans([content])
    needle, _wanted = as_needle(wanted)
    state = np.zeros(1, s.SEARCH)
    state["address"], state["capacity"] = spans["address"], 2**62
    search.search_by_vectors(needle.ctypes.data, state.ctypes.data, len(content) - len(wanted))
    # It gave up within a block, where going on would have meant 10,000 words a byte.
    assert 0 < state["at"][0] <= vectors.MANY
    assert count_all(spans, needle) == len(content) - len(wanted) + 1


@pytest.mark.skipif(_jit.is_disabled(), reason="too much for plain Python")
@pytest.mark.parametrize("wanted", [b"edge", b"e", b"ed", b"needle at the edge of a stretch" * 9])
def test_finds_on_the_borders_of_stretches(wanted):
    content = bytearray(3 * search.STRETCH_BYTES)
    positions = [
        border + shift
        for border in (search.STRETCH_BYTES, 2 * search.STRETCH_BYTES)
        for shift in (-len(wanted), 300)
    ]
    for at in (*positions, len(content) - len(wanted), search.STRETCH_BYTES - len(wanted) // 2):
        content[at : at + len(wanted)] = wanted
    content = bytes(content)
    spans, _kept = as_spans([content])
    needle, _wanted = as_needle(wanted)
    assert search_all(spans, needle) == expected([content], wanted)
    assert count_all(spans, needle) == len(expected([content], wanted))


def test_a_search_that_is_stopped_returns_and_may_go_on():
    spans, _kept = as_spans([b"x" * 300] * 3)
    needle, _wanted = as_needle(b"x")
    state, stop = np.zeros(1, s.SEARCH), np.ones(1, np.int64)
    state["last_span"], state["capacity"] = 3, 2**62
    assert search.search_on(spans, needle, state, stop) == s.OK
    assert state["n_hits"][0] == 0
    stop[0] = 0
    search.search_on(spans, needle, state, stop)
    assert state["n_hits"][0] == 900


# -- what is known of a needle ---------------------------------------------------------------------


def smallest_period(wanted):
    return next(p for p in range(1, len(wanted) + 1) if wanted.startswith(wanted[p:]))


def local_period(wanted, position):
    """How far apart what lies on either side of a position is equal, where there is anything."""
    for p in range(1, len(wanted) + 1):
        left = range(max(position - p, 0), min(position, len(wanted) - p))
        if all(wanted[i] == wanted[i + p] for i in left):
            return p
    return None


@given(wanted=hard_cases().map(lambda case: case[1]))
@settings(max_examples=N_EXAMPLES, deadline=None)
@sampled
def test_the_critical_place_tells_the_period(wanted):
    (needle,), _wanted = as_needle(wanted)
    critical, period = int(needle["critical"]), int(needle["period"])
    true_period = smallest_period(wanted)
    assert critical < true_period
    assert local_period(wanted, critical) == true_period
    assert period == true_period if needle["is_periodic"] else 0 < period <= true_period


def test_counting_bytes():
    spans, _kept = as_spans([b"abba", b"", b"\xff\0c"])
    counts = np.zeros(256, np.int64)
    search.count_bytes(spans, counts)
    assert {chr(i): n for i, n in enumerate(counts.tolist()) if n} == {
        "\0": 1,
        "a": 2,
        "b": 2,
        "c": 1,
        "\xff": 1,
    }


@pytest.mark.parametrize(
    ("first", "second", "n_equal"),
    [
        (b"", b"", 0),
        (b"abc", b"abc", 3),
        (b"abc", b"abx", 2),
        (b"x" * 30, b"x" * 30, 30),
        (b"x" * 8 + b"y", b"x" * 8 + b"z", 8),
        (b"x" * 7 + b"ab", b"x" * 7 + b"bb", 0),  # told by words: not far before
    ],
)
def test_counting_equal_bytes(first, second, n_equal):
    (one, other), _kept = as_spans([first, second])
    assert search.count_equal(one["address"], other["address"], len(first)) == n_equal


def test_a_byte_and_a_word_behind_an_address():
    array = np.zeros(2, np.int64)
    memory.store_i64(array.ctypes.data + 8, -2)
    assert array.tolist() == [0, -2]
    assert memory.load_u8(array.ctypes.data + 8) == 254
    for dtype, value, stored in ((np.float32, 3, 3.0), (np.int8, -1, -1), (np.bool_, 2, True)):
        items = np.zeros(3, dtype)
        memory.store_item(items.ctypes.data, 1, value, np.dtype(dtype))
        assert items.tolist() == [0, stored, 0]


# -- no byte outside -------------------------------------------------------------------------------

GUARDED = """
import ctypes, mmap, sys
import numpy as np
sys.path.insert(0, {tests!r})
from support.search import as_needle, count_all, find_all, search_all
from jessymem.kernels import _jit, schema as s
_jit.promote(_jit.SEARCHING)
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 4 * page)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc = ctypes.CDLL(None, use_errno=True)
for guard in (address, address + 3 * page):
    assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
ends = {{"begin": address + page, "end": address + 3 * page}}
for n_bytes in {lengths}:
    for where in ends:
        start = ends[where] if where == "begin" else ends[where] - n_bytes
        for n_needle in (1, 2, 3, 4, 7, 16, 17, 40, 64, 100):
            if n_needle > n_bytes:
                continue
            wanted = bytes(range(1, n_needle + 1))
            for at in sorted({{0, (n_bytes - n_needle) // 2, n_bytes - n_needle}}):
                content = bytearray(n_bytes)
                content[at : at + n_needle] = wanted
                ctypes.memmove(start, bytes(content), n_bytes)
                spans = np.zeros(1, s.SPAN)
                spans[0] = (start, n_bytes, 0, 0)
                needle, kept = as_needle(wanted)
                assert search_all(spans, needle) == [(0, at)], (n_bytes, where, n_needle, at)
                assert count_all(spans, needle) == 1
                needle, kept = as_needle(wanted[:-1] + b"x")
                expected = find_all(bytes(content), wanted[:-1] + b"x")
                assert search_all(spans, needle) == [(0, each) for each in expected]
print("fine")
"""


@pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
def test_no_byte_outside_a_layer_is_read():
    lengths = [1, 2, 15, 16, 17, 31, 60, 63, 64, 65, 80, 127, 128, 255, 256, 257, 319, 320, 600]
    if _jit.is_disabled():
        lengths = [1, 16, 60, 65, 257]
    code = textwrap.dedent(GUARDED).format(tests=os.path.dirname(__file__), lengths=lengths)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "fine\n"), result.stderr


def test_a_layer_that_ends_with_its_mapping(tmp_path):
    path = tmp_path / "pages"
    path.write_bytes(b"x" * (mmap.PAGESIZE - 3) + b"end")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        array = np.frombuffer(mapped, np.uint8)
        spans = np.zeros(1, s.SPAN)
        spans[0] = (array.ctypes.data, len(array), 0, 0)
        needle, _wanted = as_needle(b"end")
        assert search_all(spans, needle) == [(0, mmap.PAGESIZE - 3)]
        del array, spans


# -- either case -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", range(256))
def test_a_capital_is_folded_and_nothing_else(value):
    content = np.array([value], np.uint8)
    expected = bytes([value]).lower()[0]
    assert int(search.load_folded(content.ctypes.data, s.CASE_BIT)) == expected
    assert int(search.load_folded(content.ctypes.data, 0)) == value


@given(case=hard_cases(), data=st.data())
@settings(max_examples=N_EXAMPLES, deadline=None)
@sampled
def test_folded_finds_are_those_in_small_letters(case, data):
    contents, wanted = case
    forms = st.sampled_from([bytes, bytes.upper, bytes.swapcase])
    contents = [data.draw(forms)(content) for content in contents]
    spans, _kept = as_spans(contents)
    wanted = wanted.lower()
    needle, _wanted = as_needle(wanted, is_folded=True)
    in_small_letters = [content.lower() for content in contents]
    assert search_all(spans, needle, 7) == expected(in_small_letters, wanted)
    assert count_all(spans, needle) == len(expected(in_small_letters, wanted))


@given(case=hard_cases())
@settings(max_examples=N_EXAMPLES, deadline=None)
@sampled
def test_the_linear_way_folds_too(case):
    contents, wanted = case
    content, wanted = contents[0].upper(), wanted.lower()
    (span,), _kept = as_spans([content])
    needle, _wanted = as_needle(wanted, is_folded=True)
    state, hits = np.zeros(1, s.SEARCH), np.zeros(len(content) + 1, s.HIT)
    state["address"], state["hits"] = span["address"], hits.ctypes.data
    state["capacity"] = 10_000
    search.search_linearly(needle.ctypes.data, state.ctypes.data, len(content) - len(wanted) + 1)
    found = hits[: int(state["n_hits"][0])]["offset"].tolist()
    assert found == find_all(content.lower(), wanted)
