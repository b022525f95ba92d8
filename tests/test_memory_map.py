"""`MmapManager.memory_map`: a picture of what is in memory, as it is and within bounds."""

from __future__ import annotations

import os
import pickle
import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from support.pages import SVG, Page, elements_of, words_of
from support.regions import region_file
from support.stores import mixed_store

from jessymem import (
    ConfigError,
    DimensionId,
    MemoryConfig,
    MemoryMap,
    MmapManager,
    PoolAllocator,
    RegionBuilder,
    RegionIOError,
)
from jessymem.budget import class_of
from jessymem.notebooks.drawing import Drawing


def build(base, number, n_bytes, name=""):
    builder = RegionBuilder(number, name or f"dimension {number}")
    builder.add_layer(0, b"x" * n_bytes)
    path = region_file(base, f"D{number:02d}")
    builder.build_to_file(path)
    return path.stat().st_size


def picture_of(memory):
    """The picture, which must be XML, harmless, and named for those who do not see it."""
    picture = memory._repr_svg_()
    root, *rest = elements_of(picture)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    named = {
        each.get("id"): each.text for each in rest if each.tag in (f"{SVG}title", f"{SVG}desc")
    }
    assert all(named[each] for each in root.get("aria-labelledby").split())
    Page(memory._repr_html_()).check_harmless()
    return picture


# -- what is in it ---------------------------------------------------------------------------------


def test_it_holds_what_is_loaded_to_scale(tmp_path):
    sizes = {number: build(tmp_path, number, 40_000 * (number - 14)) for number in range(15, 19)}
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_all()
        memory = manager.memory_map()
        picture = picture_of(memory)
    assert {int(each.dimension_id): each.lengths for each in memory.dimensions} == {
        number: (n_bytes,) for number, n_bytes in sizes.items()
    }
    widths = [
        float(each.get("width"))
        for each in elements_of(picture)
        if each.get("class") == "jm-f-grown" and any("mapped" in (t.text or "") for t in each)
    ]
    scale = widths[-1] / sizes[18]
    assert widths == pytest.approx([n_bytes * scale for n_bytes in sizes.values()], abs=0.02)


def test_every_state_is_named_and_looks_different(tmp_path):
    build(tmp_path, 20, 900_000)
    build(tmp_path, 21, 900_000)
    config = MemoryConfig(
        2, tmp_path, pool_configs=[(1, 4096)], simulation="always", eviction_policy="lru"
    )
    with MmapManager(config) as manager:
        manager.load_core_dimensions()
        manager.load_dimension(20)
        manager.load_dimension(21)
        manager.create_proto_dimension(40, b"learned" * 100)
        memory = manager.memory_map()
    states = {int(each.dimension_id): each.state for each in memory.dimensions}
    assert states[20] == "evicted" and states[21] == "mapped"
    assert states[1] == "simulated" and states[40] == "learned"
    words = words_of(picture_of(memory))
    for word in ("evicted: 87", "mapped: 87", "simulated: ", "1 learned layers: 700 B"):
        assert word in words
    with MmapManager(MemoryConfig(4, tmp_path, load_mode="copy")) as manager:
        manager.load_dimension(20)
        assert "copied: 87" in words_of(picture_of(manager.memory_map()))


def test_deltas_are_parts_of_their_dimension(tmp_path):
    n_base = build(tmp_path, 20, 400_000)
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension(20)
        for _ in range(3):
            manager.create_proto_dimension(20, b"new" * 1_000)
            manager.crystallize_dimension(20)
        (dimension,) = manager.memory_map().dimensions
        assert len(dimension.lengths) == 4 and dimension.lengths[0] == n_base
        assert "3 deltas" in str(manager.memory_map())
        assert words_of(picture_of(manager.memory_map())).count("delta: ") == 3


def test_an_evicted_chain_still_has_the_lengths_of_its_files(tmp_path):
    build(tmp_path, 20, 1_200_000)
    build(tmp_path, 21, 1_200_000)
    config = MemoryConfig(2, tmp_path, pool_configs=[(1, 4096)], eviction_policy="lru")
    with MmapManager(config) as manager:
        manager.load_dimension(20)
        manager.create_proto_dimension(20, b"new" * 1_000)
        manager.crystallize_dimension(20)
        before = manager.memory_map().dimensions[0].lengths
        manager.load_dimension(21)
        evicted = manager.memory_map().dimensions[0]
        assert evicted.state == "evicted" and evicted.lengths == before and len(before) == 2


def test_learned_layers_are_counted_as_each_state_has_them(tmp_path):
    manager, _ = mixed_store(tmp_path)
    with manager:
        found = {int(each.dimension_id): each for each in manager.memory_map().dimensions}
        assert (found[18].n_learned, found[19].n_learned, found[15].n_learned) == (2, 2, 0)
        assert found[19].n_learned_bytes == 70_000
        state = manager._engine.snapshot.get(DimensionId(19))
        manager.create_proto_dimension(19, b"one more")
        assert state.n_learned == len(state.learned) == 2
        assert manager._engine.snapshot.get(DimensionId(19)).n_learned == 3


def test_waiting_thresholds_and_pins_are_shown(tmp_path):
    manager, _ = mixed_store(tmp_path, warning_threshold=0.5)
    with manager:
        manager.pin(15)
        view = manager.access_layer("L17-00")
        manager.unload_dimension(17)
        memory = manager.memory_map()
        words = words_of(picture_of(memory))
        assert "waiting for views: " in words and "50 %" in words and "95 %" in words
        assert "pinned" in words
        assert memory.stats == manager.get_stats()
        del view


def test_a_class_is_that_which_the_budget_charges(tmp_path):
    for number, name in ((3, "core_slots"), (15, "grown"), (32_767, "grown"), (32_768, "user")):
        build(tmp_path, number, 1_000)
        with MmapManager(64, base_path=tmp_path) as manager:
            manager.load_dimension(number)
            usage = manager.get_stats().per_class
        assert (
            [each for each in usage if usage[each].allocated_bytes] == [class_of(number)] == [name]
        )


def test_a_closed_manager_has_one_too(tmp_path):
    manager, _ = mixed_store(tmp_path)
    manager.close()
    memory = manager.memory_map()
    assert memory.is_closed and "closed" in str(memory)
    assert "closed" in words_of(picture_of(memory))


def test_it_holds_no_memory_of_the_manager(tmp_path):
    build(tmp_path, 20, 400_000)
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension(20)
        memory = manager.memory_map()
        manager.unload_dimension(20)
        assert manager.get_stats().total_allocated_bytes == 0
    again = pickle.loads(pickle.dumps(memory))
    assert again._repr_svg_() == memory._repr_svg_() and str(again) == str(memory)


# -- pools -----------------------------------------------------------------------------------------


def test_pieces_of_pools_are_counted_as_by_hand():
    allocator = PoolAllocator([(1, 4096), (2, 65_536)], limit_mb=16)
    rng = np.random.default_rng(5)
    held = [allocator.allocate(int(n)) for n in rng.integers(1, 200_000, 30)]
    views = [allocator.view(offset, 1) for offset in held[::7]]
    for offset in held[::3]:
        allocator.deallocate(offset)
    for n_pieces in (1, 7, 32, 1_000):
        for found in allocator.occupancies(n_pieces):
            used, waiting = by_hand(allocator, found.pool_id)
            pieces = min(n_pieces, len(used))
            edges = np.linspace(0, len(used), pieces + 1).astype(int)
            for at, (start, end) in enumerate(pairwise(edges)):
                assert found.used[at] == pytest.approx(sum(used[start:end]) / (end - start))
                assert found.waiting[at] == pytest.approx(sum(waiting[start:end]) / (end - start))
            runs = re.findall(
                "f+", "".join("u" if any(pair) else "f" for pair in zip(used, waiting, strict=True))
            )
            assert found.n_free_runs == len(runs)
            assert found.longest_free_run == max(map(len, runs), default=0)
    del views
    assert allocator.validate() == []


def by_hand(allocator, pool):
    """Go through a pool's blocks one by one; return which are used, and which wait."""
    used, waiting = [], []
    is_waiting = False
    for status in (allocator._table.blocks_of(pool)["status"] & 7).tolist():
        if status != 3:  # 3 goes on what the block before is
            is_waiting = status == 2
        used.append(status != 0 and not is_waiting)
        waiting.append(status != 0 and is_waiting)
    return used, waiting


def test_a_pool_with_one_used_block_shows_it(tmp_path):
    with MmapManager(MemoryConfig(64, tmp_path, pool_configs=[(16, 4096)])) as manager:
        offset = manager.allocate(100)
        memory = manager.memory_map()
        assert "1 of 4,096 blocks used" in words_of(picture_of(memory))
        assert str(memory).splitlines()[-1].count("#") == 1
        paths = [
            each.get("d") for each in elements_of(picture_of(memory)) if each.tag == f"{SVG}path"
        ]
        assert any(re.search(r"M\d.*Z", path) for path in paths)
        manager.deallocate(offset)


# -- bounds ----------------------------------------------------------------------------------------


def test_however_large_the_store_a_picture_has_so_many_elements(tmp_path):
    for number in range(15, 85):
        build(tmp_path, number, 100 * number)
    config = MemoryConfig(560, tmp_path, pool_configs=[(1, 64)] * 30 + [(64, 64)])
    with MmapManager(config) as manager:
        manager.load_all()
        held = manager.allocate_many([64] * 20_000)
        manager.deallocate_many(held[::2])
        for number in range(300):
            manager.create_proto_dimension(90, b"%d" % number)
        memory = manager.memory_map()
        picture = picture_of(memory)
        assert len(memory.dimensions) == 40 and memory.n_others == 31
        assert len(elements_of(picture)) < 800 and len(picture) < 150_000
        words = words_of(picture)
        assert "and 31 more" in words and "and 7 more" in words
        assert "and 31 more dimensions" in str(memory)
        manager.deallocate_many(held[1::2])


def test_steps_are_one_outline_for_what_lies_together():
    drawing = Drawing()
    path = drawing.steps(0, 0, 4, 10, [0, 0, 0, 0], [0.5, 1, 0, 0.25], "blocks")
    assert path.count("M") == path.count("Z") == 2
    assert path.startswith("M0.00,5.00 L1.00,5.00 L1.00,0.00 L2.00,0.00 L2.00,10.00")
    assert "Z" not in drawing.steps(0, 0, 4, 10, [0, 0], [0, 0], "blocks")


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a\u202eb", "]]>&\"'", "\u540d" * 20]
)
def test_a_hostile_name_is_text(name, tmp_path):
    base = tmp_path / name.replace("/", "|")
    build(base, 20, 1_000, name)
    with MmapManager(64, base_path=base) as manager:
        manager.load_dimension(20)
        memory = manager.memory_map()
        words = words_of(picture_of(memory))
        assert "\u202e" not in words + str(memory)
        assert words.count(name.replace("\u202e", "\\u202e")[:15]) >= 2


def test_two_pictures_on_a_page_share_no_ids_but_of_what_is_the_same(tmp_path):
    build(tmp_path, 20, 1_000)
    with MmapManager(64, base_path=tmp_path) as manager:
        empty = manager.memory_map()._repr_svg_()
        manager.load_dimension(20)
        other = manager.memory_map()._repr_svg_()
    ids = [set(re.findall(r' id="(.+?)"', picture)) for picture in (empty, other)]
    assert len(ids[0]) == len(ids[1]) == 4 and not ids[0] & ids[1]


# -- saving ----------------------------------------------------------------------------------------


def test_a_picture_is_saved_whole(tmp_path):
    with MmapManager(64, base_path=tmp_path) as manager:
        memory = manager.memory_map()
    path = tmp_path / "memory.SVG"
    path.write_text("before")
    assert memory.save(str(path)) == path
    assert path.read_text(encoding="utf-8") == memory._repr_svg_()
    assert os.listdir(tmp_path) == ["memory.SVG"]


def test_a_picture_that_cannot_be_saved_leaves_what_was_there(tmp_path, monkeypatch):
    with MmapManager(64, base_path=tmp_path) as manager:
        memory = manager.memory_map()
    with pytest.raises(RegionIOError, match="cannot write"):
        memory.save(tmp_path / "no such folder" / "memory.svg")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(RegionIOError, match=r"folder\.svg"):
        memory.save(tmp_path / "folder.svg")
    for wrong in ("memory.png", "memory"):
        with pytest.raises(ConfigError, match="saved as"):
            memory.save(tmp_path / wrong)
    with pytest.raises(TypeError):
        memory.save(5)
    path = tmp_path / "memory.svg"
    path.write_text("before")

    def fail(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        memory.save(path)
    assert path.read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["folder.svg", "memory.svg"]


def test_pictures_are_imported_when_they_are_asked_for(tmp_path):
    assert MemoryMap.__module__ == "jessymem.notebooks.memory_map"
    assert "matplotlib" not in sys.modules or "jessymem.plot" in sys.modules
