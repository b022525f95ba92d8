"""The command line: what it shows, what it writes for programs, how it fails, how it ends."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import naive
import numpy as np
import pytest
from click.testing import CliRunner
from naive import Draft, write_plain

from jessymem import (
    LayerId,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    __version__,
    cli,
    inspection,
)
from jessymem.demo import run as demo
from jessymem.demo.library import library_folder
from jessymem.demo.measurements import Measurement
from jessymem.kernels import _jit
from jessymem.terminal import commands, wording
from jessymem.warming import WarmupReport

POSIX = os.name == "posix"
HOSTILE = "a\x1b[31m[red]b[/red]\x9b1m\u202e\n:x:"
SHOWN = r"a\x1b[31m[red]b[/red]\x9b1m\u202e\n:x:"


@pytest.fixture
def run(monkeypatch):
    """Run a command in this process."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        assert result.exit_code == exit_code, result.output
        if result.exception is not None:
            assert isinstance(result.exception, SystemExit)
        return result

    return run


def start(*arguments, module=("-m", "jessymem"), **options):
    """Run a command in a process of its own."""
    command = [sys.executable, *module, *map(str, arguments)]
    environment = os.environ | options.pop("env", {})
    return subprocess.run(command, capture_output=True, env=environment, timeout=120, **options)


def error_of(result):
    """The one line that an error is."""
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in result.output
    return line


def tamper(path, layer):
    """Flip one bit of a layer's content."""
    region = MmapRegion.from_file(layer.dimension, path)
    info = region.get_layer_info(layer)
    raw = bytearray(path.read_bytes())
    raw[info.offset] ^= 1
    path.write_bytes(raw)


@pytest.fixture
def source(tmp_path):
    """A folder to build from, with a name that would like to be more than a name."""
    root = tmp_path / "src"
    (root / "D07-Tools").mkdir(parents=True)
    (root / "D07-Tools" / "00-hammer.md").write_text("A hammer.\n")
    (root / "D07-Tools" / "raw.bin").write_bytes(bytes(range(256)))
    (root / "notes").mkdir()
    (root / "notes" / "one.txt").write_text("1")
    (root / "notes" / ".hidden").write_text("h")
    return root


@pytest.fixture
def hostile(tmp_path):
    """A region file whose every text is hostile."""
    builder = RegionBuilder("D15", HOSTILE)
    text = HOSTILE.replace("\n", "")
    builder.add_layer(0, HOSTILE, name=HOSTILE, keywords=[HOSTILE, "[bold]", text])
    path = tmp_path / "hostile" / "D15" / "region.mmap"
    builder.build_to_file(path)
    return path


def assert_harmless(output):
    """Nothing in it acts on a terminal."""
    assert output.replace("\n", "").isprintable()
    assert "\x1b" not in output


# -- the way in ------------------------------------------------------------------------------------


def test_module_is_the_command_line():
    result = start("--version")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().split() == ["jessymem,", "version", __version__]


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_packages_it_says_how_to_get_them(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from jessymem.cli import main; main()"
    result = start(module=("-c", code))
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.decode().splitlines() == [cli.MISSING]
    assert 'pip install "jessymem[cli]"' in cli.MISSING


def test_guard_lets_no_other_missing_module_pass_for_click(monkeypatch):
    monkeypatch.delitem(sys.modules, "jessymem.terminal.commands")
    monkeypatch.setitem(sys.modules, "click", None)
    refuse = cli.load_main()
    with pytest.raises(SystemExit) as caught:
        refuse()
    assert caught.value.code == cli.MISSING
    monkeypatch.setitem(sys.modules, "jessymem.terminal.commands", None)
    with pytest.raises(ModuleNotFoundError, match=r"jessymem\.terminal"):
        cli.load_main()


def test_every_command_has_help(run):
    assert isinstance(cli.main, click.Group)
    for name, command in cli.main.commands.items():
        result = run(name, "--help")
        assert command.help.splitlines()[0] in " ".join(result.output.split())
        assert len(command.get_short_help_str(60)) <= 60
        assert "..." not in command.get_short_help_str(60)
    expected = "bench build cat contexts demo discover find inspect verify warmup"
    assert sorted(cli.main.commands) == expected.split()


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("build",),
        ("build", "no/such/folder"),
        ("cat", "D01"),
        ("cat", "L01"),
        ("cat", "L00-00"),
        ("cat",),
        ("contexts",),
        ("contexts", "L01-00", "x"),
        ("contexts", "L01-00", "--max-chars", "-1"),
        ("find",),
        ("find", ""),
        ("find", "x", "L01-00"),
        ("find", "x", "--limit", "0"),
        ("find", "x", "--limit", "3", "--count"),
        ("find", "abc", "--hex"),
        ("find", "", "--hex"),
        ("inspect",),
        ("verify", "--level", "deep"),
        ("discover", "--data", __file__),
        ("demo", "extra"),
        ("bench", "--only", "nonsense"),
        ("warmup", "--force"),
    ],
)
def test_what_is_not_understood_ends_with_2(run, arguments):
    result = run(*arguments, exit_code=2)
    assert "Usage:" in result.stderr
    assert result.stdout == ""


def test_bad_layer_is_explained(run):
    assert "not a layer: 'x\\x1b[31m'" in run("cat", "x\x1b[31m", exit_code=2).stderr


def test_data_is_by_default_where_the_manager_looks(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    builder = RegionBuilder("D15", "here")
    builder.add_layer(0, "default place")
    builder.build_to_file(Path("data/consciousness/D15/region.mmap"))
    assert run("cat", "L15-00").stdout == "default place"


# -- build -----------------------------------------------------------------------------------------


def test_build_writes_and_says_what_it_wrote_and_skipped(run, source, tmp_path):
    data = tmp_path / "data"
    result = run("build", source, "-o", data)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["D07", "Tools", "D07-Tools", "2"] in [line[:4] for line in lines]
    assert ["D15", "notes", "notes", "1"] in [line[:4] for line in lines]
    assert result.stdout.splitlines()[-1] == f"2 region files written under {data}"
    assert result.stderr == "skipped notes/.hidden: hidden\n"
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D07")
        assert manager.access_layer("L07-00") == b"A hammer.\n"
        assert manager.access_layer("L07-01") == bytes(range(256))


def test_build_as_json(run, source, tmp_path):
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
    }
    assert record["skipped"] == [{"path": "notes/.hidden", "reason": "hidden"}]
    assert result.stderr == ""


def test_build_replaces_only_with_force(run, source, tmp_path):
    data = tmp_path / "data"
    run("build", source, "-o", data)
    before = (data / "D07" / "region.mmap").read_bytes()
    (source / "D20").mkdir()
    (source / "D20" / "new").write_text("n")
    line = error_of(run("build", source, "-o", data, exit_code=1))
    assert line == f"Error: D07, D15: on disk under {data} already, and force is not set"
    assert (data / "D07" / "region.mmap").read_bytes() == before
    assert not (data / "D20").exists()
    record = json.loads(run("build", source, "-o", data, "--force", "--json").stdout)
    found = [(each["generation"], each["is_replaced"]) for each in record["dimensions"]]
    assert found == [(2, True), (2, True), (1, False)]


def test_build_names_file_and_key_of_a_bad_manifest(run, source, tmp_path):
    (source / "notes" / "dimension.toml").write_text("label = 'x'")
    line = error_of(run("build", source, "-o", tmp_path / "data", exit_code=1))
    assert line.startswith("Error: ")
    assert "dimension.toml: label: no such key" in line
    assert not (tmp_path / "data").exists()


def test_build_names_the_first_of_many_skipped(run, source, tmp_path):
    for number in range(30):
        (source / f"top{number:02d}").write_text("")
    lines = run("build", source, "-o", tmp_path / "data").stderr.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "skipped 11 more; --json names them all"


# -- discover --------------------------------------------------------------------------------------


def test_discover_lists_what_is_on_disk(run, store):
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


def test_discover_shows_a_broken_file_and_fails(run, store):
    (store / "D01" / "region.mmap").write_bytes(b"broken")
    result = run("discover", "--data", store, exit_code=1)
    assert "unreadable" in result.stdout
    assert "Sparse" in result.stdout
    assert error_of(result).startswith("Error: D01: ")
    record, _ = json.loads(run("discover", "--data", store, "--json", exit_code=1).stdout)
    assert (record["n_bytes"], record["name"]) == (6, None)
    assert record["error"]["type"] == "RegionFormatError"


@pytest.mark.parametrize("command", [("discover",), ("verify",), ("find", "x")])
def test_nothing_to_read_fails(run, tmp_path, command):
    result = run(*command, "--data", tmp_path / "none", exit_code=1)
    assert error_of(result) == f"Error: no region files under {tmp_path / 'none'}"
    assert result.stdout == ""
    json.loads(run(*command, "--data", tmp_path / "none", "--json", exit_code=1).stdout)


# -- inspect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["id", "file", "folder"])
def test_inspect_shows_header_bytes_and_layers(run, store, form):
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


def test_inspect_as_json_has_every_fact(run, store):
    record = json.loads(run("inspect", "D01", "--data", store, "--json").stdout)
    region = MmapRegion.from_file("D01", store / "D01" / "region.mmap")
    layer = region.metadata.layers[1]
    assert record["layers"][1] == {
        "layer": "L01-01",
        "name": "part 1",
        "offset": layer.offset,
        "n_bytes": layer.size,
        "encoding": "text",
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


def test_inspect_shows_what_arrays_are(run, tmp_path):
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


def test_inspect_a_plain_file(run, tmp_path):
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


def test_inspect_says_where_an_extension_is_ignored(run, store):
    path = store / "D01" / "region.mmap"
    raw = bytearray(path.read_bytes())
    raw[248] ^= 1  # the header's checksum
    path.write_bytes(raw)
    assert ["extension", "ignored"] in [
        line.split() for line in run("inspect", "D01", "--data", store).stdout.splitlines()
    ]


def test_inspect_a_region_without_layers(run, tmp_path):
    path = tmp_path / "empty.mmap"
    RegionBuilder("D20", "Empty").build_to_file(path)
    assert "0 B" in run("inspect", path).stdout
    assert json.loads(run("inspect", path, "--json").stdout)["layers"] == []


def test_inspect_shows_many_layers_on_demand(run, tmp_path):
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


def test_inspect_lets_no_name_act_on_the_terminal(run, hostile, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    output = run("inspect", hostile).stdout
    assert_harmless(output)
    assert output.count(SHOWN) == 3
    assert "[bold]" in output
    output = run("discover", "--data", hostile.parent.parent).stdout
    assert_harmless(output)
    assert SHOWN in output


def test_narrow_terminals_cut_names_and_nothing_else(run, hostile, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    output = run("inspect", hostile).stdout
    assert all(len(line) <= 80 for line in output.splitlines())
    (row,) = [line for line in output.splitlines() if "L15-00" in line]
    assert {"L15-00", "text", "1", "0", "-"} <= set(row.split())


def test_inspect_what_is_not_there(run, store, tmp_path):
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


def test_verify_all_that_is_on_disk(run, store):
    result = run("verify", "--data", store)
    n_bytes = sum(path.stat().st_size for path in store.rglob("*.mmap"))
    size = wording.show_bytes(n_bytes)
    assert result.stdout == f"2 of 2 region files intact, {size}, level full\n"
    record = json.loads(run("verify", "--data", store, "--json").stdout)
    assert (record["level"], record["n_intact"], len(record["regions"])) == ("full", 2, 2)


def test_verify_names_each_file_that_is_not_intact(run, store):
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


def test_verify_as_far_as_asked(run, store):
    tamper(store / "D01" / "region.mmap", LayerId(1, 2))
    for level in ("header", "metadata"):
        assert "2 of 2" in run("verify", "--data", store, "--level", level).stdout
    run("verify", "--data", store, "--level", "full", exit_code=1)


def test_verify_what_is_named(run, store):
    tamper(store / "D01" / "region.mmap", LayerId(1, 2))
    assert "1 of 1 region file intact" in run("verify", "D20", "--data", store).stdout
    result = run("verify", store / "D01", "D20", "D33", "--data", store, exit_code=1)
    assert result.stdout.startswith("1 of 3 region files intact")
    assert "D33: no region file" in result.stderr


def test_verify_holds_no_file_open(run, store):
    before = naive.open_files()
    tamper(store / "D01" / "region.mmap", LayerId(1, 2))
    run("verify", "--data", store, exit_code=1)
    assert not naive.opened_since(before)
    assert naive.mappings_of(store / "D01" / "region.mmap") == []


# -- cat and contexts ------------------------------------------------------------------------------


def test_cat_writes_every_byte_as_it_is(store):
    result = start("cat", "L20-300", "--data", store)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == bytes([300 % 251]) * 301


def test_cat_keeps_bytes_that_are_no_text(run, source, tmp_path):
    run("build", source, "-o", tmp_path / "data")
    result = run("cat", "L07-01", "--data", tmp_path / "data")
    assert result.stdout_bytes == bytes(range(256))


def test_cat_of_what_is_not_there(run, store):
    assert "L01-99 is not in" in error_of(run("cat", "L01-99", "--data", store, exit_code=1))
    assert "D02: no region file" in error_of(run("cat", "L02-00", "--data", store, exit_code=1))


@pytest.mark.skipif(not POSIX, reason="a closed pipe is another error there")
@pytest.mark.parametrize(
    "command",
    [("cat", "L20-00"), ("inspect", "D20", "--all"), ("discover",), ("find", "x", "--limit", "99")],
)
def test_closed_pipe_is_no_error(tmp_path, command):
    builder = RegionBuilder("D20", "Large")
    for number in range(2000):
        builder.add_layer(number, b"x" * (2**20 if number == 0 else 1))
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "jessymem", *command, "--data", str(tmp_path)]
    options = {"stdout": writer, "stderr": subprocess.PIPE, "timeout": 120}
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    try:
        result = subprocess.run(arguments, env=environment, **options)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def read_terminal(*arguments):
    """Run a command on a terminal; return what arrives there."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "jessymem", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "dumb", "COLUMNS": "200"},
    )
    os.close(theirs)
    received = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # Linux's way to say that nobody writes any more
            break
        if not piece:
            break
        received += piece
    os.close(ours)
    assert process.wait(120) == 0
    return received.decode()


@pytest.mark.skipif(not POSIX, reason="no pseudo-terminals there")
@pytest.mark.parametrize(
    "command",
    [("cat", "L15-00"), ("contexts", "L15-00", "--metadata"), ("find", "[31m"), ("find", "a\x1b")],
)
def test_content_on_a_terminal_is_made_visible(hostile, command):
    received = read_terminal(*command, "--data", hostile.parent.parent)
    assert r"a\x1b[31m[red]b[/red]\x9b1m\u202e" in received
    assert_harmless(received.replace("\r\n", "\n"))


def test_contexts_are_those_of_the_manager(run, store):
    layers = ["L01-02", "L01-00", "L20-05", "L01-02"]
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D01")
        manager.load_dimension("D20")
        expected = manager.load_contexts(layers)
    arguments = ("contexts", *layers, "--data", store)
    assert run(*arguments).stdout == expected.format_for_llm()
    assert run(*arguments, "--metadata").stdout == expected.format_with_metadata()
    cut = run(*arguments, "--max-chars", 150)
    assert cut.stdout == expected.format_for_llm(150)
    cut = run(*arguments, "--max-chars", 150, "--metadata")
    assert cut.stdout == expected.format_with_metadata(150)
    records = json.loads(run(*arguments, "--json").stdout)
    assert [record["layer"] for record in records] == layers
    assert [record["text"] for record in records] == [context.text for context in expected]
    assert records[0]["keywords"] == ["joy", "word2"]
    assert records[0]["parent"] == "L01-01"


def test_contexts_are_utf8_whatever_the_stream(tmp_path):
    text = "Gr\u00fc\u00dfe \u4f60\u597d \U0001f642"
    builder = RegionBuilder("D15", text)
    builder.add_layer(0, text, name=text)
    builder.build_to_file(tmp_path / "D15" / "region.mmap")
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = start("contexts", "L15-00", "--data", tmp_path, env=env)
    assert result.returncode == 0
    assert result.stdout.decode().count(text) == 3
    result = start("inspect", "D15", "--data", tmp_path, env=env)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.isascii()


def test_contexts_of_what_is_not_there(run, store):
    line = error_of(run("contexts", "L01-00", "L01-09", "--data", store, exit_code=1))
    assert line.startswith("Error: L01-09")
    line = error_of(run("contexts", "L02-00", "--data", store, exit_code=1))
    assert "D02: no region file" in line


# -- find ------------------------------------------------------------------------------------------


def test_find_shows_layer_offset_and_what_is_around(run, store):
    assert run("find", "2 of", "--data", store).stdout.splitlines() == [
        f"L01-02:{at}: layer 2 of emotion" for at in (6, 25, 44)
    ]
    assert run("find", "2 of", "--data", store, "--limit", 1).stdout.count("\n") == 1
    assert run("find", "2 of", "D20", "D01", "--data", store).stdout.count("\n") == 3
    assert run("find", "layer 1 of emotion\n", "--data", store).stdout.splitlines() == [
        r"L01-01:0: layer 1 of emotion\nlayer 1 of emotion",
        r"L01-01:19: layer 1 of emotion\n",
    ]


def test_find_counts(run, store):
    assert run("find", "layer", "--count", "--data", store).stdout == "10\n"
    assert json.loads(run("find", "layer", "--count", "--json", "--data", store).stdout) == {
        "needle": "6c61796572",
        "count": 10,
        "hits": [],
    }


@pytest.mark.parametrize("option", [(), ("--count",), ("--json",)])
def test_find_nothing_ends_with_1(run, store, option):
    result = run("find", "nowhere", "--data", store, *option, exit_code=1)
    assert result.stderr == ""
    assert "L01" not in result.stdout


def test_find_bytes_given_in_hexadecimal(run, store):
    result = run("find", "--hex", "05 05 05 05 05", "--data", store)
    assert result.stdout.splitlines() == [rf"L20-05:{i}: \x05\x05\x05\x05\x05\x05" for i in (0, 1)]


def test_find_as_json(run, store):
    found = json.loads(run("find", "of", "D01", "--data", store, "--json", "--limit", 2).stdout)
    assert found == {
        "needle": "6f66",
        "count": 2,
        "hits": [
            {
                "layer": "L01-00",
                "offset": 8,
                "before": "layer 0 ",
                "found": "of",
                "after": " emotion",
            },
            {
                "layer": "L01-01",
                "offset": 8,
                "before": "layer 1 ",
                "found": "of",
                "after": " emotion",
            },
        ],
    }


def test_find_goes_on_where_a_file_cannot_be_read(run, store):
    (store / "D01" / "region.mmap").write_bytes(b"no region")
    result = run("find", "--hex", "050505", "--data", store, exit_code=1)
    assert "D01" in error_of(result)
    assert result.stdout.count("L20-05") == 4
    result = run("find", "--hex", "050505", "D02", "D20", "--data", store, exit_code=1)
    assert "D02: no region file" in error_of(result)


def test_find_lets_no_content_act_on_the_terminal(run, hostile):
    result = run("find", "b", "--data", hostile.parent.parent)
    assert_harmless(result.stdout)
    assert r"a\x1b[31m[red]b[/red]\x9b1m\u202e" in result.stdout


def test_find_needs_no_more_than_reading(run, store):
    before = {path: path.stat() for path in store.rglob("*")}
    run("find", "layer", "--data", store)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == {
        path: stat.st_mtime_ns for path, stat in before.items()
    }


@pytest.mark.parametrize(
    ("content", "start", "n_bytes", "expected"),
    [
        (b"one\ntwo needle three\nfour", 8, 6, ("two ", "needle", " three")),
        (b"needle", 0, 6, ("", "needle", "")),
        ("\u00e9" * 40 + "x" + "\u00fc" * 40, 80, 1, ("\u00e9" * 15, "x", "\u00fc" * 15)),
        ("\u4f60" * 20 + "xy" + "\u597d" * 20, 61, 1, ("\u4f60" * 9 + "x", "y", "\u597d" * 10)),
        (b"\xff\xfeneedle\xff", 2, 6, ("\ufffd\ufffd", "needle", "\ufffd")),
        (b"x" * 200, 50, 100, ("x" * 30, "x" * 30 + " ... " + "x" * 30, "x" * 30)),
    ],
)
def test_excerpts(content, start, n_bytes, expected):
    content = content.encode() if isinstance(content, str) else content
    assert wording.excerpt(memoryview(content), start, n_bytes) == expected


@pytest.mark.skipif(shutil.which("grep") is None, reason="there is no grep")
@pytest.mark.parametrize("needle", ["self.", "def __", "import", "= None\n", "\u00e9", "zqzq", "9"])
def test_find_agrees_with_grep(run, tmp_path, needle):
    """On real files; grep goes line by line, and past overlaps, so the needles have neither."""
    source = tmp_path / "src" / "D15-files"
    source.mkdir(parents=True)
    files = sorted(library_folder().glob("[a-d]*.py"))
    if not files:
        pytest.skip("this Python comes without sources")
    for number, path in enumerate(files):
        (source / f"{number:02d}-{path.name}").write_bytes(path.read_bytes())
    run("build", tmp_path / "src", "-o", tmp_path / "data")
    expected = []
    for number, path in enumerate(files):
        command = ["grep", "-abo", "-F", "-e", needle.rstrip("\n"), str(path)]
        output = subprocess.run(command, capture_output=True, env={"LC_ALL": "C"}).stdout
        content = path.read_bytes()
        for line in output.splitlines():
            at = int(line.split(b":", 1)[0])
            if content.startswith(needle.encode(), at):
                expected.append((f"L15-{number:02d}", at))
    result = run("find", needle, "--data", tmp_path / "data", "--json", exit_code=int(not expected))
    found = json.loads(result.stdout)
    assert [(hit["layer"], hit["offset"]) for hit in found["hits"]] == expected
    assert expected or needle in ("zqzq", "\u00e9")


# -- errors ----------------------------------------------------------------------------------------


def test_error_is_one_line_however_hostile_the_path(run, tmp_path):
    line = error_of(run("inspect", tmp_path / HOSTILE.replace("/", "-"), exit_code=1))
    assert_harmless(line)
    assert r"a\x1b[31m[red]b" in line


def test_very_long_messages_lose_their_middle():
    line = wording.one_line("begin " + "x" * 10_000 + "\nend")
    assert len(line) < 600
    assert line.startswith("begin ")
    assert line.endswith(r"\nend")


def test_system_errors_are_one_line_too(run, monkeypatch, store):
    def fail(data):
        raise OSError(5, "Input/output error", "some file")

    monkeypatch.setattr(commands.inspection, "find_regions", fail)
    assert "Input/output error" in error_of(run("discover", "--data", store, exit_code=1))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("tab\tline\n", r"tab\tline\n"),
        ("\x00\x7f\x85\x9f", r"\x00\x7f\x85\x9f"),
        ("\u202e\u2066\u200b\ufeff", r"\u202e\u2066\u200b\ufeff"),
        ("\ud800\U000e0001", r"\ud800\U000e0001"),
        ("\u0646\u0645\u06cc\u200c\u062e", "\u0646\u0645\u06cc\u200c\u062e"),
        ("\u00fc\u4f60\u3000\u00a0", "\u00fc\u4f60\u3000\u00a0"),
        ("\u2028\u2029", r"\u2028\u2029"),
    ],
)
def test_visible(text, shown):
    assert wording.visible(text) == shown
    assert wording.visible("\n\t\x1b", keep="\n\t") == "\n\t\\x1b"


def test_numbers_in_words():
    sizes = [0, 1023, 1024, 1023 * 1024, 10 * 2**20, 5 * 2**30, 3 * 2**40]
    expected = ["0 B", "1023 B", "1.0 KB", "1.0 MB", "10.0 MB", "5.0 GB", "3,072.0 GB"]
    assert [wording.show_bytes(size) for size in sizes] == expected
    durations = [4.2e-7, 2.78e-5, 3.05e-4, 0.0023, 0.1, 1.0, 4.27, 1234.5]
    expected = ["0.42 us", "27.8 us", "305 us", "2.30 ms", "100 ms", "1.00 s", "4.27 s", "1,234 s"]
    assert [wording.show_seconds(seconds) for seconds in durations] == expected
    counts = [wording.count(number, "layer") for number in (0, 1, 2000)]
    assert counts == ["0 layers", "1 layer", "2,000 layers"]


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [("share", -0.0123, "-1.2 %"), ("bytes", 2048, "2.0 KB"), ("layers", 1234, "1,234")],
)
def test_measured_values_in_words(unit, value, shown):
    assert wording.show_value(Measurement("", "", "", value, unit, True)) == shown


# -- warmup ----------------------------------------------------------------------------------------


WARM_UP = """
import json, sys
from jessymem.kernels import _jit
from jessymem.terminal.records import warmup_record
from jessymem.warming import warmup
report = warmup()
kernels = [getattr(sys.modules[each.__module__], each.__name__) for each in _jit._kernels]
cold = [kernel.__name__ for kernel in kernels if not kernel.signatures]
print(json.dumps(warmup_record(report) | {"cold": cold}))
"""


@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_warmup_compiles_every_kernel_once_for_all_later_processes(tmp_path):
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "JESSYMEM_KERNEL_CACHE": "1"}
    first = json.loads(start(module=("-c", WARM_UP), env=env, cwd=tmp_path).stdout)
    assert first["n_compiled"] > 0
    assert first["n_cached"] == 0
    assert first["cold"] == ["find_layer"]  # which only users' own compiled code calls
    assert Path(first["cache"]).is_relative_to(tmp_path / "cache")
    assert os.listdir(tmp_path) == ["cache"]
    later = json.loads(start("warmup", "--json", env=env, cwd=tmp_path).stdout)
    assert later["n_compiled"] == 0
    assert later["n_cached"] > 0
    assert later["cache"] == first["cache"]


def test_warmup_says_where_jit_is_disabled(run, monkeypatch):
    monkeypatch.setattr(_jit, "_ready", set())
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert run("warmup").stdout.startswith("JIT is disabled (NUMBA_DISABLE_JIT)")
    record = json.loads(run("warmup", "--json").stdout)
    assert (record["is_disabled"], record["n_compiled"], record["cache"]) == (True, 0, None)


@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_warmup_in_words(run):
    assert "Cache: " in run("warmup").stdout


def test_warmup_words():
    report = WarmupReport(False, 21, 0, Path("some\x1bwhere"), 1.5)
    assert wording.warmup_lines(report) == [
        "Compiled 21 functions in 1.50 s.",
        r"Cache: some\x1bwhere",
    ]
    first, second = wording.warmup_lines(WarmupReport(False, 0, 2, None, 0.25))
    assert first == "Everything was compiled already; loaded in 250 ms."
    assert second.startswith("Nothing is kept")


# -- demo ------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Let the demo take one package and short rounds."""
    options = {"packages": ("json",), "n_threads": 4, "window_seconds": 0.001}
    monkeypatch.setattr(commands, "run_demo", functools.partial(demo.run_demo, **options))


@pytest.fixture
def outcome(monkeypatch):
    """Let each target of the demo be met, or missed, by its key."""

    def outcome(**is_met):
        run = commands.run_demo

        def judged(*arguments, **options):
            report = run(*arguments, **options)
            measured = [
                each._replace(is_met=is_met.get(each.key, True)) for each in report.measurements
            ]
            object.__setattr__(report, "measurements", tuple(measured))
            return report

        monkeypatch.setattr(commands, "run_demo", judged)

    return outcome


def test_demo_shows_targets_and_leaves_nothing(run, quick, outcome, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome()
    output = run("demo", "--strict").stdout
    assert output.startswith("15 dimensions, ")
    for target in ("< 100 ms", "< 50 ms", "< 1 ms", "< 10 us", "< 10 %", "no copy", "<= 280 MB"):
        assert target in output
    assert output.count(" met ") == 12
    assert output.rstrip().endswith("Every byte is that of its source, and every target is met.")
    assert os.listdir(tmp_path) == []


def test_demo_says_where_there_is_no_library(run, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "library_folder", lambda: tmp_path / "python.zip")
    output = " ".join(run("demo").stdout.split())
    assert "14 dimensions" in output
    assert "this Python comes without sources" in output


def test_demo_keeps_its_files_where_it_is_told(run, quick, tmp_path):
    output = run("demo", "--data", tmp_path / "kept").stdout
    assert output.rstrip().endswith(f"The region files are in {tmp_path / 'kept'}")
    assert "15 of 15" in run("verify", "--data", tmp_path / "kept").stdout
    line = error_of(run("demo", "--data", tmp_path / "kept", exit_code=1))
    assert "D01: " in line
    assert "is there already" in line


def test_missed_target_fails_only_when_strict(run, quick, outcome):
    outcome(threads=False, scan=False)
    for arguments, exit_code in (((), 0), (("--strict",), 1)):
        output = run("demo", *arguments, exit_code=exit_code).stdout
        assert "missed on this machine: scan, threads" in " ".join(output.split())
        assert output.count(" missed ") == 3


def test_demo_as_json(run, quick, outcome):
    outcome(load=False)
    record = json.loads(run("demo", "--json").stdout)
    assert record["jessymem"] == __version__
    assert (record["n_dimensions"], record["is_identical"], record["differing"]) == (15, True, [])
    assert record["missed"] == ["load"]
    measured = {each["key"]: each for each in record["measurements"]}
    assert measured["identical"]["value"] == record["n_layers"]
    assert measured["access"]["target"] == "< 1 ms"
    assert measured["access"]["unit"] == "seconds"
    assert [step["name"] for step in record["steps"]] == list(demo.STEPS)
    run("demo", "--json", "--strict", exit_code=1)


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--strict",)])
def test_demo_with_one_byte_that_differs_fails(run, quick, tmp_path, monkeypatch, arguments):
    data = tmp_path / "data"
    build = demo.build_library

    def build_and_tamper(*options):
        sources = build(*options)
        tamper(data / "D15" / "region.mmap", LayerId(15, 2))
        return sources

    monkeypatch.setattr(demo, "build_library", build_and_tamper)
    output = run("demo", "--data", data, *arguments, exit_code=1).stdout
    if "--json" in arguments:
        record = json.loads(output)
        assert (record["is_identical"], record["differing"]) == (False, ["L15-02"])
    else:
        assert "Not equal to their source: L15-02" in output


def test_demo_names_the_first_of_many_that_differ(run, quick, monkeypatch):
    wrong = [LayerId(15, number) for number in range(9)]
    monkeypatch.setattr(demo, "differing_layers", lambda manager, sources: wrong)
    output = " ".join(run("demo", exit_code=1).stdout.split())
    assert "L15-00, L15-01, L15-02, L15-03, L15-04 and 4 more" in output
