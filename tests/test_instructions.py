"""Instructions: arrays and addresses, caches and bounds, and that each form does the same."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jessymem.kernels import _jit, atomics, memory

needs_compiler = pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")


def run_file(path, **environment):
    """Run a Python file in a fresh interpreter; return what it prints."""
    result = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.fixture
def njit():
    """Return numba's decorator; skip where nothing is compiled."""
    if _jit.is_disabled():
        pytest.skip("compilation is disabled")
    import numba

    _jit.register_overloads()
    return numba.njit


def of_words(words):
    """Return what each function of words does to four of them, and what it returns."""
    return (
        atomics.load(words, 0),
        atomics.exchange(words, 0, 5),
        atomics.add(words, 1, 7),
        atomics.bitwise_or(words, 2, 12),
        atomics.bitwise_and(words, 2, 8),
        atomics.compare_and_swap(words, 3, 1, 2),
        atomics.compare_and_swap(words, 3, 4, 9),
        memory.get_word(words, 3),
    )


RETURNED = (1, 1, 2, 3, 15, False, True, 9)
LEFT = [5, 9, 8, 9]


def test_arrays_are_taken_as_plain_python():
    words = np.array([1, 2, 3, 4])
    assert (of_words(words), words.tolist()) == (RETURNED, LEFT)


def test_arrays_and_addresses_are_taken_compiled(njit):
    compiled = njit(of_words)
    for take in (lambda words: words, lambda words: words.ctypes.data):
        words = np.array([1, 2, 3, 4])
        assert (compiled(take(words)), words.tolist()) == (RETURNED, LEFT)


def test_values_are_cast_to_the_type_of_the_words(njit):
    add = njit(lambda words, value: atomics.add(words, 0, value))
    words = np.array([2**63], np.uint64)
    assert add(words, np.int64(-1)) == 2**63
    assert add(words, np.int32(2)) == 2**63 - 1
    assert words.tolist() == [2**63 + 1]


@pytest.mark.parametrize("dtype", ["u1", "<i4", "f4", "f8", "c16", "?"])
def test_items_are_stored_in_their_dtype(njit, dtype):
    dtype = np.dtype(dtype)
    store = njit(lambda address, value: memory.store_item(address, 1, value, dtype))
    describe = njit(lambda: memory.layout_of(dtype))
    values = np.zeros(3, dtype)
    store(values.ctypes.data, 1)
    memory.store_item(values.ctypes.data, 2, 1, dtype)
    assert values.tolist() == [0, 1, 1]
    assert describe() == memory.layout_of(dtype) == (dtype.itemsize, dtype.alignment)


def test_a_wrong_number_of_arguments_is_told(njit):
    import numba

    with pytest.raises(numba.TypingError, match="missing a required argument: 'value'"):
        njit(lambda words: atomics.store(words, 0))(np.zeros(1, np.int64))


CACHED = """
    import numba, numpy as np
    from jessymem.kernels import _jit, atomics, memory
    from jessymem.kernels import schema as s
    _jit.register_overloads()

    @numba.njit(cache=True)
    def use(words, address):
        atomics.add(words, 0, 3)
        atomics.prefetch(address, 0)
        memory.store_i64(address + 8, memory.load_i64(address) + atomics.count_ones(7))
        return memory.array_at(words, address, 2, np.int64).sum()

    words = np.zeros(2, np.int64)
    print(use(words, words.ctypes.data), *words, sum(use.stats.cache_hits.values()))
"""


@needs_compiler
def test_cached_code_is_loaded_by_the_next_process(tmp_path):
    path = tmp_path / "user.py"
    path.write_text(textwrap.dedent(CACHED))
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run_file(path, **cache) == ["9", "3", "6", "0"]
    assert run_file(path, **cache) == ["9", "3", "6", "1"]


CHECKED = """
    import numba, numpy as np
    from jessymem.kernels import _jit, atomics, memory
    _jit.register_overloads()
    words = np.zeros(2, np.int64)
    calls = [
        lambda words, at: atomics.load(words, at),
        lambda words, at: atomics.store(words, at, 1),
        lambda words, at: atomics.add(words, at, 1),
        lambda words, at: atomics.compare_and_swap(words, at, 0, 1),
        lambda words, at: memory.get_word(words, at),
        lambda words, at: memory.put_word(words, at, 1),
    ]
    for call in map(numba.njit, calls):
        call(words, 1)
        try:
            call(words, 2)
        except IndexError:
            print("checked")
"""


@needs_compiler
def test_bounds_of_arrays_are_checked_where_they_are_at_all(tmp_path):
    path = tmp_path / "user.py"
    path.write_text(textwrap.dedent(CHECKED))
    assert run_file(path, NUMBA_BOUNDSCHECK="1") == ["checked"] * 6


def test_without_a_compiler_nothing_of_numba_is_needed(tmp_path):
    path = tmp_path / "user.py"
    path.write_text("import sys\nfrom jessymem.kernels import vectors\nprint(*sys.modules)")
    assert not {"numba", "llvmlite"} & set(run_file(path))
