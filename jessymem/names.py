"""Layers by name: which layers a text names.

A text of the form of a layer id is that id, always. ``D18/bash/README`` is the layer called
``bash/README`` in D18, ``shell/bash/README`` that of a dimension called ``shell``, and
``bash/README`` the layer of that name in whichever dimension.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from jessymem import osmem
from jessymem.budget import Charge
from jessymem.engine.engine import Engine
from jessymem.engine.snapshot import Snapshot
from jessymem.errors import AmbiguousName, DimensionNotFound, LayerNotFound, LimitExceeded
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    LayerId,
    as_dimension_id,
    is_dimension_id,
    is_layer_id,
)
from jessymem.regions.name_index import NameIndex
from jessymem.regions.name_table import digest_of
from jessymem.regions.table import LayerTable, LoadedDimension

_N_SHOWN: Final = 5


def find_one(engine: Engine, text: str, dimension: DimensionLike | None = None) -> LayerId:
    """Return the one layer that a text names; see `MmapManager.id_of`."""
    if not isinstance(text, str):
        raise TypeError(f"a name is text, not {type(text).__name__}")
    found = find_all(engine, text, dimension)
    engine.check_open(text)
    if len(found) == 1:
        return found[0]
    where = "" if dimension is None else f" in {dimension}"
    if not found:
        raise _not_found(engine, text, where)
    shown = ", ".join(map(str, found[:_N_SHOWN])) + (", ..." if len(found) > _N_SHOWN else "")
    raise AmbiguousName(
        f"{text!r} is the name of {len(found)} layers{where}: {shown}",
        name=text,
        layers=tuple(found),
    )


def _not_found(engine: Engine, text: str, where: str) -> LayerNotFound:
    if is_layer_id(text):
        return LayerNotFound(f"{text} is not loaded{where}", layer=None, layers=(), name=text)
    message = f"no layer{where} is called {text!r}"
    first = text.partition("/")[0]
    if (
        not where
        and first != text
        and is_dimension_id(first)
        and not _dimensions_of(engine.snapshot, first)
    ):
        message = f"{text!r}: dimension {first} is not loaded"
    return LayerNotFound(message, layer=None, layers=(), name=text)


def find_all(engine: Engine, text: str, dimension: DimensionLike | None = None) -> list[LayerId]:
    """Return all loaded layers that a text names, ascending."""
    snapshot = engine.snapshot
    if is_layer_id(text):
        return _as_id(snapshot, text, dimension)
    found: set[LayerId] = set()
    evicted: list[tuple[DimensionId, bytes]] = []
    for loaded, name in _asked(engine, snapshot, text, dimension):
        table = loaded.resident
        if table is not None:
            found.update(_named_in(engine, table, name))
        elif loaded.may_have_name(digest_of(name)):
            evicted.append((loaded.dimension_id, name))
        del loaded, table
    del snapshot  # what it holds may have to go for what was evicted
    for number, name in evicted:
        table = engine.write(_bring_back, engine, number)
        found.update(() if table is None else _named_in(engine, table, name))
        del table
    return sorted(found)


def _as_id(snapshot: Snapshot, text: str, dimension: DimensionLike | None) -> list[LayerId]:
    """Return the layer whose id a text is, if it is loaded."""
    try:
        wanted = LayerId(text)
    except ValueError:  # there is no such number
        return []
    loaded = snapshot.find(wanted.dimension)
    if loaded is None or not loaded.has_layer(wanted.layer):
        return []
    is_meant = dimension is None or loaded in _dimensions_of(snapshot, dimension)
    return [wanted] if is_meant else []


def _asked(
    engine: Engine, snapshot: Snapshot, text: str, dimension: DimensionLike | None
) -> list[tuple[LoadedDimension, bytes]]:
    """Return which name to look for in which dimension."""
    if dimension is not None:
        name = _encode(text)
        return [(each, name) for each in _dimensions_of(snapshot, dimension)]
    first, slash, rest = text.partition("/")
    if slash and is_dimension_id(first):
        name = _encode(rest)
        return [(each, name) for each in _dimensions_of(snapshot, first)]
    name = _encode(text)
    digest = digest_of(name)
    slashes = [at for at, sign in enumerate(text) if sign == "/"]
    asked = []
    for chunk in snapshot.chunks:
        index = chunk.names or _make_index(engine, chunk)
        asked += [(each, name) for each in (*index.unknown, *index.dimensions_with(digest))]
        for at in slashes:
            named = index.by_name.get(text[:at], ())
            asked += [(each, _encode(text[at + 1 :])) for each in named]
    return asked


def _make_index(engine: Engine, chunk: Any) -> NameIndex:
    """Make the index of a chunk's names, and keep it there."""
    loaded = [slot.loaded for slot in chunk.slots if slot is not None]
    tables = [table for each in loaded if (table := each.resident) is not None]
    if not engine.interrupts() and not all(table.keeps_names for table in tables):
        engine.write(_keep_all, engine, tables)
    chunk.names = index = NameIndex(loaded)
    return index


def _keep_all(engine: Engine, tables: list[LayerTable]) -> None:
    for table in tables:
        keep_names(engine, table)


def _dimensions_of(snapshot: Snapshot, dimension: DimensionLike) -> list[LoadedDimension]:
    """Return the loaded dimensions of a number, or of a name."""
    if isinstance(dimension, str) and not is_dimension_id(dimension):
        named = [each for each in snapshot.loaded if each.name == dimension]
        if not named:
            raise DimensionNotFound(
                f"no loaded dimension is called {dimension!r}", dimension=dimension, path=None
            )
        return named
    try:
        found = snapshot.find(as_dimension_id(dimension))
    except ValueError:  # there is no such number
        return []
    return [] if found is None else [found]


def _encode(name: str) -> bytes:
    """Return a name as files have it; bytes that are no UTF-8 come from the command line so."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b""  # which is no layer's name


def _named_in(engine: Engine, table: LayerTable, name: bytes) -> list[LayerId]:
    """Return the layers of a table that have a name."""
    if not name:
        return []
    if not table.keeps_names and not engine.interrupts():
        engine.write(keep_names, engine, table)
    return LayerId.in_order(table.dimension_id, table.numbers_named(name))


def keep_names(engine: Engine, table: LayerTable) -> None:
    """Keep what look-ups by name need, where there is room for it; under the writer lock."""
    try:
        table.keep_names(partial(_charge, engine, table))
    except LimitExceeded:
        pass  # it is made again for each of them


def _charge(engine: Engine, table: LayerTable, n_bytes: int) -> Charge | None:
    """Charge what is as long as a page."""
    n_bytes = n_bytes // osmem.page_size() * osmem.page_size()
    if not n_bytes:
        return None
    return engine.loader.charge_table(table, n_bytes)


def _bring_back(engine: Engine, dimension: DimensionId) -> LayerTable | None:
    """Return a dimension's table, if it was not unloaded meanwhile; under the writer lock."""
    return engine.bring_back(dimension) if dimension in engine.snapshot else None
