"""Compilation: when it happens, that it is the same code, and that the checked run checks."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from support import samples
from support.internals import kernel_lock
from support.processes import run_python

from jessymem.kernels import _jit
from jessymem.kernels import schema as s


def test_importing_the_package_imports_neither_numba_nor_numpy():
    code = "import sys, jessymem; print([n for n in ('numba', 'numpy') if n in sys.modules])"
    assert run_python(code) == "[]"


def test_the_first_reads_need_no_numba(store):
    code = f"""
import sys
from jessymem import MmapManager
with MmapManager(base_path={str(store)!r}) as manager:
    manager.load_all()
    assert bytes(manager.access_layer("L01-00")).startswith(b"layer 0")
    assert len(manager.load_contexts(manager.list_layers())) == len(manager)
    manager.get_stats(), manager.dump_state(), manager.select(keywords=["joy"])
print("numba" in sys.modules)
"""
    assert run_python(code) == "False"


def test_disabled_compilation_leaves_kernels_plain():
    code = """
from jessymem.kernels import _jit, lookup
assert not _jit.promote()
print(type(lookup.locate_many).__name__)
"""
    assert run_python(code, NUMBA_DISABLE_JIT="1") == "function"


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_promotion_from_many_threads_happens_once():
    code = """
import threading
from jessymem.kernels import _jit, gather, lookup
seen = []
def promote():
    barrier.wait()
    _jit.promote()
    seen.append((lookup.locate_many, gather.copy_layers))
barrier = threading.Barrier(8)
threads = [threading.Thread(target=promote) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(set(seen)), type(lookup.locate_many).__name__)
"""
    assert run_python(code, JESSYMEM_KERNEL_CACHE="0") == "1 CPUDispatcher"


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
@pytest.mark.parametrize("group", samples.some(_jit.MODULES, _jit.MEMORY, _jit.READING))
def test_a_group_is_compiled_without_the_others(group):
    code = """
import sys
from importlib import import_module
from jessymem.kernels import _jit
groups = _jit.MODULES.items()
modules = {f"jessymem.kernels.{name}": group for group, names in groups for name in names}
for name in modules:
    import_module(name)
assert _jit.promote(sys.argv[1])
from support.internals import marked_kernels
for function in marked_kernels():
    form = getattr(sys.modules[function.__module__], function.__name__)
    is_compiled = hasattr(form, "py_func")
    assert is_compiled == (modules[function.__module__] == sys.argv[1]), function
    assert [group for group in _jit.MODULES if _jit.is_promoted(group)] == [sys.argv[1]]
"""
    run_python(code, group)


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_a_second_process_takes_kernels_from_the_cache(tmp_path):
    code = """
from jessymem.kernels import _jit, parse
_jit.promote(_jit.PARSING)
print(sum(parse.parse_entries.stats.cache_hits.values()))
"""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run_python(code, **cache) == "0"
    assert run_python(code, **cache) == "1"


@pytest.mark.kernels
@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
@pytest.mark.skipif(
    os.environ.get("NUMBA_BOUNDSCHECK") != "1", reason="only where bounds are checked"
)
def test_the_checked_run_checks():
    from jessymem.kernels import parse

    _jit.promote(_jit.PARSING)
    assert type(parse.report).__name__ == "CPUDispatcher"
    with pytest.raises(IndexError):
        parse.report(np.zeros(0, s.FAULT), 1, 2, 3, 4)


NO_LATER_COMPILE = """
import sys
from jessymem import MmapManager, MmapRegion, warmup
from jessymem.kernels import _jit
from support.internals import marked_kernels

def n_compiled():
    kernels = [getattr(sys.modules[each.__module__], each.__name__) for each in marked_kernels()]
    return sum(len(kernel.signatures) for kernel in kernels)

warmup()
before = n_compiled()
assert before
for load_mode in ("map", "copy"):
    for path in sys.argv[1:]:
        region = MmapRegion.from_file("D01", path, load_mode=load_mode)
        region.verify_integrity()
with MmapManager(base_path="nowhere") as manager:
    manager.load_core_dimensions()
    manager.load_contexts(manager.list_layers())
    manager.load_contexts([])
    manager.gather(manager.list_layers())
    manager.locate_many([0, 1], missing="mark")
    manager.create_proto_dimension("D20", b"learned")
    manager.store()
    manager.find(b"learned", limit=5), manager.count("e", [20])
with MmapManager() as manager:
    manager.load_dimension("D01", sys.argv[1])
    manager.load_contexts(manager.list_layers())
print(n_compiled() - before)
"""


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_promotion_compiles_all_that_later_calls_need(store, tmp_path):
    path = store / "D01" / "region.mmap"
    data = bytearray(path.read_bytes())
    data[s.RESERVED_OFFSET : s.HEADER_BYTES] = bytes(s.HEADER_BYTES - s.RESERVED_OFFSET)
    plain = tmp_path / "plain.mmap"
    plain.write_bytes(data)
    assert run_python(NO_LATER_COMPILE, str(path), str(plain)) == "0"


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_the_gil_is_kept_only_where_a_kernel_says_so():
    code = """
import numba, sys
from jessymem.kernels import _jit
_jit.MODULES[_jit.READING] = ("lookup",)
def plain(): return 1
def kept(): return 2
assert _jit.kernel(plain) is plain and _jit.kernel(nogil=False)(kept) is kept
_jit.promote()
print([getattr(sys.modules["__main__"], name).targetoptions["nogil"] for name in ("plain", "kept")])
"""
    assert run_python(code, JESSYMEM_KERNEL_CACHE="0") == "[True, False]"


# Of the group one module is compiled, where it does not matter which: that is three times as fast.
PROMOTE_AND_FIND = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(event)s")
import numpy as np
from jessymem.kernels import _jit, lookup
from jessymem.kernels import schema as s
_jit.MODULES[_jit.READING] = ("lookup",)
{before}
assert _jit.promote()
locations = np.zeros(1, s.LOCATION)
directory = np.zeros(0, s.DIRECTORY)
ids, touched = np.zeros(1, np.int64), np.zeros(1, np.uint8)
assert lookup.locate_many(directory, ids, locations, touched) == 1
print(lookup.locate_many.stats.cache_path)
"""


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_checked_and_unchecked_kernels_are_kept_apart(tmp_path):
    code = PROMOTE_AND_FIND.format(before="")
    folders = {
        run_python(code, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_BOUNDSCHECK=flag) for flag in "01"
    }
    assert len(folders) == 2
    assert all(folder.startswith(str(tmp_path)) for folder in folders)


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path):
    pytest.importorskip("resource")
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    code = PROMOTE_AND_FIND.format(before=full)
    answer = run_python(code, NUMBA_CACHE_DIR=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert answer.split() == ["kernel_cache_failed", "None"]


def test_a_failed_promotion_leaves_plain_functions():
    code = """
import threading
from jessymem.kernels import _jit, lookup
_jit.MODULES[_jit.READING] = ("lookup",)
plain = lookup.locate_many
class Stop(BaseException): pass
@_jit.on_promotion(_jit.READING)
def stop(): raise Stop
try:
    _jit.promote()
except Stop:
    assert not _jit.is_disabled()
assert lookup.locate_many is plain and not _jit.is_promoted()
from support.internals import first_calls_of
first_calls_of(_jit.READING).remove(stop)
print(_jit.promote() == (lookup.locate_many is not plain))
"""
    assert run_python(code, JESSYMEM_KERNEL_CACHE="0") == "True"


def test_first_calls_run_as_plain_python():
    code = """
from importlib import import_module
from jessymem.kernels import _jit
from support.internals import first_calls_of
for group, names in _jit.MODULES.items():
    for name in names:
        import_module(f"jessymem.kernels.{name}")
    assert first_calls_of(group)
    for first_calls in first_calls_of(group):
        first_calls()
"""
    run_python(code, NUMBA_DISABLE_JIT="1")


def test_work_that_is_not_worth_it_compiles_nothing():
    code = """
import sys
from jessymem.kernels import _jit
_jit.promote_for(_jit.WORTH_COMPILING - 1)
assert "numba" not in sys.modules
_jit.promote_for(_jit.WORTH_COMPILING)
print("numba" in sys.modules)
"""
    assert run_python(code) == str(not _jit.is_disabled())


def test_the_registry_can_be_entered_by_threads_that_hold_it():
    done = []
    with kernel_lock():
        _jit.promote()  # the lock is re-entrant: kernels' modules are imported under it
        done.append(threading.get_ident())
    assert done
