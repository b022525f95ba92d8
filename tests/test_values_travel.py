"""Values travel: what a manager returns can be pickled, copied and made a dictionary."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re

import numpy as np
import pytest

from jessymem import (
    ContextCollection,
    DimensionId,
    LayerId,
    LoadedContext,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    NavigationPath,
    PoolAllocator,
    PoolConfig,
    RegionBuilder,
    RegionNotFound,
)

CONTENT = b"layer 1 of emotion\n" * 2

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

#: How one becomes another.
WAYS = {
    **{f"pickle {n}": lambda it, n=n: pickle.loads(pickle.dumps(it, n)) for n in PROTOCOLS},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
ways = pytest.mark.parametrize("way", WAYS)


def values_of(manager):
    """Every kind of value that a manager has to give."""
    info = manager.get_layer_info("L01-01")
    hits = manager.find(b"emotion")
    return [
        manager.load_layer_context("L01-01"),
        manager.load_contexts(["L01-01", "L20-05", "L01-01"]),
        info,
        dataclasses.replace(info, dtype=np.dtype([("x", "<f4")]), shape=(2, 3)),
        manager.load_all(),
        manager.get_stats(),
        hits,
        hits[0],
        NavigationPath(["L01-01", "L20-05"], 1.0, 0.5),
        DimensionId(7),
        LayerId(7, 9),
        manager.config,
        PoolConfig(1, 64),
        manager.load_layer_context("L01-00"),
        manager.load_contexts([]),
        manager.dump_state(),
    ]


@ways
def test_what_a_manager_returns_travels(way, manager):
    for value in values_of(manager):
        arrived = WAYS[way](value)
        assert type(arrived) is type(value)
        assert arrived == value
        assert re.sub("0x[0-9a-f]+", "", repr(arrived)) == re.sub("0x[0-9a-f]+", "", repr(value))


def test_what_is_a_dataclass_becomes_a_dictionary(manager):
    for value in values_of(manager):
        if dataclasses.is_dataclass(value):
            found = dataclasses.asdict(value)
            assert list(found) == [field.name for field in dataclasses.fields(value)]
            json.dumps(found, default=str)


def assert_is_content(view, content):
    assert type(view) is memoryview
    assert (bytes(view), view.readonly, view.format, view.ndim) == (content, True, "B", 1)


@ways
def test_content_arrives_as_a_view_that_is_read_only(way, manager):
    context = manager.load_layer_context("L01-01")
    arrived = WAYS[way](context)
    assert_is_content(arrived.content, CONTENT)
    assert arrived.text == CONTENT.decode()
    (again,) = pickle.loads(pickle.dumps(ContextCollection([arrived])))
    assert_is_content(again.content, CONTENT)


def test_a_dictionary_has_the_content_as_bytes(manager):
    context = manager.load_layer_context("L01-01")
    found = dataclasses.asdict(context)
    assert type(found["content"]) is bytes
    assert found == {
        "layer_id": LayerId(1, 1),
        "content": CONTENT,
        "frequency": 1.5,
        "keywords": ("joy", "word1"),
        "name": "part 1",
        "dimension_name": "Emotion",
        "depth": 1,
        "parent": LayerId(1, 0),
        "encoding": "text",
    }
    assert LoadedContext(**found) == context
    assert dataclasses.asdict(pickle.loads(pickle.dumps(context))) == found
    assert dataclasses.asdict(ContextCollection([context])) == {"contexts": (found,)}


def test_what_has_travelled_holds_no_region(store):
    with MmapManager(MemoryConfig(base_path=store)) as manager:
        manager.load_dimension("D01")
        travelled = copy.deepcopy(manager.load_layer_context("L01-01"))
        manager.unload_dimension("D01")
        assert manager.get_stats().waiting_bytes == 0
        assert bytes(travelled.content) == CONTENT


@pytest.mark.parametrize("load_mode", ["map", "copy"])
def test_contents_of_every_origin_travel(load_mode, tmp_path):
    builder = RegionBuilder("D20", "Origins")
    builder.add_layer(0, b"of a file")
    builder.add_layer(1, b"")
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    config = MemoryConfig(base_path=tmp_path, load_mode=load_mode)
    with MmapManager(config) as manager:
        manager.load_all()
        manager.load_core_dimensions()
        manager.overlay_layer("L20-01", b"laid over")
        manager.create_proto_dimension("D21", b"learned")
        for layer in manager.list_layers():
            context = manager.load_layer_context(layer)
            content = bytes(context.content)
            assert dataclasses.asdict(context)["content"] == content
            assert_is_content(copy.deepcopy(context).content, content)


@pytest.mark.parametrize(
    "given",
    [
        b"given",
        bytearray(b"given"),
        np.frombuffer(b"given", "u1"),
        memoryview(b"gxixvxexn")[::2],
        memoryview(b"given").cast("c"),
    ],
    ids=["bytes", "bytearray", "array", "every other byte", "characters"],
)
def test_a_context_that_somebody_made_travels(given):
    for content in (memoryview(given), memoryview(given).toreadonly()):
        context = LoadedContext(LayerId(1, 0), content, 1.0, (), "", "")
        assert_is_content(context.content, b"given")
        assert_is_content(pickle.loads(pickle.dumps(context)).content, b"given")
        assert dataclasses.asdict(context)["content"] == b"given"
        assert dataclasses.replace(context, depth=1).content == b"given"


def test_a_context_of_nothing_travels():
    context = LoadedContext(LayerId(1, 0), memoryview(b""), 1.0, (), "", "")
    assert_is_content(copy.deepcopy(context).content, b"")


def test_other_peoples_views_travel_no_more_than_before():
    read_only = np.frombuffer(b"theirs", np.uint8)
    for theirs in (b"theirs", bytearray(b"theirs"), read_only, read_only.copy()):
        for travel in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot pickle"):
                travel(memoryview(theirs))


def test_a_region_travels_as_path_and_edition(tmp_path):
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, b"content" * 1_000)
    in_memory = builder.build_to_memory()
    region = builder.build_to_file(tmp_path / "region.mmap")
    for mode in ("map", "copy"):
        mine = MmapRegion.from_file("D20", region.path, load_mode=mode)
        mine.read_content(0, 5)
        raw = pickle.dumps(mine)
        assert len(raw) < 500
        again = pickle.loads(raw)
        assert again is not mine and again.state == mine.state
        assert again.read_content(0, again.size) == mine.read_content(0, mine.size)
        assert not again.data.flags.writeable
        with pytest.raises(ValueError):
            again.data.flags.writeable = True
        assert copy.copy(mine) is mine and copy.deepcopy(mine) is mine
    builder.build_to_file(tmp_path / "region.mmap")
    with pytest.raises(RegionNotFound, match="generation 1"):
        pickle.loads(raw)
    with pytest.raises(TypeError, match="never a file"):
        pickle.dumps(in_memory)
    assert copy.deepcopy(in_memory) is in_memory


def test_a_pool_does_not_travel():
    allocator = PoolAllocator([(1, 4096)], limit_mb=8)
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            take(allocator.pools[0])
