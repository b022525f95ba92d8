"""Commands told names in place of ids, and `rm`."""

from __future__ import annotations

import json

import pytest
from support.command_line import HOSTILE, assert_harmless, build_hostile, error_of, run
from support.regions import region_file

from jessymem import LayerId, MmapManager, RegionBuilder


@pytest.fixture
def data(tmp_path):
    shell = RegionBuilder("D18", "shell")
    shell.add_layer(0, "Long. " * 20_000, name="manual")
    shell.add_layer(3, "How to use bash.", name="bash/README")
    shell.add_layer(4, "How to use zsh.", name="zsh/README")
    shell.build_to_file(region_file(tmp_path, "D18"))
    other = RegionBuilder("D19", "other")
    other.add_layer(0, "Another one.", name="bash/README")
    other.build_to_file(region_file(tmp_path, "D19"))
    return tmp_path


@pytest.mark.parametrize("name", ["zsh/README", "D18/zsh/README", "shell/zsh/README", "L18-04"])
def test_cat_takes_a_name(data, name):
    assert run("cat", name, "--data", data).stdout == "How to use zsh."


def test_contexts_take_names_and_ids_in_their_order(data):
    result = run("contexts", "zsh/README", "L19-00", "D18/bash/README", "--json", "--data", data)
    assert [each["layer"] for each in json.loads(result.stdout)] == ["L18-04", "L19-00", "L18-03"]


def test_a_name_of_several_layers(data):
    for command in ("cat", "contexts", "rm"):
        error = error_of(run(command, "bash/README", "--data", data, exit_code=1))
        assert error == "Error: 'bash/README' is the name of 2 layers: L18-03, L19-00"


def test_a_name_of_none(data):
    error = error_of(run("cat", "fish/README", "--data", data, exit_code=1))
    assert error == "Error: no layer is called 'fish/README'"
    error = error_of(run("cat", "D77/x", "--data", data, exit_code=1))
    assert error == "Error: 'D77/x': dimension D77 is not loaded"
    error = error_of(run("cat", "D70000/x", "--data", data, exit_code=1))
    assert "D70000 is not loaded" in error
    assert "is called" in error_of(run("cat", "x", "--data", data / "none", exit_code=1))


def test_what_cannot_be_read_is_told_where_a_name_is_not_found(data):
    path = region_file(data, "D19")
    path.write_bytes(path.read_bytes()[:100])
    assert run("cat", "bash/README", "--data", data).stdout == "How to use bash."
    assert "D19" in error_of(run("cat", "fish/README", "--data", data, exit_code=1))


def test_a_hostile_name_does_no_harm(tmp_path):
    hostile = build_hostile(tmp_path).parent.parent
    result = run("cat", f"no {HOSTILE}", "--data", hostile, exit_code=1)
    assert_harmless(result.stderr)
    assert "no a\\x1b[31m" in result.stderr


def test_rm(data):
    result = run("rm", "zsh/README", "D18/bash/README", "L18-03", "--data", data)
    assert result.stdout == "2 layers deleted\n"
    with MmapManager(base_path=data) as manager:
        manager.load_dimension(18)
        assert manager.list_layers() == [LayerId("L18-00")]
    shown = run("inspect", "D18", "--data", data).stdout
    assert "Deleted" in shown and "bash/README" not in shown
    (first, second) = json.loads(run("inspect", "D18", "--json", "--data", data).stdout)["deltas"]
    assert (first["deleted"], second["deleted"], second["n_layers"]) == ([4], [3], 0)
    assert run("verify", "--data", data).stdout.startswith("4 of 4 region files intact")
    assert "How to use" not in run("find", "How to use", "--data", data, exit_code=1).stdout
    assert run("cat", "bash/README", "--data", data).stdout == "Another one."
    assert run("fold", "--data", data).stdout == "1 of 2 dimensions folded\n"
    assert run("rm", "bash/README", "--json", "--data", data).stdout == (
        '{\n  "n_deleted": 1,\n  "layers": [\n    "L19-00"\n  ]\n}\n'
    )


def test_rm_deletes_nothing_where_one_is_not_there(data):
    for layers in (["L18-03", "L18-05"], ["zsh/README", "fish/README"], ["L18-03", "bash/README"]):
        error_of(run("rm", *layers, "--data", data, exit_code=1))
    assert sorted(path.name for path in (data / "D18").iterdir()) == ["region.mmap"]


def test_rm_of_what_never_changes(data):
    builder = RegionBuilder("D09", "fixed")
    builder.add_layer(0, "fixed", name="fixed")
    builder.build_to_file(region_file(data, "D09"))
    result = run("rm", "fixed", "L18-03", "--data", data, exit_code=1)
    assert "D09 is immutable" in error_of(result)
    assert result.stdout == "1 layer deleted\n"


def test_rm_needs_a_layer(data):
    assert "LAYER" in run("rm", "--data", data, exit_code=2).stderr
