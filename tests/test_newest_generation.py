"""Every command reads the newest generation of a dimension, under whichever name it lies."""

from __future__ import annotations

import json
import os

import pytest
from support.command_line import error_of, run

from jessymem import DimensionId, MmapManager, RegionBuilder
from jessymem.inspection import resolve_target

FILE = "region.mmap"


def write(folder, generation, content, name="Notes"):
    """Write one generation of D20 under the name that it has beside a mapped file."""
    target = folder / "D20" / (FILE if generation == 1 else f"region.g{generation}.mmap")
    for _ in range(generation):
        builder = RegionBuilder("D20", name)
        builder.add_layer(0, content, name="note")
        builder.build_to_file(target)
    return target


@pytest.fixture
def newest(tmp_path):
    write(tmp_path, 1, "the old text")
    write(tmp_path, 3, "the newest text, longer")
    return write(tmp_path, 2, "the text between").with_name("region.g3.mmap")


def in_json(*arguments, **options):
    return json.loads(run(*arguments, "--json", **options).stdout)


def test_every_command_reads_the_newest(newest, tmp_path, monkeypatch):
    data = ("--data", tmp_path)
    assert run("cat", "L20-00", *data).stdout == "the newest text, longer"
    assert "the newest text, longer" in run("contexts", "L20-00", *data).stdout
    (hit,) = in_json("find", "text", *data)["hits"]
    assert hit["before"] == "the newest "
    assert in_json("find", "old", *data, exit_code=1)["count"] == 0
    for targets in ((), ("D20",), (newest.parent,)):
        (found,) = in_json("verify", *targets, *data)["regions"]
        assert (found["path"], found["generation"]) == (str(newest), 3)
    (found,) = in_json("discover", *data)
    assert (found["path"], found["generation"]) == (str(newest), 3)
    for target in ("D20", newest.parent, newest):
        found = in_json("inspect", target, *data)
        assert (found["path"], found["generation"]) == (str(newest), 3)
    monkeypatch.chdir(newest.parent)
    assert in_json("inspect", ".")["generation"] == 3


@pytest.mark.parametrize("generation", [2, 9])
def test_a_delta_under_the_name_of_a_generation_replaces_nothing(tmp_path, generation, caplog):
    target = write(tmp_path, 1, "x" * 20_000)
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        manager.create_proto_dimension("D20", "new", layer=7)
        manager.crystallize_dimension("D20")
    beside = target.with_name(f"region.g{generation}.mmap")
    beside.write_bytes(target.with_name("region.d2.mmap").read_bytes())
    before = target.read_bytes()
    for _ in range(2):
        with MmapManager(64, base_path=tmp_path) as manager:
            manager.load_dimension("D20")
            assert [str(layer) for layer in manager.list_layers()] == ["L20-00", "L20-07"]
            manager.create_proto_dimension("D20", "newer")
            manager.discard_proto_dimension("L20-08")
    assert target.read_bytes() == before
    assert beside.exists()
    assert any(str(beside) in record.getMessage() for record in caplog.records)


def test_reading_tidies_nothing_up(newest, tmp_path):
    before = sorted(os.listdir(newest.parent))
    for command in (
        ("cat", "L20-00"),
        ("contexts", "L20-00"),
        ("find", "text"),
        ("inspect", "D20"),
    ):
        run(*command, "--data", tmp_path)
    assert sorted(os.listdir(newest.parent)) == before


def test_a_file_that_is_named_is_the_one_that_is_read(newest):
    assert in_json("inspect", newest.with_name(FILE))["generation"] == 1


def test_a_region_without_a_base_file_is_read_and_counts_as_there(newest, tmp_path):
    newest.with_name(FILE).unlink()
    data = ("--data", tmp_path)
    assert run("cat", "L20-00", *data).stdout == "the newest text, longer"
    for target in ("D20", newest.parent):
        assert in_json("inspect", target, *data)["generation"] == 3
    source = tmp_path / "src" / "D20-Notes"
    source.mkdir(parents=True)
    (source / "a").write_text("built")
    line = error_of(run("build", source.parent, *data, exit_code=1))
    assert line.startswith("Error: D20: on disk under ")
    (built,) = in_json("build", source.parent, *data, "--force")["dimensions"]
    assert (built["generation"], built["is_replaced"]) == (4, True)
    assert run("cat", "L20-00", *data).stdout == "built"


def test_a_folder_keeps_the_number_of_the_newest_name(newest, tmp_path):
    write(tmp_path, 4, "renamed", name="journal")
    source = tmp_path / "src" / "journal"
    source.mkdir(parents=True)
    (source / "a").write_text("built")
    (built,) = in_json("build", source.parent, "--data", tmp_path, "--force")["dimensions"]
    assert (built["dimension"], built["generation"]) == ("D20", 5)


def test_a_folder_that_holds_another_dimension_is_read_as_what_it_holds(newest, tmp_path):
    moved = tmp_path / "D33"
    newest.parent.rename(moved)
    target = resolve_target(str(moved), tmp_path)
    assert (target.dimension_id, target.path) == (DimensionId(20), moved / newest.name)


def test_the_command_line_and_a_manager_agree(newest, tmp_path):
    shown = run("cat", "L20-00", "--data", tmp_path).stdout
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        assert bytes(manager.access_layer("L20-00")).decode() == shown
