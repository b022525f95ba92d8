"""Searches: the oracle, hard inputs, and the kernels called by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from jessymem.kernels import schema as s
from jessymem.kernels import search

WITHOUT_END = 2**62


def find_all(content, needle):
    """Every position, overlapping ones too, one after the other."""
    found, at = [], content.find(needle)
    while at >= 0:
        found.append(at)
        at = content.find(needle, at + 1)
    return found


def as_spans(contents, first_layer=0):
    """Return SPAN rows of contents, and what keeps them."""
    arrays = [np.frombuffer(content or b"\0", np.uint8) for content in contents]
    spans = np.zeros(len(arrays), s.SPAN)
    for i, (array, content) in enumerate(zip(arrays, contents, strict=True)):
        spans[i] = (array.ctypes.data, len(content), first_layer + i, 0)
    return spans, arrays


def as_needle(needle, offsets=None, *, is_folded=False):
    """Return a NEEDLE that is compared at `offsets` first, and what keeps it."""
    array = np.frombuffer(needle, np.uint8)
    last = len(needle) - 1
    if offsets is None:
        offsets = [min(i, last) for i in range(3)] if last < 3 else [0, last // 2, last]
    record = np.zeros(1, s.NEEDLE)
    record["address"], record["n_bytes"] = array.ctypes.data, len(needle)
    record["offsets"][0], record["values"][0] = offsets, array[offsets]
    if is_folded:
        record["is_folded"] = 1
        record["folds"] = s.CASE_BIT * ((record["values"] >= 97) & (record["values"] <= 122))
    search.factorize(record)
    return record, array


def search_all(spans, needle, capacity=1000, piece=None):
    """Return the finds in a piece of the spans, of which at most `capacity` come at once."""
    state = np.zeros(1, s.SEARCH)
    state["span"], state["at"], state["last_span"], state["last_end"] = piece or (
        0,
        0,
        len(spans),
        0,
    )
    hits = np.zeros(capacity, s.HIT)
    state["hits"], state["capacity"] = hits.ctypes.data, capacity
    found, stop = [], np.zeros(1, np.int64)
    code = s.HITS_FULL
    while code == s.HITS_FULL:
        state["n_hits"] = 0
        code = search.search_on(spans, needle, state, stop)
        assert state["n_hits"][0] <= capacity
        found += hits[: int(state["n_hits"][0])].tolist()
    return found


def count_all(spans, needle):
    """Return what a search counts."""
    state = np.zeros(1, s.SEARCH)
    state["last_span"], state["capacity"] = len(spans), WITHOUT_END
    search.search_on(spans, needle, state, np.zeros(1, np.int64))
    return int(state["n_hits"][0])


@st.composite
def hard_cases(draw, max_bytes=1500):
    """Draw contents of few different bytes, often periodic, and a needle that is likely in them."""
    alphabet = draw(st.sampled_from([b"a", b"ab", b"ab", b"abc", bytes(range(256))]))
    some = st.lists(st.sampled_from(list(alphabet)), min_size=1, max_size=12).map(bytes)
    lengths = st.sampled_from([0, 1, 2, 15, 16, 17, 60, 63, 64, 65, 127, 255, 256, 257, 700, 1500])
    contents = []
    for _ in range(draw(st.integers(1, 4))):
        n_bytes = min(draw(lengths | st.integers(0, 400)), max_bytes)
        period = draw(some)
        content = bytearray((period * (n_bytes // len(period) + 1))[:n_bytes])
        for _ in range(draw(st.integers(0, 3)) if content else 0):
            content[draw(st.integers(0, n_bytes - 1))] = draw(st.sampled_from(list(alphabet)))
        contents.append(bytes(content))
    source = draw(st.sampled_from(contents))
    n_needle = draw(st.sampled_from([1, 1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 64, 100, 300]))
    if len(source) >= n_needle and draw(st.booleans()):
        # At either end, or anywhere.
        last = len(source) - n_needle
        start = draw(st.sampled_from([0, last]) | st.integers(0, last))
        return contents, source[start : start + n_needle]
    period = draw(some)
    return contents, (period * n_needle)[:n_needle]
