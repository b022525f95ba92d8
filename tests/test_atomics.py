"""Atomics: plain and compiled do the same, wrap the same, and lose nothing between threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from jessymem.kernels import _jit, atomics

DTYPES = [np.int64, np.uint64]


def compiled(function, n_arguments):
    """Wrap an atomic into a compiled function, or return the plain one where that is disabled."""
    if not _jit.promote():
        return function
    import numba

    if n_arguments == 0:
        return numba.njit(lambda: function())
    if n_arguments == 1:
        return numba.njit(lambda a: function(a))
    if n_arguments == 2:
        return numba.njit(lambda a, i: function(a, i))
    if n_arguments == 3:
        return numba.njit(lambda a, i, v: function(a, i, v))
    return numba.njit(lambda a, i, v, w: function(a, i, v, w))


@pytest.fixture(params=["plain", "compiled"])
def form(request):
    return (lambda f, n: f) if request.param == "plain" else compiled


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "start", "value", "end"),
    [
        ("add", 5, 3, 8),
        ("exchange", 5, 3, 3),
        ("bitwise_or", 0b0101, 0b0011, 0b0111),
        ("bitwise_and", 0b0101, 0b0011, 0b0001),
    ],
)
def test_modification_returns_the_old_value(form, dtype, name, start, value, end):
    array = np.array([9, start, 9], dtype)
    old = form(getattr(atomics, name), 3)(array, 1, dtype(value))
    assert (old, array.tolist()) == (start, [9, end, 9])


def test_sums_wrap_around(form):
    add = form(atomics.add, 3)
    array = np.array([2**64 - 1], np.uint64)
    assert add(array, 0, np.uint64(2)) == 2**64 - 1
    assert array[0] == 1
    array = np.array([2**63 - 1], np.int64)
    add(array, 0, np.int64(1))
    assert array[0] == -(2**63)
    add(array, 0, np.int64(-1))
    assert array[0] == 2**63 - 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_and_store(form, dtype):
    array = np.zeros(3, dtype)
    form(atomics.store, 3)(array, 2, dtype(2**62 + 1))
    assert array.tolist() == [0, 0, 2**62 + 1]
    assert form(atomics.load, 2)(array, 2) == 2**62 + 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_compare_and_swap(form, dtype):
    swap = form(atomics.compare_and_swap, 4)
    array = np.array([7], dtype)
    assert not swap(array, 0, dtype(6), dtype(1))
    assert array[0] == 7
    assert swap(array, 0, dtype(7), dtype(1))
    assert array[0] == 1


@pytest.mark.parametrize(
    ("word", "zeros"),
    [(0, 64), (1, 0), (2, 1), (3, 0), (1 << 31, 31), (1 << 32, 32), (1 << 63, 63), (2**64 - 8, 3)],
)
def test_count_trailing_zeros(form, word, zeros):
    assert form(atomics.count_trailing_zeros, 1)(np.uint64(word)) == zeros


@pytest.mark.parametrize("word", [0, 1, 0b1011, 2**63 - 1, -1, -(2**63), -8])
def test_count_ones_of_signed_words(form, word):
    assert form(atomics.count_ones, 1)(np.int64(word)) == (word & (2**64 - 1)).bit_count()


@pytest.mark.parametrize(("word", "zeros"), [(0, 64), (-1, 0), (-8, 3), (-(2**63), 63)])
def test_count_trailing_zeros_of_signed_words(form, word, zeros):
    assert form(atomics.count_trailing_zeros, 1)(np.int64(word)) == zeros


def test_prefetch_changes_nothing(form):
    array = np.arange(4)
    form(atomics.prefetch, 2)(array, 3)
    form(atomics.prefetch_to_read, 2)(array, 3)
    assert array.tolist() == [0, 1, 2, 3]


def test_threads_have_different_stacks(form):
    address = form(atomics.stack_address, 0)
    barrier = threading.Barrier(3)
    seen = []

    def note():
        barrier.wait()
        seen.append(int(address()) >> 16)
        barrier.wait()

    threads = [threading.Thread(target=note) for _ in range(2)]
    address()
    for thread in threads:
        thread.start()
    note()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 3


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_compiled_threads_lose_nothing():
    import numba

    _jit.promote()
    add, load, swap = atomics.add, atomics.load, atomics.compare_and_swap

    @numba.njit(nogil=True)
    def count(array, n):
        for _ in range(n):
            add(array, 0, 1)
            old = load(array, 1)
            while not swap(array, 1, old, old + 2):
                old = load(array, 1)

    array = np.zeros(2, np.int64)
    count(array, 0)
    threads = [threading.Thread(target=count, args=(array, 100_000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert array.tolist() == [400_000, 800_000]


def test_plain_threads_lose_nothing():
    array = np.zeros(1, np.int64)

    def count():
        for _ in range(2_000):
            atomics.add(array, 0, 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert array[0] == 8_000
