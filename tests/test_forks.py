"""A fork waits for nobody, and its child hangs at nothing, whatever other threads are doing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jessymem import RegionBuilder
from jessymem.kernels import _jit

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

PATIENCE_SECONDS = 60

#: Nothing depends on time: a thread makes the first call
#: of a verb and stops at its n-th call in this package or in numba, most of them while modules are
#: imported; there the main thread forks, and the child makes the call too.
FORK_IN_A_FIRST_CALL = """
import os, signal, sys, threading
verb, n_th, base = sys.argv[1], int(sys.argv[2]), sys.argv[3]
import jessymem
from jessymem import MmapManager
manager = MmapManager(64, base_path=base)
manager.load_dimension("D15")
calls = {
    "access": lambda: manager.access_layer("L15-00"),
    "array": lambda: manager.gather(["L15-00"]),
    "info": lambda: manager.get_layer_info("L15-00"),
    "contexts": lambda: manager.load_contexts(["L15-00"]),
    "select": lambda: manager.select(depth=(0, 1)),
    "store": lambda: manager.store(),
    "ref": lambda: manager.ref("L15-00").get(),
    "count": lambda: manager.count(b"rain"),
    "find": lambda: manager.find(b"rain"),
    "stats": lambda: manager.get_stats(),
    "dump": lambda: manager.dump_state(),
    "pickle": lambda: manager.__reduce__(),
    "load": lambda: manager.is_loaded("D16") or manager.load_dimension("D16"),
    "core": lambda: manager.load_core_dimensions(),
    "allocate": lambda: manager.deallocate(manager.allocate(100)),
    "learn": lambda: manager.create_proto_dimension("D17", "x"),
    "overlay": lambda: manager.overlay_layer("L15-00", "x"),
    "crystallize": lambda: (
        manager.create_proto_dimension("D18", "x"), manager.crystallize_dimension("D18")
    ),
}
call = calls[verb]
there, go_on, n_seen = threading.Event(), threading.Event(), 0

def watch(frame, event, argument):
    global n_seen
    name = frame.f_code.co_filename
    if "jessymem" not in name and "numba" not in name:
        return None
    if event == "call":
        n_seen += 1
        if n_seen == n_th:
            threading.settrace(None)
            sys.settrace(None)
            there.set()
            go_on.wait(30)
    return None

def first() -> None:
    sys.settrace(watch)
    try:
        call()
    finally:
        sys.settrace(None)
        there.set()

thread = threading.Thread(target=first)
thread.start()
there.wait(30)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    try:
        call()
    except jessymem.JessyMemoryError:
        pass
    os._exit(0)
_, status = os.waitpid(pid, 0)
go_on.set()
thread.join(30)
print(n_seen, "hangs" if status == signal.SIGALRM else status, thread.is_alive(), flush=True)
os._exit(0)
"""

VERBS = [
    "access", "array", "info", "contexts", "select", "store", "ref", "count", "find", "stats",
    "dump", "pickle", "load", "core", "allocate", "learn", "overlay", "crystallize",
]  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for number in (15, 16):
        builder = RegionBuilder(number, "x")
        builder.add_layer(0, b"rain")
        builder.build_to_file(tmp_path / f"D{number}" / "region.mmap")
    return tmp_path


def fork_in(verb: str, n_th: int, base: Path) -> int:
    """Fork at the n-th call of a first call; return how many were seen."""
    found = subprocess.run(
        [sys.executable, "-c", FORK_IN_A_FIRST_CALL, verb, str(n_th), str(base)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, "COVERAGE_PROCESS_CONFIG": ""},
    )
    assert found.returncode == 0, found.stderr
    n_seen, child, is_parent_stuck = found.stdout.split()
    assert (child, is_parent_stuck) == ("0", "False"), f"{verb} at {n_th}: {found.stdout}"
    return int(n_seen)


@pytest.mark.parametrize("verb", VERBS)
def test_a_child_forked_in_the_middle_of_a_first_call_makes_it_too(verb, base):
    fork_in(verb, 60 + 7 * VERBS.index(verb), base)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_child_forked_at_thirty_points_of_a_first_call_makes_it_too(verb, base):
    n_calls = fork_in(verb, 10**9, base)
    for n_th in range(1, n_calls, max(n_calls // 30, 1)):
        fork_in(verb, n_th, base)


LOCKS_OF_OTHERS = """
from jessymem import MmapManager, warmup
manager = MmapManager(64, base_path="nowhere")
import os, signal, sys, threading
import logging  # after jessymem: its hooks run before those that were registered earlier
signal.alarm(40)
inside, go_on = threading.Event(), threading.Event()

def watch(frame, event, argument):
    if "numba" in frame.f_code.co_filename and not inside.is_set():
        sys.settrace(None)
        inside.set()
        go_on.wait(30)
        logging.getLogger("x").addHandler(logging.NullHandler())  # takes the lock of logging
    return None

def compile():
    sys.settrace(watch)
    warmup()

thread = threading.Thread(target=compile)
thread.start()
assert inside.wait(30)
os.register_at_fork(before=go_on.set)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    offset = manager.allocate(10)
    view = manager.view(offset, 10)
    view[:4] = b"rain"
    manager.deallocate(offset)
    os._exit(0)
_, status = os.waitpid(pid, 0)
thread.join(30)
assert not thread.is_alive()
print(status, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(_jit.is_disabled(), reason="numba is not imported")
def test_a_fork_waits_for_no_import_of_another_thread():
    found = subprocess.run(
        [sys.executable, "-c", LOCKS_OF_OTHERS],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, "COVERAGE_PROCESS_CONFIG": ""},
    )
    assert found.stdout.split() == ["0"], found.stderr


FORK_IN_AN_IMPORT = """
import os, sys, threading
import jessymem, jessymem.forks
there, go_on = threading.Event(), threading.Event()
threads = []

def stop():
    if not threads:
        return
    if threading.current_thread() is threads[0]:
        there.set()
        go_on.wait(30)

jessymem.stop = stop
threads.append(threading.Thread(target=lambda: __import__("half_made")))
threads[0].start()
assert there.wait(30)
pid = os.fork()
if pid == 0:
    import half_made
    os._exit(0 if half_made.below.value == 7 and half_made.done else 1)
_, status = os.waitpid(pid, 0)
go_on.set()
threads[0].join(30)
print(status)
"""


def test_a_child_imports_anew_what_was_half_imported_with_all_below_it(tmp_path):
    package = tmp_path / "half_made"
    package.mkdir()
    lines = "from .below import value\nimport jessymem\njessymem.stop()\ndone = True\n"
    (package / "__init__.py").write_text(lines)
    (package / "below.py").write_text("value = 7\n")
    done = subprocess.run(
        [sys.executable, "-c", FORK_IN_AN_IMPORT],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, "COVERAGE_PROCESS_CONFIG": "", "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
