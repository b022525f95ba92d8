"""How managers and stores pickle: as their configuration and the editions that they have loaded."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from jessymem.config import MemoryConfig
from jessymem.errors import LayerNotFound, RegionNotFound
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.locks import is_imported
from jessymem.regions.layout import Edition
from jessymem.regions.table import address_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.engine.engine import Engine
    from jessymem.engine.snapshot import Snapshot
    from jessymem.kernels.store import Store
    from jessymem.regions.table import LayerTable


#: One dimension that is loaded: its number, where its file is (None: it is simulated; a text: it is
#: that URL under the base path), its edition.
Loaded: TypeAlias = tuple[int, Path | str | None, tuple[int, int, int]]


def editions_in(engine: Engine, snapshot: Snapshot) -> list[Loaded]:
    """Return what a state has loaded from files or simulates: (dimension, path, edition) each."""
    return [
        (
            int(loaded.dimension_id),
            None if loaded.path is None else engine.loader.origin_of(loaded.dimension_id),
            loaded.edition[:],
        )
        for loaded in snapshot.loaded
        if loaded.state != s.REGION_LEARNED
    ]


def reduce_engine(engine: Engine) -> tuple[MemoryConfig, list[Loaded]]:
    """Return what makes an engine like this one in another process, by `reload`."""
    snapshot = engine.snapshot
    engine.check_open()
    return engine.loader.config, editions_in(engine, snapshot)


class Origin:
    """Where a store comes from: it makes stores of one state, and says how they pickle.

    Each of its stores holds it.
    """

    def __init__(self, engine: Engine, snapshot: Snapshot) -> None:
        self._engine = engine
        self._snapshot = snapshot

    def store(self, inflated: tuple[int, ...] = ()) -> Store:
        """Return the state's store, in which some layers, by packed id, are inflated.

        Raises
        ------
        LayerNotFound
            If one of these is not in memory.
        RegionFormatError, LimitExceeded, AllocationFailed, ConfigError
            As `Frames.view`.
        """
        from jessymem.kernels import _jit
        from jessymem.kernels.store import Store

        # Who is still importing numba tells it of stores when that compiles anything.
        if is_imported("numba") and not _jit.is_disabled():
            from jessymem.kernels import _numba

            _numba.init()
        directory = self._snapshot.directory
        if inflated:
            directory = self._inflated(inflated)
        return Store(directory, partial(self._reduce, inflated))

    def _inflated(self, packed: tuple[int, ...]) -> NDArray[np.int64]:
        """Return the state's directory with rows that lead to what is inflated."""
        from jessymem.engine.locations import inflating

        found: list[tuple[LayerTable, int]] = []
        for layer_id in map(LayerId.from_packed, packed):
            table = self._snapshot.get_for(layer_id).resident
            if table is None:
                raise LayerNotFound(f"{layer_id} is not in memory", layer=layer_id)
            found.append((table, table.find_row(layer_id)))
        tables: dict[int, NDArray[Any]] = {}
        held: list[Any] = []
        with inflating(self._engine, found):
            for table, row in found:
                if table.frames_of(row) is None:
                    continue
                dimension = int(table.dimension_id)
                if dimension not in tables:
                    held.append(self._engine.loader.charge_table(table, table.rows.nbytes))
                    tables[dimension] = table.private_rows()
                view = table.content_of(row)
                held.append(view)
                away = address_of(np.frombuffer(view, np.uint8)) - table.content_address
                tables[dimension]["content_offset"][row] = away % 2**64  # it wraps around
                tables[dimension]["content_end"][row] = (away + len(view)) % 2**64
        return self._snapshot.directory_with(tables, held)

    def _reduce(self, inflated: tuple[int, ...]) -> tuple[Any, ...]:
        engine, snapshot = self._engine, self._snapshot
        loaded = editions_in(engine, snapshot)
        in_memory = tuple(each for each in loaded if snapshot.path_of(each[0]) is not None)
        return attach_store, (engine.loader.config, in_memory, inflated)


def attach_store(
    config: MemoryConfig, loaded: tuple[Loaded, ...], inflated: tuple[int, ...] = ()
) -> Store:
    """Make the store that a pickled one is in this process.

    While one that was pickled alike is held here, nothing is mapped a second time.

    Raises
    ------
    RegionNotFound, JessyMemoryError
        As `reload`.
    """
    from jessymem.engine.engine import Engine

    origin = _origins.get((config, loaded))
    if origin is None:
        # The engine is not closed, which would retire what the store holds: it just ends.
        engine = Engine(config)
        reload(engine, loaded)
        origin = Origin(engine, engine.snapshot)
        _origins[config, loaded] = origin
    return origin.store(inflated)


#: Of stores that were unpickled here, for as long as one of them is held.
_origins: weakref.WeakValueDictionary[Any, Origin] = weakref.WeakValueDictionary()


def reload(engine: Engine, loaded: Iterable[Loaded]) -> None:
    """Load what a pickled engine had: (dimension, path, edition) each; or close this one.

    Raises
    ------
    RegionNotFound
        If another file is there by now.
    JessyMemoryError
        As `MmapManager.load_dimension`.
    """
    try:
        for number, path, edition in loaded:
            dimension = DimensionId(number)
            if path is None:
                engine.write(engine.simulate, dimension)
                continue
            if isinstance(path, str):
                engine.loader.fetch(dimension)
            home = None if isinstance(path, str) else path
            engine.write(engine.load, dimension, home, Edition(*edition))
            found = engine.snapshot.get(dimension).edition
            if found != edition:
                raise edition_gone(dimension, path, edition, found)
    except BaseException:
        engine.close()
        raise


def edition_gone(
    dimension: DimensionId,
    path: Path | str,
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
    made = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=made_ns // 1_000)
    return f"generation {generation} ({made:%Y-%m-%d %H:%M:%S.%f} UTC, {n_bytes:,} bytes)"
