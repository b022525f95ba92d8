"""Where memory really is: in pages of which size, and on which nodes, as Linux tells it.

Both are read from the process's own list of mappings, which takes the longer the more is resident:
only who asked for huge pages or nodes pays for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

#: Where Linux tells it.
SMAPS: Path = Path("/proc/self/smaps")
NUMA_MAPS: Path = Path("/proc/self/numa_maps")
MAPS: Path = Path("/proc/self/maps")

#: Address and bytes of a piece of memory.
Extent: TypeAlias = tuple[int, int]

_KIB: Final = 1024
_HUGETLB: Final = ("Private_Hugetlb", "Shared_Hugetlb")
#: Kinds of huge pages that are set aside, by what smaps says of their size.
_SET_ASIDE: Final = {"2048": "2MB", "1048576": "1GB"}


def huge_bytes(extents: Iterable[Extent]) -> dict[str, int]:
    """Return how many bytes of `extents` are in huge pages, by the kinds that there are.

    Nothing is found where smaps cannot be read.
    """
    found: Counter[str] = Counter()
    within = _Extents(extents)
    with suppress(OSError, ValueError), SMAPS.open() as lines:
        for start, end, facts in _mappings(lines):
            n_bytes = within.overlap(start, end)
            if not n_bytes:
                continue
            found["thp"] += min(_in_bytes(facts, "AnonHugePages"), n_bytes)
            kind = _SET_ASIDE.get(facts.get("KernelPageSize", ""))
            if kind is not None:
                # Linux takes one of 1 GiB that nobody shares for shared now and then.
                set_aside = sum(_in_bytes(facts, name) for name in _HUGETLB)
                found[kind] += min(set_aside, n_bytes)
    return {kind: n_bytes for kind, n_bytes in found.items() if n_bytes}


def node_bytes(extents: Iterable[Extent]) -> dict[int, int]:
    """Return how many bytes of `extents` are on which node; nothing where that is not told.

    Of a mapping that is only in part theirs, no more than that part counts.
    """
    found: Counter[int] = Counter()
    within = _Extents(extents)
    with suppress(OSError, ValueError), NUMA_MAPS.open() as lines:
        ends = _mapping_ends()
        for line in lines:
            address, *facts = line.split()
            start = int(address, 16)
            n_within = within.overlap(start, ends.get(start, start + 1))
            if not n_within:
                continue
            named = dict(fact.partition("=")[::2] for fact in facts)
            page_bytes = int(named.get("kernelpagesize_kB", "4")) * _KIB
            pages = {name[1:]: int(n) for name, n in named.items() if _is_node(name)}
            n_resident = sum(pages.values()) * page_bytes
            for node, n_pages in pages.items():
                n_bytes = n_pages * page_bytes
                found[int(node)] += min(n_bytes, n_bytes * n_within // n_resident)
    return dict(sorted(found.items()))


def _is_node(name: str) -> bool:
    return name[:1] == "N" and name[1:].isdigit()


def _mapping_ends() -> dict[int, int]:
    """Return where each mapping of the process ends, by where it begins."""
    ends = {}
    with MAPS.open() as lines:
        for line in lines:
            first, _, last = line.split(maxsplit=1)[0].partition("-")
            ends[int(first, 16)] = int(last, 16)
    return ends


class _Extents:
    """Pieces of memory, to be compared with what the system lists."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._ranges = sorted((start, start + n_bytes) for start, n_bytes in extents if n_bytes)

    def overlap(self, start: int, end: int) -> int:
        """Return how many of the bytes from `start` to `end` are in one of the pieces."""
        n_bytes = 0
        at = max(bisect_right(self._ranges, (start, end)) - 1, 0)
        for first, last in self._ranges[at:]:
            if first >= end:
                break
            n_bytes += max(min(last, end) - max(first, start), 0)
        return n_bytes


def _mappings(lines: Iterable[str]) -> Iterator[tuple[int, int, dict[str, str]]]:
    """Yield where each mapping of smaps begins and ends, and its numbers, in KiB, as text."""
    extent: tuple[int, int] | None = None
    facts: dict[str, str] = {}
    for line in lines:
        name, *values = line.split()
        if name.endswith(":"):
            facts[name[:-1]] = values[0] if values else ""
            continue
        if extent is not None:
            yield *extent, facts
        first, _, last = name.partition("-")
        extent, facts = (int(first, 16), int(last, 16)), {}
    if extent is not None:
        yield *extent, facts


def _in_bytes(facts: dict[str, str], name: str) -> int:
    return int(facts.get(name, "0")) * _KIB
