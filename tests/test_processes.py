"""Forked and spawned processes: what they inherit, and what they do to each other."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
from support.internals import kernel_lock
from support.processes import in_child, needs_fork
from support.regions import region_file

from jessymem import LayerId, MmapManager, RegionBuilder
from jessymem.kernels import _jit

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


@needs_fork
def test_a_forked_child_reads_and_the_parent_is_not_disturbed(manager):
    before = manager.dump_state()

    def child():
        assert bytes(manager.access_layer("L01-00")) == b"layer 0 of emotion\n"
        manager.unload_dimension("D01")
        manager.load_dimension("D01")
        manager.close()

    assert in_child(child) == 0
    assert manager.dump_state() == before


@needs_fork
def test_a_fork_while_a_thread_is_loading(store, intercept):
    manager = MmapManager(base_path=store)
    manager.load_dimension("D01")
    inside, go_on = threading.Event(), threading.Event()

    def wait(operation, path, *details):
        if operation == "map" and not inside.is_set():
            inside.set()
            assert go_on.wait(30)

    intercept(wait)
    writer = threading.Thread(target=manager.load_dimension, args=("D20",))
    writer.start()
    assert inside.wait(30)
    expected = manager.get_stats().total_used_bytes

    def child():
        assert manager.get_stats().total_used_bytes == expected
        assert manager.get_stats().total_allocated_bytes < 2 * 4096 * 16
        manager.load_dimension("D20")
        assert len(manager.access_layer("L20-300")) == 301

    try:
        assert in_child(child) == 0
    finally:
        go_on.set()
        writer.join()
    assert len(manager.access_layer("L20-300")) == 301


COMPILE_AND_FORK = """
import os, signal, sys, threading, traceback
from numba.core import event
from jessymem import MmapManager, MmapRegion
from jessymem.kernels import _jit

class Listener(event.Listener):
    def on_start(self, event):
        compiling.set()
    def on_end(self, event):
        pass

def child():
    signal.alarm(30)  # ends a child that hangs
    assert len(manager.load_contexts(layers)) == len(layers)
    MmapRegion.from_file("D01", sys.argv[1] + "/D01/region.mmap").verify_integrity()
    assert not _jit.promote() and _jit.is_disabled()  # what was half-done cannot be gone on with

compiling = threading.Event()
event.register("numba:compile", Listener())
manager = MmapManager(base_path=sys.argv[1])
manager.load_dimension("D01")
layers = manager.list_layers()
many = layers * -(-_jit.WORTH_COMPILING // len(layers))
thread = threading.Thread(target=manager.load_contexts, args=(many,))
thread.start()
assert compiling.wait(60)
pid = os.fork()
if pid == 0:
    code = 1
    try:
        child()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
thread.join()
"""


@needs_fork
@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_a_fork_while_a_thread_compiles(store, tmp_path):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE_AND_FORK, str(store)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.returncode) == ("0\n", 0), result.stderr


@needs_fork
def test_a_fork_while_a_thread_promotes():
    done = threading.Event()

    def hold():
        while not done.is_set():
            with kernel_lock():
                pass

    def child():
        assert kernel_lock().acquire(timeout=10)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert [in_child(child) for _ in range(20)] == [0] * 20
    finally:
        done.set()
        holder.join()


def read_in_worker(manager: MmapManager, layer: str) -> bytes:
    """Read one layer through a manager that came by pickle."""
    return bytes(manager.access_layer(layer))


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_of_every_kind_read_the_same(manager, method):
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        arguments = [(manager, str(layer)) for layer in manager.list_layers()]
        answers = pool.starmap(read_in_worker, arguments)
        pool.close()
        pool.join()
    assert answers == [bytes(manager.access_layer(layer)) for layer in manager.list_layers()]


def publish(path: str, content: str) -> None:
    """Replace a region file, as another process."""
    builder = RegionBuilder("D20", "Published")
    builder.add_layer(0, content)
    builder.build_to_file(path)


def test_what_another_process_publishes_is_adopted(manager, store):
    context = multiprocessing.get_context("spawn")
    view = manager.access_layer("L20-00")
    worker = context.Process(target=publish, args=(str(region_file(store, "D20")), "from afar"))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert bytes(manager.access_layer(LayerId(20, 0))) == b"\0"
    assert manager.refresh("D20")
    assert bytes(manager.access_layer(LayerId(20, 0))) == b"from afar"
    assert bytes(view) == b"\0"
