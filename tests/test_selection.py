"""`select`: any keyword, ranges with both ends, in the order of the ids; against a naive model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jessymem import LayerId, MmapManager, RegionBuilder
from jessymem.selection import Query

# -- against a naive model -------------------------------------------------------------------------

# NFC and NFD of the same word are different keywords.
WORDS = ["joy", "Joy", "", "a b", "\u7406\u89e3", "\u05d0\u05d4\u05d1\u05d4", "\u00e9", "e\u0301"]

words = st.sampled_from(WORDS)
frequencies = st.sampled_from([-1.5, 0.0, 0.1, 1.0, 3.0]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)
layers = st.dictionaries(
    st.integers(0, 65_535),
    st.fixed_dictionaries(
        {
            "depth": st.integers(0, 255),
            "frequency": frequencies.map(np.float32).map(float),
            "keywords": st.lists(words, max_size=3),
        }
    ),
    max_size=8,
)


def ranges(bounds):
    return st.none() | st.tuples(bounds, bounds).map(sorted).map(tuple)


queries = st.fixed_dictionaries(
    {
        "keywords": st.none() | st.lists(words | st.just("absent"), max_size=3),
        "depth": ranges(st.integers(-5, 300) | st.floats(-5, 300)),
        "frequency": ranges(st.integers(-3, 3) | st.floats(width=32, allow_nan=False)),
        "dimensions": st.none()
        | st.sampled_from([7, "D07", 8, np.uint16(7)])
        | st.lists(st.sampled_from([7, "D07", 8, "D300"]), max_size=2),
    }
)


def naive_select(dimension, layers, keywords, depth, frequency, dimensions):
    """The same by a loop over dictionaries."""
    dimensions = dimensions if isinstance(dimensions, list | None) else [dimensions]
    if dimensions is not None and not {dimension, f"D{dimension:02d}"} & set(dimensions):
        return []
    return [
        (dimension, number)
        for number, layer in sorted(layers.items())
        if keywords is None or any(word in layer["keywords"] for word in keywords)
        if depth is None or depth[0] <= layer["depth"] <= depth[1]
        if frequency is None or frequency[0] <= layer["frequency"] <= frequency[1]
    ]


@given(layers, queries)
def test_select_agrees_with_the_naive_model(layers, query):
    builder = RegionBuilder(7, "any")
    for number, layer in layers.items():
        builder.add_layer(number, b"", **layer)
    chosen = Query.of(**query).layers_of(builder.build_to_memory())
    assert [(x.dimension, x.layer) for x in chosen] == naive_select(7, layers, **query)
    assert {type(layer) for layer in chosen} <= {LayerId}


# -- through a manager -----------------------------------------------------------------------------


def texts(layers):
    return [str(layer) for layer in layers]


SELECTED = [
    ({}, "L01-00 L01-01 L01-02 L01-03 L20-00 L20-05 L20-300 L20-65535"),
    ({"keywords": ["joy"]}, "L01-00 L01-01 L01-02 L01-03"),
    ({"keywords": ["word2", "word0", "absent"]}, "L01-00 L01-02"),
    ({"keywords": ("word1",)}, "L01-01"),
    ({"keywords": {"word1": 1}}, "L01-01"),
    ({"keywords": iter(["word3"])}, "L01-03"),
    ({"keywords": ["JOY"]}, ""),
    ({"keywords": ["jo"]}, ""),
    ({"keywords": [""]}, ""),
    ({"keywords": []}, ""),
    ({"depth": (1, 2)}, "L01-01 L01-02"),
    ({"depth": (0, 0)}, "L01-00 L20-00 L20-05 L20-300 L20-65535"),
    ({"depth": (0.5, 1.5)}, "L01-01"),
    ({"depth": (-10, 1_000)}, "L01-00 L01-01 L01-02 L01-03 L20-00 L20-05 L20-300 L20-65535"),
    ({"depth": (256, 10**30)}, ""),
    ({"depth": [3, 3]}, "L01-03"),
    ({"depth": (np.int64(2), np.float32(2.5))}, "L01-02"),
    ({"frequency": (1.5, 2.0)}, "L01-01 L01-02"),
    ({"frequency": (2, float("inf"))}, "L01-02 L01-03"),
    ({"frequency": (float("-inf"), 0)}, ""),
    ({"dimensions": ["D20"]}, "L20-00 L20-05 L20-300 L20-65535"),
    ({"dimensions": [1, "D01", 44]}, "L01-00 L01-01 L01-02 L01-03"),
    ({"dimensions": {20: 1, 1: 1}, "depth": (3, 9)}, "L01-03"),
    ({"dimensions": []}, ""),
    ({"dimensions": ["D44"]}, ""),
    (
        {"keywords": ["joy"], "depth": (0, 2), "frequency": (1.5, 9), "dimensions": [1]},
        "L01-01 L01-02",
    ),
    ({"keywords": ["joy"], "dimensions": ["D20"]}, ""),
]


@pytest.mark.parametrize(("conditions", "expected"), SELECTED)
def test_select(manager, conditions, expected):
    assert texts(manager.select(**conditions)) == expected.split()


def test_conditions_may_be_positional(manager):
    assert texts(manager.select(["joy"], (1, 3), (0, 2), ["D01"])) == ["L01-01", "L01-02"]


@pytest.mark.parametrize("word", [*WORDS, "\U0001f600", "x" * 10_000, "a\0b", "two\nlines"])
def test_keywords_in_every_script_are_compared_exactly(tmp_path, word):
    builder = RegionBuilder("D15", "words")
    builder.add_layer(0, b"", keywords=["other", word])
    builder.add_layer(1, b"", keywords=["other"])
    builder.build_to_file(tmp_path / "D15" / "region.mmap")
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D15")
        assert texts(manager.select(keywords=[word])) == ["L15-00"]
        assert manager.select(keywords=[word + "\u0301"]) == []
        assert texts(manager.select(keywords=["other", word])) == ["L15-00", "L15-01"]


def test_a_keyword_given_twice_names_its_layer_once():
    builder = RegionBuilder("D15", "words")
    builder.add_layer(0, b"", keywords=["joy", "joy"])
    chosen = Query.of(["joy", "joy"], None, None, None).layers_of(builder.build_to_memory())
    assert texts(chosen) == ["L15-00"]


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-40, 16_777_217.0])
def test_a_frequency_is_found_by_the_value_it_was_given(tmp_path, value):
    """It is stored as a 32-bit float, and bounds are compared as such."""
    builder = RegionBuilder("D15", "one")
    builder.add_layer(0, b"", frequency=value)
    builder.build_to_file(tmp_path / "D15" / "region.mmap")
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D15")
        assert texts(manager.select(frequency=(value, value))) == ["L15-00"]
        stored = manager.get_layer_info("L15-00").frequency
        assert texts(manager.select(frequency=(stored, stored))) == ["L15-00"]


def test_bounds_mean_the_same_as_numpy_numbers():
    builder = RegionBuilder("D15", "one")
    builder.add_layer(0, b"", frequency=0.1)
    region = builder.build_to_memory()
    for bound in (0.1, np.float32(0.1), np.float64(0.1)):
        assert texts(Query.of(None, None, (bound, bound), None).layers_of(region)) == ["L15-00"]


@pytest.mark.parametrize("bound", [1e39, 1e308, 10**40, 10**400])
def test_bounds_may_lie_beyond_every_frequency(manager, bound):
    assert len(manager.select(frequency=(-bound, bound))) == len(manager)
    assert manager.select(frequency=(bound, bound)) == []


# -- what is loaded now ----------------------------------------------------------------------------


def test_only_what_is_loaded_is_selected(manager):
    manager.unload_dimension("D01")
    assert manager.select(keywords=["joy"]) == []
    assert manager.select(dimensions=["D01"]) == []
    assert len(manager.select()) == 4
    manager.load_dimension("D01")
    assert len(manager.select(keywords=["joy"])) == 4
    manager.unload_dimension("D01")
    manager.unload_dimension("D20")
    assert manager.select() == []


def test_a_replaced_file_is_selected_by_its_new_keywords(manager, store):
    assert len(manager.select(keywords=["joy"])) == 4
    builder = RegionBuilder("D01", "Emotion")
    builder.add_layer(9, b"", keywords=["grief"])
    builder.build_to_file(store / "D01" / "region.mmap")
    assert manager.refresh("D01")
    assert manager.select(keywords=["joy"]) == []
    assert texts(manager.select(keywords=["grief"])) == ["L01-09"]


def test_simulated_layers_are_selected_too(tmp_path):
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_core_dimensions()
        assert texts(manager.select(["grief"], dimensions=[1])) == ["L01-01"]
        assert len(manager.select(depth=(3, 3))) == 14


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conditions",
    [
        {"keywords": "joy"},
        {"keywords": b"joy"},
        {"keywords": 5},
        {"keywords": [b"joy"]},
        {"keywords": ["joy", None]},
        {"depth": 1},
        {"depth": "12"},
        {"depth": (1,)},
        {"depth": (1, 2, 3)},
        {"depth": (None, 2)},
        {"depth": ("1", "2")},
        {"depth": (True, 2)},
        {"depth": {1, 2}},
        {"depth": range(2)},
        {"frequency": 1.0},
        {"frequency": (1.0, None)},
        {"frequency": (1j, 2j)},
        {"dimensions": 1.0},
        {"dimensions": b"D01"},
        {"dimensions": [None]},
        {"dimensions": [1.0]},
        {"dimensions": [True]},
    ],
    ids=repr,
)
def test_what_is_no_condition_is_a_type_error(manager, conditions):
    (name,) = conditions
    with pytest.raises(TypeError, match=name.removesuffix("s")):
        manager.select(**conditions)


@pytest.mark.parametrize(
    "conditions",
    [
        {"depth": (2, 1)},
        {"depth": (float("nan"), 1)},
        {"depth": (1, float("nan"))},
        {"frequency": (0.2, 0.1)},
        {"frequency": (float("nan"), float("nan"))},
        {"frequency": (float("inf"), float("-inf"))},
        {"dimensions": [0]},
        {"dimensions": ["L01-00"]},
        {"dimensions": [65_536]},
    ],
    ids=repr,
)
def test_what_makes_no_sense_is_a_value_error(manager, conditions):
    with pytest.raises(ValueError, match=r"depth|frequency|dimension"):
        manager.select(**conditions)


def test_complex_bounds_are_refused(manager):
    with pytest.raises(TypeError, match="depth"):
        manager.select(depth=(np.complex128(1), np.complex128(2)))
