"""`select`: conditions on layers, evaluated over the columns of a region's table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jessymem.engine.engine import Engine
from jessymem.errors import shown
from jessymem.ids import DimensionId, DimensionsLike, LayerId, as_dimension_ids, items_of
from jessymem.regions.table import LayerTable

if TYPE_CHECKING:
    from jessymem.regions.name_patterns import NamePattern

Range = tuple[float, float]


@dataclass(frozen=True)
class Query:
    """Conditions that a layer must meet together; None: no condition."""

    keywords: tuple[str, ...] | None
    depth: Range | None
    frequency: Range | None
    dimensions: frozenset[DimensionId] | None
    name: NamePattern | None = None

    @classmethod
    def of(
        cls,
        keywords: Iterable[str] | None,
        depth: Range | None,
        frequency: Range | None,
        dimensions: DimensionsLike | None,
        name: str | None = None,
    ) -> Query:
        """Check the conditions' form."""
        return cls(
            None if keywords is None else _as_keywords(keywords),
            None if depth is None else _as_range("depth", depth),
            None if frequency is None else _as_stored(_as_range("frequency", frequency)),
            None if dimensions is None else as_dimension_ids(dimensions),
            None if name is None else _as_pattern(name),
        )

    def may_concern(self, dimension: DimensionId) -> bool:
        """Tell whether layers of a dimension can meet the conditions."""
        return self.dimensions is None or dimension in self.dimensions

    def layers_of(self, region: LayerTable) -> list[LayerId]:
        """Return the region's layers that meet every condition, ascending."""
        if not self.may_concern(region.dimension_id):
            return []
        rows = region.rows
        chosen = np.ones(len(rows), bool)
        for field, bounds in (("depth", self.depth), ("frequency", self.frequency)):
            if bounds is not None:
                chosen &= (rows[field] >= bounds[0]) & (rows[field] <= bounds[1])
        if self.keywords is not None:
            named = np.zeros(len(rows), bool)
            for keyword in self.keywords:
                named[region.rows_with_keyword(keyword)] = True
            chosen &= named
        if self.name is not None:
            chosen &= region.rows_matching(self.name)
        return LayerId.in_order(region.dimension_id, rows["layer_num"][chosen].tolist())


def _as_pattern(value: str) -> NamePattern:
    if not isinstance(value, str):
        raise TypeError(f"name is a pattern of names, as text, not {shown(value)}")
    from jessymem.regions.name_patterns import NamePattern

    return NamePattern(value)


def _as_keywords(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"keywords are a sequence of strings, not {shown(value)}")
    keywords = tuple(items_of(value, "keywords"))
    for keyword in keywords:
        if not isinstance(keyword, str):
            raise TypeError(f"a keyword is a string, not {shown(keyword)}")
    return keywords


def _as_range(name: str, value: Range) -> Range:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} is a pair (low, high), not {shown(value)}")
    low, high = value
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float | np.integer | np.floating):
            raise TypeError(f"{name} is a pair of numbers, not {shown(value)}")
    if not low <= high:
        raise ValueError(f"{name} is (low, high) with low <= high, not {shown(value)}")
    return low, high


def _as_stored(bounds: Range) -> Range:
    """Bring bounds to the precision in which frequencies are stored; beyond it lies infinity."""
    with np.errstate(over="ignore"):
        low, high = (float(np.float32(_as_float(bound))) for bound in bounds)
    return low, high


def _as_float(bound: float) -> float:
    try:
        return float(bound)
    except OverflowError:  # an int beyond every float
        return math.inf if bound > 0 else -math.inf


def select(engine: Engine, query: Query) -> list[LayerId]:
    """Return the loaded layers that meet a query, ascending; evicted dimensions are mapped."""
    snapshot = engine.snapshot
    engine.check_open()
    wanted = [each for each in snapshot.loaded if query.may_concern(each.dimension_id)]
    tables = [table for each in wanted if (table := each.resident) is not None]
    if len(tables) == len(wanted):
        return [layer_id for table in tables for layer_id in query.layers_of(table)]
    names = [each.dimension_id for each in wanted]
    del snapshot, wanted, tables  # each may have to go for the next
    found: list[LayerId] = []
    for dimension in names:
        table = engine.write(_bring_back, engine, dimension)
        found += [] if table is None else query.layers_of(table)
        del table
    return found


def _bring_back(engine: Engine, dimension: DimensionId) -> LayerTable | None:
    """Return a dimension's table, if it was not unloaded meanwhile; under the writer lock."""
    return engine.bring_back(dimension) if dimension in engine.snapshot else None
