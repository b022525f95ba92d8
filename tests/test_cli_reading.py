"""Commands that read layers: `cat`, `contexts`, `find`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from support.command_line import assert_harmless, build_hostile, error_of, make_source, run, start

from jessymem import (
    MmapManager,
    RegionBuilder,
)
from jessymem.demo.library import library_folder
from jessymem.terminal import wording

POSIX = os.name == "posix"


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path)


@pytest.fixture
def hostile(tmp_path):
    return build_hostile(tmp_path)


# -- cat and contexts ------------------------------------------------------------------------------


def test_cat_writes_every_byte_as_it_is(store):
    result = start("cat", "L20-300", "--data", store)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == bytes([300 % 251]) * 301


def test_cat_keeps_bytes_that_are_no_text(source, tmp_path):
    run("build", source, "-o", tmp_path / "data")
    result = run("cat", "L07-01", "--data", tmp_path / "data")
    assert result.stdout_bytes == bytes(range(256))


def test_cat_of_what_is_not_there(store):
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


def test_contexts_are_those_of_the_manager(store):
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


def test_contexts_of_what_is_not_there(store):
    line = error_of(run("contexts", "L01-00", "L01-09", "--data", store, exit_code=1))
    assert line.startswith("Error: L01-09")
    line = error_of(run("contexts", "L02-00", "--data", store, exit_code=1))
    assert "D02: no region file" in line


# -- find ------------------------------------------------------------------------------------------


def test_find_shows_layer_offset_and_what_is_around(store):
    assert run("find", "2 of", "--data", store).stdout.splitlines() == [
        f"L01-02 part 2:{at}: layer 2 of emotion" for at in (6, 25, 44)
    ]
    assert run("find", "2 of", "--data", store, "--limit", 1).stdout.count("\n") == 1
    assert run("find", "2 of", "D20", "D01", "--data", store).stdout.count("\n") == 3
    assert run("find", "layer 1 of emotion\n", "--data", store).stdout.splitlines() == [
        r"L01-01 part 1:0: layer 1 of emotion\nlayer 1 of emotion",
        r"L01-01 part 1:19: layer 1 of emotion\n",
    ]


def test_find_counts(store):
    assert run("find", "layer", "--count", "--data", store).stdout == "10\n"
    assert json.loads(run("find", "layer", "--count", "--json", "--data", store).stdout) == {
        "needle": "6c61796572",
        "count": 10,
    }


@pytest.mark.parametrize("option", [(), ("--count",), ("--json",)])
def test_find_nothing_ends_with_1(store, option):
    result = run("find", "nowhere", "--data", store, *option, exit_code=1)
    assert result.stderr == ""
    assert "L01" not in result.stdout


def test_find_bytes_given_in_hexadecimal(store):
    result = run("find", "--hex", "05 05 05 05 05", "--data", store)
    assert result.stdout.splitlines() == [rf"L20-05:{i}: \x05\x05\x05\x05\x05\x05" for i in (0, 1)]


def test_find_as_json(store):
    found = json.loads(run("find", "of", "D01", "--data", store, "--json", "--limit", 2).stdout)
    assert found == {
        "needle": "6f66",
        "count": 2,
        "hits": [
            {
                "layer": "L01-00",
                "name": "part 0",
                "offset": 8,
                "n_bytes": 2,
                "before": "layer 0 ",
                "found": "of",
                "after": " emotion",
            },
            {
                "layer": "L01-01",
                "name": "part 1",
                "offset": 8,
                "n_bytes": 2,
                "before": "layer 1 ",
                "found": "of",
                "after": " emotion",
            },
        ],
    }


def test_find_goes_on_where_a_file_cannot_be_read(store):
    (store / "D01" / "region.mmap").write_bytes(b"no region")
    result = run("find", "--hex", "050505", "--data", store, exit_code=2)
    assert "D01" in error_of(result)
    assert result.stdout.count("L20-05") == 4
    result = run("find", "--hex", "050505", "D02", "D20", "--data", store, exit_code=2)
    assert "D02: no region file" in error_of(result)


def test_find_lets_no_content_act_on_the_terminal(hostile):
    result = run("find", "b", "--data", hostile.parent.parent)
    assert_harmless(result.stdout)
    assert r"a\x1b[31m[red]b[/red]\x9b1m\u202e" in result.stdout


def test_find_needs_no_more_than_reading(store):
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
def test_find_agrees_with_grep(tmp_path, needle):
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


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes stdout")
@pytest.mark.parametrize("command", ["cat", "contexts"])
def test_without_a_stdout_it_is_one_line(tmp_path, command):
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, b"content")
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    script = '"$0" -c "from jessymem.cli import main; main()" "$@" >&-'
    arguments = [sys.executable, command, "--data", str(tmp_path), "L20-00"]
    found = subprocess.run(["sh", "-c", script, *arguments], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (1, "Error: there is no stdout to write to\n")
