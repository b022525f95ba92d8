"""Bundled content in place of core files: what ships, when it is read, and that it says so."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib.resources import files

import pytest

from jessymem import (
    ContentLocation,
    DimensionId,
    DimensionNotFound,
    InvalidAccess,
    LayerId,
    LayerState,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    osmem,
)
from jessymem.core_dimensions import CORE_DIMENSIONS, IMMUTABLE, SLOTS, core_dimensions
from jessymem.simulation import core_builder, simulated_region, simulated_text

MIB = 2**20

# Number, name, slot in MiB, immutable.
CORE = [
    (1, "Emotion", 16, False),
    (2, "Cognition", 16, False),
    (3, "Intention", 16, False),
    (4, "Social", 8, False),
    (5, "Temporal", 8, False),
    (6, "Philosophy", 16, False),
    (7, "Technical", 12, False),
    (8, "Creative", 8, False),
    (9, "Ethical", 12, True),
    (10, "Meta", 8, False),
    (11, "Ecological", 8, False),
    (12, "Positivity", 8, False),
    (13, "Balance", 8, False),
    (14, "Security", 4, True),
]
NUMBERS = [number for number, *_ in CORE]


def make_manager(base, simulation="auto", limit_mb=280):
    return MmapManager(MemoryConfig(limit_mb, base_path=base, simulation=simulation))


def build(base, number):
    builder = RegionBuilder(number, "real")
    builder.add_layer(0, f"real {number}")
    return builder.build_to_file(base / str(DimensionId(number)) / "region.mmap")


@pytest.fixture
def simulated(tmp_path):
    with make_manager(tmp_path) as manager:
        manager.load_core_dimensions()
        yield manager


# -- what ships ------------------------------------------------------------------------------------


def test_the_core_dimensions_are_those_of_the_design():
    found = [
        (core.dimension_id, core.name, SLOTS[number] // MIB, number in IMMUTABLE)
        for number, core in core_dimensions().items()
    ]
    assert found == CORE
    assert list(core_dimensions()) == list(CORE_DIMENSIONS) == list(SLOTS) == NUMBERS
    assert sum(SLOTS.values()) == 148 * MIB


def test_the_bundled_file_is_plain_json():
    text = files("jessymem.data").joinpath("dimensions.json").read_text("utf-8")
    bundled = json.loads(text)
    assert [entry["id"] for entry in bundled["dimensions"]] == [f"D{i:02d}" for i in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
def test_each_core_dimension_has_four_layers(number):
    core = core_dimensions()[DimensionId(number)]
    assert [layer["layer"] for layer in core.layers] == [0, 1, 2, 3]
    assert [layer["depth"] for layer in core.layers] == [0, 1, 2, 3]
    above = [layer["parent"] for layer in core.layers]
    assert above == [None, *(str(LayerId(number, layer)) for layer in range(3))]
    frequencies = [layer["frequency"] for layer in core.layers]
    assert all(0 < frequency < 10 for frequency in frequencies)
    assert len(set(frequencies)) == 4
    for layer in core.layers:
        assert len(layer["keywords"]) == len(set(layer["keywords"])) == 8
        assert all(word == word.strip().lower() != "" for word in layer["keywords"])
        assert layer["name"]
        assert layer["summary"].endswith(".")


def test_no_two_layers_are_the_same():
    layers = [layer for core in core_dimensions().values() for layer in core.layers]
    for field in ("name", "summary"):
        assert len({layer[field] for layer in layers}) == 14 * 4


@pytest.mark.parametrize("number", NUMBERS)
def test_simulated_layers_are_the_bundled_ones(simulated, number):
    core = core_dimensions()[DimensionId(number)]
    contexts = simulated.load_contexts([LayerId(number, layer) for layer in range(4)])
    for context, layer in zip(contexts, core.layers, strict=True):
        assert context.text == simulated_text(core, layer)
        assert layer["summary"] in context.text
        assert all(word in context.text for word in layer["keywords"])
        assert context.name == layer["name"]
        assert context.dimension_name == core.name
        assert context.keywords == tuple(layer["keywords"])
        assert context.frequency == pytest.approx(layer["frequency"])
        assert context.depth == layer["depth"]
        parent = layer["parent"]
        assert context.parent == (None if parent is None else LayerId.parse(parent))
        assert simulated.get_layer_info(context.layer_id).location is ContentLocation.HEAP


def test_simulated_regions_hold_their_own_checksums():
    for number in NUMBERS:
        region = simulated_region(DimensionId(number))
        assert region.path is None
        assert region.verify_integrity("full")


def test_a_built_core_dimension_is_the_simulated_one(tmp_path):
    built = core_builder(DimensionId(7)).build_to_file(tmp_path / "region.mmap")
    simulated = simulated_region(DimensionId(7))
    assert built.list_layers() == simulated.list_layers()
    for layer in built.metadata.layers:
        other = simulated.get_layer_info(layer.layer_id)
        content = built.read_content(layer.offset, layer.size)
        assert content == simulated.read_content(other.offset, other.size)


PRINT_DIGESTS = """
import hashlib
from jessymem.core_dimensions import core_dimensions
from jessymem.simulation import simulated_region
for number in core_dimensions():
    print(number, hashlib.sha256(simulated_region(number).data).hexdigest())
"""


def test_two_processes_make_the_same_bytes():
    def run(seed):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PRINT_DIGESTS]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    digests = run("1")
    assert len(set(digests.split("\n"))) == 14 + 1
    assert run("2") == digests


# -- when it is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "on_disk", "simulated", "loaded"),
    [
        ("auto", [], NUMBERS, []),
        ("auto", [20], NUMBERS, []),
        ("auto", [3], [], [3]),
        ("auto", [14], [], [14]),
        ("never", [], [], []),
        ("never", [3], [], [3]),
        ("always", [], NUMBERS, []),
        ("always", [3, 14], NUMBERS, []),
    ],
)
@pytest.mark.parametrize("call", ["load_core_dimensions", "load_all"])
def test_modes(tmp_path, mode, on_disk, simulated, loaded, call):
    for number in on_disk:
        build(tmp_path, number)
    with make_manager(tmp_path, mode) as manager:
        report = getattr(manager, call)()
        beyond_core = [20] if call == "load_all" and 20 in on_disk else []
        if beyond_core and mode == "auto":
            simulated = []  # there is content of the user's own
        assert list(report.loaded) == loaded + beyond_core
        assert [number for number, reason in report.skipped if reason == "simulated"] == simulated
        # Of core dimensions that nothing stands in for, a store of other things says nothing.
        is_silent = call == "load_all" and on_disk and not simulated
        missing = [] if is_silent else [n for n in NUMBERS if n not in loaded]
        assert [number for number, _ in report.skipped] == missing
        assert manager.list_dimensions() == sorted(simulated + loaded + beyond_core)
        assert manager.get_stats().simulation_mode == bool(simulated)
        for number in simulated:
            assert str(manager.access_layer(LayerId(number, 0)), "utf-8").startswith(
                CORE[number - 1][1]
            )
        for number in loaded:
            assert manager.access_layer(LayerId(number, 0)) == f"real {number}".encode()


@pytest.mark.parametrize("again", ["load_core_dimensions", "load_all"])
def test_a_core_dimension_that_gets_a_file_leaves_the_others_standing_in(tmp_path, again):
    with make_manager(tmp_path) as manager:
        manager.load_core_dimensions()
        simulated = manager.list_layers()
        bundled = {layer: bytes(manager.access_layer(layer)) for layer in simulated}
        made = manager.create_proto_dimension("D03", b"learned")
        manager.crystallize_proto_dimension(made)
        assert manager.list_layers() == sorted([*simulated, made])
        assert manager.get_stats().simulation_mode
        assert manager.get_layer_info("L03-00").state is LayerState.ACTIVE
        assert manager.get_layer_info(made).state is LayerState.PERMANENT
    with make_manager(tmp_path) as manager:
        report = getattr(manager, again)()
        assert report.loaded == (DimensionId(3),)
        assert manager.get_stats().simulation_mode
        assert manager.list_layers() == sorted([*simulated, made])
        assert {layer: bytes(manager.access_layer(layer)) for layer in simulated} == bundled
        assert manager.access_layer(made) == b"learned"
        with pytest.raises(InvalidAccess, match="simulated"):
            manager.ref("L03-00")
        assert manager.ref(made).get() == b"learned"
        manager.overlay_layer("L03-00", b"laid over")
        with pytest.raises(InvalidAccess, match="simulated"):
            manager.crystallize_proto_dimension("L03-00")
    with make_manager(tmp_path, "never") as manager:
        manager.load_core_dimensions()
        assert manager.list_layers() == [made]


def test_a_file_that_is_built_anew_stands_for_itself(tmp_path):
    with make_manager(tmp_path) as manager:
        manager.load_core_dimensions()
        manager.create_proto_dimension("D03", b"learned")
        manager.crystallize_dimension("D03")
    build(tmp_path, 3)
    with make_manager(tmp_path) as manager:
        manager.load_core_dimensions()
        assert manager.list_dimensions() == [3]
        assert not manager.get_stats().simulation_mode
        assert len(manager) == 1


def test_a_core_file_that_is_broken_is_a_core_file(tmp_path):
    path = tmp_path / "D05" / "region.mmap"
    path.parent.mkdir()
    path.write_bytes(b"broken")
    with make_manager(tmp_path) as manager:
        report = manager.load_core_dimensions()
        assert report.loaded == ()
        assert manager.list_dimensions() == []
        assert not manager.get_stats().simulation_mode


@pytest.mark.parametrize("mode", ["auto", "never", "always"])
def test_a_single_load_is_never_simulated(tmp_path, mode):
    with make_manager(tmp_path, mode) as manager:
        with pytest.raises(DimensionNotFound, match="D01"):
            manager.load_dimension("D01")
        assert not manager.is_loaded("D01")


def test_what_is_loaded_is_not_simulated_over(tmp_path):
    elsewhere = build(tmp_path / "elsewhere", 2)
    with make_manager(tmp_path, "always") as manager:
        manager.load_dimension(2, elsewhere.path)
        manager.load_core_dimensions()
        assert manager.access_layer("L02-00") == b"real 2"
        assert len(manager.list_dimensions()) == 14


def test_nothing_is_written_to_disk(tmp_path, intercept):
    operations = []
    intercept(lambda operation, path, *details: operations.append(operation))
    base = tmp_path / "nowhere"
    with make_manager(base) as manager:
        manager.load_all()
        assert len(manager.list_dimensions()) == 14
    assert list(tmp_path.iterdir()) == []
    assert not set(operations) & {"create", "write", "sync", "rename", "make directory"}


def test_a_base_path_that_cannot_be_looked_at_is_no_raw_os_error(tmp_path):
    with make_manager(tmp_path / ("x" * 300)) as manager:
        report = manager.load_core_dimensions()
        assert len(report.skipped) == 14


# -- counted, and said -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", [4_096, 65_536])
def test_simulated_regions_count_in_the_budget(tmp_path, monkeypatch, page):
    monkeypatch.setattr(osmem, "page_size", lambda: page)
    sizes = [simulated_region(DimensionId(number)).size for number in NUMBERS]
    whole_pages = sum(-(-size // page) * page for size in sizes)
    with make_manager(tmp_path) as manager:
        manager.load_core_dimensions()
        stats = manager.get_stats()
        assert stats.total_used_bytes == sum(sizes)
        assert stats.total_allocated_bytes == whole_pages
        assert stats.per_class["core_slots"].allocated_bytes == whole_pages
        assert (stats.dimensions_loaded, stats.layers_loaded) == (14, 56)


def fill_budget(manager, base):
    """Load a file that leaves no page of a budget of 1 MiB."""
    builder = RegionBuilder("D20", "full")
    builder.add_layer(0, bytes(MIB - 4_096))
    builder.build_to_file(base / "D20" / "region.mmap")
    manager.load_dimension("D20")


def test_what_does_not_fit_is_not_simulated(tmp_path):
    with make_manager(tmp_path, limit_mb=1) as manager:
        fill_budget(manager, tmp_path)
        before = manager.get_stats()
        report = manager.load_core_dimensions()
        assert all("do not fit" in reason for _, reason in report.skipped)
        assert manager.list_dimensions() == [20]
        assert manager.get_stats() == before


def test_what_was_not_simulated_is_not_said_to_be(tmp_path, caplog):
    with make_manager(tmp_path, limit_mb=1) as manager:
        fill_budget(manager, tmp_path)
        manager.load_core_dimensions()
    assert [record for record in caplog.records if record.event == "simulation"] == []


def test_simulation_is_said_once_in_the_log(tmp_path, caplog):
    with make_manager(tmp_path) as manager:
        manager.load_core_dimensions()
    (record,) = [record for record in caplog.records if record.event == "simulation"]
    assert record.levelno == logging.WARNING
    assert record.dimensions == [f"D{number:02d}" for number in NUMBERS]
    assert record.base_path == str(tmp_path)
    assert "14 core dimensions" in record.getMessage()


def test_simulation_is_said_in_stats_and_state(simulated):
    assert simulated.get_stats().simulation_mode
    state = simulated.dump_state()
    assert state["counters"]["simulation_mode"] is True
    assert {region["state"] for region in state["regions"]} == {"simulated"}
    assert {region["path"] for region in state["regions"]} == {None}


# -- replaced, unloaded, refreshed -----------------------------------------------------------------


def test_a_load_replaces_a_simulated_dimension(simulated, tmp_path):
    held = simulated.access_layer("L03-00")
    content = bytes(held)
    charged = simulated.get_stats().total_allocated_bytes
    build(tmp_path, 3)

    simulated.load_dimension("D03")
    assert simulated.access_layer("L03-00") == b"real 3"
    assert simulated.list_layers("D03") == [LayerId(3, 0)]
    assert held == content  # the view on what it was stays
    stats = simulated.get_stats()
    assert stats.simulation_mode  # of the other 13
    waiting = stats.waiting_bytes
    assert waiting >= len(content)
    assert stats.total_allocated_bytes == charged + osmem.page_size()

    del held
    stats = simulated.get_stats()
    assert stats.waiting_bytes == 0
    assert stats.total_allocated_bytes == charged + osmem.page_size() - waiting


def test_simulation_ends_with_the_last_simulated_dimension(simulated, tmp_path):
    for number in NUMBERS[:-1]:
        build(tmp_path, number)
        simulated.load_dimension(number)
        assert simulated.get_stats().simulation_mode
    simulated.unload_dimension(14)
    assert not simulated.get_stats().simulation_mode
    assert simulated.list_dimensions() == NUMBERS[:-1]


def test_a_load_that_fails_leaves_the_simulated_dimension(simulated, tmp_path):
    before = bytes(simulated.access_layer("L03-00"))
    with pytest.raises(DimensionNotFound):
        simulated.load_dimension("D03")
    assert simulated.access_layer("L03-00") == before


def test_a_simulated_dimension_is_unloaded_like_any_other(simulated):
    held = simulated.access_layer("L09-03")
    content = bytes(held)
    simulated.unload_dimension("D09")
    assert not simulated.is_loaded("D09")
    assert "L09-03" not in simulated
    assert held == content
    with pytest.raises(DimensionNotFound):
        simulated.unload_dimension("D09")


def test_a_simulated_dimension_cannot_be_refreshed(simulated, tmp_path):
    build(tmp_path, 3)
    with pytest.raises(DimensionNotFound, match=r"D03.*simulated") as caught:
        simulated.refresh("D03")
    assert (caught.value.dimension, caught.value.path) == (3, None)


def test_views_on_simulated_content_outlive_the_manager(tmp_path):
    with make_manager(tmp_path) as manager:
        manager.load_core_dimensions()
        held = manager.access_layer("L14-00")
        content = bytes(held)
    del manager
    assert held.readonly
    assert held == content


def test_a_second_load_of_everything_takes_the_files_that_came(simulated, tmp_path):
    build(tmp_path, 3)
    report = simulated.load_core_dimensions()
    assert report.loaded == (3,)
    assert simulated.access_layer("L03-00") == b"real 3"
    assert simulated.get_stats().dimensions_loaded == 14
