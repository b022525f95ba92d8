"""Managers in other processes: what a pickled one becomes, and what a forked child must renew."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jessymem.config import MemoryConfig
from jessymem.errors import RegionNotFound
from jessymem.ids import DimensionId

if TYPE_CHECKING:
    from jessymem.manager import MmapManager


class Renewable(Protocol):
    """What holds locks."""

    def _after_fork(self) -> None: ...


_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_forked_children(owner: Renewable) -> None:
    """Give `owner` new locks in every child that is forked while it lives."""
    _renewables.add(owner)


def reopen(
    cls: type[MmapManager],
    config: MemoryConfig,
    loaded: list[tuple[int, Path | None, tuple[int, int, int]]],
) -> MmapManager:
    """Make a manager that has loaded what a pickled one had: (dimension, path, edition) each.

    Raises
    ------
    RegionNotFound
        If another file is there by now.
    """
    manager = cls(config)
    try:
        for number, path, edition in loaded:
            dimension = DimensionId(number)
            if path is None:
                manager._load_simulated(dimension)
                continue
            manager.load_dimension(dimension, path)
            found = manager._standing_for(dimension).edition
            if found != edition:
                raise RegionNotFound(
                    f"{dimension}: {_show(edition)} of {path} is gone, {_show(found)} is there",
                    dimension=dimension,
                    generation=edition[0],
                )
    except BaseException:
        manager.close()
        raise
    return manager


def _show(edition: tuple[int, int, int]) -> str:
    generation, made_ns, n_bytes = edition
    return f"generation {generation} of {made_ns} ns since 1970 with {n_bytes} bytes"


def _renew() -> None:
    for owner in _renewables:
        owner._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
