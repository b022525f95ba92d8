"""`Chain`: a region file and the deltas beside it that count, see docs/format.md.

Which they are is told by the first bytes of each: nothing is mapped to find out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jessymem import osmem
from jessymem.errors import RegionFormatError
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.named_tuples import NamedTuple
from jessymem.regions import faults, layout
from jessymem.regions.faults import Source
from jessymem.regions.layout import Edition


class ChainChanged(Exception):
    """What lies on disk was replaced while it was looked at; to be looked at again."""


class NoDelta(Exception):
    """A whole file has the name of a delta, and is none of this dimension; the text says why."""


class Delta(NamedTuple):
    """A delta, by its first bytes."""

    path: Path
    edition: Edition
    follows: Edition
    replaces: int  # the lowest generation of those in whose place it is; 0: of none
    identity: osmem.FileIdentity


#: What was read of the first bytes of files, by path, for as long as they are the same files.
Peeked: TypeAlias = dict[Path, tuple[osmem.FileIdentity, Any]]


class Chain(NamedTuple):
    """The files that together are a dimension."""

    base: Path
    base_edition: Edition | None = None  # None: there are no deltas, or the file has no edition
    deltas: tuple[Delta, ...] = ()  # each follows the one before, the first one the base
    base_identity: osmem.FileIdentity | None = None  # where there are deltas

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where they are, the base first."""
        return (self.base, *(delta.path for delta in self.deltas))

    def identify(self) -> tuple[osmem.FileIdentity, ...]:
        """Tell which files they are; raises OSError."""
        return (osmem.identify(self.base), *(delta.identity for delta in self.deltas))

    def up_to(self, edition: Edition) -> Chain:
        """Return the chain that ends with an edition; all of it where none of its files is that."""
        for n_deltas, delta in enumerate(self.deltas):
            if delta.follows == edition:
                return self._replace(deltas=self.deltas[:n_deltas])
        return self


class Choice(NamedTuple):
    """What deltas that lie beside a region file are to it."""

    chosen: tuple[Delta, ...]
    replaced: tuple[Delta, ...]  # the region file, or a chosen one, is in their place
    forked: tuple[Delta, ...]  # they lead back to the region file too, past what is chosen
    stale: tuple[Delta, ...]  # they do not lead back to it


def choose(base: Edition | None, replaces: int, deltas: Iterable[Delta]) -> Choice:
    """Choose the chain that ends with the highest generation.

    Parameters
    ----------
    base : Edition or None
        The region file's; None: nothing follows it.
    replaces : int
        The lowest generation of the deltas in whose place the region file is; 0: of none.
    deltas : iterable of Delta
        All that are whole. Each is of a higher generation than what it follows, so none leads back
        to itself.
    """
    found = sorted(deltas, key=_edition)
    editions = [base, *map(_edition, found)]
    if len(found) <= s.MAX_DELTAS and all(map(_follows, found, editions)):  # all in one line
        return Choice(tuple(found), (), (), ())
    leading: dict[Edition, list[Delta]] = {} if base is None else {base: []}
    best: list[Delta] = []
    for delta in found:
        before = leading.get(delta.follows)
        if before is not None and delta.edition not in leading:
            path = leading[delta.edition] = [*before, delta]
            if len(path) <= s.MAX_DELTAS:
                best = path
    spans = [range(each.replaces, each.edition.generation) for each in best if each.replaces]
    if base is not None and replaces:
        spans.append(range(replaces, base.generation))
    replaced, forked, stale = [], [], []
    chosen = set(map(id, best))
    for delta in found:
        if id(delta) in chosen:
            continue
        if any(delta.edition.generation in span for span in spans):
            replaced.append(delta)
        elif delta.edition in leading:
            forked.append(delta)
        else:
            stale.append(delta)
    return Choice(tuple(best), tuple(replaced), tuple(forked), tuple(stale))


def _edition(delta: Delta) -> Edition:
    return delta.edition


def _follows(delta: Delta, before: Edition | None) -> bool:
    return delta.follows == before


def peek_delta(
    dimension: DimensionId, path: Path, identity: osmem.FileIdentity, generation: int
) -> Delta:
    """Read the first bytes of a delta, which is this file.

    Raises
    ------
    OSError
        If they cannot be read.
    RegionFormatError
        If it is damaged, or shorter or longer than it says.
    NoDelta
        If it is whole, but none, or of another dimension, or of another generation than
        `generation`, or says of itself what cannot be.
    """
    start, n_bytes = osmem.read_start(path, s.HEADER_BYTES)
    source = Source(None, str(path))
    data = np.frombuffer(start, np.uint8)
    try:
        header = layout.read_header(data, source, n_bytes)
        extension = layout.find_extension(data, header, source)
    except RegionFormatError as error:
        if error.field != "total_size" and layout.is_header_whole(data):
            raise NoDelta(error.message) from None  # it was written so
        raise
    if header.dimension != dimension:
        raise NoDelta(f"it is of {header.dimension}")
    follows = None if extension is None else layout.read_predecessor(extension)
    if extension is None:  # or what announces it is damaged
        raise faults.broken_extension(source, "extension_magic", s.EXTENSION_MAGIC, b"")
    if follows is None:
        raise NoDelta("it follows no other file")
    if extension.generation != generation:
        raise NoDelta(f"its generation is {extension.generation}")
    edition = layout.read_edition(extension, header.total_size)
    return Delta(path, edition, follows, extension.replaces, identity)


def peek_edition(path: Path) -> tuple[Edition | None, int]:
    """Read which edition of a region file lies at a path, and from which delta on it replaces some.

    None: it is plain. A damaged header is believed here: where a delta names this very edition,
    both must be right. Raises OSError where it cannot be read.
    """
    record, n_bytes = _peek(path)
    if record is None:
        return None, 0
    edition = Edition(int(record["generation"]), int(record["created_at"]), n_bytes)
    return edition, int(record["replaces"])


def peek_flags(path: Path) -> int:
    """Read the flags of the region file at a path; 0: it is plain. Raises OSError."""
    record, _ = _peek(path)
    return 0 if record is None else int(record["flags"])


def is_delta(path: Path) -> bool:
    """Tell whether the file at a path says that it follows another one. Raises OSError."""
    record, _ = _peek(path)
    return record is not None and bool(record["follows_generation"])


def _peek(path: Path) -> tuple[Any, int]:
    """Read a file's extension, whatever its checksum, and how long it is; None: it has none."""
    start, n_bytes = osmem.read_start(path, s.HEADER_BYTES)
    if len(start) < s.HEADER_BYTES:
        return None, n_bytes
    record = np.frombuffer(start, s.EXTENSION, 1, s.RESERVED_OFFSET)[0]
    return (record if bytes(record["extension_magic"]) == s.EXTENSION_MAGIC else None), n_bytes
