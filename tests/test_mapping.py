"""A manager as a read-only mapping: what holds of every `collections.abc.Mapping`."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import pytest
from support.internals import evict, mapping_of
from support.regions import build_region, region_file

from jessymem import (
    AmbiguousName,
    DimensionId,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
)


@pytest.fixture
def manager(tmp_path):
    builder = RegionBuilder("D18", "shell")
    builder.add_layer(0, b"read me", name="bash/README")
    builder.add_layer(3, b"zsh", name="twice")
    builder.add_layer(9, b"zsh again", name="twice")
    builder.build_to_file(region_file(tmp_path, "D18"))
    build_region(tmp_path, "D20", b"twenty", layers=3)
    with MmapManager(MemoryConfig(64, tmp_path, simulation="never")) as made:
        made.load_all()
        made.create_proto_dimension(21, b"learned", name="new")
        yield made


CONTENTS = {
    "L18-00": b"read me",
    "L18-03": b"zsh",
    "L18-09": b"zsh again",
    "L20-00": b"twenty",
    "L20-01": b"twenty",
    "L20-02": b"twenty",
    "L21-00": b"learned",
}


def test_it_is_a_mapping_and_reads_as_one(manager):
    assert isinstance(manager, Mapping) and not isinstance(manager, MutableMapping)
    expected = {LayerId(key): value for key, value in CONTENTS.items()}
    assert list(manager) == list(manager.keys()) == list(expected) == manager.list_layers()
    assert {type(key) for key in manager} == {LayerId}
    assert len(manager) == len(manager.keys()) == len(manager.items()) == len(expected)
    assert [bytes(view) for view in manager.values()] == list(expected.values())
    assert {key: bytes(view) for key, view in manager.items()} == expected
    assert {key: bytes(view) for key, view in dict(manager).items()} == expected
    assert manager.keys() & {LayerId("L18-00"), LayerId("L77-00")} == {LayerId("L18-00")}
    match manager:
        case {"L18-00": view}:
            assert view == b"read me"
        case _:
            pytest.fail("no mapping")


def test_keys_in_every_form(manager):
    for key in ("L18-00", "l18-0", LayerId(18, 0), int(LayerId(18, 0)), "bash/README"):
        assert manager[key] == b"read me" and key in manager and manager.get(key) == b"read me"
    for key in ("D18/bash/README", "shell/bash/README"):
        assert manager[key].readonly and key in manager
    assert manager["D21/new"] == b"learned"


@pytest.mark.parametrize(
    "key", ["L18-01", "L19-00", "L18-70000", "L0-0", 5, -1, 2**70, "nothing", "D18/new", "", "D18"]
)
def test_what_is_not_there(manager, key):
    with pytest.raises(LayerNotFound) as caught:
        manager[key]
    assert isinstance(caught.value, KeyError)
    assert manager.get(key) is None
    assert manager.get(key, 7) == 7
    assert key not in manager or key == "D18"  # which is loaded, and no layer
    assert key not in manager.keys() or key == "D18"


def test_a_name_of_two_layers(manager):
    with pytest.raises(AmbiguousName) as caught:
        manager["twice"]
    assert caught.value.layers == (LayerId("L18-03"), LayerId("L18-09"))
    assert "twice" not in manager
    assert manager.get("D18/twice", "default") == "default"


@pytest.mark.parametrize("key", [None, 1.5, b"L18-00", ("L18", 0), [0]])
def test_what_is_no_key(manager, key):
    with pytest.raises(TypeError):
        manager[key]
    with pytest.raises(TypeError):
        manager.get(key)
    assert key not in manager


def test_dimensions_are_asked_for_as_before(manager):
    assert "D18" in manager and "d018" in manager and DimensionId(20) in manager
    assert "D19" not in manager and "D70000" not in manager and DimensionId(19) not in manager


def test_it_is_true_and_itself_alone(manager, tmp_path):
    with MmapManager(base_path=tmp_path / "none") as empty, MmapManager(base_path=tmp_path) as one:
        assert empty and len(empty) == 0 and list(empty) == [] and list(empty.items()) == []
        assert empty != one and empty == empty and len({empty, one, manager}) == 3
        assert empty != {}


def test_what_is_evicted_meanwhile_is_read_all_the_same(manager):
    found = {}
    for key, view in manager.items():
        found[str(key)] = bytes(view)
        del view
        for dimension in (18, 20):
            if mapping_of_is_there(manager, dimension):
                evict(manager, dimension)
    assert found == CONTENTS
    assert manager.get_stats().reloads >= 4


def mapping_of_is_there(manager: MmapManager, dimension: int) -> bool:
    try:
        return mapping_of(manager, dimension)() is not None
    except AttributeError:
        return False


def test_iterating_slowly_keeps_nothing(manager):
    state = mapping_of(manager, "D18")
    keys = iter(manager)
    assert next(keys) == LayerId("L18-00")
    manager.unload_dimension("D18")
    assert state() is None
    assert len(list(keys)) == 6  # those of the state that was there
    items = iter(manager.items())
    assert next(items)[0] == LayerId("L20-00")
    manager.unload_dimension("D20")
    with pytest.raises(LayerNotFound):
        list(items)


def test_a_closed_manager(manager):
    manager.close()
    for ask in (lambda: manager["L18-00"], lambda: manager["new"], lambda: manager.get("new")):
        with pytest.raises(InvalidAccess, match="closed"):
            ask()
    with pytest.raises(InvalidAccess, match="closed"):
        list(manager)
    with pytest.raises(InvalidAccess, match="closed"):
        manager[5]
    assert manager and "L18-00" not in manager and "new" not in manager and len(manager) == 0
