"""What every test shares.

Numba's disk cache sees neither an edit in another file nor the flag for bounds checks, so the suite
points it at a folder of its own for each state of both.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def _kernel_cache() -> Path:
    kernels = Path(__file__).parent.parent / "kernels"
    digest = hashlib.sha256(os.environ.get("NUMBA_BOUNDSCHECK", "").encode())
    for path in sorted(kernels.glob("*.py")):
        digest.update(path.read_bytes())
    return Path(tempfile.gettempdir()) / f"jessymem-kernels-{digest.hexdigest()[:16]}"


# Before anything imports numba, which reads it once.
os.environ.setdefault("NUMBA_CACHE_DIR", str(_kernel_cache()))

from jessymem import MmapManager, RegionBuilder, osmem  # noqa: E402


@pytest.fixture
def intercept() -> Iterator[Callable[[Callable[[str, str], None]], None]]:
    """Set the function that every system call passes first; it is taken out again afterwards."""

    def install(function: Callable[[str, str], None]) -> None:
        osmem.intercept = function

    yield install
    osmem.intercept = None


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
