"""What every test shares."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.kernels import TIERS, running

# Out of the source tree, and before anything imports numba, which reads it once.
os.environ.setdefault("NUMBA_CACHE_DIR", os.path.join(tempfile.gettempdir(), "jessymem-kernels"))

from jessymem import MmapManager, PoolAllocator, RegionBuilder, osmem


@pytest.fixture
def intercept() -> Iterator[Callable[[Callable[..., None]], None]]:
    """Set the function that every system call passes first; it is taken out again afterwards."""

    def install(function: Callable[..., None]) -> None:
        osmem.intercept = function

    yield install
    osmem.intercept = None


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where the system has such, for tests that write files by the thousand.

    What a sync is worth no test can see on a real disk either.
    """
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory with D01 (layers 0 to 3, a chain of parents) and D20 (numbers with gaps)."""
    builder = RegionBuilder("D01", "Emotion")
    for number in range(4):
        builder.add_layer(
            number,
            f"layer {number} of emotion\n" * (number + 1),
            name=f"part {number}",
            frequency=1.0 + number / 2,
            depth=number,
            keywords=["joy", f"word{number}"],
            parent=f"L01-{number - 1:02d}" if number else None,
        )
    builder.build_to_file(tmp_path / "D01" / "region.mmap")
    builder = RegionBuilder("D20", "Sparse")
    for number in (5, 65_535, 0, 300):
        builder.add_layer(number, bytes([number % 251]) * (number + 1), parent="L01-00")
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    return tmp_path


@pytest.fixture
def manager(store: Path) -> Iterator[MmapManager]:
    """A manager that has loaded everything in `store`."""
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D01")
        manager.load_dimension("D20")
        yield manager


@pytest.fixture(params=TIERS)
def tier(request):
    """Run the kernels of the allocator as plain Python, then as compiled code."""
    with running(request.param) as tier:
        yield tier


@pytest.fixture
def plain():
    """Run the kernels of the allocator as plain Python."""
    with running("plain") as tier:
        yield tier


@pytest.fixture
def allocator():
    """Pools of 256 x 4 KiB, 16 x 64 KiB and 8 x 256 KiB, far from any threshold."""
    made = PoolAllocator([(1, 4 * 2**10), (1, 64 * 2**10), (2, 256 * 2**10)], limit_mb=100)
    yield made
    assert made.validate() == []
    made.close()
