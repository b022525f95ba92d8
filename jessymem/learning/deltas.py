"""`plan`: whether what is new goes beside a dimension's files, and how much of them with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from jessymem import osmem
from jessymem.kernels import schema as s
from jessymem.learning.region import Base
from jessymem.regions.drafts import LayerDraft
from jessymem.regions.region import MmapRegion


class Plan(NamedTuple):
    """A file that is to be written.

    Attributes
    ----------
    before : tuple of MmapRegion
        The files that it follows, the region file first; none: it is the region file.
    n_bytes : int
    pieces : list of bytes-like
        Its bytes.
    """

    before: tuple[MmapRegion, ...]
    n_bytes: int
    pieces: list[Any]

    @property
    def n_chain_bytes(self) -> int:
        """How much of the budget the files take together, in bytes."""
        n_before = sum([region.n_charged_bytes for region in self.before])
        return osmem.round_to_pages(self.n_bytes) + n_before


def is_missing(loaded: Base, found: Base) -> bool:
    """Tell whether deltas that are loaded are no longer on disk, nor in what took their place."""
    if found is loaded:
        return False
    files = [member for member in loaded.members if member.path is not None]
    if files[0].edition != found.members[0].edition:
        return False  # another region file: it stands for itself
    here = {member.edition for member in found.members}
    spans = [
        range(each.layout.replaces, each.generation)
        for each in found.members
        if each.layout.replaces
    ]
    return any(
        member.edition not in here and not any(member.generation in span for span in spans)
        for member in files
    )


def plan(
    current: Base | None,
    new: Sequence[LayerDraft],
    lay_out: Callable[..., tuple[int, list[Any]]],
    deleted: Collection[int] = (),
) -> Plan | None:
    """Lay out a delta for `new` layers and `deleted` ones.

    None: the region file is to be written again.

    Where there are as many deltas as there may be, it takes the place of the newest ones: as few as
    make space, and each before them that is no longer than what has been gathered so far. So a
    layer is written again the more seldom, the more has been gathered with it.

    Parameters
    ----------
    current : MmapRegion, RegionChain or None
        What there is on disk.
    new : sequence of LayerDraft
    lay_out : callable
        Returns the length and the pieces of a file of drafts, as `write_layout`.
    deleted : collection of int
        Numbers of layers that are to be gone.
    """
    if current is None or not all(each.generation for each in current.members):  # one is plain
        return None
    base, *older = current.members
    if base.path is None:  # simulated
        return None
    if base.frames is None and any(draft.frame is not None for draft in new):
        return None  # who cannot read version 2 would take the rest for the dimension
    limit = base.size // s.DELTA_SHARE
    if sum(len(draft.content) for draft in new) > limit:
        return None
    n_bytes, pieces = lay_out(new, follows=current.members[-1].edition, deleted=sorted(deleted))
    n_left = len(older)
    if n_left == s.MAX_DELTAS:
        n_left, n_gathered = n_left - 1, n_bytes + older[-1].size
        while n_left and older[n_left - 1].size <= n_gathered:
            n_left -= 1
            n_gathered += older[n_left].size
        numbers = {draft.layer for draft in new}
        gathered = current.drafts_since(n_left + 1, numbers.union(deleted))
        gone = current.deleted_since(n_left + 1).union(deleted) - numbers
        follows, replaces = current.members[n_left].edition, older[n_left].generation
        n_bytes, pieces = lay_out(
            [*gathered, *new], follows=follows, replaces=replaces, deleted=sorted(gone)
        )
    if n_bytes + sum([each.size for each in older[:n_left]]) > limit:
        return None
    return Plan(current.members[: n_left + 1], n_bytes, pieces)
