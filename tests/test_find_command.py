"""The command `find`: what it searches for, how it shows it, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from support.command_line import assert_harmless, error_of, run, start
from support.processes import with_support

from jessymem import RegionBuilder
from jessymem.terminal import context_lines, hit_lines, wording

LAYERS = {
    "bash/README": "First line\nsecond Line\n\n\tthird line of it\nlast\nlines",
    "bash/notes": "No match here\nOUTLINE of things\n",
    "\u00e9t\u00e9/menu": "line \u00e9t\u00e9 line\r\nnothing\nline",
    "": "a nameless line",
}


@pytest.fixture
def data(tmp_path):
    builder = RegionBuilder("D20", "Texts")
    for number, (name, content) in enumerate(LAYERS.items()):
        builder.add_layer(number, content, name=name)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    return tmp_path


def lines_of(data, *arguments, **options):
    return run("find", *arguments, "--data", data, **options).stdout.splitlines()


# -- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "n_found"),
    [
        (("line",), 7),
        (("line", "-i"), 9),
        (("line", "-w"), 6),
        (("line", "-iw"), 7),
        (("line", "--name", "bash/*"), 3),
        (("line", "-i", "--name", "bash/*"), 5),
        (("line", "--name", "none"), 0),
        (("\u00c9T\u00c9", "-i"), 1),
        (("\u00c9T\u00c9",), 0),
        (("--hex", "4c 49 4e 45"), 1),
        (("--hex", "-i", "4c 49 4e 45"), 9),
        (("-E", "^line"), 3),
        (("-e", "line$"), 3),
        (("-e", "line|Line|LINE"), 9),
        (("-E", "l.ne", "-w"), 6),
        (("-E", "L.NE", "-i"), 9),
        (("-E", "\u00e9?t\u00e9+"), 1),
        (("-E", "x*"), 0),
    ],
)
def test_what_is_found(data, arguments, n_found):
    counted = run("find", *arguments, "-c", "--data", data, exit_code=int(not n_found))
    assert counted.stdout == f"{n_found}\n"
    assert len(lines_of(data, *arguments, exit_code=int(not n_found))) == n_found


def test_what_is_missing_to_search_on_processes_is_no_empty_search(data):
    without = "import sys; sys.modules['dask'] = None\nfrom jessymem.cli import main\nmain()"
    arguments = ["find", "line", "--workers", "2", "--data", str(data)]
    done = subprocess.run(
        [sys.executable, "-c", without, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert 'pip install "jessymem[distributed]"' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-E", "("), "no regular expression"),
        (("-E", "[\u00e9a]"), "a class has no letters beyond ASCII"),
        (("-E", "--hex", "61"), "--regexp goes without --hex"),
        (("a", "--workers", "2", "-n"), "--workers and --scheduler search whole files: they go"),
        (("a", "D20", "--workers", "2"), "--workers and --scheduler search whole files: they go"),
        (("a", "--workers", "2", "--scheduler", "tcp://x:1"), "--workers goes without --scheduler"),
        (("a", "-l", "-c"), "--layers-with-matches goes without --count"),
        (("a", "-C", "1", "--json"), "--json goes without context or line numbers"),
        (("a", "-n", "--jsonl"), "--jsonl goes without context or line numbers"),
        (("a", "--json", "--jsonl"), "--jsonl goes without --json"),
        (("a", "-A", "-1"), "not in the range"),
        (("a", "--color", "blue"), "'blue'"),
    ],
)
def test_what_does_not_go_together(data, arguments, message):
    result = run("find", *arguments, "--data", data, exit_code=2)
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


# -- how it is shown -------------------------------------------------------------------------------


def test_layers_with_matches_are_named_once(data):
    assert lines_of(data, "line", "-l") == [
        "L20-00 bash/README",
        "L20-02 \u00e9t\u00e9/menu",
        "L20-03",
    ]


def test_lines_are_numbered_and_shown_once(data):
    assert lines_of(data, "line", "-n") == [
        "L20-00 bash/README:1:First line",
        "L20-00 bash/README:4:\tthird line of it",
        "L20-00 bash/README:6:lines",
        "L20-02 \u00e9t\u00e9/menu:1:line \u00e9t\u00e9 line\\r",
        "L20-02 \u00e9t\u00e9/menu:3:line",
        "L20-03:1:a nameless line",
    ]


def test_context_is_that_of_grep(data, tmp_path):
    """But for the names of files, which stand where ids and names do."""
    files = tmp_path / "files"
    for name, content in LAYERS.items():
        path = files / (name or "nameless")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    paths = [str(files / (name or "nameless")) for name in LAYERS]
    for options in (["-A1"], ["-B1"], ["-C1"], ["-C2"], ["-A", "9"], ["-B1", "-C2"], ["-n"]):
        try:
            grep = subprocess.run(
                ["grep", "-nH", "-e", "line", *options, *paths], capture_output=True, check=True
            )
        except FileNotFoundError:
            pytest.skip("there is no grep")
        theirs = grep.stdout.decode().replace("\r", "\\r").split("\n")[:-1]
        ours = lines_of(data, "line", *options)
        for number, (name, path) in enumerate(zip(LAYERS, paths, strict=True)):
            title = f"L20-0{number} {name}".strip()
            theirs = [each.replace(path, title, 1) for each in theirs]
        assert ours == theirs


def test_a_find_of_several_lines_shows_them_all(data):
    assert lines_of(data, "--hex", "0a0a", "-A", "1") == [
        "L20-00 bash/README:2:second Line",
        "L20-00 bash/README:3:",
        "L20-00 bash/README-4-\tthird line of it",
    ]


def test_very_long_lines_are_cut(tmp_path):
    builder = RegionBuilder("D20", "Long")
    builder.add_layer(0, "x" * 5000 + "\nneedle" + "y" * 5000)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    first, second = lines_of(tmp_path, "needle", "-B1")
    assert first == "L20-00-1-" + "x" * 4096 + " ..."
    assert second == "L20-00:2:needle" + "y" * 4090 + " ..."


def test_colours_where_they_are_wanted(data, monkeypatch):
    title = "\x1b[36mL20-00\x1b[0m bash/README"
    found = "\x1b[1;31mline\x1b[0m"
    always = ["--color", "always", "--limit", 1]
    assert lines_of(data, "line", *always) == [f"{title}:\x1b[32m6\x1b[0m: First {found}"]
    assert lines_of(data, "line", *always, "-n") == [f"{title}:\x1b[32m1\x1b[0m:First {found}"]
    assert lines_of(data, "line", *always, "-l") == [title]
    for options in ([], ["--color", "never"], ["--color", "auto"]):
        assert_harmless("".join(lines_of(data, "line", *options)))


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal of its own")
@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_has_colours_unless_it_or_the_user_has_none(data, environment, is_coloured):
    import pty

    ours, theirs = pty.openpty()
    environment = with_support({"TERM": "xterm", "NO_COLOR": "", **environment})
    command = [sys.executable, "-m", "jessymem", "find", "OUT", "--data", str(data)]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment):
        os.close(theirs)
        shown = b""
        while b"\n" not in shown:
            shown += os.read(ours, 10_000)
    os.close(ours)
    assert (b"\x1b[1;31mOUT\x1b[0m" in shown) == is_coloured
    assert (b"\x1b" in shown) == is_coloured


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal of its own")
def test_on_a_terminal_a_count_is_written_after_the_progress(data):
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "jessymem", "find", "line", "-c", "--data", str(data)]
    environment = with_support({"TERM": "xterm"})
    shown = b""
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        while True:
            try:
                read = os.read(ours, 10_000)
            except OSError:  # nobody writes there any more
                break
            if not read:
                break
            shown += read
    os.close(ours)
    assert b"searching" in shown
    assert shown.endswith(b"7\r\n") and b"searching" not in shown.rpartition(b"\x1b[2K")[2], shown


def test_json_by_lines(data):
    hits = [json.loads(line) for line in lines_of(data, "-E", "l.ne", "--jsonl")]
    whole = json.loads("\n".join(lines_of(data, "-E", "l.ne", "--json")))
    assert whole == {"needle": "6c2e6e65", "hits": hits, "count": len(hits)}
    assert hits[0] == {
        "layer": "L20-00",
        "name": "bash/README",
        "offset": 6,
        "n_bytes": 4,
        "before": "First ",
        "found": "line",
        "after": "",
    }
    empty = run("find", "nowhere", "--json", "--data", data, exit_code=1)
    assert json.loads(empty.stdout) == {"needle": b"nowhere".hex(), "hits": [], "count": 0}
    assert run("find", "nowhere", "--jsonl", "--data", data, exit_code=1).stdout == ""


# -- many lines at once ----------------------------------------------------------------------------


@pytest.fixture
def various(tmp_path):
    """Layers of every kind: short, long, of odd bytes, with finds at either end."""
    contents = [
        "needle",
        "a needle",
        "needle b",
        "x" * 200 + "needle" + "y" * 200,
        "needle" * 40,
        "one\nneedle\ntwo",
        "needle\n" * 50,
        "\u00e9" * 40 + "needle" + "\u4f60" * 40,
        "\x1b[31mneedle\x07\tend",
        b"\xff\xfeneedle\x00\x80",
        "\n" * 100 + "needle" + "\n" * 100,
        " " * 31 + "needle" + " " * 31,
        "\u00e9" + " " * 29 + "needle" + " " * 29 + "\u00e9",
    ]
    builder = RegionBuilder("D20", "Various")
    for number, content in enumerate(contents):
        name = "" if number % 3 == 0 else f"name {number}\x1b" if number % 3 == 1 else "n" * 100
        builder.add_layer(number * 7, content, name=name)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    return tmp_path


@pytest.mark.parametrize("needle", ["needle", "e", "needle\n", "-E:e.*", "-E:(?s)n.*"])
def test_lines_made_together_are_those_made_one_by_one(various, needle, monkeypatch):
    arguments = ["-E", needle[3:]] if needle.startswith("-E:") else [needle]
    together = lines_of(various, *arguments)
    assert together
    monkeypatch.setattr(hit_lines, "_has_odd", lambda rows, shown: shown[:, 0] | True)
    assert lines_of(various, *arguments) == together
    for line in together:
        assert_harmless(line)


@pytest.mark.parametrize("option", ["-n", "-C1", "-B3", "--color=always"])
@pytest.mark.parametrize("needle", ["needle", "e", "needle\n", "-E:(?s)n.*"])
def test_layers_cut_into_lines_together_are_those_cut_one_by_one(
    various, needle, option, monkeypatch
):
    arguments = [*(["-E", needle[3:]] if needle.startswith("-E:") else [needle]), "-n", option]
    together = lines_of(various, *arguments)
    assert together
    for n_bytes, n_lines in ((1, 4096), (150, 3), (2**20, 1)):
        monkeypatch.setattr(context_lines, "_BYTES_TOGETHER", n_bytes)
        monkeypatch.setattr(context_lines, "_N_TOGETHER", n_lines)
        assert lines_of(various, *arguments) == together
    monkeypatch.setattr(context_lines, "_have_odd", lambda texts, lengths: lengths >= 0)
    assert lines_of(various, *arguments) == together


def test_lines_are_what_excerpts_say(various):
    hits = [json.loads(line) for line in lines_of(various, "needle", "--jsonl")]
    expected = [
        f"{hit['layer']}{' ' if hit['name'] else ''}{hit['name']}:{hit['offset']}: "
        + "".join(wording.visible(hit[part]) for part in ("before", "found", "after"))
        for hit in hits
    ]
    assert lines_of(various, "needle") == expected
    assert len(expected) > 100


def test_batches_are_written_one_after_the_other(tmp_path):
    builder = RegionBuilder("D20", "Many")
    for number in range(3):
        builder.add_layer(number, b"needle\n" * 9_000)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    lines = lines_of(tmp_path, "needle")
    assert lines == [f"L20-0{i}:{at}: needle" for i in range(3) for at in range(0, 63_000, 7)]
    numbered = lines_of(tmp_path, "needle", "-n")
    assert numbered == [f"L20-0{i}:{n}:needle" for i in range(3) for n in range(1, 9_001)]
    assert len(lines_of(tmp_path, "needle", "-l")) == 3


# -- how it starts and ends ------------------------------------------------------------------------


def test_finding_needs_neither_rich_nor_numba(data):
    code = (
        "import sys; from jessymem.cli import main\n"
        f"try: main(['find', 'line', '--data', {str(data)!r}])\n"
        "finally: print({'numba', 'rich.console', 'jessymem.bench.run'} & set(sys.modules))"
    )
    result = start(module=("-c", code))
    assert result.stdout.decode().splitlines()[-1] == "set()", result.stderr


def test_an_error_is_told_from_nothing_found(data):
    assert "D21: no region file" in error_of(
        run("find", "line", "D20", "D21", "--data", data, exit_code=2)
    )
    assert run("find", "nowhere", "--data", data, exit_code=1).stderr == ""
    for path in data.rglob("region.mmap"):
        path.write_bytes(b"no region")
    assert "D20: " in error_of(run("find", "line", "-c", "--data", data, exit_code=2))


@pytest.mark.skipif(os.name != "posix", reason="a closed pipe is another error there")
@pytest.mark.parametrize("option", [(), ("-n",), ("--jsonl",), ("--json",), ("--color", "always")])
def test_a_pipe_closed_in_the_middle_is_no_error(tmp_path, option):
    builder = RegionBuilder("D20", "Many")
    builder.add_layer(0, b"needle\n" * 50_000)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    command = [sys.executable, "-m", "jessymem", "find", "needle", *option, "--data", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=with_support({})
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, b"")


def test_help_says_how_it_ends():
    text = re.sub(r"\s+", " ", run("find", "--help").stdout)
    assert "1 nothing is found" in text
