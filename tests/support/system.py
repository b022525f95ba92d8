"""What the system says that this process holds: open files and mappings."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

HAS_PROC = Path("/proc/self/maps").exists()


def open_files() -> list[str]:
    """Return what every open descriptor leads to, where the system tells."""
    found = []
    for name in os.listdir("/proc/self/fd") if HAS_PROC else ():
        with suppress(OSError):  # the descriptor of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(found)


def opened_since(before: list[str]) -> list[str]:
    """Return what `open_files` has more now; what earlier tests left may have gone meanwhile."""
    return list((Counter(open_files()) - Counter(before)).elements())


def mappings_of(path: str | os.PathLike[str]) -> list[str]:
    """Return the mappings of a file, where the system tells."""
    if not HAS_PROC:
        return []
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if os.fspath(path) in line]


def mapped_bytes() -> int:
    """Return the length of all mappings of the process, 0 where the system does not tell."""
    if not HAS_PROC:
        return 0
    spans = (
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()
    )
    return sum(int(end, 16) - int(start, 16) for start, end in spans)
