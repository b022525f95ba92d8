"""What else than plain bytes is found: either case, words, patterns; what `re` finds of bytes."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import samples
from support.internals import search_by_kernels, set_search_job
from support.samples import sampled
from support.search import find_all, hard_cases

from jessymem import Hits, LayerNotFound, MmapManager
from jessymem.kernels import _jit
from jessymem.scanning import patterns
from jessymem.scanning.prefilters import Prefilter

N_EXAMPLES = 30 if _jit.is_disabled() else samples.number(50, of=150)

#: Bytes beside the letters, of either case, and beyond ASCII.
BORDERS = b"@AZ[`az{\0\x7f\x80\xc0\xe0\xff"


@pytest.fixture
def manager(tmp_path):
    with MmapManager(64, base_path=tmp_path) as manager:
        yield manager


@pytest.fixture(params=["by re", "by kernels"])
def way(request, monkeypatch):
    """Search for bytes in either way, in pieces."""
    set_search_job(monkeypatch, 700)
    if request.param == "by kernels":
        search_by_kernels(monkeypatch)


def learn(manager, contents):
    return manager.create_proto_layers([("D40", content) for content in contents])


def relearn(manager, contents):
    """Hold these layers and no others."""
    for layer in manager.list_layers():
        manager.discard_proto_dimension(layer)
    return learn(manager, contents)


def found(hits):
    return [(hit.layer_id.layer, hit.offset) for hit in hits]


def expected(contents, needle):
    return [(i, at) for i, content in enumerate(contents) for at in find_all(content, needle)]


# -- bytes -----------------------------------------------------------------------------------------


@given(case=hard_cases())
@settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@sampled
def test_bytes_are_found_in_either_way(manager, way, case):
    contents, needle = case
    relearn(manager, contents)
    assert found(manager.find(needle)) == expected(contents, needle)
    assert manager.count(needle) == len(expected(contents, needle))


@given(case=hard_cases(), seed=st.integers(0, 2**32 - 1))
@settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@sampled
def test_case_is_ignored_in_either_way(manager, way, case, seed):
    contents, needle = case
    generator = np.random.default_rng(seed)

    def shuffled(content):
        upper = generator.integers(0, 2, len(content), bool)
        letters = zip(content.lower(), content.upper(), upper.tolist(), strict=True)
        return bytes(large if is_large else small for small, large, is_large in letters)

    contents = [shuffled(content) for content in contents]
    wanted = expected([content.lower() for content in contents], needle.lower())
    relearn(manager, contents)
    assert found(manager.find(shuffled(needle), ignore_case=True)) == wanted
    assert manager.count(shuffled(needle), ignore_case=True) == len(wanted)


@sampled
def test_only_letters_have_a_case(manager, way):
    contents = [bytes(range(256)) * 3]
    learn(manager, contents)
    for value in {*BORDERS, *range(0, 256, samples.number(8, of=1))}:
        for needle in (bytes([value]), bytes(range(value, min(value + 5, 256)))):
            wanted = expected([contents[0].lower()], needle.lower())
            assert found(manager.find(needle, ignore_case=True)) == wanted


@given(content=st.text("ab_ -\u00e9\u4f60\u201c", max_size=60), needle=st.text("ab", min_size=1))
@settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@sampled
def test_words_are_those_of_a_text(manager, way, content, needle):
    relearn(manager, [content])
    wanted = [
        len(content[: each.start()].encode())
        for each in re.finditer(rf"(?<!\w){re.escape(needle)}(?!\w)", content)
    ]
    assert [hit.offset for hit in manager.find(needle, word=True)] == wanted
    assert manager.count(needle, word=True) == len(wanted)
    pattern = re.compile(needle.encode())
    assert [hit.offset for hit in manager.find(pattern, word=True)] == wanted


def test_what_is_no_utf8_is_in_no_word(manager, way):
    learn(manager, [b"\xffab\xff", b"\xa9ab\xc3", b"\xc3\xa9ab", b"ab", b"ab\xc3\xa9", b"_ab"])
    assert found(manager.find(b"ab", word=True)) == [(0, 1), (1, 1), (3, 0)]


def test_a_limit_counts_words(manager, way):
    learn(manager, [b"abc ab ab.", b"ab"])
    for limit, wanted in enumerate([[], [(0, 4)], [(0, 4), (0, 7)], [(0, 4), (0, 7), (1, 0)]]):
        assert found(manager.find(b"ab", word=True, limit=limit)) == wanted


def test_letters_beyond_ascii_fold_in_text_only(manager):
    contents = [
        "\u00c9T\u00c9 \u00e9t\u00e9 \u00c9t\u00e9",
        "stra\u00dfe STRASSE",
        "\u0130i\u0131I",
    ]
    learn(manager, contents)
    assert [hit.offset for hit in manager.find("\u00e9t\u00e9", ignore_case=True)] == [0, 6, 12]
    assert manager.count("\u00e9t\u00e9".encode(), ignore_case=True) == 1
    assert manager.count("\u00e9t\u00e9", ignore_case=True, word=True) == 3
    assert manager.count("STRA\u00dfE", ignore_case=True) == 1
    assert [hit.offset for hit in manager.find("\u0131", ignore_case=True)] == [2, 3, 5]


# -- patterns --------------------------------------------------------------------------------------

EXPRESSIONS = [
    rb"ab+",
    rb"(?i)AB|c$",
    rb"(?m)^abc?$",
    rb"a.c",
    rb"(?s)a.c",
    rb"b\Z",
    rb"\Aab",
    rb"[^a]abc",
    rb"[^\n]*abc[^\s]*",
    rb"(?<=c)abc",
    rb"abc(?!\s)",
    rb"abc(?=$)",
    rb"(?m)abc(?=$)",
    rb"abc\b",
    rb"(a)(b)\2?abc",
    rb"(?:abc){2,}",
    rb"(?i:ab)abc|abca",
    rb"x*abc",
    rb"a*",
    rb"\nabc",
    rb"(?x) abc  # a comment",
]


@given(
    contents=st.lists(
        st.lists(st.sampled_from([b"abc", b"ABC", b"a", b"b", b"c", b"\n", b" "])).map(b"".join),
        min_size=1,
        max_size=4,
    ),
    expression=st.sampled_from(EXPRESSIONS),
    is_filtered=st.booleans(),
)
@settings(
    max_examples=4 * N_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@sampled
def test_patterns_find_what_finditer_does(manager, monkeypatch, contents, expression, is_filtered):
    few = 1 if is_filtered else 2**40  # candidates are never too many, or always
    monkeypatch.setattr(patterns, "_BYTES_PER_CANDIDATE", few)
    monkeypatch.setattr(patterns, "_BYTES_PER_PREFIX", few)
    pattern = re.compile(expression)
    relearn(manager, contents)
    wanted = [
        (i, each.start(), len(each[0]))
        for i, content in enumerate(contents)
        for each in pattern.finditer(content)
        if each[0]
    ]
    hits = manager.find(pattern)
    assert [
        (*each, n) for each, n in zip(found(hits), hits.lengths.tolist(), strict=True)
    ] == wanted
    assert manager.count(pattern) == len(wanted)
    assert found(manager.find(pattern, limit=2)) == [each[:2] for each in wanted[:2]]


@pytest.mark.parametrize(
    ("expression", "required", "is_in_line"),
    [
        (rb"self\.\w+ = None", b" = None", True),
        (rb"(?i)Raise \w+Error", b"raise ", True),
        (rb"(abc)+d?", b"abc", True),
        (rb"abc.*defg", b"defg", True),
        (rb"(?s)abc.*defg", b"defg", False),
        (rb"abc\s", b"abc", False),
        (rb"abc[^x]", b"abc", False),
        (rb"abc[^\n]", b"abc", True),
        (rb"abc$", b"abc", False),
        (rb"(?m)^abc$", b"abc", True),
        (rb"abc(?=\n)", b"abc", False),
        (rb"(?:abcd)?efg", b"efg", True),
    ],
)
def test_what_every_match_contains(expression, required, is_in_line):
    prefilter = Prefilter.of(re.compile(expression))
    assert prefilter.needle.record["n_bytes"] == len(required)
    needle = prefilter.needle
    assert (needle.wanted, prefilter.is_in_line) == (required, is_in_line)


@pytest.mark.parametrize("expression", [rb"ab|cd", rb"ab", rb"(?:abc)?", rb"[abc]{9}", rb"(?L)abc"])
def test_where_nothing_is_certain(expression):
    assert Prefilter.of(re.compile(expression)) is None


def test_where_the_parser_is_another(monkeypatch):
    pattern = re.compile(rb"abcd")
    monkeypatch.setattr(re._parser, "parse", lambda *arguments: [1])
    assert Prefilter.of(pattern) is None


def test_a_pattern_meets_options(manager):
    learn(manager, [b"in int INT print", b"int"])
    assert found(manager.find(re.compile(rb"in|int"), word=True)) == [(0, 0), (0, 3), (1, 0)]
    pattern = re.compile(rb"(?x)int # an integer")
    assert found(manager.find(pattern, word=True, ignore_case=True)) == [(0, 3), (0, 7), (1, 0)]


def test_patterns_of_other_engines(manager):
    learn(manager, [b"one two", b"two"])

    class Engine:
        def finditer(self, content, start, end):
            return re.compile(rb"two").finditer(content, start, end)

    assert found(manager.find(Engine())) == [(0, 4), (1, 0)]
    with pytest.raises(TypeError, match="Engine says it in the expression"):
        manager.find(Engine(), word=True)


def test_a_pattern_of_text_is_refused(manager):
    with pytest.raises(TypeError, match=r"contents are bytes.*rb'\.\.\.'"):
        manager.find(re.compile("text"))


# -- what comes out --------------------------------------------------------------------------------


def test_lengths(manager):
    learn(manager, [b"a bb ccc"])
    assert manager.find(b"bb").lengths.tolist() == [2]
    hits = manager.find(re.compile(rb"\w+"))
    assert hits.lengths.tolist() == [1, 2, 3]
    assert hits[1:].lengths.tolist() == [2, 3]
    assert manager.find(re.compile(rb"bb")) == manager.find(b"bb")
    assert manager.find(re.compile(rb"b+")) != manager.find(b"b", limit=1)
    import pickle

    assert pickle.loads(pickle.dumps(hits)) == hits
    assert Hits(np.zeros(0, hits.array.dtype)).lengths.tolist() == []


def test_layers_are_searched_instead_of_dimensions(manager):
    first, second, third = learn(manager, [b"x", b"xx", b"x"])
    assert found(manager.find(b"x", layers=[third, first, third])) == [(0, 0), (2, 0)]
    assert manager.count(b"x", layers=np.array([int(second)])) == 2
    assert manager.count(b"x", layers=[]) == 0
    with pytest.raises(LayerNotFound, match="L40-09"):
        manager.count(b"x", layers=["L40-09"])
    with pytest.raises(ValueError, match="not of both"):
        manager.count(b"x", ["D40"], layers=[first])


@pytest.mark.parametrize("needle", [b"x", re.compile(rb"x")])
def test_batches_follow_each_other(manager, way, needle):
    contents = [b"x" * 1500, b"", b"x\n" * 800, b"-"]
    learn(manager, contents)
    batches = list(manager.find_batches(needle))
    assert all(batches)
    assert [each for batch in batches for each in batch] == list(manager.find(needle))
    first = batches[0]
    assert bytes(first.content(int(first[0].layer_id))) == contents[0]
    for one, other in pairwise(batches):
        assert one[-1] < other[0]


def test_a_batch_keeps_what_it_is_in(manager):
    (layer,) = learn(manager, [b"needle here"])
    (batch,) = manager.find_batches(b"needle")
    manager.discard_proto_dimension(layer)
    learn(manager, [b"something other than that"])
    assert bytes(batch.content(int(layer))) == b"needle here"


@pytest.mark.parametrize("n_before", [0, 3, 100])
@pytest.mark.parametrize("n_bytes", [1, 8, 60])
def test_windows(manager, n_before, n_bytes):
    contents = [b"ab cd", b"0123456789ab!", b"-" * 70 + b"ab" + b"+" * 70, b"ab"]
    learn(manager, contents)
    (batch,) = manager.find_batches(b"ab")
    windows = batch.windows(n_before, n_bytes)
    for i, hit in enumerate(batch):
        content = contents[hit.layer_id.layer]
        start, end = int(windows.starts[i]), int(windows.ends[i])
        row = windows.bytes[i].tobytes()
        assert row == content[start : start + end].ljust(n_bytes, b"\0")
        assert start == max(0, min(hit.offset - n_before, len(content) - n_bytes))
