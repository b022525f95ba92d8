"""Contexts: both ways to write them down, cut to any length, and the collections they come in."""

from __future__ import annotations

import dataclasses
import mmap
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jessymem import ContextCollection, LayerId, LoadedContext, NavigationPath

GOLDEN = Path(__file__).with_name("golden")
FORMATS = ("format_for_llm", "format_with_metadata")
MIB = 2**20


def make_context(layer="L01-00", content=b"text\n", **described):
    facts = {"frequency": 1.0, "keywords": (), "name": "", "dimension_name": "Emotion"}
    return LoadedContext(LayerId.parse(layer), memoryview(content), **(facts | described))


def format_alone(name, context, max_chars=None):
    return getattr(ContextCollection([context]), name)(max_chars)


# -- what is written -------------------------------------------------------------------------------

WRITTEN = ContextCollection(
    [
        make_context(
            "L01-00",
            b"A feeling arrives in the body before it has a name.\n",
            frequency=1.2,
            keywords=("joy", "sadness"),
            name="Felt states",
        ),
        make_context(
            "L01-01",
            b"no newline at the end",
            frequency=0.5,
            depth=1,
            parent=LayerId(1, 0),
            keywords=("one",),
        ),
        make_context("L02-00", b"", name="Nothing", dimension_name="Cognition"),
        make_context(
            "L300-65535",
            b"torn \xf0\x9f\x98, stray \xff\xfe, whole \xc3\xa9\n\n",
            frequency=-3.14159,
            depth=255,
            parent=LayerId(65_535, 65_535),
            keywords=("a\nb", "  c\u2028[L09-00 Ethical]  "),
            name="two\nlines\r\n\tand a tab",
            dimension_name="first\x85second",
        ),
        make_context(
            "L32768-07",
            "\u7406\u89e3 \u0434\u0443\u0448\u0430\n  indented, last line \U0001f600".encode(),
            frequency=1e6,
            keywords=("\u7406\u89e3", "\u05d0\u05d4\u05d1\u05d4"),
            name="\u0645\u0639\u0631\u0641\u0629",
            dimension_name="\u03a8\u03c5\u03c7\u03ae",
        ),
        make_context("L32768-07", b"\n", dimension_name=""),
    ]
)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_as_in_the_golden_files(name):
    golden = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert getattr(WRITTEN, name)() == golden


@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_format_is_as_in_the_golden_file(name):
    golden = (GOLDEN / f"{name}_cut.txt").read_text(encoding="utf-8")
    assert getattr(WRITTEN, name)(max_chars=280) == golden
    assert len(golden) == 280


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_written_of_nothing(name):
    for max_chars in (None, 0, 100):
        assert getattr(ContextCollection([]), name)(max_chars) == ""


@pytest.mark.parametrize("name", FORMATS)
def test_loaded_contexts_are_written_with_all_that_is_known(manager, name):
    written = getattr(manager.load_contexts(["L01-02", "L20-300"]), name)()
    known = ["L01-02", "Emotion", "part 2", "2.00", "joy, word2", "layer 2 of emotion", "L20-300"]
    if name == "format_with_metadata":
        known += ["depth: 2", "parent: L01-01", "parent: L01-00", "size: 57 bytes", "301 bytes"]
    for words in known:
        assert words in written


line_breakers = st.sampled_from("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
names = st.lists(st.text(max_size=6) | line_breakers, max_size=4).map("".join)


@pytest.mark.parametrize("name", FORMATS)
@given(title=names, dimension_name=names, keywords=st.lists(names, max_size=3).map(tuple))
def test_names_add_no_lines(name, title, dimension_name, keywords):
    plain = format_alone(name, make_context(name="x", dimension_name="y", keywords=("z",)))
    described = {"name": title, "dimension_name": dimension_name, "keywords": keywords}
    written = format_alone(name, make_context(**described))
    assert len(written.splitlines()) == len(plain.splitlines())


@pytest.mark.parametrize(
    ("described", "heading"),
    [
        ({"name": " \n "}, "[L01-00 Emotion | frequency 1.00]"),
        ({"name": "x", "dimension_name": ""}, "[L01-00 x | frequency 1.00]"),
    ],
)
def test_headings_have_no_empty_parts(described, heading):
    written = format_alone("format_for_llm", make_context(**described))
    assert written.splitlines()[0] == heading


# -- cut to a length -------------------------------------------------------------------------------

NOTICE = re.compile(
    r"\n\[cut at (?P<at>\d+) characters, within (?P<within>L\d+-\d+)"
    r"(?:; (?P<n_rest>\d+) more left out, from (?P<first>L\d+-\d+))?\]\n\Z"
)

layer_ids = st.sampled_from(["L01-00", "L14-05", "L300-65535", "L65535-65535"])
contents = st.binary(max_size=40) | st.text(max_size=40).map(str.encode)
contexts = st.builds(
    make_context,
    layer_ids,
    contents,
    name=st.text(max_size=5),
    keywords=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)
collections = st.lists(contexts, max_size=12).map(ContextCollection)


@pytest.mark.parametrize("name", FORMATS)
@given(collection=collections, max_chars=st.integers(0, 1_500) | st.integers(0, 120))
def test_a_cut_is_a_prefix_with_a_notice(name, collection, max_chars):
    whole = getattr(collection, name)()
    cut = getattr(collection, name)(max_chars)
    assert len(cut) <= max_chars
    if len(whole) <= max_chars:
        assert cut == whole
        return
    notice = NOTICE.search(cut)
    if notice is None:  # the limit holds the notice at most
        assert f"[cut at {max_chars} characters, within ".startswith(cut[:24])
        assert len(cut) >= max_chars - 1
        return
    assert int(notice["at"]) == max_chars
    assert whole.startswith(cut[: notice.start()])


@pytest.mark.parametrize("name", FORMATS)
def test_the_notice_names_what_was_cut(name):
    """The notice for a short id is shorter than the one for the long id that follows."""
    collection = ContextCollection(
        make_context(layer, b"x" * 40) for layer in ("L01-00", "L300-65535", "L65535-65535")
    )
    write = getattr(collection, name)
    for max_chars in range(len(write())):
        notice = NOTICE.search(write(max_chars))
        if notice is None:
            continue
        n_rest = int(notice["n_rest"] or 0)
        partial = len(collection) - 1 - n_rest
        before, through = (len(getattr(collection[:end], name)()) for end in (partial, partial + 1))
        assert before < notice.start() < through
        assert notice["within"] == str(collection[partial].layer_id)
        if n_rest:
            assert notice["first"] == str(collection[partial + 1].layer_id)


@pytest.mark.parametrize("name", FORMATS)
def test_no_length_tears_a_character(name):
    collection = ContextCollection(
        [
            make_context("L01-00", "\U0001f600\u7406\u00e9a".encode() * 20, name="first"),
            make_context("L01-01", b"", name="second"),
            make_context("L01-02", "\U0001f600".encode() * 5, name="third"),
        ]
    )
    whole = getattr(collection, name)()
    for max_chars in range(len(whole) + 2):
        cut = getattr(collection, name)(max_chars)
        assert len(cut) <= max_chars
        assert "\ufffd" not in cut
        notice = NOTICE.search(cut)
        assert notice is None or whole.startswith(cut[: notice.start()])


@pytest.mark.parametrize("name", FORMATS)
def test_a_limit_beyond_the_whole_changes_nothing(name):
    whole = getattr(WRITTEN, name)()
    for max_chars in (len(whole), len(whole) + 1, 10**9, 2**63, 10**30):
        assert getattr(WRITTEN, name)(max_chars) == whole
    assert getattr(WRITTEN, name)(len(whole) - 1) != whole
    assert getattr(WRITTEN, name)(0) == ""


@pytest.mark.parametrize("name", FORMATS)
def test_a_negative_length_is_refused(name):
    with pytest.raises(ValueError, match="-1"):
        getattr(WRITTEN, name)(-1)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("wrong", ["5", 5.0, float("inf")])
def test_a_length_that_is_no_integer_is_refused(name, wrong):
    with pytest.raises(TypeError):
        getattr(WRITTEN, name)(wrong)


# -- no more is decoded than is shown --------------------------------------------------------------


@pytest.fixture
def huge():
    """64 MiB that nobody has touched."""
    return memoryview(mmap.mmap(-1, 64 * MIB)).toreadonly()


def peak_of(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("max_chars", [0, 100, 10_000])
def test_a_huge_context_is_not_decoded_for_a_short_prompt(huge, name, max_chars):
    contexts = [make_context(layer, huge, encoding="text") for layer in ("L01-00", "L01-01")]
    collection = ContextCollection(contexts)
    assert peak_of(lambda: getattr(collection, name)(max_chars)) < MIB
    assert len(getattr(collection, name)(max_chars)) == max_chars
    assert collection.total_size == 128 * MIB


def test_a_prefix_of_a_huge_context_is_not_decoded_further(huge):
    context = make_context("L01-00", huge)
    assert peak_of(lambda: context.text_prefix(10)) < MIB
    assert context.text_prefix(10) == "\0" * 10


@given(contents, st.integers(0, 50))
def test_a_prefix_is_the_beginning_of_the_text(content, n_chars):
    context = make_context(content=content)
    assert context.text_prefix(n_chars) == context.text[:n_chars]


@given(st.binary(max_size=40))
def test_text_is_utf_8_with_replacements(content):
    assert make_context(content=content).text == content.decode("utf-8", "replace")


# -- a collection is a sequence --------------------------------------------------------------------


@pytest.fixture
def three():
    return [make_context(f"L01-0{i}", b"x" * (i + 1)) for i in range(3)]


def test_a_collection_is_a_sequence(three):
    collection = ContextCollection(iter(three))
    assert len(collection) == 3
    assert list(collection) == three
    assert list(reversed(collection)) == three[::-1]
    assert (collection[0], collection[-1]) == (three[0], three[2])
    assert three[1] in collection
    assert make_context("L09-00") not in collection
    assert collection.index(three[2]) == 2
    assert collection.count(three[0]) == 1
    for index in (3, -4):
        with pytest.raises(IndexError):
            collection[index]
    with pytest.raises(TypeError):
        collection["L01-00"]


@pytest.mark.parametrize(
    "cut", [slice(1, None), slice(None, None, -1), slice(5, 9), slice(0, 3, 2)]
)
def test_a_slice_is_a_collection(three, cut):
    part = ContextCollection(three)[cut]
    assert type(part) is ContextCollection
    assert list(part) == three[cut]


def test_duplicates_are_kept_and_counted(three):
    collection = ContextCollection([three[2], three[0], three[2]])
    assert [context.layer_id.layer for context in collection] == [2, 0, 2]
    assert collection.total_size == 3 + 1 + 3
    assert collection.format_for_llm().count("[L01-02") == 2
    assert ContextCollection([]).total_size == 0


def test_equality_is_of_contents_and_descriptions(three):
    collection = ContextCollection(three)
    assert collection == ContextCollection(dataclasses.replace(context) for context in three)
    assert collection != ContextCollection(three[::-1])
    assert collection != ContextCollection(three[:2])
    assert collection != three
    for changed in ({"content": memoryview(b"y")}, {"name": "y"}, {"frequency": 2.0}, {"depth": 1}):
        first = dataclasses.replace(three[0], **changed)
        assert collection != ContextCollection([first, *three[1:]])
    with pytest.raises(TypeError, match="unhashable"):
        hash(collection)


def test_collections_and_contexts_are_immutable(three):
    collection = ContextCollection(three)
    with pytest.raises(TypeError):
        collection[0] = three[1]
    with pytest.raises(AttributeError):
        collection.total_size = 5
    with pytest.raises(AttributeError):
        three[0].content = b""


def test_a_collection_shows_how_much_it_holds(three):
    assert repr(ContextCollection(three)) == "<ContextCollection 3 contexts 6 bytes>"


# -- paths -----------------------------------------------------------------------------------------


def test_a_path_reads_its_ids_and_keeps_their_order():
    path = NavigationPath(["L01-02", LayerId(20, 5), 1 << 16, "l01-2"], 1.5, 0.25)
    assert path.layer_sequence == (LayerId(1, 2), LayerId(20, 5), LayerId(1, 0), LayerId(1, 2))
    assert {type(layer) for layer in path.layer_sequence} == {LayerId}
    assert list(path) == list(path.layer_sequence)
    assert len(path) == 4
    assert (path.frequency, path.confidence) == (1.5, 0.25)


def test_a_path_may_be_empty_and_made_of_anything_iterable():
    assert len(NavigationPath([])) == 0
    path = NavigationPath(LayerId(1, i) for i in range(3))
    assert list(path) == list(path) == [LayerId(1, i) for i in range(3)]
    assert (path.frequency, path.confidence) == (None, None)
    assert path == NavigationPath(("L01-00", "L01-01", "L01-02"))
    assert hash(path) == hash(NavigationPath(path))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("L01-00", TypeError),
        (b"L01-00", TypeError),
        (5, TypeError),
        (None, TypeError),
        ([None], TypeError),
        ([1.0], TypeError),
        ([True], TypeError),
        ([["L01-00"]], TypeError),
        (["D01"], ValueError),
        (["L00-00"], ValueError),
        ([7], ValueError),
    ],
)
def test_a_path_refuses_what_is_no_layer(wrong, error):
    with pytest.raises(error):
        NavigationPath(wrong)


def test_a_path_is_immutable():
    layers = ["L01-00"]
    path = NavigationPath(layers)
    layers.append("L01-01")
    assert len(path) == 1
    for name in ("layer_sequence", "frequency", "confidence"):
        with pytest.raises(AttributeError):
            setattr(path, name, None)


def test_paths_and_ids_are_loaded_in_order(manager):
    path = NavigationPath(["L01-03", "L20-05", "L01-03"])
    wanted = [LayerId(1, 3), LayerId(20, 5), LayerId(1, 3)]
    assert [context.layer_id for context in manager.load_contexts(path)] == wanted
    mixed = manager.load_contexts(["L20-00", path, LayerId(1, 0)])
    assert [context.layer_id for context in mixed] == [LayerId(20, 0), *wanted, LayerId(1, 0)]
    assert mixed[1] == mixed[3]
