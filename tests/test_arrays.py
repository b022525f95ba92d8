"""Arrays in region files: what goes in comes out, and what a description may say."""

import io
import math
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import naive
from support.arrays import (
    GOOD,
    HOSTILE,
    KINDS,
    OTHER_STRIDES,
    check_same,
    describing,
    order_of,
    telling,
)
from support.naive import put, resign, set_field, set_row_field
from support.system import HAS_PROC, mappings_of

from jessymem import DimensionId, MmapRegion, OutOfBounds, RegionBuilder, RegionFormatError
from jessymem.kernels import schema as s
from jessymem.regions.arrays import NoDescription, measure_description, read_description


def load(raw):
    """Load bytes as a region, without a file."""
    return MmapRegion(DimensionId(1), None, np.frombuffer(raw, np.uint8), s.REGION_COPIED, None)


def build(*given):
    """Lay out a region of arrays, numbered from 0."""
    builder = RegionBuilder(1, "Name")
    for number, array in enumerate(given):
        builder.add_array(number, array)
    return bytes(builder.build_to_memory().data)


def content_of(region, number=0):
    info = region.get_layer_info(1 << 16 | number)
    return bytes(region.read_content(info.offset, info.size))


# -- what goes in comes out ------------------------------------------------------------------------


@pytest.mark.parametrize("array", (KINDS | OTHER_STRIDES).values(), ids=KINDS | OTHER_STRIDES)
@pytest.mark.parametrize("mode", ["map", "copy"])
def test_an_array_comes_back_as_it_went_in(array, mode, tmp_path):
    builder = RegionBuilder("D15", "Arrays")
    builder.add_layer(0, b"x" * 13)
    assert (
        builder.add_array(1, array, name="one", keywords=["k"], parent="L15-00") == (15 << 16) + 1
    )
    path = builder.build_to_file(tmp_path / "region.mmap").path
    region = MmapRegion.from_file(15, path, load_mode=mode)
    found = region.read_array("L15-01")
    check_same(found, array)
    if array.nbytes:
        assert found.ctypes.data % s.ALIGNMENT == 0
    assert found.flags.aligned
    assert region.verify_integrity("full")
    info = region.get_layer_info("L15-01")
    assert (info.dtype, info.shape, info.size) == (array.dtype, array.shape, array.nbytes)
    assert (info.name, info.keywords, info.parent) == ("one", ("k",), 15 << 16)
    assert region.metadata.layers[1] == info


@pytest.mark.parametrize("array", KINDS.values(), ids=KINDS)
def test_description_and_content_are_a_npy_file(array):
    raw = build(array)
    description = described(raw)
    assert len(description) % 64 == 0
    stream = io.BytesIO(description + content_of(load(raw)))
    check_npy = np.load(stream, allow_pickle=False)
    assert check_npy.dtype == array.dtype and check_npy.shape == array.shape
    assert repr(check_npy.tolist()) == repr(array.tolist())  # NumPy drops what pads fields
    assert order_of(check_npy) == order_of(array)
    assert not stream.read()


def test_the_description_of_a_plain_array_byte_by_byte():
    raw = build(np.arange(6, dtype="<i2").reshape(2, 3))
    text = b"{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }"
    assert described(raw) == b"\x93NUMPY\1\0\x76\0" + text + b" " * (117 - len(text)) + b"\n"
    assert content_of(load(raw)) == struct.pack("<6h", *range(6))
    assert naive.get_row_field(raw, 0, "encoding") == 2
    assert naive.get_row_field(raw, 0, "array_offset") == 0
    assert naive.get_row_field(raw, 0, "array_size") == 128


def test_a_name_that_is_not_latin_takes_version_3():
    latin, other = build(np.zeros(1, [("\u00e9", "f8")])), build(np.zeros(1, [("\u5730", "f8")]))
    assert described(latin)[6:8] == b"\1\0" and b"\xe9" in described(latin)
    assert described(other)[6:8] == b"\3\0" and "\u5730".encode() in described(other)


def test_equal_arrays_make_equal_bytes():
    one, other = np.arange(9.0).reshape(3, 3), np.arange(9.0).repeat(2)[::2].reshape(3, 3)
    assert build(one) == build(other)


def test_an_array_of_a_subclass_comes_back_as_a_plain_one(tmp_path):
    np.arange(4.0).tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", "f8", "r", shape=(2, 2))
    records = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    region = load(build(mapped, records))
    check_same(region.read_array(1 << 16), np.arange(4.0).reshape(2, 2))
    found = region.read_array(1 << 16 | 1)
    assert type(found) is np.ndarray and found["b"].tolist() == [2.0]


def test_a_plain_reader_sees_the_bytes():
    array = np.arange(6, dtype="<i2")
    raw = build(array)
    (layer,) = naive.read_plain(raw).layers
    assert layer.content == array.tobytes()
    plain = load(put(raw, 100, bytes(156)))  # and so do we, of a file without an extension
    with pytest.raises(TypeError, match="L01-00 is no array: its content is bytes"):
        plain.read_array(1 << 16)
    info = plain.get_layer_info(1 << 16)
    assert (info.dtype, info.shape, info.size) == (None, None, 12)


def test_an_array_is_a_view_of_the_mapping_and_keeps_it(tmp_path):
    builder = RegionBuilder(1, "Name")
    builder.add_array(0, np.arange(1000.0))
    region = builder.build_to_file(tmp_path / "region.mmap")
    found = region.read_array(1 << 16)
    start = np.asarray(region.data).ctypes.data
    assert found.ctypes.data == start + region.get_layer_info(1 << 16).offset
    assert found.base is region.data
    tail = found[990:]
    del region, found
    builder = RegionBuilder(1, "Name")
    builder.add_array(0, np.zeros(1000))
    builder.build_to_file(tmp_path / "region.mmap")
    assert tail.tolist() == list(range(990, 1000))
    del tail
    if HAS_PROC:
        assert not mappings_of(tmp_path)


def test_the_array_is_copied_when_it_is_added():
    array = np.arange(4)
    builder = RegionBuilder(1, "Name")
    builder.add_array(0, array)
    array[:] = 9
    assert builder.build_to_memory().read_array(1 << 16).tolist() == [0, 1, 2, 3]


dtypes = st.one_of(
    hnp.scalar_dtypes(),
    hnp.unicode_string_dtypes(max_len=5),
    hnp.byte_string_dtypes(max_len=5),
    hnp.nested_dtypes(max_itemsize=300),
    hnp.array_dtypes(allow_subarrays=True),
)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), order=st.sampled_from("CF"))
def test_arrays_of_every_kind(data, order):
    dtype = data.draw(dtypes)
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
    raw = data.draw(st.binary(min_size=64, max_size=64))
    n_bytes = math.prod(shape) * dtype.itemsize
    filled = (raw * (n_bytes // 64 + 1))[:n_bytes]
    array = np.ndarray(shape, dtype.base, bytearray(filled) + b"x") if not dtype.subdtype else None
    if array is None:
        array = np.zeros(shape, dtype)
    array = array.copy(order)
    try:
        found = load(build(array)).read_array(1 << 16)
    except TypeError as error:  # what NumPy's own format cannot tell
        assert "would come back as another" in str(error)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert not survives_npy(array)
        return
    check_same(found, array)


def survives_npy(array):
    stream = io.BytesIO()
    try:
        np.save(stream, array, allow_pickle=False)
        stream.seek(0)
        return np.load(stream, allow_pickle=False).dtype == array.dtype
    except (ValueError, TypeError):
        return False


# -- what cannot be a layer ------------------------------------------------------------------------

REFUSED = {
    "no array": ([1, 2], "an array is a numpy.ndarray, not list"),
    "a scalar": (np.float64(1), "an array is a numpy.ndarray, not float64"),
    "objects": (np.array([None]), "dtype object refers to objects"),
    "objects in a field": (
        np.zeros(1, [("a", "i4"), ("b", [("c", "O")])]),
        "refers to objects",
    ),
    "strings of any length": (np.array(["a"], np.dtypes.StringDType()), "refers to objects"),
    "a mask": (np.ma.array([1, 2], mask=[0, 1]), "a masked array would lose its mask"),
    "metadata": (np.zeros(2, np.dtype("i4", metadata={"a": 1})), "metadata of dtype"),
    "metadata in a field": (
        np.zeros(2, [("a", np.dtype("i4", metadata={"a": 1}), (2,))]),
        "metadata of dtype",
    ),
    "fields that overlap": (
        np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]}),
        "would come back as another",
    ),
    "fields out of order": (
        np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [4, 0]}),
        "would come back as another",
    ),
}


@pytest.mark.parametrize(("array", "match"), REFUSED.values(), ids=REFUSED)
def test_what_would_not_come_back_is_refused(array, match):
    builder = RegionBuilder("D15", "Arrays")
    with pytest.raises(TypeError, match=match) as caught:
        builder.add_array(3, array)
    assert "L15-03" in str(caught.value)
    assert len(builder) == 0


def test_a_dtype_of_another_package_is_refused():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("bfloat16", "float8_e5m2", "int4"):
        with pytest.raises(TypeError, match=r"L01-00: dtype .* would come back as another"):
            RegionBuilder(1, "Name").add_array(0, np.zeros(2, getattr(ml_dtypes, name)))


def test_a_dtype_that_takes_too_long_to_tell():
    fields = [(f"field{i}", "<f8") for i in range(500)]
    with pytest.raises(ValueError, match=r"L01-00: dtype and shape take .* allows 10,000"):
        RegionBuilder(1, "Name").add_array(0, np.zeros(1, fields))
    with pytest.raises(ValueError, match="L01-00: dtype and shape take"):
        RegionBuilder(1, "Name").add_array(0, np.zeros(1, [("n" * 70_000, "f8")]))
    most = [("n" * n, "f8") for n in range(1, 120)]
    assert load(build(np.zeros(2, most))).read_array(1 << 16).dtype == np.dtype(most)


def test_an_array_that_is_too_long_is_refused_before_it_is_copied():
    endless = np.broadcast_to(np.uint8(0), (2**32,))
    with pytest.raises(ValueError, match=r"L01-00: an array of 4,294,967,296 bytes"):
        RegionBuilder(1, "Name").add_array(0, endless)


def test_an_array_is_not_taken_for_bytes():
    builder = RegionBuilder(1, "Name")
    builder.add_layer(7, np.arange(3))
    assert builder.build_to_memory().read_array("L01-07").tolist() == [0, 1, 2]
    with pytest.raises(TypeError, match=r"an array is a numpy\.ndarray, not bytes"):
        builder.add_array(2, b"abc")
    assert builder.add_layer(2, memoryview(np.arange(3))) == 1 << 16 | 2


def test_descriptions_count_as_metadata(monkeypatch):
    monkeypatch.setattr(s, "MAX_METADATA_BYTES", 600)
    builder = RegionBuilder(1, "Name")
    builder.add_array(0, np.zeros(3))
    builder.build_to_memory()
    builder.add_array(1, np.zeros(3))
    with pytest.raises(ValueError, match="D01"):
        builder.build_to_memory()


# -- rows ------------------------------------------------------------------------------------------


def rich():
    """Return a region of an array, a text, and an array with a name."""
    builder = RegionBuilder(1, "Name")
    builder.add_array(0, np.arange(6.0))
    builder.add_layer(2, "text", name="two")
    builder.add_array(5, np.zeros((2, 2), "i2"), name="five", keywords=["a"])
    return bytes(builder.build_to_memory().data)


RICH = rich()
HEAP, HEAP_SIZE = naive.get_field(RICH, "heap_offset"), naive.get_field(RICH, "heap_size")


def described(raw, row=0):
    """Return the description of a row's array."""
    start = naive.get_field(raw, "heap_offset") + naive.get_row_field(raw, row, "array_offset")
    return raw[start : start + naive.get_row_field(raw, row, "array_size")]


ROW_RULES = {
    "a description behind the heap": (
        (0, "array_offset", 2**32 - 1),
        ("array_offset", f"inside the heap of {HEAP_SIZE} bytes with its size"),
    ),
    "a description beyond the heap": (
        (0, "array_size", HEAP_SIZE + 1),
        ("array_offset", f"inside the heap of {HEAP_SIZE} bytes with its size"),
    ),
    "a description of 2**32 - 1": (
        (0, "array_size", 2**32 - 1),
        ("array_offset", f"inside the heap of {HEAP_SIZE} bytes with its size"),
    ),
    "no description": ((0, "array_size", 0), ("array_size", "a description of the array")),
    "a description of what is no array": (
        (1, "array_size", 8),
        ("array_size", "zero where the layer is no array"),
    ),
    "an offset of what is no array": (
        (1, "array_offset", 8),
        ("array_offset", "zero where the layer is no array"),
    ),
    "bytes with a description": (
        (2, "encoding", 0),
        ("array_offset", "zero where the layer is no array"),
    ),
    "an array without a description": (
        (1, "encoding", 2),
        ("array_size", "a description of the array"),
    ),
}


@pytest.mark.parametrize(("change", "rule"), ROW_RULES.values(), ids=ROW_RULES)
def test_row_rule_broken(change, rule):
    row, field, value = change
    number = (0, 2, 5)[row]
    with pytest.raises(RegionFormatError) as caught:
        load(resign(set_row_field(RICH, row, field, value)))
    error, (field, expected) = caught.value, rule
    assert (error.field, error.expected) == (f"layer {number} {field}", expected)
    assert error.offset == naive.field_offset(RICH, row, field)


def test_a_description_is_no_longer_than_its_limit():
    builder = RegionBuilder(1, "Name")
    builder.add_array(0, np.zeros(3))
    builder.add_layer(1, b"", keywords=["k" * 10_000])
    raw = bytes(builder.build_to_memory().data)
    raw = set_row_field(set_row_field(raw, 1, "keywords_size", 0), 1, "keyword_count", 0)
    assert load(resign(set_row_field(raw, 0, "array_size", 10_000))).generation == 1
    with pytest.raises(RegionFormatError) as caught:
        load(resign(set_row_field(raw, 0, "array_size", 10_001)))
    assert (caught.value.field, caught.value.expected) == ("layer 0 array_size", "<= 10000")


def test_descriptions_of_all_rows_fit_into_the_heap_together():
    raw = set_row_field(RICH, 2, "array_offset", 0)
    assert load(resign(raw)).generation == 1  # two rows may share one
    raw = set_row_field(raw, 2, "array_size", HEAP_SIZE)
    with pytest.raises(RegionFormatError) as caught:
        load(resign(raw))
    assert caught.value.field == "layer 5 name_size"


def test_a_file_of_before_arrays_loads(tmp_path):
    """The eight bytes were zeros; and so they are where there is no array."""
    builder = RegionBuilder(1, "Name")
    builder.add_layer(0, b"bytes", name="n", keywords=["k"])
    raw = bytes(builder.build_to_memory().data)
    at = naive.field_offset(raw, 0, "array_offset")
    assert raw[at : at + 8] == bytes(8)


# -- hostile descriptions --------------------------------------------------------------------------


VALID = {
    "as NumPy writes it": describing(GOOD),
    "with spaces": describing(GOOD + " " * 40 + "\n"),
    "version 2": describing(GOOD, (2, 0)),
    "version 3": describing(GOOD, (3, 0)),
    "keys in another order": describing("{'shape': (1,), 'fortran_order': False, 'descr': '<f8'}"),
    "in double quotes": describing(GOOD.replace("'", '"')),
    "no axes": describing(telling(shape="()")),
    "64 axes": describing(telling(shape=str((1,) * 64))),
    "a list of fields": describing(telling("[('a', '<i4'), ('', '|V2'), ('b', '<i2')]")),
    "fields within fields": describing(telling("[('a', " * 90 + "'<f8'" + ")]" * 90)),
    "a byte order that does not matter": describing(telling("'<b1'", shape="(8,)")),
}


@pytest.mark.parametrize("raw", VALID.values(), ids=VALID)
def test_a_description_that_says_it_otherwise(raw):
    region = load(raw)
    assert region.verify_integrity("metadata")
    assert region.read_array("L01-03").nbytes == 8
    assert region.get_layer_info("L01-03").dtype.itemsize in (1, 8)


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_description_is_refused_where_it_is_read(raw):
    region = load(raw)  # which does not read it
    size = int(region.rows["content_end"][0] - region.rows["content_offset"][0])
    assert bytes(region.content_of(0)) == bytes(size)
    for ask in (
        lambda: region.read_array("L01-03"),
        lambda: region.get_layer_info("L01-03"),
        lambda: region.metadata,
        lambda: region.verify_integrity("metadata"),
        lambda: region.verify_integrity("full"),
    ):
        with pytest.raises(RegionFormatError) as caught:
            ask()
        assert caught.value.field == "layer 3 array"
        assert caught.value.offset == naive.get_field(raw, "heap_offset")
        assert len(str(caught.value)) < 500
    assert region.verify_integrity("header")


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_description_allocates_nothing_large(raw):
    region = load(raw)
    tracemalloc.start()
    try:
        with pytest.raises(RegionFormatError):
            region.read_array("L01-03")
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.sampled_from([b"\1\0", b"\3\0"]))
def test_any_text_is_read_or_refused(text, version):
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    try:
        read_description(b"\x93NUMPY" + version + length + text)
    except NoDescription as error:
        assert error.expected and str(error)


literals = st.recursive(
    st.one_of(
        st.integers(-(2**70), 2**70),
        st.sampled_from(["<f8", "|O", "<U3", "|V0", "a", "", "<M8[s]", ">i2", True, None, 1.5]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.tuples(inner, inner),
        st.tuples(inner, inner, inner),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=400)
@given(literals, st.one_of(literals, st.lists(st.integers(0, 2**66)).map(tuple)), st.booleans())
def test_any_literals_are_an_array_that_numpy_can_make_or_refused(descr, shape, is_fortran):
    text = repr({"descr": descr, "fortran_order": is_fortran, "shape": shape}).encode()
    try:
        form = read_description(b"\x93NUMPY\3\0" + struct.pack("<I", len(text)) + text)
    except NoDescription:
        return
    assert not form.dtype.hasobject and form.shape == shape
    assert form.n_bytes == math.prod(shape) * form.dtype.itemsize
    if form.n_bytes < 2**20:
        array = form.make_array(memoryview(bytes(form.n_bytes)))
        assert (array.dtype, array.shape) == (form.dtype, form.shape)


@settings(deadline=None, max_examples=300)
@given(
    shape=st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**64)), max_size=5).map(tuple),
    dtype=st.sampled_from(["|S0", "|u1", "<f8", "|V1000"]),
)
def test_every_shape_that_is_let_through_can_be_made(shape, dtype):
    text = telling(repr(dtype), shape=repr(shape)).encode()
    try:
        form = read_description(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text)
    except NoDescription:
        assert math.prod(n or 1 for n in shape) * max(np.dtype(dtype).itemsize, 1) > 2**63 - 1
        return
    if form.n_bytes == 0:
        assert form.make_array(memoryview(b"")).shape == shape
    else:  # without so much memory
        item = np.ndarray((), dtype, bytes(form.dtype.itemsize))
        assert np.broadcast_to(item, shape).shape == shape


def test_measuring_needs_no_more_than_the_first_bytes():
    raw = build(np.zeros(3))
    assert measure_description(described(raw)[:12]) == len(described(raw)) == 128
    with pytest.raises(NoDescription, match="at most 10,000 bytes, got 70010"):
        measure_description(b"\x93NUMPY\2\0" + struct.pack("<I", 70_010 - 12))


def test_a_file_that_is_changed_under_its_mapping(tmp_path):
    path = tmp_path / "region.mmap"
    path.write_bytes(RICH)
    region = MmapRegion.from_file(1, path)
    assert region.read_array("L01-00").tolist() == list(range(6))
    with path.open("r+b") as file:  # as nobody may: in place
        file.seek(naive.field_offset(RICH, 0, "content_end"))
        file.write(struct.pack("<Q", naive.get_row_field(RICH, 0, "content_end") - 8))
    with pytest.raises(OutOfBounds, match="its 40 bytes are no array of 48"):
        region.read_array("L01-00")


def test_only_the_extension_makes_arrays():
    raw = set_field(RICH, "generation", 7)  # so that no checksum holds
    region = load(raw)
    assert region.generation == 0
    with pytest.raises(TypeError, match="is no array"):
        region.read_array("L01-05")
