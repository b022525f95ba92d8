"""Compilation: when it happens, that it is the same code, and that the checked run checks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from jessymem.kernels import _jit


def run_python(code, **environment):
    """Run `code` in a fresh interpreter; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


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
from jessymem.kernels import _jit, locate
assert not _jit.promote()
print(type(locate.locate_many).__name__)
"""
    assert run_python(code, NUMBA_DISABLE_JIT="1") == "function"


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_promotion_from_many_threads_happens_once():
    code = """
import threading
from jessymem.kernels import _jit, locate, parse
seen = []
def promote():
    barrier.wait()
    _jit.promote()
    seen.append((locate.locate_many, parse.parse_entries))
barrier = threading.Barrier(8)
threads = [threading.Thread(target=promote) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(set(seen)), type(locate.locate_many).__name__)
"""
    assert run_python(code, JESSYMEM_KERNEL_CACHE="0") == "1 CPUDispatcher"


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_a_second_process_takes_kernels_from_the_cache(tmp_path):
    code = """
import numpy as np
from jessymem.kernels import _jit, parse
_jit.promote()
parse.read_word(np.zeros(8, np.uint8), 0, 8)
print(sum(parse.read_word.stats.cache_hits.values()))
"""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run_python(code, **cache) == "0"
    assert run_python(code, **cache) == "1"


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
@pytest.mark.skipif(
    os.environ.get("NUMBA_BOUNDSCHECK") != "1", reason="only where bounds are checked"
)
def test_the_checked_run_checks():
    from jessymem.kernels import parse

    _jit.promote()
    assert type(parse.read_word).__name__ == "CPUDispatcher"
    with pytest.raises(IndexError):
        parse.read_word(np.zeros(4, np.uint8), 1, 4)


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
    with _jit._lock:
        _jit.promote()  # the lock is re-entrant: kernels' modules are imported under it
        done.append(threading.get_ident())
    assert done
