"""Region bytes to tables and back: files written by hand, by the package, and both ways."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive
from support.layout import bytes_of, contents_of, lay_out, load
from support.naive import Draft, put, resign, write_plain

from jessymem import MmapRegion, RegionBuilder, RegionFormatError
from jessymem.kernels import schema as s

SCRIPTS = [
    "\u00e9t\u00e9",
    "\u0437\u0435\u043c\u043b\u044f",
    "\u03b3\u03b7",
    "\u05d0\u05e8\u05e5",
    "\u0623\u0631\u0636",
    "\u092a\u0943\u0925\u094d\u0935\u0940",
    "\u5730\u7403",
    "\u5730\u7403\u3060",
    "\uc9c0\uad6c",
    "\U0001f30d\u200d\U0001f525",
    "e\u0301 and \u00e9",
    "a\0b",
    "",
]


# -- files written by hand load --------------------------------------------------------------------


def test_a_file_written_by_hand_loads(tmp_path):
    raw = write_plain(
        [
            Draft(300, b"\0\xff", 255, 0.25, [b"one", b"", b"two words"]),
            Draft(0, b""),
            Draft(65_535, b"last", 3, -1.5),
            Draft(7, b"x" * 1_000),
        ],
        dimension=65_535,
        name="\u00fcber".encode(),
    )
    path = tmp_path / "any name"
    path.write_bytes(raw)
    region = MmapRegion.from_file(65_535, path)
    assert [layer.layer for layer in region.list_layers()] == [0, 7, 300, 65_535]
    told = naive.read_plain(raw)
    assert contents_of(region) == {layer.layer: layer.content for layer in told.layers}
    metadata = region.metadata
    assert (metadata.version, metadata.generation, metadata.created_at) == (1, 0, 0)
    assert metadata.dimension_name == "\u00fcber"
    assert metadata.total_size == region.size == len(raw)
    assert metadata.content_offset == 256 + 4 * 23 + 3 * 4 + 12
    for layer in told.layers:
        info = region.get_layer_info(65_535 << 16 | layer.layer)
        assert (info.depth, info.frequency) == (layer.depth, layer.frequency)
        assert info.keywords == tuple(keyword.decode() for keyword in layer.keywords)
        assert (info.name, info.parent, info.children) == ("", None, ())
    assert region.verify_integrity("full")


def test_no_layers_at_all():
    for raw in (write_plain(), write_plain(tail=b"unused"), lay_out()):
        region = load(raw)
        assert region.list_layers() == []
        assert region.metadata.layers == ()
        assert region.verify_integrity()
        assert naive.read_plain(raw).layers == []


def test_bytes_that_no_layer_claims_are_allowed_in_plain_files():
    raw = write_plain([Draft(0, b"abc", content_offset=284)], tail=b"0123456789")
    assert contents_of(load(raw)) == {0: raw[284:287]}


@pytest.mark.parametrize("offset", [0, 256, 278, 279, 283])
def test_empty_layers_may_lie_anywhere_in_the_file(offset):
    raw = write_plain([Draft(0, b"", content_offset=offset)], tail=b"abcd")
    assert len(raw) == 283
    assert contents_of(load(raw)) == {0: b""}


def test_an_empty_layer_inside_the_block_of_another_is_no_overlap():
    raw = write_plain([Draft(0, b"abcd"), Draft(1, b"", content_offset=304)])
    assert raw[302:306] == b"abcd"
    assert contents_of(load(raw)) == {0: b"abcd", 1: b""}


def test_blocks_that_touch_are_no_overlap():
    raw = write_plain([Draft(1, b"abcd"), Draft(0, b"efgh")])
    assert contents_of(load(raw)) == {1: b"abcd", 0: b"efgh"}


def test_a_name_of_exactly_64_bytes_needs_no_zero():
    name = "\u5730" * 21 + "x"
    assert len(name.encode()) == 64
    for raw in (write_plain(name=name.encode()), lay_out(name=name)):
        assert load(raw).metadata.dimension_name == name
        assert naive.read_plain(raw).name == name.encode()


def test_a_name_with_a_null_character_is_as_long_as_it_says():
    assert load(write_plain(name=b"a\0b", name_len=3)).metadata.dimension_name == "a\0b"
    assert load(write_plain(name=b"ab", name_len=3)).metadata.dimension_name == "ab\0"


def test_keywords_in_any_script():
    drafts = [Draft(i, b"", keywords=[text.encode() for text in SCRIPTS]) for i in range(3)]
    plain = load(write_plain(drafts))
    raw = lay_out((0, b"", {"keywords": SCRIPTS}))
    for region in (plain, load(raw)):
        assert region.get_layer_info("L01-00").keywords == tuple(SCRIPTS)
        assert region.rows_with_keyword(SCRIPTS[1])[0] == 0
        assert region.verify_integrity()
    assert naive.read_plain(raw).layers[0].keywords == tuple(text.encode() for text in SCRIPTS)


@pytest.mark.parametrize("keyword", [b"\xff", b"ok\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_a_keyword_that_does_not_decode_is_shown_replaced_and_does_not_verify(keyword):
    region = load(write_plain([Draft(9, b"nine", keywords=[b"fine", keyword])]))
    fine, shown = region.get_layer_info("L01-09").keywords
    assert fine == "fine"
    assert shown == keyword.decode(errors="replace") and "\ufffd" in shown
    assert contents_of(region) == {9: b"nine"}
    assert region.verify_integrity("header")
    with pytest.raises(RegionFormatError) as caught:
        region.verify_integrity("metadata")
    assert caught.value.field == "layer 9 keywords"
    assert (caught.value.expected, caught.value.got) == ("UTF-8", keyword)


def test_as_many_keywords_as_are_allowed():
    keywords = [f"k{i}" for i in range(s.MAX_KEYWORDS)]
    for raw in (
        lay_out((0, b"", {"keywords": keywords})),
        write_plain([Draft(keywords=[keyword.encode() for keyword in keywords])]),
    ):
        assert load(raw).get_layer_info("L01-00").keywords == tuple(keywords)


@pytest.mark.parametrize("frequency", [0.0, -0.0, 1e-45, -3.4028234663852886e38, 3.4e38])
def test_every_finite_frequency(frequency):
    stored = struct.unpack("<f", struct.pack("<f", frequency))[0]
    for raw in (
        write_plain([Draft(frequency=frequency)]),
        lay_out((0, b"", {"frequency": frequency})),
    ):
        got = load(raw).get_layer_info("L01-00").frequency
        assert struct.pack("<f", got) == struct.pack("<f", stored)


def test_all_65536_layers(tmp_path, caplog):
    builder = RegionBuilder(1, "Full")
    for number in range(s.MAX_LAYERS):
        builder.add_layer(number, number.to_bytes(2, "little") if number % 2 else b"")
    path = tmp_path / "region.mmap"
    region = builder.build_to_file(path, replace_immutable=True)
    assert len(region.list_layers()) == s.MAX_LAYERS
    assert region.index is None
    raw = path.read_bytes()
    plain = load(put(raw, 100, bytes(156)))
    assert not caplog.records
    assert plain.generation == 0
    told = naive.read_plain(raw).layers
    for some in (region, plain):
        rows = some.layout.rows
        assert rows["layer_num"].tolist() == list(range(s.MAX_LAYERS))
        assert rows["content_offset"].tolist() == region.layout.rows["content_offset"].tolist()
        for number in (0, 1, 255, 40_001, 65_534, 65_535):
            info = some.get_layer_info((1 << 16) | number)
            assert some.read_content(info.offset, info.size) == told[number].content
    assert region.verify_integrity("header")


# -- files written here ----------------------------------------------------------------------------


def test_blocks_lie_on_their_boundaries_and_metadata_before_them():
    raw = lay_out(*((i, b"x" * (i * 37 % 200)) for i in range(20)))
    region = load(raw)
    start = region.metadata.content_offset
    assert start % s.ALIGNMENT == naive.get_field(raw, "table_offset") % s.ALIGNMENT == 0
    for info in region.metadata.layers:
        assert info.offset >= start
        if info.size:
            assert info.offset % s.ALIGNMENT == 0
    last = region.metadata.layers[-1]
    assert last.offset + last.size == len(raw)


def test_equal_layers_in_any_order_make_equal_bytes():
    layers = [(i, bytes([i]) * i, {"keywords": [str(i)]}) for i in (3, 9, 1, 4)]
    assert lay_out(*layers) == lay_out(*layers[::-1])


def test_extension_says_what_was_written():
    builder = RegionBuilder("D01", "Name")
    builder.add_layer(1, "text", name="\u00e9", parent="L02-03", depth=255)
    builder.add_layer(0, b"bytes", frequency=0.1)
    raw = bytes_of(builder.build_to_memory())
    row = {field: naive.get_row_field(raw, 1, field) for field in naive.ROW_FIELDS}
    assert row["parent"] == 2 << 16 | 3
    assert (row["depth"], row["encoding"]) == (255, s.ENCODING_TEXT)
    assert (row["array_offset"], row["array_size"]) == (0, 0)
    assert row["name_size"] == 2
    assert naive.get_row_field(raw, 0, "encoding") == s.ENCODING_BYTES
    assert resign(raw, contents=True) == raw
    assert naive.get_field(raw, "generation") == 1
    assert not any(naive.get_field(raw, field) for field in ("n_frames", "dictionary_size"))


# -- round trips -----------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=12)
layer_numbers = st.one_of(st.integers(0, 12), st.integers(0, 65_535), st.just(65_535))
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
layers_to_build = st.dictionaries(
    layer_numbers,
    st.fixed_dictionaries(
        {"content": st.one_of(st.binary(max_size=200), texts)},
        optional={
            "name": texts,
            "frequency": finite,
            "depth": st.integers(0, 255),
            "keywords": st.lists(texts, max_size=4),
            "parent": st.integers(1 << 16, 2**32 - 1),
        },
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("round_trips")


@settings(deadline=None, max_examples=150)
@given(
    dimension=st.integers(1, 65_535),
    name=texts.filter(lambda text: "\0" not in text and len(text.encode()) <= 64),
    layers=layers_to_build,
    mode=st.sampled_from(["map", "copy"]),
)
def test_builder_to_file_to_region_and_to_the_naive_reader(folder, dimension, name, layers, mode):
    layers = {
        number: wanted
        for number, wanted in layers.items()
        if wanted.get("parent") != dimension << 16 | number
    }
    builder = RegionBuilder(dimension, name)
    for number, wanted in layers.items():
        builder.add_layer(number, **wanted)
    path = folder / "region.mmap"
    builder.build_to_file(path, replace_immutable=True)
    region = MmapRegion.from_file(dimension, path, load_mode=mode)
    assert region.verify_integrity("full")
    raw = path.read_bytes()
    told = naive.read_plain(raw)
    assert (told.dimension, told.name) == (dimension, name.encode())
    assert [layer.layer for layer in told.layers] == sorted(layers)
    stripped = load(put(raw, 100, bytes(156)), dimension)
    assert region.metadata.dimension_name == stripped.metadata.dimension_name == name
    assert region.list_layers() == stripped.list_layers()
    for layer in told.layers:
        wanted = layers[layer.layer]
        content = wanted["content"]
        content = content.encode() if isinstance(content, str) else content
        assert layer.content == content
        packed = dimension << 16 | layer.layer
        for source in (region, stripped):
            info = source.get_layer_info(packed)
            assert source.read_content(info.offset, info.size) == content
            assert info.frequency == layer.frequency == wanted.get("frequency", 1.0)
            assert info.depth == layer.depth == wanted.get("depth", 0)
            assert info.keywords == tuple(wanted.get("keywords", ()))
        info = region.get_layer_info(packed)
        assert info.name == wanted.get("name", "")
        assert int(info.parent or 0) == wanted.get("parent", 0)
        assert [keyword.decode() for keyword in layer.keywords] == wanted.get("keywords", [])


plain_drafts = st.lists(
    st.builds(
        Draft,
        layer=layer_numbers,
        content=st.binary(max_size=60),
        depth=st.integers(0, 255),
        frequency=finite,
        keywords=st.lists(st.binary(max_size=9), max_size=4),
    ),
    max_size=12,
    unique_by=lambda draft: draft.layer,
)


@settings(deadline=None, max_examples=150)
@given(drafts=plain_drafts, tail=st.binary(max_size=9), name=texts)
def test_written_by_hand_to_region(drafts, tail, name):
    name = name.encode()
    raw = write_plain(drafts, tail=tail, name=name[:64] if len(name) <= 64 else b"")
    region = load(raw)
    assert [layer.layer for layer in region.list_layers()] == sorted(d.layer for d in drafts)
    told = {layer.layer: layer for layer in naive.read_plain(raw).layers}
    for draft in drafts:
        info = region.get_layer_info(1 << 16 | draft.layer)
        content = bytes(region.read_content(info.offset, info.size))
        assert content == draft.content == told[draft.layer].content
        assert (info.depth, info.frequency) == (draft.depth, draft.frequency)
        replaced = [keyword.decode(errors="replace") for keyword in draft.keywords]
        assert list(info.keywords) == replaced
