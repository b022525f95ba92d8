"""`jessymem ps` and `jessymem top`: what they show, in a pipe and on a terminal."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console
from support.command_line import run
from support.machines import use_machine, write_machine
from support.processes import PATIENCE_SECONDS

from jessymem import ClassUsage, MemoryConfig, MmapManager, RegionBuilder
from jessymem.latencies import KINDS
from jessymem.status import reader
from jessymem.terminal.status_views import fitting_view, show_age, status_view

HOSTILE = "<script>\x1b[31m\u202etxt"


@pytest.fixture
def shown(store, status_folder):
    """A manager that shows itself, with something of everything."""
    with MmapManager(MemoryConfig(64, store, status="auto", simulation="never")) as manager:
        manager.load_all()
        manager.create_proto_dimension(20, bytes(100_000), name=HOSTILE)
        manager.create_proto_dimension(30, b"x")
        manager.load_contexts(["L01-00"])
        manager.pin("D01")
        manager._engine.watcher._write()
        yield manager


def test_nobody_is_said_on_stderr(status_folder):
    done = run("ps")
    assert done.stdout == ""
    assert 'status="auto"' in done.stderr
    assert json.loads(run("ps", "--json").stdout) == []
    done = run("top", "--once", exit_code=1)
    assert "no process shows itself" in done.stderr


def test_processes_are_listed(shown, store):
    head, row = run("ps", columns=600).stdout.splitlines()
    assert head.split() == "pid up memory of dimensions layers store command".split()
    assert row.split()[0] == str(os.getpid())
    assert str(store) in row
    (record,) = json.loads(run("ps", "--json").stdout)
    assert (record["pid"], record["counters"]["layers_loaded"]) == (os.getpid(), 10)


def test_a_status_is_shown_once(shown, store):
    for target in ([], [str(os.getpid())], [str(shown._engine.watcher.path)]):
        text = run("top", "--once", *target).stdout
        assert f"process {os.getpid()}, up " in text
        assert re.search(r"budget \[#+[.|]+\] .* of 64.0 MB \(0\.\d%\)", text)
        assert re.search(r"^D01 +Emotion .* mapped, pinned", text, re.M)
        assert re.search(r"^D30 .* learned", text, re.M)
        assert re.search(r"^load +2 ", text, re.M)
        assert "allocations 2 " in text


def test_all_fits_into_80_columns(shown):
    lines = run("top", "--once", columns=80).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("D20") and line.rstrip().endswith("mapped") for line in lines)


def test_numbers_are_never_cut(store, status_folder):
    config = MemoryConfig(64, store, status="auto", simulation="never")
    with MmapManager(config) as manager:
        for number in range(100, 110):
            manager.create_proto_dimension(number, bytes(number), name="x" * 60)
        builder = RegionBuilder(200, "a name that is as long as names may be")
        builder.add_layer(0, bytes(40_000))
        builder.build_to_file(store / "D200" / "region.mmap")
        manager.load_dimension(200)
        manager._engine.watcher._write()
        for columns in (60, 80):
            listed = run("ps", columns=columns).stdout
            assert str(os.getpid()) in listed
            assert "64.0 MB" in listed
        shown = run("top", "--once", columns=80).stdout
        (row,) = [line for line in shown.splitlines() if line.startswith("D200")]
        assert re.search(r" 4\d\.\d KB +1 +0 +1 +mapped$", row.rstrip())


@pytest.mark.parametrize("height", [10, 24, 40])
def test_a_low_terminal_shows_dimensions_too(shown, height):
    for kind in KINDS:
        shown._engine.latencies.add(kind, 1_000)
    shown._engine.watcher._write()
    (status,) = reader.running()
    screen = Console(width=80, height=height, force_terminal=True)
    lines = screen.render_lines(fitting_view(status, None, "b", screen), pad=False)
    drawn = ["".join(segment.text for segment in line) for line in lines]
    n_rows = sum(line.startswith("D") for line in drawn)
    assert n_rows == (1 if height == 10 else 3)
    assert len(drawn) <= height or height == 10


@pytest.mark.parametrize("width", [60, 80])
def test_pages_and_nodes_are_shown(width, store, status_folder, tmp_path, monkeypatch):
    write_machine(tmp_path / "nodes", {0: "0-255", 1: "256-511"})
    use_machine(monkeypatch, tmp_path / "nodes")
    asked = {"status": "auto", "huge_pages": "thp", "numa": "local"}
    with MmapManager(MemoryConfig(64, store, pool_configs=[(4, 2**21)], **asked)) as manager:
        manager.view(manager.allocate(2**21), 2**21)[:] = bytes(2**21)
        manager._engine.watcher._write()
        (status,) = reader.running()
        stats = manager.get_stats()
        assert (status.placement, stats.placement.n_nodes) == (stats.placement, 2)
        assert list(status.pools) == list(stats.per_pool.values())
        assert [pool.node for pool in status.pools] == [0, 1]
        (record,) = [json.loads(run("top", "--json").stdout)]
        assert record["placement"]["node_bytes"].keys() == {"0"}  # where this machine has them
        assert [pool["node"] for pool in record["pools"]] == [0, 1]
    screen = Console(width=width, color_system=None)
    lines = screen.render_lines(status_view(status, None, "b", width), pad=False)
    text = " ".join("".join(segment.text for segment in line) for line in lines)
    assert "huge pages thp" in text and "numa local" in text
    assert re.search(r"passed on +pages +node +0 fixed .* 0 +(thp|small) +0 +1 fixed", text)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.65, 1.0])
def test_the_bar_is_as_long_as_what_is_counted(shown, share):
    (status,) = reader.running()
    counters = status.counters | {"total_allocated_bytes": share * 64 * 2**20}
    classes = dict.fromkeys(status.classes, ClassUsage(int(share * 64 * 2**20 / 5), 0))
    drawn = dataclasses.replace(status, counters=counters, classes=classes)
    screen = Console(width=80, color_system=None)
    lines = screen.render_lines(status_view(drawn, None, "b", 80), pad=False)
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    (bar,) = re.findall(r"^budget \[(.*?)\]", text, re.M)
    n_filled = len(bar.rstrip("|.")) if "." in bar else len(bar)
    assert abs(n_filled - max(share * 40, share > 0)) <= 1


def test_all_is_told_as_json(shown):
    record = json.loads(run("top", "--json").stdout)
    stats = shown.get_stats()
    assert record["counters"]["total_allocated_bytes"] == stats.total_allocated_bytes
    assert record["is_alive"] is True
    assert {each["dimension"] for each in record["dimensions"]} == {"D01", "D20", "D30"}
    assert record["latency_seconds"]["batch"]["n_samples"] == 1


@pytest.mark.parametrize(
    ("sort", "first"), [("bytes", "D20"), ("learned", "D20"), ("number", "D01"), ("name", "D30")]
)
def test_dimensions_are_sorted(shown, sort, first):
    text = run("top", "--once", "--sort", sort).stdout
    assert re.findall(r"^D\d\d", text, re.M)[0] == first


def test_of_several_managers_one_has_to_be_named(shown, store):
    with MmapManager(MemoryConfig(8, store, status="auto", simulation="never")):
        done = run("top", "--once", exit_code=1)
    assert done.stderr.count(".status") == 2


@pytest.mark.parametrize("target", ["1", "99999999999999999999", "no/such.status", "/etc/passwd"])
def test_what_shows_nothing_is_named(status_folder, target):
    done = run("top", "--once", target, exit_code=1)
    assert target in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0 s"), (59.9, "59 s"), (61, "1 m 01 s"), (7_260, "2 h 01 m"), (90_000, "1 d 01 h")],
)
def test_ages_are_short(seconds, shown):
    assert show_age(seconds) == shown


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, *arguments):
        import pty

        self.pid, self.descriptor = pty.fork()
        if not self.pid:
            environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "30"}
            program = [sys.executable, "-m", "jessymem", *arguments]
            os.execvpe(program[0], program, environment)

    def read_until(self, text):
        found, deadline = "", time.monotonic() + PATIENCE_SECONDS
        while text not in found:
            assert time.monotonic() < deadline, found
            if select.select([self.descriptor], [], [], 0.1)[0]:
                try:
                    found += os.read(self.descriptor, 2**16).decode(errors="replace")
                except OSError:  # it has ended
                    break
        assert text in found
        return found

    def press(self, key):
        os.write(self.descriptor, key.encode())

    def wait(self):
        """Return the exit code."""
        while True:
            try:
                if not os.read(self.descriptor, 2**16):
                    break
            except OSError:
                break
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
def test_it_is_watched_on_a_terminal(shown):
    top = Terminal("top", "--interval", "0.1")
    top.read_until("state (by bytes)")
    top.press("n")
    found = top.read_until("state (by name)")
    assert "\x1b[31m\u202e" not in found
    top.press("x")  # no key of it
    top.press("\x1b[A")  # an arrow
    top.press("\x1a")  # nothing is stopped
    shown.load_contexts(["L01-00"] * 3)
    top.read_until("/s)")  # a rate, of two looks
    top.press("q")
    assert top.wait() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
def test_it_ends_with_what_is_watched(shown):
    top = Terminal("top", "--interval", "0.1")
    top.read_until("state (by bytes)")
    shown.close()
    top.read_until("shows nothing any more")
    assert top.wait() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
def test_it_ends_with_a_process_that_is_killed(store, status_folder):
    program = "import sys, time; from jessymem import *;"
    program += "m = MmapManager(MemoryConfig(8, sys.argv[1], status='auto', simulation='never'));"
    program += "print(flush=True); time.sleep(600)"
    command = [sys.executable, "-c", program, str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        top = Terminal("top", str(process.pid), "--interval", "0.1")
        top.read_until("state (by bytes)")
        process.kill()
    top.read_until("shows nothing any more")
    assert top.wait() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
def test_ctrl_c_ends_it(shown):
    top = Terminal("top")
    top.read_until("state (by bytes)")
    top.press("\x03")
    assert top.wait() in (0, 130)
