"""How far a call winds through the package: its Python calls, the files, and the ways back.

``python tests/support/calls.py`` prints a table for what writes. Each call is traced once all that
it imports and compiles is there: what is counted is the way that every further call takes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jessymem
from jessymem import MmapManager, PoolAllocator, RegionBuilder, kernels

#: Where the package's Python lies; in a checkout its kernels lie beside it.
PACKAGE = tuple(str(Path(str(module.__file__)).parent) + os.sep for module in (jessymem, kernels))
_ROOT = Path(PACKAGE[0]).parent
_NO_FUNCTIONS = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")


class Trace(NamedTuple):
    """What one call did in Python.

    Attributes
    ----------
    n_calls : int
        Of functions of the package; a compiled kernel is one of them, a comprehension none.
    n_files : int
        In which these lie.
    n_returns : int
        How often the next function called lies in a file that had been left for another.
    calls : tuple of (str, str)
        File, relative to the package, and function, in the order of the calls.
    """

    n_calls: int
    n_files: int
    n_returns: int
    calls: tuple[tuple[str, str], ...]


def trace(call: Callable[[], Any]) -> Trace:
    """Make a call and note which functions of the package it runs, in this thread."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = frame.f_code.co_filename
        is_function = not frame.f_code.co_name.endswith(_NO_FUNCTIONS)
        if event == "call" and is_function and path.startswith(PACKAGE):
            calls.append((os.path.relpath(path, _ROOT), frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    # Files in the order in which they are entered, each once for calls that follow one another.
    entered = [path for path, _ in groupby(path for path, _ in calls)]
    n_files = len(set(entered))
    return Trace(len(calls), n_files, len(entered) - n_files, tuple(calls))


# -- what the table shows --------------------------------------------------------------------------


@contextmanager
def large_allocation() -> Iterator[Callable[[], Any]]:
    """Offer an allocation of more blocks than the kernel alone may clear."""
    allocator = PoolAllocator([(8, 4096)], limit_mb=64)
    allocator.allocate(4096)
    yield lambda: allocator.allocate(2 * 2**20)


@contextmanager
def recorded_allocation() -> Iterator[Callable[[], Any]]:
    """Offer an allocation that passes a threshold of the budget."""
    allocator = PoolAllocator([(8, 4096)], limit_mb=8)
    limit = allocator.usage[1]
    for _ in range(limit * 75 // 100 // 4096):
        allocator.allocate(4096)
    yield lambda: allocator.allocate(4096)


@contextmanager
def growing_allocation() -> Iterator[Callable[[], Any]]:
    """Offer an allocation for which a pool has to be made."""
    allocator = PoolAllocator([(1, 4096)], limit_mb=64)
    allocator.allocate(4096)
    yield lambda: allocator.allocate(2 * 2**20)


@contextmanager
def _managing() -> Iterator[MmapManager]:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for number in (20, 21):
            builder = RegionBuilder(number, "Name")
            builder.add_layer(0, b"rain since Monday")
            builder.build_to_file(base / f"D{number}" / "region.mmap")
        with MmapManager(64, base_path=base) as manager:
            manager.load_dimension("D21")
            manager.crystallize_proto_dimension(manager.create_proto_dimension("D30", b"learned"))
            yield manager


@contextmanager
def load() -> Iterator[Callable[[], Any]]:
    """Offer the load of a region file."""
    with _managing() as manager:
        yield lambda: manager.load_dimension("D20")


@contextmanager
def create() -> Iterator[Callable[[], Any]]:
    """Offer a first layer that is learned in a dimension."""
    with _managing() as manager:
        yield lambda: manager.create_proto_dimension("D22", b"learned")


@contextmanager
def crystallize() -> Iterator[Callable[[], Any]]:
    """Offer the durable write of a learned layer."""
    with _managing() as manager:
        layer = manager.create_proto_dimension("D22", b"learned")
        yield lambda: manager.crystallize_proto_dimension(layer)


CASES = {
    "load_dimension": load,
    "create_proto_dimension": create,
    "crystallize_proto_dimension": crystallize,
    "allocate, many pages": large_allocation,
    "allocate, past a threshold": recorded_allocation,
    "allocate, with a new pool": growing_allocation,
}


def main() -> None:
    """Print the table, and with ``--calls`` every call of one case."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--calls", metavar="CASE", choices=CASES)
    wanted = parser.parse_args().calls
    lines = [f"{'':28}{'calls':>8}{'files':>8}{'returns':>9}"]
    for name, case in CASES.items():
        with case() as call:
            found = trace(call)
        lines.append(f"{name:28}{found.n_calls:8}{found.n_files:8}{found.n_returns:9}")
        if name == wanted:
            lines += (f"    {path:36}{function}" for path, function in found.calls)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
