"""Kernels of a scan that start threads of their own, however deep: refused, with the name."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numba
import numpy as np
import pytest

from jessymem import MmapManager, RegionBuilder
from jessymem.kernels import _jit

pytestmark = pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")


def in_threads(content):
    found = np.int64(0)
    for i in numba.prange(content.size):
        found += content[i]
    return found


threaded = numba.njit(parallel=True)(in_threads)
alone = numba.njit(in_threads)


@numba.njit
def inner(content):
    return threaded(content) + 1


@numba.njit
def inner_alone(content):
    return alone(content) + 1


def calls_it(content, row):
    return threaded(content)


def calls_it_through_another(content, row):
    return inner(content)


def calls_it_sometimes(content, row):
    return inner(content) if row.depth > 9 else 0


def calls_its_function(content, row):
    return inner_alone(content)


def made_with(function):
    """Return a kernel that has the function in its closure."""

    def closed_over(content, row):
        return function(content)

    return closed_over


@pytest.fixture
def manager(tmp_path):
    builder = RegionBuilder("D20", "Name")
    for number in range(8):
        builder.add_layer(number, bytes([number]) * 100)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        yield manager


@pytest.mark.parametrize(
    "kernel", [calls_it, calls_it_through_another, calls_it_sometimes, made_with(inner)]
)
@pytest.mark.parametrize("wrap", [lambda kernel: kernel, numba.njit], ids=["plain", "compiled"])
def test_what_calls_it_is_refused_and_it_is_named(manager, kernel, wrap):
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{kernel.__name__} calls in_threads, which is") as it:
            manager.scan(wrap(kernel), np.int64, workers=2)
        assert "parallel=True" in str(it.value)


def test_the_kernel_itself_is_refused(manager):
    def kernel(content, row):
        return in_threads_of(content)

    in_threads_of = alone
    with pytest.raises(ValueError, match=r"kernel is compiled with parallel=True"):
        manager.scan(numba.njit(parallel=True)(kernel), np.int64)


@pytest.mark.parametrize("kernel", [calls_its_function, made_with(alone)])
def test_the_same_without_threads_is_taken(manager, kernel):
    values = manager.scan(kernel, np.int64, workers=2)
    assert values.tolist() == [kernel(np.full(100, i, np.uint8), None) for i in range(8)]


CACHED = """
    import sys
    import numba, numpy as np
    from jessymem import MmapManager

    @numba.njit(parallel=True, cache=True)
    def threaded(content):
        found = np.int64(0)
        for i in numba.prange(content.size):
            found += content[i]
        return found

    @numba.njit(cache=True)
    def kernel(content, row):
        return threaded(content)

    with MmapManager(base_path=sys.argv[1]) as manager:
        manager.load_dimension("D20")
        try:
            manager.scan(kernel, np.int64, workers=2)
        except ValueError as error:
            print(sum(kernel.stats.cache_hits.values()), "parallel=True" in str(error))
"""


@pytest.mark.skipif(
    numba.version_info[:2] < (0, 63), reason="such a kernel out of the cache ends the process"
)
def test_one_that_comes_from_the_cache_is_refused_too(manager, tmp_path):
    script = tmp_path / "user.py"
    script.write_text(textwrap.dedent(CACHED))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(script), str(tmp_path)]
    for n_hits in range(2):
        answer = subprocess.check_output(command, env=environment, text=True)
        assert answer.split() == [str(n_hits), "True"]
