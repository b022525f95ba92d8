"""Managers in other processes: what a pickled one becomes, and what a forked child must renew."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from jessymem.config import MemoryConfig
from jessymem.errors import RegionNotFound
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s

if TYPE_CHECKING:
    from jessymem.kernels.store import Store
    from jessymem.loading import Loader
    from jessymem.manager import MmapManager
    from jessymem.snapshot import Snapshot


#: One dimension that is loaded: its number, where its file is (None: it is simulated), its edition.
Loaded: TypeAlias = tuple[int, Path | None, tuple[int, int, int]]


class Renewable(Protocol):
    """What holds locks."""

    def _after_fork(self) -> None: ...


_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_forked_children(owner: Renewable) -> None:
    """Give `owner` new locks in every child that is forked while it lives."""
    _renewables.add(owner)


def editions_in(snapshot: Snapshot, loader: Loader) -> list[Loaded]:
    """Return what a state has loaded from files or simulates: (dimension, path, edition) each."""
    return [
        (
            int(region.dimension_id),
            None if region.path is None else loader.home_of(region.dimension_id),
            region.edition[:],
        )
        for region in snapshot.loaded
        if region.state != s.REGION_LEARNED
    ]


class Origin:
    """Where a store comes from: it makes stores of one state, and says how they pickle.

    Each of its stores holds it.
    """

    def __init__(self, config: MemoryConfig, loader: Loader, snapshot: Snapshot) -> None:
        self._config = config
        self._loader = loader
        self._snapshot = snapshot

    def store(self) -> Store:
        """Return the state's store."""
        from jessymem.kernels import _numba
        from jessymem.kernels.store import Store

        if "numba" in sys.modules:
            _numba.init()
        return Store(self._snapshot.directory, self._snapshot.regions, self._reduce)

    def _reduce(self) -> tuple[Any, ...]:
        loaded = editions_in(self._snapshot, self._loader)
        in_memory = tuple(each for each in loaded if each[0] in self._snapshot.readers)
        return attach_store, (MemoryConfig.of(self._config, self._loader.base), in_memory)


def attach_store(config: MemoryConfig, loaded: tuple[Loaded, ...]) -> Store:
    """Make the store that a pickled one is in this process.

    While one that was pickled alike is held here, nothing is mapped a second time.

    Raises
    ------
    RegionNotFound, JessyMemoryError
        As `reopen`.
    """
    from jessymem.manager import MmapManager

    origin = _origins.get((config, loaded))
    if origin is None:
        # The manager is not closed, which would retire what the store holds: it just ends.
        manager = reopen(MmapManager, config, loaded)
        origin = Origin(config, manager._loader, manager._snapshot)
        _origins[config, loaded] = origin
    return origin.store()


#: Of stores that were unpickled here, for as long as one of them is held.
_origins: weakref.WeakValueDictionary[Any, Origin] = weakref.WeakValueDictionary()


def reopen(
    cls: type[MmapManager],
    config: MemoryConfig,
    loaded: Iterable[Loaded],
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
                raise edition_gone(dimension, path, edition, found)
    except BaseException:
        manager.close()
        raise
    return manager


def edition_gone(
    dimension: DimensionId,
    path: Path,
    wanted: tuple[int, int, int],
    found: tuple[int, int, int],
) -> RegionNotFound:
    """Return the error for an edition in whose place another is."""
    return RegionNotFound(
        f"{dimension}: {_show(wanted)} of {path} is gone, {_show(found)} is there",
        dimension=dimension,
        generation=wanted[0],
    )


def _show(edition: tuple[int, int, int]) -> str:
    generation, made_ns, n_bytes = edition
    return f"generation {generation} of {made_ns} ns since 1970 with {n_bytes} bytes"


def _renew() -> None:
    for owner in _renewables:
        owner._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
