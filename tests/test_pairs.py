"""The search by NumPy, before there are kernels: all finds, none beside a layer."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import samples
from support.internals import set_piece_of_pairs, watch_candidates
from support.samples import sampled
from support.search import as_spans, find_all, hard_cases

from jessymem.kernels import schema as s
from jessymem.scanning.pairs import PairSearch
from jessymem.scanning.spans import Job, Spans


def search_of(needle, spans, *, is_folded=False):
    search = PairSearch(needle.lower() if is_folded else needle, is_folded=is_folded)
    search.aim_at(spans)
    return search


def whole_job(spans):
    return Job(0, 0, len(spans.rows), 0, spans.n_bytes)


def found_in(search, spans, jobs):
    hits = [search.find(spans, job) for job in jobs]
    assert [search.count(spans, job) for job in jobs] == list(map(len, hits))
    return [hit for part in hits for hit in part.tolist()]


def expected_in(contents, needle):
    return [(layer, at) for layer, each in enumerate(contents) for at in find_all(each, needle)]


@given(
    case=hard_cases(),
    piece_bytes=st.sampled_from([2, 4, 64, 2**18]),
    job_bytes=st.integers(1, 2_000),
    is_folded=st.booleans(),
)
@sampled
@settings(max_examples=samples.number(100, of=1_000), deadline=None)
def test_random_contents(case, piece_bytes, job_bytes, is_folded):
    contents, needle = case
    rows, held = as_spans(contents)
    spans = Spans(rows, held)
    search = search_of(needle, spans, is_folded=is_folded)
    if is_folded:
        contents, needle = [each.lower() for each in contents], needle.lower()
    jobs = list(spans.jobs(1, (job_bytes, job_bytes), is_whole=False))
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_piece_of_pairs(monkeypatch, piece_bytes)
        assert found_in(search, spans, jobs) == expected_in(contents, needle)


@pytest.mark.parametrize("n_between", [0, 1, 2, 63, 64, 65, 700])
@pytest.mark.parametrize("needle", [b"n", b"ne", b"nee", b"needle", b"need" * 16])
def test_what_is_between_layers_is_not_found(needle, n_between):
    """Layers at both parities, in memory that has the needle everywhere."""
    memory = np.frombuffer(bytearray(needle * 4_000), np.uint8)
    starts = np.cumsum([0] + [each + n_between for each in (7, 64, 1, 100)])
    lengths = [7, 64, 1, 100, 5]
    rows = np.zeros(len(lengths), s.SPAN)
    rows["address"] = memory.ctypes.data + starts
    rows["n_bytes"] = lengths
    rows["layer"] = range(len(lengths))
    contents = [
        bytes(memory[start : start + n]) for start, n in zip(starts.tolist(), lengths, strict=True)
    ]
    spans = Spans(rows, memory)
    found = found_in(search_of(needle, spans), spans, [whole_job(spans)])
    assert found == expected_in(contents, needle)


def test_layers_in_any_order_of_memory():
    memory = np.frombuffer(bytearray(b"abcabcab"), np.uint8)
    rows = np.zeros(3, s.SPAN)
    rows["address"] = memory.ctypes.data + np.array([5, 0, 3])
    rows["n_bytes"] = [3, 3, 2]
    rows["layer"] = range(3)
    spans = Spans(rows, memory)
    assert found_in(search_of(b"ab", spans), spans, [whole_job(spans)]) == [(0, 1), (1, 0), (2, 0)]
    assert found_in(search_of(b"cab", spans), spans, [whole_job(spans)]) == [(0, 0)]


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called by name")
@pytest.mark.parametrize("needle", [b"x", b"xy", b"xyz", b"xyz" * 11, b"zq" * 200])
def test_nothing_beyond_the_pages_of_layers_is_read(needle):
    """Between two layers, and behind the second, is memory that kills who reads it."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 4 * page)
    view = np.frombuffer(memory, np.uint8)
    view[:page] = view[2 * page : 3 * page] = np.frombuffer((b"xyz" * page)[:page], np.uint8)
    contents = [bytes(view[page - 101 : page]), bytes(view[2 * page : 3 * page])]
    rows = np.zeros(2, s.SPAN)
    rows["address"] = view.ctypes.data + np.array([page - 101, 2 * page])
    rows["n_bytes"] = [101, page]
    rows["layer"] = range(2)
    spans = Spans(rows, view)
    libc = ctypes.CDLL(None, use_errno=True)
    for first in (page, 3 * page):
        address = ctypes.c_void_p(view.ctypes.data + first)
        assert libc.mprotect(address, ctypes.c_size_t(page), 0) == 0
    found = found_in(search_of(needle, spans), spans, [whole_job(spans)])
    assert found == expected_in(contents, needle)


def test_rare_pairs_are_compared_first():
    """Where a needle's frequent pairs are everywhere, few candidates are looked at."""
    content = b"the " * 2**19 + b"theatre"
    rows, held = as_spans([content])
    spans = Spans(rows, held)
    search = search_of(b"theatre", spans)
    looked_at = watch_candidates(search)
    assert search.find(spans, whole_job(spans)).tolist() == [(0, len(content) - 7)]
    assert sum(looked_at) < 10
