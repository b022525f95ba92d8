"""`Placement`: in pages of which size private memory is had, and on which nodes.

What the system refuses falls back: pages of 1 GiB, of 2 MiB, those that the system makes huge by
itself, small ones. Each cause is recorded once, and nothing is an error. Which memory may lie in
huge pages at all is in docs/large_memory.md. Imported only where a setting asks for it.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from jessymem import nodes, osmem
from jessymem.errors import AllocationFailed, LimitExceeded
from jessymem.kernels import near
from jessymem.logger import INFO, WARNING, logger
from jessymem.nodes import Topology

GIB: Final = 2**30

#: By kind, the largest first: bytes of one page.
PAGE_BYTES: Final = {"1GB": GIB, "2MB": 2**21, "thp": 2**21}

#: So many blocks of a pool share a huge page at most: what one of them keeps resident.
MOST_SHARED: Final = 8

#: What is set aside and not used, of a file that is copied, is at most this part of it.
WASTED_PART: Final = 8

#: Where Linux says whether it makes huge pages by itself, and how large they are.
THP: Path = Path("/sys/kernel/mm/transparent_hugepage")

_UNIT_BYTES: Final = 2**20

_MAP_HUGETLB: Final = 0x40000
_SIZE_SHIFT: Final = 26  # of the page size's logarithm, in the flags
#: Since this release a huge page that was returned stays set aside for who returned it.
_KEEPS_RESERVED: Final = (6, 8)


class Placement:
    """What one manager, or one allocator, asks of the system.

    Parameters
    ----------
    huge_pages : {"never", "thp", "2MB", "1GB"}
    numa : {"none", "interleave", "local"}

    Attributes
    ----------
    huge_pages, numa : str
        As asked.
    policy : str
        Of `numa`, what is done: "none" where there is one node.
    topology : Topology or None
        None: nobody asked for nodes.
    note : str
        Why it is not what was asked; empty: it is.
    """

    def __init__(self, huge_pages: str = "never", numa: str = "none") -> None:
        self.huge_pages = huge_pages
        self.numa = self.policy = numa
        self.topology: Topology | None = None
        self.note = ""
        self._told: set[tuple[str, int | None]] = set()
        if numa != "none":
            self._look_at_nodes()

    # -- pools -------------------------------------------------------------------------------------

    def kinds_for(self, block_bytes: int, n_bytes: int) -> list[str]:
        """Return the kinds of huge pages for a pool: those that few of its blocks share.

        Pages that are set aside have to make up the pool exactly.
        """
        return [
            kind
            for kind in self._kinds
            if PAGE_BYTES[kind] <= min(MOST_SHARED * block_bytes, n_bytes)
            and (kind == "thp" or n_bytes % PAGE_BYTES[kind] == 0)
        ]

    def whole_pages(self, n_bytes: int, block_bytes: int) -> int:
        """Return the size of a pool that is made for `n_bytes`: whole pages, where it may be."""
        page_bytes = PAGE_BYTES["thp"]
        if not self.kinds_for(block_bytes, page_bytes):
            return n_bytes
        return -(-n_bytes // page_bytes) * page_bytes

    def pool_memory(
        self, n_bytes: int, block_bytes: int, node: int | None = None
    ) -> osmem.PrivateMemory:
        """Map memory for one pool of whole blocks, on a node.

        Raises
        ------
        AllocationFailed
            "os_refused".
        """
        memory = None
        for kind in self.kinds_for(block_bytes, n_bytes):
            mapped = self._map(kind, n_bytes)
            if mapped is not None:
                mapping, start = mapped
                can_return = kind == "thp" or _keeps_reserved()
                address = osmem.address_of(mapping) + start
                memory = osmem.PrivateMemory(
                    mapping, address, start, can_return, kind, PAGE_BYTES[kind]
                )
                break
        if memory is None:
            memory = osmem.private_memory(n_bytes)
        self._place(memory.address, n_bytes, node)
        return memory

    @property
    def pool_nodes(self) -> tuple[int, ...]:
        """The nodes that each have pools of their own; none where pools are for all."""
        if self.policy != "local" or self.topology is None:
            return ()
        return self.topology.nodes

    def shares(self, n_bytes: int, block_bytes: int) -> list[tuple[int, int | None]]:
        """Return the pools that one is made as: the bytes of each, and its node, or None.

        One that is too small to be cut into whole MiB, or blocks, is for all nodes.
        """
        where = self.pool_nodes
        unit = max(block_bytes, _UNIT_BYTES)
        n_each, n_left = divmod(n_bytes // unit, len(where) or 1)
        if not where or not n_each:
            return [(n_bytes, None)]
        return [(unit * (n_each + (at < n_left)), node) for at, node in enumerate(where)]

    def node_here(self) -> int | None:
        """Return the node of the calling thread, among those with pools of their own."""
        if self.policy != "local" or self.topology is None:
            return None
        return self.topology.node_of_cpu.get(near.processor())

    @property
    def node_of_cpu(self) -> dict[int, int]:
        """Of the nodes with pools of their own, the one nearest to each processor."""
        return {} if not self.pool_nodes or self.topology is None else self.topology.node_of_cpu

    @property
    def n_processors(self) -> int:
        """How long a table is that is indexed by processor."""
        return max(self.node_of_cpu, default=-1) + 1

    # -- files that are copied ---------------------------------------------------------------------

    def copy_memory(self, n_bytes: int, admit: Callable[[int], object]) -> osmem.FilledMemory:
        """Get memory for a file's bytes, as `osmem.take_memory`; what is taken is admitted.

        Raises
        ------
        AllocationFailed
            "os_refused".
        LimitExceeded
            What `admit` raises for the bytes themselves.
        """
        memory = self._set_aside(n_bytes, admit)
        if memory is None:
            kept = admit(n_bytes)
            mapped = None
            if n_bytes >= PAGE_BYTES["thp"] and "thp" in self._kinds:
                mapped = self._map("thp", n_bytes, is_read_only=osmem.can_protect())
            memory = osmem.FilledMemory(n_bytes, *(mapped or ()))
            memory.mapping.kept = kept
        self._place(memory.address, osmem.round_to_pages(n_bytes))
        return memory

    def _set_aside(self, n_bytes: int, admit: Callable[[int], object]) -> osmem.FilledMemory | None:
        """Take whole huge pages that the system has set aside; None where that cannot be."""
        for kind in self._kinds:
            length = -(-n_bytes // PAGE_BYTES[kind]) * PAGE_BYTES[kind]
            if kind == "thp" or (length - n_bytes) * WASTED_PART > n_bytes:
                continue
            mapped = self._map(kind, length, is_read_only=osmem.can_protect())
            if mapped is None:
                continue
            with suppress(LimitExceeded):  # smaller pages may still fit
                kept = admit(length)
                memory = osmem.FilledMemory(n_bytes, *mapped)
                memory.mapping.kept, memory.mapping.n_taken = kept, length
                return memory
        return None

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _kinds(self) -> list[str]:
        """What is asked for, and what takes its place, in this order."""
        kinds = list(PAGE_BYTES)
        return kinds[kinds.index(self.huge_pages) :] if self.huge_pages in kinds else []

    def _map(
        self, kind: str, n_bytes: int, *, is_read_only: bool = False
    ) -> tuple[osmem.Mapping, int] | None:
        """Map memory in huge pages; return it with where it begins, or None: it is refused."""
        try:
            if kind == "thp":
                return _map_transparent(n_bytes, is_read_only)
            return _map_reserved(PAGE_BYTES[kind], n_bytes, is_read_only), 0
        except OSError as error:
            self._tell_of_pages(kind, n_bytes, error)
        except AllocationFailed:
            pass  # no addresses for this; who asks for less will be told
        return None

    def _place(self, address: int, n_bytes: int, node: int | None = None) -> None:
        """Say on which nodes memory is to be that nobody has touched yet."""
        if self.topology is None or self.policy == "none":
            return
        mode, where = nodes.INTERLEAVE, self.topology.nodes
        if self.policy == "local":
            if node is None:
                return  # the system gives each page to the node that touches it first
            mode, where = nodes.PREFERRED, (node,)
        try:
            nodes.bind(address, n_bytes, mode, where)
        except OSError as error:
            self.note = f"refused: {error.strerror or error}"
            if self.policy == "interleave":
                self.policy = "none"
            self._tell_of_nodes(WARNING, "numa_refused", self.note, error.errno)

    def _look_at_nodes(self) -> None:
        self.topology = Topology.read()
        if len(self.topology.nodes) < 2:
            self.policy = "none"
            self.note = "one node" if self.topology.nodes else "this system tells of no nodes"
            self._tell_of_nodes(INFO, "numa_not_needed", self.note, None)
        elif self.policy == "local":
            near.want()

    def _tell_of_pages(self, kind: str, n_bytes: int, error: OSError) -> None:
        if (kind, error.errno) in self._told:
            return
        self._told.add((kind, error.errno))
        after = list(PAGE_BYTES)[list(PAGE_BYTES).index(kind) + 1 :]
        logger.warning(
            "no huge pages (%s) for %s bytes: %s; %s instead",
            kind,
            f"{n_bytes:,}",
            error.strerror or error,
            after[0] if after else "small ones",
            extra={
                "event": "huge_pages_refused",
                "kind": kind,
                "n_bytes": n_bytes,
                "instead": after[0] if after else "small",
                "errno": error.errno,
            },
        )

    def _tell_of_nodes(self, severity: int, event: str, why: str, number: int | None) -> None:
        if (event, number) in self._told:
            return
        self._told.add((event, number))
        facts = {"event": event, "numa": self.numa, "reason": why, "errno": number}
        logger.log(severity, "numa=%s: %s", self.numa, why, extra=facts)


def _map_reserved(page_bytes: int, n_bytes: int, is_read_only: bool) -> osmem.Mapping:
    """Map pages that the system has set aside; they are reserved, so none is missing later."""
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "this system has none")
    size = (page_bytes.bit_length() - 1) << _SIZE_SHIFT
    flags: tuple[int, ...] = (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB | size,)
    if is_read_only:
        flags = (*flags, mmap.PROT_READ)
    take = partial(osmem.Mapping, -1, n_bytes, *flags)
    return osmem.call("map huge", "", take, page_bytes, n_bytes)


def _map_transparent(n_bytes: int, is_read_only: bool) -> tuple[osmem.Mapping, int]:
    """Map memory of which the whole 2 MiB are huge pages where the system can make them."""
    page_bytes = PAGE_BYTES["thp"]
    _check_transparent()
    spare = page_bytes - osmem.page_size()
    mapping = osmem.private_mapping(n_bytes + spare, is_read_only=is_read_only)
    start = -osmem.address_of(mapping) % page_bytes
    length = n_bytes // page_bytes * page_bytes
    with suppress(OSError):  # what is left over shares no huge page with anything
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    advise = partial(mapping.madvise, mmap.MADV_HUGEPAGE, start, length)
    osmem.call("advise huge", "", advise, page_bytes, length)
    return mapping, start


def _check_transparent() -> None:
    """Raise OSError where the system makes no huge pages of 2 MiB by itself."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        raise OSError(errno.ENOTSUP, "this system has none")
    if "[never]" in _read(THP / "enabled"):
        raise OSError(errno.ENOTSUP, f"{THP / 'enabled'} says never")
    n_bytes = _read(THP / "hpage_pmd_size").strip()
    if n_bytes and n_bytes != str(PAGE_BYTES["thp"]):
        raise OSError(errno.ENOTSUP, f"they have {n_bytes} bytes here")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _keeps_reserved() -> bool:
    """Tell whether a page that was returned can be had again whatever others take meanwhile.

    Where it cannot, touching it again could kill the process: so pages are not returned.
    """
    try:
        release = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
    except (AttributeError, ValueError):
        return False
    return release >= _KEEPS_RESERVED
