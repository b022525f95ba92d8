"""What cannot be done is refused early, in one line that names what was asked for."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.command_line import assert_harmless, error_of, run
from support.processes import with_support

from jessymem import ConfigError, MemoryConfig, MmapManager, RegionIOError, cli
from jessymem.demo.run import run_demo
from jessymem.ingest.building import plan_build
from jessymem.inspection import find_regions, resolve_target
from jessymem.terminal import building, files, measuring

NO_NAMES = ["\ud800x", "null\0character"]

needs_signals = pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")


# -- names that no file can have -------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
@pytest.mark.parametrize("as_given", [str, Path])
def test_a_path_that_no_file_can_have_is_a_setting_that_is_refused(name, as_given, tmp_path):
    (tmp_path / "src").mkdir()
    for field, call in {
        "base_path": lambda path: MmapManager(base_path=path),
        "source": lambda path: plan_build(path, tmp_path),
        "data": lambda path: plan_build(tmp_path / "src", path),
        "target": lambda path: resolve_target(os.fspath(path), tmp_path),
    }.items():
        with pytest.raises(ConfigError) as caught:
            call(as_given(name))
        assert caught.value.field == field
        assert str(caught.value).startswith(f"{field} must be a path that a file can have, not ")
    with pytest.raises(ConfigError, match="base_path"):
        MemoryConfig(base_path=as_given(name))
    with pytest.raises(ConfigError, match="data"):
        run_demo(as_given(name))


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["inspect"], 1),
        (["verify"], 1),
        (["build"], 2),
        (["discover", "--data"], 2),
        (["find", "x", "--data"], 2),
        (["demo", "--data"], 2),
        (["bench", "--scratch"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_on_the_command_line_too(name, arguments, exit_code):
    result = CliRunner().invoke(cli.main, [*arguments, name])
    assert result.exit_code == exit_code, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert repr(name)[1:-1] in line.replace("\\\\", "\\")
    assert_harmless(line)


# -- what is no region file, no folder -------------------------------------------------------------


def test_a_folder_without_a_region_file_is_named(tmp_path, monkeypatch):
    for command in ("inspect", "verify"):
        line = error_of(run(command, tmp_path, exit_code=1))
        assert line == f"Error: there is no region file (region.mmap) in the folder {tmp_path}"
        line = error_of(run(command, tmp_path / "region.mmap", exit_code=1))
        assert line == f"Error: there is no region file (region.mmap) in the folder {tmp_path}"
    monkeypatch.chdir(tmp_path)
    line = error_of(run("inspect", ".", exit_code=1))
    assert line == "Error: there is no region file (region.mmap) in the folder ."


@pytest.mark.parametrize("content", [b"", b"root:x:0:0\n", b"root:x:0:0\n" * 100])
def test_a_file_of_another_kind_is_said_to_be_none(content, tmp_path):
    path = tmp_path / "passwd"
    path.write_bytes(content)
    for command in ("inspect", "verify"):
        line = error_of(run(command, path, exit_code=1))
        assert line.startswith(f"Error: {path} is not a region file: ")


@pytest.mark.parametrize(
    "command",
    [
        ("discover",),
        ("verify",),
        ("find", "x"),
        ("cat", "L01-00"),
        ("contexts", "L01-00"),
        ("inspect", "D01"),
        ("demo",),
    ],
    ids=" ".join,
)
def test_a_file_in_the_place_of_a_folder_is_named(command, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    line = run(*command, "--data", path, exit_code=2).stderr.splitlines()[-1]
    assert line == f"Error: Invalid value for '--data': '{path}' is a file; it takes a folder"
    if os.path.exists("/dev/null"):
        line = run(*command, "--data", "/dev/null", exit_code=2).stderr.splitlines()[-1]
        assert line.endswith(": '/dev/null' is a file; it takes a folder")


def test_a_file_has_no_regions_in_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RegionIOError, match="cannot list") as caught:
        find_regions(tmp_path / "file")
    assert caught.value.errno == errno.ENOTDIR


# -- Ctrl-C ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (files, "inspection"),
        (building, "build_files"),
        (measuring, "warming"),
        (measuring, "run_demo"),
        (measuring, "run_bench"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_interrupted_command_ends_with_130(module, name, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    class Interrupting:
        def __getattr__(self, name):
            return interrupt

    is_module = name in ("inspection", "warming")
    monkeypatch.setattr(module, name, Interrupting() if is_module else interrupt)
    arguments = {
        "inspection": ["discover"],
        "build_files": ["build", tmp_path],
        "warming": ["warmup"],
        "run_demo": ["demo"],
        "run_bench": ["bench"],
    }[name]
    result = run(*arguments, exit_code=130)
    assert "Traceback" not in result.output
    assert "Error" not in result.output


def test_reading_the_arguments_can_be_interrupted(monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.main, "parse_args", interrupt)
    run("discover", exit_code=130)


INTERRUPTED_IMPORT = """
import signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from jessymem.cli import main
main(["discover"])
"""


def ended(*command, interrupt=lambda process: None, stdin=None):
    environment = with_support({"COVERAGE_PROCESS_CONFIG": ""})
    with subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        interrupt(process)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors


@needs_signals
@pytest.mark.parametrize("module", ["click", "rich.console", "jessymem.terminal.shell", "numpy"])
def test_an_interrupt_while_commands_are_imported_ends_with_130(module):
    assert ended(sys.executable, "-c", INTERRUPTED_IMPORT, module) == (130, "")


WAITING = """
import sys
from jessymem import inspection
from jessymem.cli import main

def wait(data):
    print("waiting", flush=True)
    sys.stdin.read()

inspection.find_regions = wait
main(["discover"])
"""


@needs_signals
def test_a_signal_ends_a_running_command_with_130():
    def interrupt(process):
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)

    reader, writer = os.pipe()  # nobody writes to it
    try:
        found = ended(sys.executable, "-c", WAITING, interrupt=interrupt, stdin=reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert found == (130, "")
