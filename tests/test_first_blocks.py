"""The first blocks and learned layers of a process need no kernels; those are compiled beside."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import samples
from support.processes import needs_fork, run_python, with_support

from jessymem.kernels import _jit

compiles = pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")

EVERYTHING = """
import gc, sys
from jessymem import InvalidAccess, LimitExceeded, MmapManager, PoolAllocator
manager = MmapManager(64, base_path=sys.argv[1])
layer = manager.create_proto_dimension("D20", "learned")
manager.create_proto_layers([("D20", "one"), ("D20", b"two")])
manager.update_proto_dimension(layer, "learned again")
manager.discard_proto_dimension("L20-02")
offset = manager.allocate(1_000)
view = manager.view(offset, 1_000)
assert not any(view)
view[:] = b"x" * 1_000
manager.deallocate(offset)
assert manager.get_stats().waiting_bytes == 4096
try:
    manager.deallocate(offset)
except InvalidAccess:
    pass
del view
array = manager.allocate_array((100, 8), "f4")
assert not array.any()
manager.deallocate_many(manager.allocate_many([4_096] * 100))
large = manager.allocate(3 * 2**20)
manager.deallocate(large)
try:
    manager.allocate(62 * 2**20)
except LimitExceeded:
    pass
assert manager.get_stats().allocation_failures == 1
manager.dump_state()
manager.trim()
manager.crystallize_dimension("D20")
manager.overlay_layer(layer, "and more")
assert bytes(manager.access_layer(layer)) == b"learned again\\nand more"
del array
manager.close()
with MmapManager(64, base_path=sys.argv[1]) as manager:
    manager.load_dimension("D20")
    assert len(manager) == 2
allocator = PoolAllocator([(1, 4096)], limit_mb=4)
allocator.deallocate(allocator.allocate(10))
pool = allocator.add_pool(1, 65_536)
assert {each.pool_id for each in allocator.pools} == {0, pool}
assert allocator.validate() == []
allocator.close()
print(*({"numba", "llvmlite"} & set(sys.modules)))
"""


def test_a_process_learns_and_allocates_without_numba(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "COVERAGE_PROCESS_CONFIG": ""}
    assert run_python(EVERYTHING, str(tmp_path / "base"), **cache) == ""
    assert not (tmp_path / "cache").exists()


WAIT_FOR_THE_SWITCH = """
import sys, time
from jessymem import PoolAllocator
from jessymem.kernels import _jit
_jit.WORTH_COMPILING, _jit.WORTH_WAITING = {worth}
allocator = PoolAllocator([(1, 4096)], limit_mb=4)
for _ in range(20):
    allocator.deallocate(allocator.allocate(10))
assert "numba" not in sys.modules
kept = allocator.allocate(100)
view = allocator.view(kept, 100)
view[:] = b"k" * 100
for _ in range(12_000):
    if _jit.is_promoted(_jit.MEMORY):
        break
    allocator.deallocate(allocator.allocate(10))
    time.sleep(0.01)
is_promoted = _jit.is_promoted(_jit.MEMORY)
assert bytes(view) == b"k" * 100
allocator.deallocate(kept)
del view
assert (allocator.usage[0], allocator.validate()) == (0, [])
print(is_promoted)
"""


@compiles
def test_kernels_of_the_cache_are_taken_when_they_are_worth_it():
    assert run_python(WAIT_FOR_THE_SWITCH.format(worth=(100, 10**9))) == "True"


FAILING = """
import logging, sys, threading
logging.basicConfig(stream=sys.stdout, format="%(event)s %(error)s")
from jessymem import PoolAllocator
from jessymem.kernels import _jit
_jit.WORTH_COMPILING, _jit.WORTH_WAITING = 10, 10
allocator = PoolAllocator([(1, 4096)], limit_mb=4)
done, n_tried = threading.Event(), 0

def fail(group):
    global n_tried
    n_tried += 1
    done.set()
    raise OSError("no")

_jit.promote = fail
for _ in range(20):
    allocator.deallocate(allocator.allocate(10))
assert done.wait(60)
for _ in range(100):
    allocator.deallocate(allocator.allocate(10))
assert (allocator.validate(), n_tried) == ([], 1)
"""


@compiles
def test_kernels_that_cannot_be_compiled_are_told_of_once():
    assert run_python(FAILING) == "kernels_not_compiled OSError"


EXIT = """
import sys, threading
from numba.core import event
from jessymem import PoolAllocator
from jessymem.kernels import _jit
_jit.WORTH_COMPILING, _jit.WORTH_WAITING = 10, 10

class Listener(event.Listener):
    n_left = int(sys.argv[1])
    def on_start(self, event):
        self.n_left -= 1
        if self.n_left == 0:
            compiling.set()
    def on_end(self, event):
        pass

compiling = threading.Event()
event.register("numba:compile", Listener())
allocator = PoolAllocator([(1, 4096)], limit_mb=4)
for _ in range(20):
    allocator.deallocate(allocator.allocate(10))
assert compiling.wait(60)
assert not _jit.is_promoted(_jit.MEMORY)
allocator.deallocate(allocator.allocate(10))
"""

N_EXITS = 3


@compiles
@pytest.mark.parametrize("n_th", samples.some(range(1, 1 + N_EXITS), 2))
def test_the_interpreter_ends_while_kernels_are_compiled(n_th):
    ended = subprocess.run(
        [sys.executable, "-c", EXIT, str(n_th)],
        env=with_support({"JESSYMEM_KERNEL_CACHE": "0", "COVERAGE_PROCESS_CONFIG": ""}),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


FORK = (
    EXIT.replace("n_left = int(sys.argv[1])", "n_left = 2")
    + """
import os, signal
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    offset = allocator.allocate(100)
    view = allocator.view(offset, 100)
    view[:] = b"c" * 100
    allocator.deallocate(offset)
    del view
    for _ in range(100):
        allocator.deallocate(allocator.allocate(10))
    assert not _jit.promote(_jit.MEMORY)
    is_right = (allocator.usage[0], allocator.validate()) == (0, [])
    os._exit(0 if is_right else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
)


@compiles
@needs_fork
def test_a_child_forked_while_kernels_are_compiled_stays_plain():
    environment = {"JESSYMEM_KERNEL_CACHE": "0", "PYTHONWARNINGS": "ignore"}
    assert run_python(FORK, **environment) == "0"


@compiles
def test_words_for_compiled_code_bring_kernels_with_them():
    code = """
from jessymem import PoolAllocator
from jessymem.kernels import _jit
allocator = PoolAllocator([(1, 4096)], limit_mb=4)
kept = allocator.allocate(100)
array = allocator.allocate_array(10)
words = allocator.words
assert isinstance(words, int) or words.dtype == "i8"
del array
allocator.deallocate(kept)
print(_jit.is_promoted(_jit.MEMORY), allocator.usage[0], allocator.validate())
"""
    assert run_python(code) == "True 0 []"
