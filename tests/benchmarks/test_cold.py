"""Whole processes beside their peers: to the first read, and to the first batch.

Each round starts an interpreter, so medians are to be compared, within one run. Byte code is
written first, as an installation does: without it a process compiles every source anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jessymem import RegionBuilder
from jessymem.kernels import _jit

N_ROUNDS = 15

FIRST_READ = """
from jessymem import MmapManager
manager = MmapManager(280, base_path={base!r})
manager.load_dimension("D15")
assert len(manager.access_layer("L15-01")) == 8192
"""

# Enough ids that a batch is worth compiling for, of a layer that is quickly copied.
FIRST_BATCH = f"""{FIRST_READ}
data, offsets = manager.gather([15 << 16 | 4] * {_jit.WORTH_COMPILING})
assert len(data) == 8 * {_jit.WORTH_COMPILING}
"""

FIRST_LAYER = """
from jessymem import MmapManager
manager = MmapManager(280, base_path={base!r})
manager.create_proto_dimension("D30", "learned")
"""

FIRST_BLOCK = """
from jessymem import MmapManager
manager = MmapManager(280, base_path={base!r})
manager.allocate(1_000)
"""

PEERS = {
    "python": "pass",
    "import numpy": "import numpy",
    "lmdb": """
import lmdb
with lmdb.open({lmdb!r}, readonly=True, lock=False) as environment:
    with environment.begin(buffers=True) as transaction:
        assert len(transaction.get(b"L15-01")) == 8192
""",
    "pyarrow": """
import pyarrow
with pyarrow.memory_map({file!r}) as source:
    assert len(source.read_buffer(8192)) == 8192
""",
}

NUMBA_PEERS = {
    "import numba": "import numba",
    "numba, one cached kernel": """
import sys
sys.path.insert(0, {base!r})
import numpy, one_kernel
one_kernel.add_up(numpy.zeros(1))
""",
}

ONE_KERNEL = """
import numba

@numba.njit(cache=True)
def add_up(values):
    total = 0.0
    for value in values:
        total += value
    return total
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Callable[[str], None]:
    base = tmp_path_factory.mktemp("cold")
    builder = RegionBuilder("D15", "Benchmark")
    for number in range(4):
        builder.add_layer(number, bytes([number]) * 8192)
    builder.add_layer(4, b"few here")
    builder.build_to_file(base / "D15" / "region.mmap")
    (base / "one_kernel.py").write_text(ONE_KERNEL)
    paths = {"base": str(base), "file": str(base / "D15" / "region.mmap")}
    paths["lmdb"] = fill_lmdb(base / "lmdb")
    environment = {**os.environ, "JESSYMEM_KERNEL_CACHE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    nothing_cached = {**environment, "NUMBA_CACHE_DIR": str(base / "no kernels")}

    def run(code: str) -> None:
        is_first = code in (FIRST_LAYER, FIRST_BLOCK)
        environ = nothing_cached if is_first else environment
        subprocess.run([sys.executable, "-c", code.format(**paths)], env=environ, check=True)

    return run


def fill_lmdb(path: Path) -> str:
    try:
        import lmdb
    except ImportError:
        return ""
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        for number in range(4):
            transaction.put(b"L15-%02d" % number, bytes([number]) * 8192)
    return str(path)


def measure(benchmark, start, code: str) -> None:
    """Time whole processes, after one that has filled every cache."""
    start(code)
    benchmark.pedantic(start, args=(code,), rounds=N_ROUNDS)


@pytest.mark.benchmark(group="cold: process to first read")
def test_first_read(benchmark, start):
    measure(benchmark, start, FIRST_READ)


@pytest.mark.benchmark(group="cold: process to first read")
@pytest.mark.parametrize("peer", PEERS)
def test_first_read_of_peers(benchmark, start, peer):
    if peer in ("lmdb", "pyarrow"):
        pytest.importorskip(peer, reason="the peer is not installed: not run")
    measure(benchmark, start, PEERS[peer])


@pytest.mark.benchmark(group="cold: process to first read")
@pytest.mark.parametrize("code", [FIRST_LAYER, FIRST_BLOCK], ids=["layer", "block"])
def test_first_of_what_is_learned_and_allocated(benchmark, start, code):
    """With an empty cache of kernels."""
    measure(benchmark, start, code)


@pytest.mark.benchmark(group="cold: process to first batch")
@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_first_batch(benchmark, start):
    measure(benchmark, start, FIRST_BATCH)


@pytest.mark.benchmark(group="cold: process to first batch")
@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
@pytest.mark.parametrize("peer", NUMBA_PEERS)
def test_first_batch_of_peers(benchmark, start, peer):
    measure(benchmark, start, NUMBA_PEERS[peer])
