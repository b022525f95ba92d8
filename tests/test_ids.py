"""`DimensionId` and `LayerId`: ranges, the written form, and being integers in every respect."""

from __future__ import annotations

import copy
import json
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jessymem import DimensionId, LayerId, MmapManager, MmapRegion, NavigationPath, RegionBuilder
from jessymem.ids import as_dimension_id, as_layer_id

dimension_numbers = st.integers(1, 65_535)
layer_numbers = st.integers(0, 65_535)

# -- the written form ------------------------------------------------------------------------------

DIMENSIONS = [
    (1, "D01"),
    (9, "D09"),
    (14, "D14"),
    (100, "D100"),
    (32_768, "D32768"),
    (65_535, "D65535"),
]
LAYERS = [
    (1, 0, "L01-00"),
    (1, 5, "L01-05"),
    (14, 99, "L14-99"),
    (15, 100, "L15-100"),
    (300, 65_535, "L300-65535"),
    (65_535, 65_535, "L65535-65535"),
]


@pytest.mark.parametrize(("number", "text"), DIMENSIONS)
def test_dimensions_print_and_parse(number, text):
    dimension = DimensionId(number)
    assert (str(dimension), repr(dimension), f"{dimension}", f"{dimension!r}") == (text,) * 4
    assert DimensionId.parse(text) == dimension
    assert dimension.number == number
    assert type(dimension.number) is int


@pytest.mark.parametrize(("dimension", "layer", "text"), LAYERS)
def test_layers_print_and_parse(dimension, layer, text):
    layer_id = LayerId(dimension, layer)
    assert (str(layer_id), repr(layer_id), f"{layer_id}", f"{layer_id!r}") == (text,) * 4
    assert LayerId.parse(text) == layer_id
    assert (layer_id.dimension, layer_id.layer) == (dimension, layer)
    assert type(layer_id.dimension) is DimensionId
    assert type(layer_id.layer) is int


@pytest.mark.parametrize("text", ["D07", "d07", "D7", "D007", "d000000007"])
def test_case_and_leading_zeros_do_not_matter_to_dimensions(text):
    assert DimensionId.parse(text) == 7
    assert str(DimensionId.parse(text)) == "D07"


@pytest.mark.parametrize("text", ["L07-05", "l07-05", "L7-5", "L007-0005", "l000000007-000000005"])
def test_case_and_leading_zeros_do_not_matter_to_layers(text):
    assert LayerId.parse(text) == LayerId(7, 5)
    assert str(LayerId.parse(text)) == "L07-05"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "D",
        "7",
        "E07",
        "DD07",
        "D-7",
        "D+7",
        "D7.0",
        "D0x7",
        "D1_0",
        "D07-01",
        "L07-01",
        " D07",
        "D07 ",
        "D07\n",
        "D 7",
        "D\u0667",  # Arabic-Indic
        "D\uff17",  # full width
        "D\u00b2",  # superscript
        "D" + "9" * 5_000,
        "D0",
        "D00",
        "D65536",
    ],
)
def test_what_is_no_dimension_is_refused(text):
    with pytest.raises(ValueError, match="dimension"):
        DimensionId.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "L",
        "L01",
        "L01-",
        "L-05",
        "L01-05-",
        "L01-05-06",
        "L01_05",
        "L01\u201305",  # en dash
        "L01--5",
        "01-05",
        "D01-05",
        "D01",
        " L01-05",
        "L01-05\n",
        "L01-0\u0665",
        "L\uff11-05",
        "L1-" + "9" * 5_000,
        "L00-00",
        "L65536-00",
        "L01-65536",
    ],
)
def test_what_is_no_layer_is_refused(text):
    with pytest.raises(ValueError, match=r"layer|dimension number"):
        LayerId.parse(text)


@pytest.mark.parametrize("parse", [DimensionId.parse, LayerId.parse])
@pytest.mark.parametrize("wrong", [7, 7.0, None, True, b"D07", DimensionId(7)])
def test_only_strings_are_parsed(parse, wrong):
    with pytest.raises(TypeError, match=type(wrong).__name__):
        parse(wrong)


def test_format_pads_the_printed_form():
    assert f"[{DimensionId(7):>6}]" == "[   D07]"
    assert f"[{LayerId(7, 5):<8}]" == "[L07-05  ]"
    assert f"{DimensionId(7):.1}" == "D"
    for value in (DimensionId(7), LayerId(7, 5)):
        with pytest.raises(ValueError, match="format code"):
            format(value, "d")


@given(dimension_numbers, layer_numbers)
def test_what_is_printed_parses_back(dimension, layer):
    assert DimensionId.parse(str(DimensionId(dimension))) == dimension
    assert LayerId.parse(str(LayerId(dimension, layer))) == LayerId(dimension, layer)


# -- ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1, 65_536, 2**64])
def test_dimension_numbers_have_a_range(number):
    with pytest.raises(ValueError, match=f"1 to 65535, not {number}"):
        DimensionId(number)
    with pytest.raises(ValueError, match=f"1 to 65535, not {number}"):
        LayerId(number, 0)


@pytest.mark.parametrize("number", [-1, 65_536, 2**64])
def test_layer_numbers_have_a_range(number):
    with pytest.raises(ValueError, match=f"0 to 65535, not {number}"):
        LayerId(1, number)


@pytest.mark.parametrize("wrong", [True, False, 1.0, None, b"1", [1], np.float64(1), np.True_])
def test_numbers_are_integers(wrong):
    for make in (DimensionId, lambda value: LayerId(1, value), LayerId.from_packed):
        with pytest.raises(TypeError, match=f"integer, not {type(wrong).__name__}"):
            make(wrong)


def test_text_is_parsed():
    assert DimensionId("d015") == DimensionId(15)
    assert LayerId("L15-00") == LayerId(15, 0) == LayerId(LayerId(15, 0))
    assert type(LayerId("l1-5")) is LayerId
    for text in ("15", "L15", "", "D0", "D65536", "D18/bash"):
        with pytest.raises(ValueError, match="dimension"):
            DimensionId(text)
    for text in ("15-0", "D15", "", "L0-0", "L15-65536", "L15-00 ", "bash/README"):
        with pytest.raises(ValueError, match=r"layer|dimension"):
            LayerId(text)


def test_a_layer_number_is_no_text_and_not_left_out():
    for arguments in [(1, "1"), ("D01", "0"), (7,), (7, None), (DimensionId(7),)]:
        with pytest.raises(TypeError, match="a layer number is an integer"):
            LayerId(*arguments)


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.int32, DimensionId])
def test_anything_with_an_index_is_an_integer(kind):
    assert DimensionId(kind(7)) == 7
    assert LayerId(kind(7), kind(5)) == LayerId(7, 5)
    assert as_layer_id(np.int64(LayerId(7, 5))) == LayerId(7, 5)


# -- integers in every respect ---------------------------------------------------------------------


@given(dimension_numbers, layer_numbers)
def test_layers_pack(dimension, layer):
    layer_id = LayerId(dimension, layer)
    packed = int(layer_id)
    assert type(packed) is int
    assert packed == dimension << 16 | layer
    assert LayerId.from_packed(packed) == layer_id
    assert np.array([layer_id], np.int64)[0] == packed


@pytest.mark.parametrize("packed", [0, 65_535, -1, 1 << 32, 2**64])
def test_not_every_number_is_a_packed_layer(packed):
    with pytest.raises(ValueError, match="dimension number"):
        LayerId.from_packed(packed)


@given(st.lists(st.tuples(dimension_numbers, layer_numbers), max_size=8))
def test_layers_order_by_dimension_then_layer(pairs):
    assert [(x.dimension, x.layer) for x in sorted(LayerId(*pair) for pair in pairs)] == sorted(
        pairs
    )


def test_many_layers_of_one_dimension():
    made = LayerId.in_order(DimensionId(7), [0, 5, 65_535])
    assert made == [LayerId(7, 0), LayerId(7, 5), LayerId(7, 65_535)]
    assert {type(layer) for layer in made} == {LayerId}


def test_they_equal_and_hash_as_their_numbers():
    assert DimensionId(7) == 7
    assert DimensionId(7) != DimensionId(8)
    assert {7: "found"}[DimensionId(7)] == "found"
    assert {DimensionId(7): "found"}[7] == "found"
    assert LayerId("D07", 5) == 7 << 16 | 5
    assert hash(LayerId(7, 5)) == hash(7 << 16 | 5)
    assert DimensionId(7) != "D07"
    assert len({DimensionId(7), DimensionId.parse("d7"), 7}) == 1


def test_they_order_against_numbers():
    assert sorted([DimensionId(300), 7, DimensionId(20)]) == [7, 20, 300]
    assert DimensionId(7) < 8 <= DimensionId(8)
    assert LayerId(1, 65_535) < LayerId(2, 0)


def test_they_index():
    assert operator.index(DimensionId(2)) == 2
    assert "abc"[DimensionId(2)] == "c"
    assert json.dumps([DimensionId(2), LayerId(1, 1)]) == "[2, 65537]"


def test_they_hold_nothing_else():
    for value in (DimensionId(7), LayerId(7, 5)):
        with pytest.raises(AttributeError):
            value.note = "x"


@pytest.mark.parametrize("value", [DimensionId(1), DimensionId(65_535), LayerId(300, 65_535)])
@pytest.mark.parametrize(
    "through",
    [
        *(
            lambda value, n=n: pickle.loads(pickle.dumps(value, n))
            for n in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_they_pickle_and_copy(value, through):
    again = through(value)
    assert again == value
    assert type(again) is type(value)
    assert str(again) == str(value)


# -- what every call takes -------------------------------------------------------------------------

D20 = [DimensionId(20), 20, np.int64(20), "D20", "d020"]
L20 = [LayerId(20, 5), 20 << 16 | 5, np.int64(20 << 16 | 5), "L20-05", "l20-5"]

DIMENSION_CALLS = {
    "is_loaded": lambda manager, value: manager.is_loaded(value),
    "refresh": lambda manager, value: manager.refresh(value) is False,
    "list_layers": lambda manager, value: len(manager.list_layers(value)) == 4,
    "select": lambda manager, value: len(manager.select(dimensions=[value])) == 4,
    "unload": lambda manager, value: manager.unload_dimension(value) is None,
    "load": lambda manager, value: (
        manager.unload_dimension(20) or manager.load_dimension(value) == 3
    ),
    "from_file": lambda manager, value: (
        MmapRegion.from_file(value, manager.config.base_path / "D20" / "region.mmap").dimension_id
        == 20
    ),
    "builder": lambda manager, value: RegionBuilder(value, "x").dimension_id == 20,
    "layer id": lambda manager, value: LayerId(value, 5) == 20 << 16 | 5,
    "as_dimension_id": lambda manager, value: type(as_dimension_id(value)) is DimensionId,
}
LAYER_CALLS = {
    "access": lambda manager, value: bytes(manager.access_layer(value)) == b"\x05" * 6,
    "context": lambda manager, value: manager.load_layer_context(value).layer_id == L20[0],
    "contexts": lambda manager, value: manager.load_contexts([value])[0].layer_id == L20[0],
    "info": lambda manager, value: manager.get_layer_info(value).size == 6,
    "path": lambda manager, value: NavigationPath([value]).layer_sequence == (L20[0],),
    "parent": lambda manager, value: (
        RegionBuilder("D01", "x").add_layer(0, b"", parent=value) == (1 << 16)
    ),
    "region": lambda manager, value: (
        MmapRegion.from_file(20, manager.config.base_path / "D20" / "region.mmap")
        .get_layer_info(value)
        .layer_id
        == L20[0]
    ),
    "as_layer_id": lambda manager, value: type(as_layer_id(value)) is LayerId,
}


@pytest.mark.parametrize("value", D20, ids=repr)
@pytest.mark.parametrize("call", DIMENSION_CALLS.values(), ids=DIMENSION_CALLS)
def test_calls_take_a_dimension_as_id_number_and_string(manager, call, value):
    assert call(manager, value)


@pytest.mark.parametrize("value", L20, ids=repr)
@pytest.mark.parametrize("call", LAYER_CALLS.values(), ids=LAYER_CALLS)
def test_calls_take_a_layer_as_id_number_and_string(manager, call, value):
    assert call(manager, value)


def test_membership_takes_them_all(manager):
    assert all(value in manager for value in L20)
    assert DimensionId(20) in manager
    assert "D20" in manager
    for absent in ("L20-06", LayerId(21, 0), "D21", DimensionId(21), "", "rubbish", None, 20.0):
        assert absent not in manager


@pytest.mark.parametrize("wrong", [True, 20.0, None, b"D20", ("D20",)], ids=repr)
def test_calls_refuse_what_is_no_dimension(manager, wrong):
    for name, call in DIMENSION_CALLS.items():
        if name == "list_layers" and wrong is None:  # there it means: of all dimensions
            continue
        with pytest.raises(TypeError, match=type(wrong).__name__):
            call(manager, wrong)
        if not manager.is_loaded(20):
            manager.load_dimension(20)


@pytest.mark.parametrize("wrong", [True, 1310725.0, None, b"L20-05", ("L20-05",)], ids=repr)
def test_calls_refuse_what_is_no_layer(manager, wrong):
    for name, call in LAYER_CALLS.items():
        if name == "parent" and wrong is None:  # there it means: no parent
            continue
        with pytest.raises(TypeError, match=type(wrong).__name__):
            call(manager, wrong)


@pytest.mark.parametrize("wrong", [0, 65_536, "D0", "L20-05", "twenty"])
def test_calls_refuse_numbers_that_are_no_dimension(store, wrong):
    with MmapManager(base_path=store) as manager:
        for call in (manager.load_dimension, manager.is_loaded, manager.unload_dimension):
            with pytest.raises(ValueError, match="dimension"):
                call(wrong)
