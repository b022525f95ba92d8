"""`Chain`: a region file and the deltas beside it that count, see docs/format.md.

Which they are is told by the first bytes of each: nothing is mapped to find out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jessymem import osmem
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.regions import faults, layout
from jessymem.regions.faults import Source
from jessymem.regions.layout import Edition


class ChainChanged(Exception):
    """What lies on disk was replaced while it was looked at; to be looked at again."""


class BrokenDelta(Exception):
    """A delta turned out to be broken when it was opened whole.

    Attributes
    ----------
    path : pathlib.Path
    fault : str
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(path, fault)
        self.path = path
        self.fault = fault


class Delta(NamedTuple):
    """A delta, by its first bytes."""

    path: Path
    edition: Edition
    follows: Edition


class Chain(NamedTuple):
    """The files that together are a dimension."""

    base: Path
    base_edition: Edition | None = None  # None: there are no deltas, or the file has no edition
    deltas: tuple[Delta, ...] = ()  # each follows the one before, the first one the base

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where they are, the base first."""
        return (self.base, *(delta.path for delta in self.deltas))

    def identify(self) -> tuple[osmem.FileIdentity, ...]:
        """Tell which files they are; raises OSError."""
        return tuple(map(osmem.identify, self.paths))

    def up_to(self, edition: Edition) -> Chain:
        """Return the chain that ends with an edition; all of it where none of its files is that."""
        for n_deltas, delta in enumerate(self.deltas):
            if delta.follows == edition:
                return self._replace(deltas=self.deltas[:n_deltas])
        return self


class Choice(NamedTuple):
    """What deltas that lie beside a region file are to it."""

    chosen: tuple[Delta, ...]
    superseded: tuple[Delta, ...]  # they lead back to it too, but to an older state
    stale: tuple[Delta, ...]  # they do not


def choose(base: Edition | None, deltas: Iterable[Delta]) -> Choice:
    """Choose the chain that ends with the highest generation.

    Parameters
    ----------
    base : Edition or None
        The region file's; None: nothing follows it.
    deltas : iterable of Delta
        All that are whole. Each is of a higher generation than what it follows, so none leads back
        to itself.
    """
    found = sorted(deltas, key=lambda delta: delta.edition)
    # How many deltas it takes to come to an edition; a chain that would be too long counts for as
    # far as it may go.
    before: dict[Edition, tuple[int, Delta | None]] = {}
    if base is not None:
        before[base] = 0, None
    best: Delta | None = None
    leading = set()
    for delta in found:
        length, _ = before.get(delta.follows, (s.MAX_DELTAS, None))
        if length < s.MAX_DELTAS and delta.edition not in before:
            before[delta.edition] = length + 1, delta
            leading.add(delta)
            best = delta
    chosen: list[Delta] = []
    while best is not None:
        chosen.append(best)
        best = before[best.follows][1]
    chosen.reverse()
    return Choice(
        tuple(chosen),
        tuple(delta for delta in found if delta in leading and delta not in chosen),
        tuple(delta for delta in found if delta not in leading),
    )


def peek_delta(dimension: DimensionId, path: Path, generation: int) -> Delta:
    """Read a delta's first bytes.

    Raises
    ------
    OSError
        If they cannot be read.
    RegionFormatError
        If it is none, or not of this dimension, or of another generation than `generation`.
    """
    start, n_bytes = osmem.read_start(path, s.HEADER_BYTES)
    source = Source(dimension, str(path))
    data = np.frombuffer(start, np.uint8)
    header = layout.read_header(data, source, n_bytes)
    extension = layout.read_extension(data, header, source)
    follows = None if extension is None else layout.read_predecessor(extension)
    if extension is None or follows is None:
        raise faults.broken_extension(source, "follows_generation", "1 or more, in a delta", 0)
    if extension.generation != generation:
        expected = f"{generation}, as its name says"
        raise faults.broken_extension(source, "generation", expected, extension.generation)
    return Delta(path, layout.read_edition(extension, header.total_size), follows)


def peek_edition(path: Path) -> Edition | None:
    """Read which edition of a region file lies at a path, by its own account.

    None where the file is too short, or plain. A damaged header is believed here: where a delta
    names this very edition, both must be right. Raises OSError where it cannot be read.
    """
    start, n_bytes = osmem.read_start(path, s.HEADER_BYTES)
    if len(start) < s.HEADER_BYTES:
        return None
    record: Any = np.frombuffer(start, s.EXTENSION, 1, s.RESERVED_OFFSET)[0]
    if bytes(record["extension_magic"]) != s.EXTENSION_MAGIC:
        return None
    return Edition(int(record["generation"]), int(record["created_at"]), n_bytes)
