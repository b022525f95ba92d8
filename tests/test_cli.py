"""The command line: the way in, how it fails, how it ends, and the commands about itself."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from support import samples
from support.command_line import HOSTILE, assert_harmless, error_of, make_source, run, start, tamper
from support.internals import forget_compiled
from support.samples import sampled

from jessymem import (
    LayerId,
    RegionBuilder,
    __version__,
    cli,
)
from jessymem.demo import run as demo
from jessymem.demo.measurements import Measurement
from jessymem.kernels import _jit
from jessymem.terminal import files, measuring, screens, wording
from jessymem.units import show_bytes
from jessymem.warming import WarmupReport


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path)


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


STARTED = """
import gc, os, sys
{before}
sys.argv = ["jessymem", "--version"]
try:
    {command}
except SystemExit:
    pass
print(len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1)
print(gc.isenabled(), gc.get_freeze_count() > 10_000, os.environ.get("OPENBLAS_NUM_THREADS"))
"""
RUN = "from jessymem.__main__ import run; run()"


def after(command, before="", **options):
    code = STARTED.format(before=before, command=command)
    result = start(module=("-c", code), **options)
    return result.stdout.decode().splitlines()[-1], result.stdout.decode().splitlines()[-2]


def test_a_process_of_its_own_starts_quietly():
    """NumPy starts no threads for matrices; what is imported is no garbage; nothing is left set."""
    before = 'os.environ.pop("OPENBLAS_NUM_THREADS", None)'
    assert after(RUN, before) == ("True True None", "1")


@pytest.mark.parametrize("threads", ["1", "2"])
def test_what_the_user_says_of_threads_stays(threads):
    env = {"OPENBLAS_NUM_THREADS": threads}
    assert after(RUN, env=env)[0] == f"True True {threads}"


@pytest.mark.parametrize(
    ("before", "command"),
    [("", "import jessymem.cli"), ("import numpy", RUN), ("gc.disable()", "import jessymem.cli")],
)
def test_a_process_that_is_not_the_command_lines_stays_as_it_is(before, command):
    collects = "gc.disable" not in before
    env = {"OPENBLAS_NUM_THREADS": ""}
    assert after(command, before, env=env)[0].strip() == f"{collects} False"


def test_every_command_has_help():
    assert isinstance(cli.main, click.Group)
    context = click.Context(cli.main)
    names = cli.main.list_commands(context)
    for name in names:
        command = cli.main.get_command(context, name)
        result = run(name, "--help")
        assert command.help.splitlines()[0] in " ".join(result.output.split())
        assert len(command.get_short_help_str(60)) <= 60
        assert "..." not in command.get_short_help_str(60)
    expected = (
        "bench build cat contexts demo discover export find fold inspect ps rm top verify warmup"
    )
    assert names == expected.split()


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("build",),
        ("build", "no/such/folder"),
        ("cat", "L00-00"),
        ("cat",),
        ("contexts",),
        ("contexts", "x", "L01-70000"),
        ("rm",),
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
def test_what_is_not_understood_ends_with_2(arguments):
    result = run(*arguments, exit_code=2)
    assert "Usage:" in result.stderr
    assert result.stdout == ""


def test_bad_layer_is_explained():
    assert "a layer number is 0 to 65535" in run("cat", "L15-65536", exit_code=2).stderr
    assert "is called 'x\\x1b[31m'" in run("cat", "x\x1b[31m", exit_code=1).stderr


def test_data_is_by_default_where_the_manager_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    builder = RegionBuilder("D15", "here")
    builder.add_layer(0, "default folder")
    builder.build_to_file(Path("data/consciousness/D15/region.mmap"))
    assert run("cat", "L15-00").stdout == "default folder"


# -- errors ----------------------------------------------------------------------------------------


def test_error_is_one_line_however_hostile_the_path(tmp_path):
    line = error_of(run("inspect", tmp_path / HOSTILE.replace("/", "-"), exit_code=1))
    assert_harmless(line)
    assert r"a\x1b[31m[red]b" in line


def test_very_long_messages_lose_their_middle():
    line = wording.one_line("begin " + "x" * 10_000 + "\nend")
    assert len(line) < 600
    assert line.startswith("begin ")
    assert line.endswith(r"\nend")


def test_system_errors_are_one_line_too(monkeypatch, store):
    def fail(data):
        raise OSError(5, "Input/output error", "some file")

    monkeypatch.setattr(files.inspection, "find_regions", fail)
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
    assert [show_bytes(size) for size in sizes] == expected
    durations = [4.2e-7, 2.78e-5, 3.05e-4, 0.0023, 0.1, 1.0, 4.27, 1234.5]
    expected = ["0.42 us", "27.8 us", "305 us", "2.30 ms", "100 ms", "1.00 s", "4.27 s", "1,234 s"]
    assert [wording.show_seconds(seconds) for seconds in durations] == expected
    counts = [wording.count(number, "layer") for number in (0, 1, 2000)]
    assert counts == ["0 layers", "1 layer", "2,000 layers"]


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("share", 0.0623, "6.2 % +-1.5 %"),
        ("share", -1.432, "none, +-1.5 %"),  # a gain is no loss
        ("bytes", 2048, "2.0 KB"),
        ("layers", 1234, "1,234"),
    ],
)
def test_measured_values_in_words(unit, value, shown):
    assert wording.show_value(Measurement("", "", "", value, unit, True, spread=0.015)) == shown


# -- warmup ----------------------------------------------------------------------------------------

LEAVE_OUT = """
import json, sys
from jessymem.kernels import _jit
for group in sys.argv[1:]:
    del _jit.MODULES[group]
"""

WARM_UP = """
from jessymem.terminal.records import warmup_record
from jessymem.warming import warmup
from support.internals import marked_kernels
report = warmup()
names = {f"jessymem.kernels.{name}" for names in _jit.MODULES.values() for name in names}
marked = [each for each in marked_kernels() if each.__module__ in names]
kernels = [getattr(sys.modules[each.__module__], each.__name__) for each in marked]
cold = [kernel.__name__ for kernel in kernels if not kernel.signatures]
print(json.dumps(warmup_record(report) | {"cold": cold}))
"""


def start_without(groups, code, **options):
    """Run code in a process of its own that knows nothing of some kernels."""
    return start(*groups, module=("-c", LEAVE_OUT + code), **options)


@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
@sampled
def test_warmup_compiles_every_kernel_once_for_all_later_processes(tmp_path):
    # Those of the allocator take as long as all others.
    left_out = [] if samples.is_whole() else [_jit.MEMORY]
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "JESSYMEM_KERNEL_CACHE": "1"}
    first = json.loads(start_without(left_out, WARM_UP, env=env, cwd=tmp_path).stdout)
    assert first["n_compiled"] > 0
    assert first["n_cached"] == 0
    assert first["cold"] == ["find_layer"]  # which only users' own compiled code calls
    assert Path(first["cache"]).is_relative_to(tmp_path / "cache")
    assert os.listdir(tmp_path) == ["cache"]
    command = 'from jessymem.cli import main; main(["warmup", "--json"])'
    later = json.loads(start_without(left_out, command, env=env, cwd=tmp_path).stdout)
    assert later["n_compiled"] == 0
    assert later["n_cached"] > 0
    assert later["cache"] == first["cache"]


def test_warmup_says_where_jit_is_disabled(monkeypatch):
    forget_compiled(monkeypatch)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert run("warmup").stdout.startswith("JIT is disabled (NUMBA_DISABLE_JIT)")
    record = json.loads(run("warmup", "--json").stdout)
    assert (record["is_disabled"], record["n_compiled"], record["cache"]) == (True, 0, None)


@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_warmup_in_words():
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
    monkeypatch.setattr(measuring, "run_demo", functools.partial(demo.run_demo, **options))


@pytest.fixture
def outcome(monkeypatch):
    """Let each target of the demo be met, or missed, by its key."""

    def outcome(**is_met):
        run = measuring.run_demo

        def judged(*arguments, **options):
            report = run(*arguments, **options)
            measured = [
                each._replace(is_met=is_met.get(each.key, True), why=f"told of {each.key}")
                for each in report.measurements
            ]
            object.__setattr__(report, "measurements", tuple(measured))
            return report

        monkeypatch.setattr(measuring, "run_demo", judged)

    return outcome


@pytest.mark.compiled_only
def test_demo_shows_targets_and_leaves_nothing(quick, outcome, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome()
    output = run("demo", "--strict").stdout
    assert output.startswith("15 dimensions, ")
    for target in ("< 100 ms", "< 50 ms", "< 1 ms", "< 10 us", "< 10 %", "no copy", "<= 280 MB"):
        assert target in output
    assert output.count(" met ") == 12
    assert output.rstrip().endswith("Every byte is that of its source, and every target is met.")
    assert os.listdir(tmp_path) == []


@pytest.mark.compiled_only
def test_demo_says_where_there_is_no_library(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "library_folder", lambda: tmp_path / "python.zip")
    output = " ".join(run("demo").stdout.split())
    assert "14 dimensions" in output
    assert "this Python comes without sources" in output


@pytest.mark.compiled_only
def test_demo_keeps_its_files_where_it_is_told(quick, tmp_path):
    output = run("demo", "--data", tmp_path / "kept").stdout
    assert output.rstrip().endswith(f"The region files are in {tmp_path / 'kept'}")
    assert "15 of 15" in run("verify", "--data", tmp_path / "kept").stdout
    line = error_of(run("demo", "--data", tmp_path / "kept", exit_code=1))
    assert "D01: " in line
    assert "is there already" in line


@pytest.mark.compiled_only
def test_missed_target_fails_only_when_strict(quick, outcome):
    outcome(threads=False, scan=False)
    for arguments, exit_code in (((), 0), (("--strict",), 1)):
        output = run("demo", *arguments, exit_code=exit_code).stdout
        assert "missed on this machine: scan, threads" in " ".join(output.split())
        assert output.count(" missed ") == 3
        assert re.findall(r"^Missed: (.+)$", output, re.M) == [
            "scan: told of scan",
            "threads: told of threads",
        ]


@pytest.mark.compiled_only
def test_demo_names_the_compilation_while_it_lasts(quick, monkeypatch):
    shown = []

    class Refresher:
        def __init__(self, progress):
            self.progress = progress

        def start(self):
            shown.append(self.progress.tasks[0].description)

        def stop(self):
            shown.append("stopped")

    monkeypatch.setattr(screens, "Refresher", Refresher)
    run("demo")
    (at,) = [number for number, each in enumerate(shown) if each != "stopped"]
    assert shown[at].startswith("compiling kernels")
    assert shown[at + 1] == "stopped"


@pytest.mark.compiled_only
def test_demo_as_json(quick, outcome):
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


@pytest.mark.compiled_only
@pytest.mark.parametrize("arguments", [(), ("--json",), ("--strict",)])
def test_demo_with_one_byte_that_differs_fails(quick, tmp_path, monkeypatch, arguments):
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


@pytest.mark.compiled_only
def test_demo_names_the_first_of_many_that_differ(quick, monkeypatch):
    wrong = [LayerId(15, number) for number in range(9)]
    monkeypatch.setattr(demo, "differing_layers", lambda manager, sources: wrong)
    output = " ".join(run("demo", exit_code=1).stdout.split())
    assert "L15-00, L15-01, L15-02, L15-03, L15-04 and 4 more" in output


# -- completion and pipes --------------------------------------------------------------------------


@pytest.fixture
def offered(tmp_path):
    """What a shell is offered at the end of a command."""
    for dimension in ("D15", "D16", "D200"):
        builder = RegionBuilder(dimension, f"Name of {dimension}")
        for layer in range(3):
            builder.add_layer(layer, b"x", name=f"layer {layer}")
        builder.build_to_file(tmp_path / dimension / "region.mmap")

    def offered(*arguments, data=tmp_path):
        *before, incomplete = arguments
        words = [before[0], "--data", str(data), *before[1:]]
        found = ShellComplete(cli.main, {}, "jessymem", "_X").get_completions(words, incomplete)
        return [(item.value, item.help) for item in found if item.type == "plain"]

    return offered


def test_completion_knows_dimensions_and_layers(offered):
    grown = [("D15", "Name of D15"), ("D16", "Name of D16")]
    assert offered("fold", "D1") == grown
    assert offered("export", "D1") == grown
    assert offered("find", "needle", "d1") == grown
    assert offered("verify", "D15", "D2") == [("D200", "Name of D200")]
    assert offered("inspect", "D") == [*grown, ("D200", "Name of D200")]
    assert offered("cat", "L15-") == [(f"L15-0{n}", f"layer {n}") for n in range(3)]
    assert len(offered("contexts", "L15-00", "L")) == 9
    assert offered("cat", "L16-02") == offered("rm", "L16-02") == [("L16-02", "layer 2")]


def test_completion_offers_nothing_where_there_is_nothing(offered, tmp_path):
    assert offered("fold", "D", data=tmp_path / "nowhere") == []
    (tmp_path / "D15" / "region.mmap").write_bytes(b"broken")
    assert offered("cat", "L15-") == []
    assert offered("fold", "D15") == [("D15", "unreadable")]


def test_completion_is_described_where_commands_are():
    assert "_JESSYMEM_COMPLETE=bash_source jessymem" in run("--help").stdout
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert 'eval "$(_JESSYMEM_COMPLETE=bash_source jessymem)"' in readme


@pytest.mark.parametrize("columns", [None, "60"])
def test_tables_are_not_cut_where_they_are_piped(tmp_path, columns, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # processes of the suite may have it
    name = "a name of some length, " * 2
    builder = RegionBuilder("D15", name)
    builder.add_layer(0, b"x", name="layer " * 30, keywords=[f"keyword{n}" for n in range(9)])
    builder.build_to_file(tmp_path / "D15" / "region.mmap")
    env = {} if columns is None else {"COLUMNS": columns}
    for command, whole in (("discover", name.strip()), ("inspect", ("layer " * 30).strip())):
        arguments = (command, *(["D15"] if command == "inspect" else []), "--data", tmp_path)
        shown = start(*arguments, env=env).stdout.decode()
        assert (whole in shown) is (columns is None)
        if columns is not None:
            assert all(len(line) <= 60 for line in shown.splitlines())


def test_warnings_are_a_line_on_stderr(tmp_path):
    path = tmp_path / "D15" / "region.mmap"
    builder = RegionBuilder("D15", "Name")
    builder.add_layer(0, b"content")
    builder.build_to_file(path)
    path.with_name("region.g2.mmap").mkdir()
    result = run("find", "content", "--data", tmp_path)
    assert result.stdout.startswith("L15-00:0: content")
    assert result.stderr.startswith("Warning: D15: ")
    assert len(result.stderr.splitlines()) == 1
