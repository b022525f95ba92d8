"""What a notebook's cell shows of an object: harmless, bounded, and nothing is changed for it."""

from __future__ import annotations

import dataclasses
import os
import sys

import numpy as np
import pytest
from support.internals import has_allocator, snapshot_of
from support.pages import Page
from support.regions import region_file
from support.stores import mixed_store

from jessymem import (
    ContentLocation,
    ContextCollection,
    DimensionId,
    LayerId,
    LayerInfo,
    LayerState,
    LoadedContext,
    LoadReport,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    PoolAllocator,
    RegionBuilder,
    notebooks,
)
from jessymem.notebooks import markup, style
from jessymem.visible_text import fitting, padded, visible

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></pre></details></bdi>",
    "&lt;b&gt;&amp;",
    "]]><![CDATA[",
    "<!-- --",
    "safe\u202egnp.exe\u202c\u2066\u200f",
    "\x00\x01\x1b[31m\x7f\x85",
    "\u2028\u2029\ufeff\ufffe\ud800",
    "two\nlines\tand a tab",
    "http://example.org/ url(x) @import",
]


def layer_called(name, **others):
    known = {
        "layer_id": LayerId(15, 3),
        "name": name,
        "frequency": 0.5,
        "depth": 1,
        "offset": 64,
        "size": 10,
        "keywords": (name, "river"),
        "parent": LayerId(15, 1),
        "children": (LayerId(15, 4),),
        "location": ContentLocation.MMAP,
        "state": LayerState.PERMANENT,
    }
    return LayerInfo(**(known | others))


def context_called(name, content=b"text"):
    return LoadedContext(
        LayerId(15, 3), content, frequency=0.5, keywords=(name,), name=name, dimension_name=name
    )


def shown(thing):
    page = Page(thing._repr_html_())
    page.check_harmless()
    return page


@pytest.fixture
def every_kind(tmp_path):
    """One of each class that a cell shows, by its name."""
    manager, contents = mixed_store(tmp_path)
    with manager:
        region = MmapRegion.from_file(15, tmp_path / "D15" / "region.mmap")
        yield {
            "MmapManager": manager,
            "PoolAllocator": PoolAllocator([(1, 4096)], limit_mb=4),
            "MmapRegion": region,
            "MemoryStats": manager.get_stats(),
            "LayerInfo": manager.get_layer_info("L15-03"),
            "ContextCollection": manager.load_contexts(contents),
            "LoadReport": LoadReport((DimensionId(15),), ((DimensionId(16), "is loaded"),), 0.1),
            "MemoryMap": manager.memory_map(),
        }


def test_every_class_shows_itself_and_its_text_beside(every_kind):
    for name, thing in every_kind.items():
        assert type(thing).__name__ == name
        page = shown(thing)
        assert repr(thing) in page.text  # in a `pre`, which only the style sheet hides
        assert ("style", "display:none") in page.attributes
        assert page.tags["style"] >= 1
        if name not in ("LayerInfo", "MemoryMap"):
            assert name in page.text.replace(repr(thing), "")


def test_a_page_follows_the_surroundings():
    for place in (
        "prefers-color-scheme:dark",
        '[data-jp-theme-light="false"]',
        "body.vscode-dark",
        "--jp-layout-color1",
        "--vscode-editor-background",
    ):
        assert place in style.STYLE
    for name in style.KINDS:
        assert style.STYLE.count(f"--jm-{name}:") == 4  # light and dark, by wish and by place


def test_a_manager_shows_what_it_holds(every_kind):
    page = shown(every_kind["MmapManager"])
    for word in ("dimension 15", "D19", "Pools", "Counters", "Settings", "sieve", "75 %"):
        assert word in page.text
    assert page.tags["details"] == page.tags["summary"] == 4
    assert sum(name == "open" for name, _ in page.attributes) == 1  # the rest is folded


def test_what_waits_and_what_is_pinned_is_said(tmp_path):
    manager, _ = mixed_store(tmp_path)
    with manager:
        manager.pin(15)
        view = manager.access_layer("L17-00")
        manager.unload_dimension(17)
        page = shown(manager)
        assert "mapped, pinned" in page.text and "waiting for views" in page.text
        del view
        assert "waiting for views" not in shown(manager).text


def test_a_threshold_that_is_passed_is_said():
    with MmapManager(MemoryConfig(2, "no/such", pool_configs=[(2, 65_536)])) as manager:
        assert "Above the" not in shown(manager).text
        offsets = [manager.allocate(60_000) for _ in range(25)]
        assert "Above the warning threshold" in shown(manager).text
        assert "Above the warning threshold" in shown(manager.get_stats()).text
        manager.deallocate_many(offsets)


def test_a_closed_manager_and_allocator_show_something(tmp_path):
    manager, _ = mixed_store(tmp_path)
    manager.close()
    assert "closed" in shown(manager).text
    assert "none loaded" in shown(manager).text
    assert "Budget" in shown(manager.memory_map()).text
    allocator = PoolAllocator([(1, 4096)], limit_mb=4)
    allocator.close()
    assert "PoolAllocator" in shown(allocator).text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text(name):
    for thing in (
        layer_called(name),
        ContextCollection(
            [context_called(name), context_called(name, name.encode("utf-8", "replace"))]
        ),
        LoadReport((), ((DimensionId(3), name),), 0.0),
    ):
        page = shown(thing)
        assert visible(name) in page.text or visible(name)[:20] in page.text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_in_a_file_and_of_a_folder_is_text(name, tmp_path):
    written = name.encode("utf-8", "replace").decode()[:60].replace("\x00", "\x02")
    base = tmp_path / written.replace("/", "|").replace("\n", " ")
    builder = RegionBuilder(15, written)
    builder.add_layer(0, b"content", name=written, keywords=[written])
    path = region_file(base, "D15")
    builder.build_to_file(path)
    with MmapManager(64, base_path=base) as manager:
        manager.load_dimension(15)
        for thing in (manager, MmapRegion.from_file(15, path), manager.load_contexts(["L15-00"])):
            assert visible(written)[:20] in shown(thing).text
        shown(manager.memory_map())


def test_a_very_long_name_is_cut_and_a_tooltip_has_more():
    name = "river<" * 200_000
    page = shown(layer_called(name))
    assert len(page.source) < 30_000
    tooltips = [value for key, value in page.attributes if key == "title"]
    assert any(value.startswith("river<" * 100) for value in tooltips)
    assert "\u2026" in page.text


def test_text_that_runs_the_other_way_is_by_itself():
    name = "\u0645\u0631\u062d\u0628\u0627"
    assert f"<bdi>{name}</bdi>" in layer_called(name)._repr_html_()


def test_contents_that_are_not_text_are_not_shown():
    page = shown(ContextCollection([context_called("n", b"\0\1\2"), context_called("m", b"words")]))
    assert "3 bytes that are not text" in page.text and "words" in page.text


def test_the_begin_of_a_text_keeps_its_lines_and_is_cut():
    content = b"first\nsecond\x1b[0m\n" + b"x" * 5_000
    page = shown(ContextCollection([context_called("n", content)]))
    assert "first\nsecond\\x1b[0m\n" in page.text
    assert "more" in page.text and page.text.count("x") < 1_000


def test_what_a_layer_is_without_is_left_out():
    bare = layer_called("", keywords=(), children=(), parent=None)
    page = shown(bare)
    assert page.tags["details"] == 0 and "none" in page.text
    array = layer_called("a", dtype=np.dtype("f4"), shape=(3, 4), encoding="array")
    assert "array float32 3x4" in shown(array).text


# -- many ------------------------------------------------------------------------------------------

N_MANY = 65_536


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder with one dimension of as many layers as there can be."""
    base = tmp_path_factory.mktemp("many")
    builder = RegionBuilder(15, "many")
    for number in range(N_MANY):
        builder.add_layer(number, b"x", name=f"layer {number}")
    builder.build_to_file(region_file(base, "D15"))
    return base


def test_many_layers_make_no_longer_page(many):
    region = MmapRegion.from_file(15, region_file(many, "D15"))
    with MmapManager(280, base_path=many) as manager:
        manager.load_dimension(15)
        contexts = manager.load_contexts(manager.list_layers())
        page = shown(region)
        assert len(page.source) < 25_000 and f"and {N_MANY - markup.N_ROWS:,} more" in page.text
        page = shown(contexts)
        assert len(page.source) < 30_000 and f"{N_MANY:,} contexts" in page.text
        assert len(manager._repr_html_()) < 20_000


def test_only_what_is_shown_of_many_layers_is_described(many, monkeypatch):
    region = MmapRegion.from_file(15, region_file(many, "D15"))
    described = []
    info_of = MmapRegion.info_of

    def counted(self, *arguments):
        described.append(arguments)
        return info_of(self, *arguments)

    monkeypatch.setattr(MmapRegion, "info_of", counted)
    region._repr_html_()
    assert len(described) == markup.N_ROWS


def test_many_of_anything_are_counted_not_listed():
    children = tuple(LayerId.in_order(DimensionId(15), range(N_MANY)))
    page = shown(layer_called("n", children=children, keywords=("k",) * 5_000))
    assert len(page.source) < 25_000
    assert f"and {N_MANY - markup.N_IDS:,} more children" in page.text
    everything = tuple(map(DimensionId, range(1, 32_768)))
    report = LoadReport(everything, tuple((each, "why") for each in everything), 1.0)
    assert len(shown(report).source) < 25_000


def test_many_dimensions_and_pools_are_counted_not_listed(tmp_path):
    for number in range(15, 75):
        builder = RegionBuilder(number, f"dimension {number}")
        builder.add_layer(0, b"x" * number)
        builder.build_to_file(region_file(tmp_path, f"D{number}"))
    config = MemoryConfig(280, tmp_path, pool_configs=[(1, 4096)] * 40)
    with MmapManager(config) as manager:
        manager.load_all()
        page = shown(manager)
        assert f"and {60 - markup.N_ROWS} more dimensions" in page.text
        assert f"and {40 - markup.N_ROWS} more pools" in page.text


# -- it only looks ---------------------------------------------------------------------------------


def marks_of(manager):
    """What reads have left behind for the eviction policy, by dimension."""
    return [list(snapshot_of(manager).mark_of(each)) for each in manager.list_dimensions()]


def test_nothing_is_read_mapped_or_counted(tmp_path, intercept):
    manager, contents = mixed_store(tmp_path)
    with manager:
        region = MmapRegion.from_file(15, region_file(tmp_path, "D15"))
        offset = manager.allocate(5_000)
        view = manager.view(offset, 10)
        manager.deallocate(offset)
        contexts = manager.load_contexts(contents)
        before = manager.dump_state()
        marks = marks_of(manager)
        calls = []
        intercept(lambda *arguments: calls.append(arguments))
        for thing in (manager, manager.get_stats(), region, contexts, manager.memory_map()):
            thing._repr_html_()
        str(manager.memory_map())
        assert calls == []
        assert manager.dump_state() == before
        assert marks_of(manager) == marks
        del view


def test_an_evicted_dimension_stays_evicted(tmp_path):
    for number in range(15, 18):
        builder = RegionBuilder(number, f"dimension {number}")
        builder.add_layer(0, b"x" * 900_000)
        builder.build_to_file(region_file(tmp_path, f"D{number}"))
    with MmapManager(MemoryConfig(2, tmp_path, pool_configs=[])) as manager:
        for number in range(15, 18):
            manager.load_dimension(number)
        before = manager.get_stats()
        assert before.evictions == 1
        page, picture = shown(manager), manager.memory_map()
        assert "evicted" in page.text and "evicted" in str(picture)
        assert manager.get_stats() == before


def test_no_allocator_is_made_for_a_look(tmp_path):
    with MmapManager(64, base_path=tmp_path) as manager:
        manager._repr_html_()
        manager.memory_map()._repr_html_()
        assert not has_allocator(manager)


@pytest.mark.skipif(sys.platform == "win32", reason="there no file is cut while it is mapped")
def test_a_file_that_was_cut_is_not_touched(tmp_path):
    builder = RegionBuilder(15, "cut")
    builder.add_layer(0, b"x" * 100_000, name="a layer")
    path = region_file(tmp_path, "D15")
    builder.build_to_file(path)
    region = MmapRegion.from_file(15, path)
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension(15)
        contexts = manager.load_contexts(["L15-00"])
        assert "xxx" in shown(contexts).text
        os.truncate(path, 100)
        for thing in (region, contexts):
            page = shown(thing)
            assert "was cut" in page.text and "xxx" not in page.text
        shown(manager)
        shown(manager.memory_map())


def test_a_layer_that_is_malformed_is_named(tmp_path, monkeypatch):
    builder = RegionBuilder(15, "torn")
    for number in range(3):
        builder.add_layer(number, b"content", name=f"layer {number}")
    region = builder.build_to_memory()
    info_of = MmapRegion.info_of

    def malformed(self, layer_id, row, children):
        if row == 1:
            raise ValueError("bad <keywords>")
        return info_of(self, layer_id, row, children)

    monkeypatch.setattr(MmapRegion, "info_of", malformed)
    page = shown(region)
    assert "unreadable" in page.text and "layer 2" in page.text
    assert ("title", "bad <keywords>") in page.attributes


def test_where_anything_fails_the_text_is_shown(every_kind, monkeypatch):
    def fail(*arguments):
        raise RecursionError("no view")

    for module in ("managers", "allocators", "regions", "layers", "contexts", "reports"):
        monkeypatch.setattr(f"jessymem.notebooks.{module}.view", fail)
    monkeypatch.setattr("jessymem.notebooks.managers.view_of_stats", fail)
    monkeypatch.setattr("jessymem.notebooks.map_drawing.view", fail)
    for thing in every_kind.values():
        page = shown(thing)
        assert page.tags == {"pre": 1} and repr(thing)[:40] in page.text


def test_a_repr_that_fails_too_shows_the_class(monkeypatch):
    class Broken:
        def __repr__(self):
            raise ZeroDivisionError

    page = Page(notebooks.show_report(Broken()))
    assert "Broken" in page.text


# -- text ------------------------------------------------------------------------------------------


def test_what_is_cut_keeps_its_width():
    assert fitting("short", 10) == "short"
    assert fitting("river name", 6) == "river\u2026"
    assert padded("\u540d\u524d", 6) == "\u540d\u524d  "
    assert fitting("\u540d\u524d\u540d\u524d", 5) == "\u540d\u524d\u2026"
    assert fitting("\x1b", 10) == "\\x1b"


def test_stats_of_classes_that_are_not_known_yet_are_shown(every_kind):
    stats = every_kind["MemoryStats"]
    usage = next(iter(stats.per_class.values()))
    changed = dataclasses.replace(stats, per_class={**stats.per_class, "another <one>": usage})
    assert "another <one>" in shown(changed).text
