"""Children of a layer: found among all that is loaded, by asking few."""

from __future__ import annotations

import random

from support.calls import trace
from support.internals import evict, snapshot_of
from support.regions import region_file

from jessymem import DimensionId, LayerId, MemoryConfig, MmapManager, RegionBuilder


def build(base, number, parents):
    """Write a dimension with a layer for each of `parents`, and one without."""
    builder = RegionBuilder(number, "family")
    for layer, parent in enumerate([None, *parents]):
        builder.add_layer(layer, b"content", parent=parent)
    builder.build_to_file(region_file(base, str(DimensionId(number))))


def load_all(base):
    manager = MmapManager(MemoryConfig(64, base, simulation="never"))
    manager.load_all()
    return manager


def asked_by_all(manager, parent):
    """Return a layer's children as each dimension in turn tells them."""
    return tuple(
        child for loaded in snapshot_of(manager).loaded for child in loaded.children_of(parent)
    )


def test_the_way_is_as_long_with_many_dimensions_as_with_few(tmp_path):
    for number in range(20, 240):
        build(tmp_path, number, [f"L{number}-00"])
    build(tmp_path, 300, ["L20-00", "L21-01"])
    found = []
    for n_loaded in 10, 220:
        with MmapManager(MemoryConfig(64, tmp_path, simulation="never")) as manager:
            for number in (300, *range(20, 20 + n_loaded)):
                manager.load_dimension(number)
            assert manager.get_layer_info("L20-00").children == (LayerId(20, 1), LayerId(300, 1))
            found.append(trace(lambda manager=manager: manager.get_layer_info("L21-01")))
            assert manager.get_layer_info("L21-01").children == (LayerId(300, 2),)
            assert manager.get_layer_info("L300-00").children == ()
    assert found[0].calls == found[1].calls


def test_what_comes_later_is_looked_at_once(tmp_path):
    for number in range(20, 60):
        build(tmp_path, number, [])
    build(tmp_path, 300, ["L20-00"])
    with load_all(tmp_path) as manager:
        manager.unload_dimension(300)
        calls = []
        for _ in range(3):
            calls.append(trace(lambda: manager.get_layer_info("L20-00")).n_calls)
        assert calls[0] >= calls[1] + 40
        assert calls[1] == calls[2]
        manager.load_dimension(300)
        assert manager.get_layer_info("L20-00").children == (LayerId(300, 1),)
        manager.unload_dimension(300)
        assert manager.get_layer_info("L20-00").children == ()
        manager.load_dimension(300)
        assert manager.get_layer_info("L20-00").children == (LayerId(300, 1),)


def test_all_children_are_found_whatever_names_them(tmp_path):
    """Some name no parent, some a few, some more than are told apart, of few or many dimensions."""
    choose = random.Random(1)
    numbers = range(20, 60)
    for number in numbers:
        n_children, n_dimensions = choose.choice([(0, 1), (3, 2), (30, 3), (60, 30)])
        others = choose.sample(numbers, n_dimensions)
        layers = choose.choices(range(5), k=n_children)
        build(tmp_path, number, [LayerId(choose.choice(others), each) for each in layers])
    with load_all(tmp_path) as manager:
        for step in range(40):
            number = choose.choice(numbers)
            if not manager.is_loaded(number):
                manager.load_dimension(number)
            elif step % 4 == 0:
                manager.unload_dimension(number)
            elif step % 4 == 1 and snapshot_of(manager).path_of(number) is not None:
                evict(manager, number)
            else:
                parent = LayerId(choose.choice(numbers), choose.randrange(5))
                manager.create_proto_dimension(number, b"learned", parent=parent)
                manager.crystallize_dimension(number)
            for parent in (LayerId(choose.choice(numbers), layer) for layer in range(5)):
                if parent not in manager:
                    continue
                expected = asked_by_all(manager, parent)
                assert snapshot_of(manager).children_of(parent) == expected
                assert manager.get_layer_info(parent).children == expected


def test_nobody_asks_and_nothing_is_kept(tmp_path):
    build(tmp_path, 20, ["L21-00"])
    with load_all(tmp_path) as manager:
        for _ in range(3):
            manager.unload_dimension(20)
            assert manager.get_stats().total_allocated_bytes == 0
            manager.load_dimension(20)
