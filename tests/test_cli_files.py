"""Commands on region files: `build`, `discover`, `inspect`, `verify`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.command_line import (
    SHOWN,
    assert_harmless,
    build_hostile,
    error_of,
    make_source,
    run,
    tamper,
)
from support.naive import Draft, write_plain
from support.system import mappings_of, open_files, opened_since

from jessymem import (
    LayerId,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    inspection,
)
from jessymem.units import show_bytes


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path)


@pytest.fixture
def hostile(tmp_path):
    return build_hostile(tmp_path)


# -- build -----------------------------------------------------------------------------------------


def test_build_writes_and_says_what_it_wrote_and_skipped(source, tmp_path):
    data = tmp_path / "data"
    result = run("build", source, "-o", data)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["D07", "Tools", "D07-Tools", "2"] in [line[:4] for line in lines]
    assert ["D15", "notes", "notes", "1"] in [line[:4] for line in lines]
    last = result.stdout.splitlines()[-1]
    assert last == f"2 region files written under {data} (3 layers, 1.3 KB)"
    assert result.stderr == "skipped notes/.hidden: hidden\n"
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D07")
        assert manager.access_layer("L07-00") == b"A hammer.\n"
        assert manager.access_layer("L07-01") == bytes(range(256))


def test_build_as_json(source, tmp_path):
    data = tmp_path / "data"
    result = run("build", source, "--data", data, "--json")
    record = json.loads(result.stdout)
    path = data / "D07" / "region.mmap"
    assert record["dimensions"][0] == {
        "dimension": "D07",
        "name": "Tools",
        "folder": "D07-Tools",
        "path": str(path),
        "n_layers": 2,
        "n_bytes": path.stat().st_size,
        "generation": 1,
        "is_replaced": False,
        "is_unchanged": False,
    }
    assert record["is_dry_run"] is False
    assert record["skipped"] == [{"path": "notes/.hidden", "reason": "hidden"}]
    assert result.stderr == ""


def test_build_replaces_what_it_did_not_write_only_with_force(source, tmp_path):
    data = tmp_path / "data"
    run("build", source, "-o", data)
    for number in ("D07", "D15"):
        builder = RegionBuilder(number, "Tools" if number == "D07" else "notes")
        builder.append_layer("of another hand")
        builder.build_to_file(data / number / "region.mmap")
    before = (data / "D07" / "region.mmap").read_bytes()
    (source / "D20").mkdir()
    (source / "D20" / "new").write_text("n")
    line = error_of(run("build", source, "-o", data, exit_code=1))
    expected = f"Error: D07, D15: on disk under {data} already, and not as a build of this source"
    assert line.startswith(f"{expected} left it: ")
    assert (data / "D07" / "region.mmap").read_bytes() == before
    assert not (data / "D20").exists()
    record = json.loads(run("build", source, "-o", data, "--force", "--json").stdout)
    found = [(each["generation"], each["is_replaced"]) for each in record["dimensions"]]
    assert found == [(3, True), (3, True), (1, False)]


def test_build_names_file_and_key_of_a_bad_manifest(source, tmp_path):
    (source / "notes" / "dimension.toml").write_text("label = 'x'")
    line = error_of(run("build", source, "-o", tmp_path / "data", exit_code=1))
    assert line.startswith("Error: ")
    assert "dimension.toml: label: no such key" in line
    assert not (tmp_path / "data").exists()


def test_build_names_the_first_of_many_skipped(source, tmp_path):
    for number in range(30):
        (source / f"top{number:02d}").mkdir()
    lines = run("build", source, "-o", tmp_path / "data").stderr.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "skipped 11 more; --json names them all"


def test_build_goes_on_and_says_what_is_unchanged(source, tmp_path):
    data = tmp_path / "data"
    dry = run("build", source, "-o", data, "--dry-run").stdout.splitlines()
    assert dry[-1].startswith(f"2 region files would be written under {data} (3 layers, ")
    assert not data.exists()
    run("build", source, "-o", data)
    (source / "notes" / "two.txt").write_text("2")
    lines = run("build", source, "-o", data).stdout.splitlines()
    words = {
        line.split()[0]: line.split()[-1] for line in lines if line.startswith((" D07", " D15"))
    }
    assert words == {"D07": "unchanged", "D15": "replaced"}
    assert lines[-1].startswith(f"1 region file written under {data}, 1 unchanged (4 layers, ")
    error_of(run("build", source, "-o", data, "--no-resume", exit_code=1))
    record = json.loads(run("build", source, "-o", data, "--dry-run", "--json").stdout)
    assert record["is_dry_run"] is True
    assert [each["is_unchanged"] for each in record["dimensions"]] == [True, True]


def test_build_takes_several_sources_patterns_and_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    for name in ("a.md", "b.md", "c.txt"):
        Path("docs", name).write_text(name)
    Path("rows.csv").write_text("key,said,about\nk1,hello,x\n")
    run(
        *("build", "docs/*.md", "rows.csv", "-o", "data", "--names", "stem"),
        *("--column", "said", "--name-column", "key", "--keywords-column", "about"),
    )
    with MmapManager(base_path="data") as manager:
        manager.load_all()
        found = [manager.load_layer_context(layer) for layer in manager.list_layers()]
    assert [(each.dimension_name, each.name, each.text) for each in found] == [
        ("docs", "a", "a.md"),
        ("docs", "b", "b.md"),
        ("rows", "k1", "hello"),
    ]
    assert found[-1].keywords == ("x",)
    line = run("build", "gone", "-o", "data", exit_code=2).stderr.splitlines()[-1]
    assert line == "Error: Invalid value for 'SRC...': there is no 'gone'"
    assert error_of(run("build", "gone*", "-o", "data", exit_code=1)).endswith("nothing matches")


# -- export ----------------------------------------------------------------------------------------


def test_export_writes_and_says_what_it_wrote(source, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    run("build", source, "-o", data)
    lines = run("export", "--data", data, "-o", out).stdout.splitlines()
    assert ["D07", "Tools", "D07-Tools", "2"] in [line.split()[:4] for line in lines]
    assert lines[-1] == f"2 dimensions written under {out} (3 layers, 267 B)"
    assert (out / "D07-Tools" / "hammer.md").read_text() == "A hammer.\n"
    line = error_of(run("export", "D15", "--data", data, "-o", out, exit_code=1))
    assert line == f"Error: {out / 'D15-notes'}: there is something already, and force is not set"
    run("export", "D15", "--data", data, "-o", out, "--force")
    record = json.loads(
        run("export", "D15", "--data", data, "-o", out, "--format", "npz", "--json").stdout
    )
    assert record == {
        "format": "npz",
        "dimensions": [
            {
                "dimension": "D15",
                "name": "notes",
                "path": str(out / "D15-notes.npz"),
                "n_layers": 1,
                "n_bytes": 1,
            }
        ],
    }
    run("build", out / "D07-Tools", "-o", tmp_path / "again")
    assert run("cat", "L07-00", "--data", tmp_path / "again").stdout == "A hammer.\n"


def test_export_that_cannot_be(source, tmp_path):
    assert "Usage:" in run("export", exit_code=2).stderr
    assert "Usage:" in run("export", "D15x", "-o", tmp_path, exit_code=2).stderr
    assert "Usage:" in run("export", "-o", tmp_path, "--format", "zip", exit_code=2).stderr
    line = error_of(run("export", "-o", tmp_path / "out", "--data", tmp_path, exit_code=1))
    assert line == f"Error: no region files under {tmp_path}"
    line = error_of(run("export", "D20", "-o", tmp_path / "o", "--data", tmp_path, exit_code=1))
    assert line.startswith("Error: D20: no region file at ")


# -- discover --------------------------------------------------------------------------------------


def test_discover_lists_what_is_on_disk(store):
    lines = [line.split() for line in run("discover", "--data", store).stdout.splitlines()]
    assert ["D01", "Emotion", "4"] in [line[:3] for line in lines]
    assert ["D20", "Sparse", "4"] in [line[:3] for line in lines]
    records = json.loads(run("discover", "--data", store, "--json").stdout)
    assert [(each["dimension"], each["name"], each["n_layers"]) for each in records] == [
        ("D01", "Emotion", 4),
        ("D20", "Sparse", 4),
    ]
    assert records[0]["generation"] == 1
    assert records[0]["created_at"].endswith("+00:00")
    assert records[0]["error"] is None


def test_discover_shows_a_broken_file_and_fails(store):
    (store / "D01" / "region.mmap").write_bytes(b"broken")
    result = run("discover", "--data", store, exit_code=1)
    assert "unreadable" in result.stdout
    assert "Sparse" in result.stdout
    assert error_of(result).startswith("Error: D01: ")
    record, _ = json.loads(run("discover", "--data", store, "--json", exit_code=1).stdout)
    assert (record["n_bytes"], record["name"]) == (6, None)
    assert record["error"]["type"] == "RegionFormatError"


@pytest.mark.parametrize(
    ("command", "exit_code"), [(("discover",), 1), (("verify",), 1), (("find", "x"), 2)]
)
def test_nothing_to_read_fails(tmp_path, command, exit_code):
    result = run(*command, "--data", tmp_path / "none", exit_code=exit_code)
    assert error_of(result) == f"Error: no region files under {tmp_path / 'none'}"
    assert result.stdout == ""
    as_json = run(*command, "--data", tmp_path / "none", "--json", exit_code=exit_code)
    json.loads(as_json.stdout)


# -- inspect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["id", "file", "folder"])
def test_inspect_shows_header_bytes_and_layers(store, form):
    path = store / "D01" / "region.mmap"
    target = {"id": "d1", "file": path, "folder": path.parent}[form]
    output = run("inspect", target, "--data", store).stdout
    facts = dict(line.split(maxsplit=1) for line in output.splitlines() if len(line.split()) > 1)
    assert facts["D01"].strip() == "Emotion"
    assert facts["size"].strip() == f"{path.stat().st_size:,} bytes"
    assert facts["layers"].strip() == "4"
    assert facts["extension"].strip() == "yes"
    assert facts["generation"].strip() == "1"
    assert facts["created"].strip().endswith(" UTC")
    assert facts["L01-03"].split()[:2] == ["part", "3"]
    assert "L01-02" in facts["L01-03"]
    assert "joy, word3" in facts["L01-03"]


def test_inspect_as_json_has_every_fact(store):
    record = json.loads(run("inspect", "D01", "--data", store, "--json").stdout)
    region = MmapRegion.from_file("D01", store / "D01" / "region.mmap")
    layer = region.metadata.layers[1]
    assert record["layers"][1] == {
        "layer": "L01-01",
        "name": "part 1",
        "offset": layer.offset,
        "n_bytes": layer.size,
        "encoding": "text",
        "compression": None,
        "n_stored_bytes": layer.size,
        "dtype": None,
        "shape": None,
        "frequency": 1.5,
        "depth": 1,
        "keywords": ["joy", "word1"],
        "parent": "L01-00",
        "children": ["L01-02"],
    }
    assert sum(record["bytes"].values()) == record["n_bytes"] == region.size
    assert record["bytes"]["contents"] == sum(layer.size for layer in region.metadata.layers)
    assert record["bytes"]["metadata"] == record["content_offset"]
    assert (record["version"], record["extension"], record["generation"]) == (1, "yes", 1)


def test_inspect_shows_what_arrays_are(tmp_path):
    builder = RegionBuilder("D20", "Arrays")
    builder.add_array(0, np.zeros((3, 4), ">f4"))
    builder.add_array(1, np.zeros(2, [("day", "M8[D]"), ("n", "<i2", (2,))]))
    builder.add_array(2, np.array(1.5))
    path = tmp_path / "arrays.mmap"
    builder.build_to_file(path)
    output = run("inspect", path).stdout
    assert "float32 3x4" in output and "float64" in output
    layers = json.loads(run("inspect", path, "--json").stdout)["layers"]
    assert [layer["encoding"] for layer in layers] == ["array"] * 3
    assert [layer["dtype"] for layer in layers] == [
        ">f4",
        [["day", "<M8[D]"], ["n", "<i2", [2]]],
        "<f8",
    ]
    assert [layer["shape"] for layer in layers] == [[3, 4], [2], []]


def test_inspect_a_plain_file(tmp_path):
    path = tmp_path / "plain.bin"
    path.write_bytes(write_plain([Draft(5, content=b"abc")], dimension=7, name=b"Plain"))
    output = run("inspect", path).stdout
    assert "L07-05" in output
    facts = [line.split() for line in output.splitlines()]
    assert ["extension", "no"] in facts
    assert ["generation", "none"] in facts
    assert ["created", "not", "said"] in facts
    record = json.loads(run("inspect", path, "--json").stdout)
    assert (record["created_at"], record["generation"], record["extension"]) == (None, 0, "no")


def test_inspect_says_where_an_extension_is_ignored(store):
    path = store / "D01" / "region.mmap"
    raw = bytearray(path.read_bytes())
    raw[248] ^= 1  # the header's checksum
    path.write_bytes(raw)
    assert ["extension", "ignored"] in [
        line.split() for line in run("inspect", "D01", "--data", store).stdout.splitlines()
    ]


def test_inspect_a_region_without_layers(tmp_path):
    path = tmp_path / "empty.mmap"
    RegionBuilder("D20", "Empty").build_to_file(path)
    assert "0 B" in run("inspect", path).stdout
    assert json.loads(run("inspect", path, "--json").stdout)["layers"] == []


def test_inspect_shows_many_layers_on_demand(tmp_path):
    builder = RegionBuilder("D20", "Many")
    for number in range(120):
        builder.add_layer(number, "x")
    path = tmp_path / "many.mmap"
    builder.build_to_file(path)
    output = run("inspect", path).stdout
    assert "L20-99" in output
    assert "L20-100" not in output
    assert "20 more layers; --all shows them" in output
    assert "L20-119" in run("inspect", path, "--all").stdout
    assert len(json.loads(run("inspect", path, "--json").stdout)["layers"]) == 120


def test_inspect_lets_no_name_act_on_the_terminal(hostile):
    output = run("inspect", hostile, columns=300).stdout
    assert_harmless(output)
    assert output.count(SHOWN) == 3
    assert "[bold]" in output
    output = run("discover", "--data", hostile.parent.parent, columns=300).stdout
    assert_harmless(output)
    assert SHOWN in output


def test_narrow_terminals_cut_names_and_nothing_else(hostile):
    output = run("inspect", hostile, columns=80).stdout
    assert all(len(line) <= 80 for line in output.splitlines())
    (row,) = [line for line in output.splitlines() if "L15-00" in line]
    assert {"L15-00", "text", "1", "0", "-"} <= set(row.split())


def test_inspect_what_is_not_there(store, tmp_path):
    assert "D09: no region file at" in error_of(run("inspect", "D09", "--data", store, exit_code=1))
    line = error_of(run("inspect", tmp_path / "gone", exit_code=1))
    assert line.startswith("Error: cannot open ")
    junk = tmp_path / "junk"
    junk.write_bytes(b"x" * 300)
    assert "magic" in error_of(run("inspect", junk, exit_code=1))


@pytest.mark.parametrize("n_cells", [1, 7, 80, 5000])
def test_byte_map_against_one_byte_at_a_time(store, n_cells):
    for dimension in ("D01", "D20"):
        region = MmapRegion.from_file(dimension, store / dimension / "region.mmap")
        kinds = np.full(region.size, 2)
        kinds[: region.metadata.content_offset] = 0
        for layer in region.metadata.layers:
            kinds[layer.offset : layer.offset + layer.size] = 1
        found = inspection.byte_map(region, n_cells)
        assert len(found) == n_cells
        assert found[0] == 0
        edges = np.linspace(0, region.size, n_cells + 1)
        for cell in range(1, n_cells):
            whole = kinds[int(np.ceil(edges[cell])) : int(edges[cell + 1])]
            if len(whole) > 2:
                counts = np.bincount(whole, minlength=3)
                best = counts.max()
                # A cell's torn bytes at both ends may decide between equals.
                assert counts[found[cell]] >= best - 2
        use = inspection.byte_use(region)
        assert tuple(use) == tuple(np.bincount(kinds, minlength=3).tolist())


# -- verify ----------------------------------------------------------------------------------------


def test_verify_all_that_is_on_disk(store):
    result = run("verify", "--data", store)
    n_bytes = sum(path.stat().st_size for path in store.rglob("*.mmap"))
    size = show_bytes(n_bytes)
    assert result.stdout == f"2 of 2 region files intact, {size}, level full\n"
    record = json.loads(run("verify", "--data", store, "--json").stdout)
    assert (record["level"], record["n_intact"], len(record["regions"])) == ("full", 2, 2)


def test_verify_names_each_file_that_is_not_intact(store):
    tamper(store / "D01" / "region.mmap", LayerId(1, 2))
    (store / "D20" / "region.mmap").write_bytes(b"")
    result = run("verify", "--data", store, exit_code=1)
    first, second = result.stderr.splitlines()
    assert first.startswith("Error: D01: ")
    assert "layer 2 content_xxh3" in first
    assert second.startswith("Error: D20: ")
    assert result.stdout.startswith("0 of 2 region files intact")
    record = json.loads(run("verify", "--data", store, "--json", exit_code=1).stdout)
    assert record["n_intact"] == 0
    assert [each["error"]["type"] for each in record["regions"]] == ["RegionFormatError"] * 2
    assert [each["n_layers"] for each in record["regions"]] == [4, None]


def test_verify_as_far_as_asked(store):
    tamper(store / "D01" / "region.mmap", LayerId(1, 2))
    for level in ("header", "metadata"):
        assert "2 of 2" in run("verify", "--data", store, "--level", level).stdout
    run("verify", "--data", store, "--level", "full", exit_code=1)


def test_verify_what_is_named(store):
    tamper(store / "D01" / "region.mmap", LayerId(1, 2))
    assert "1 of 1 region file intact" in run("verify", "D20", "--data", store).stdout
    result = run("verify", store / "D01", "D20", "D33", "--data", store, exit_code=1)
    assert result.stdout.startswith("1 of 3 region files intact")
    assert "D33: no region file" in result.stderr


def test_verify_holds_no_file_open(store):
    before = open_files()
    tamper(store / "D01" / "region.mmap", LayerId(1, 2))
    run("verify", "--data", store, exit_code=1)
    assert not opened_since(before)
    assert mappings_of(store / "D01" / "region.mmap") == []
