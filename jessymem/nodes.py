"""`Topology`: the nodes of this machine, each with memory and processors of its own (NUMA).

Linux tells it as files. Where memory is to be is said by mbind(2), by its number: no library is
needed. Imported only where nodes are asked for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from jessymem import osmem
from jessymem.named_tuples import NamedTuple

#: Where the nodes are told, and which of them this process may have memory of.
NODES: Path = Path("/sys/devices/system/node")
PROCESS_STATUS: Path = Path("/proc/self/status")

_ALLOWED: Final = "Mems_allowed_list:"
_MBIND: Final = {"x86_64": 237, "aarch64": 235}
_WORD_BITS: Final = 8 * ctypes.sizeof(ctypes.c_ulong)

# Numbers of Linux, the same on every machine.
PREFERRED: Final = 1  # on this node, and elsewhere where it is full
INTERLEAVE: Final = 3  # on these nodes in turns, page by page


class Topology(NamedTuple):
    """The nodes that memory can be had of, and which is near to which processor.

    Attributes
    ----------
    nodes : tuple of int
        Those with memory that this process may use, ascending; none where nothing is told.
    node_of_cpu : dict of int to int
        Of these, the one nearest to each processor.
    """

    nodes: tuple[int, ...]
    node_of_cpu: dict[int, int]

    @classmethod
    def read(cls) -> Topology:
        """Read what Linux tells; nothing is found where it does not."""
        with suppress(OSError, ValueError):
            online = numbers_in((NODES / "online").read_text())
            nodes = tuple(sorted(_with_memory(online) & _allowed(online)))
            if nodes:
                near = {node: _nearest(node, nodes, online) for node in online}
                return cls(
                    nodes,
                    {
                        cpu: near[node]
                        for node in online
                        for cpu in numbers_in((NODES / f"node{node}" / "cpulist").read_text())
                    },
                )
        return cls((), {})


def numbers_in(text: str) -> list[int]:
    """Return the numbers of a list as Linux writes them, ascending: ``0-2,5``.

    Raises ValueError for what is no such list.
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return sorted(found)


def bind(address: int, n_bytes: int, mode: int, nodes: tuple[int, ...]) -> None:
    """Say on which nodes pages are to be that nobody has touched yet; whole pages.

    Raises
    ------
    OSError
        If the system has no such call, or refuses it.
    """
    do = partial(place, address, n_bytes, mode, nodes)
    osmem.call("place memory", "", do, mode, nodes, address, n_bytes)


def place(address: int, n_bytes: int, mode: int, nodes: tuple[int, ...]) -> None:
    """Call mbind(2); raise OSError."""
    number = _MBIND.get(os.uname().machine) if sys.platform == "linux" else None
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    mask = (ctypes.c_ulong * (max(nodes) // _WORD_BITS + 1))()
    for node in nodes:
        mask[node // _WORD_BITS] |= 1 << node % _WORD_BITS
    # The system counts one bit less than it is told.
    if _syscall()(number, address, n_bytes, mode, mask, len(mask) * _WORD_BITS + 1, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@cache
def _syscall() -> Any:
    call = ctypes.PyDLL(None, use_errno=True).syscall
    word = ctypes.c_ulong
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, word, word, word, ctypes.c_void_p, word, word)
    return call


def _with_memory(online: list[int]) -> set[int]:
    with suppress(OSError):
        return set(online) & set(numbers_in((NODES / "has_memory").read_text()))
    return set(online)


def _allowed(online: list[int]) -> set[int]:
    """Return the nodes that a container or a user leaves this process."""
    with suppress(OSError):
        for line in PROCESS_STATUS.read_text().splitlines():
            if line.startswith(_ALLOWED):
                return set(numbers_in(line.removeprefix(_ALLOWED)))
    return set(online)


def _nearest(node: int, nodes: tuple[int, ...], online: list[int]) -> int:
    """Return which of `nodes` is nearest to one that may have no memory itself."""
    if node in nodes:
        return node
    with suppress(OSError, ValueError):
        text = (NODES / f"node{node}" / "distance").read_text()
        distances = dict(zip(online, map(int, text.split()), strict=True))
        return min(nodes, key=distances.__getitem__)
    return nodes[0]
