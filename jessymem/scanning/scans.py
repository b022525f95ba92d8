"""Scans over all bytes of the layers chosen, without the GIL: `find`, `count` and `scan`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.engine import locations
from jessymem.engine.engine import Engine
from jessymem.engine.snapshot import Snapshot
from jessymem.ids import DimensionId, DimensionsLike, as_dimension_ids, as_integer
from jessymem.scanning.hits import Hits, join_hits
from jessymem.scanning.needles import Needle
from jessymem.scanning.searching import count_in, find_in
from jessymem.scanning.spans import Spans, packed_ids
from jessymem.scanning.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Buffer

    from numpy.typing import DTypeLike, NDArray


def find(
    engine: Engine,
    needle: Buffer | str,
    dimensions: DimensionsLike | None,
    workers: Workers,
    limit: int | None,
) -> Hits:
    """Find every position at which some bytes are; see `MmapManager.find`."""
    wanted = Needle(needle)
    left = None if limit is None else as_integer(limit, "limit")
    if left is not None and left < 0:
        raise ValueError(f"limit is a number of finds, not {limit!r}")
    parts: list[NDArray[Any]] = []
    with closing(_states(engine, dimensions, workers)) as states:
        for spans in states:
            found, n_found = find_in(spans, wanted, workers, left)
            del spans  # it may have to go for the next
            parts += found
            if left is not None:
                left -= n_found
                if left == 0:
                    break
    return join_hits(parts)


def count(
    engine: Engine,
    needle: Buffer | str,
    dimensions: DimensionsLike | None,
    workers: Workers,
) -> int:
    """Count the positions at which some bytes are; see `MmapManager.count`."""
    wanted = Needle(needle)
    n_found = 0
    with closing(_states(engine, dimensions, workers)) as states:
        for spans in states:
            n_found += count_in(spans, wanted, workers)
            del spans
    return n_found


def scan(
    engine: Engine,
    kernel: Callable[..., Any],
    dtype: DTypeLike,
    dimensions: DimensionsLike | None,
    workers: Workers,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Call a compiled function for every layer; return ids and values; see `MmapManager.scan`."""
    from jessymem.scanning.applying import Applied

    applied = Applied(kernel, dtype)
    values, ids = [np.zeros(0, applied.dtype)], [np.zeros(0, np.int64)]
    with closing(_states(engine, dimensions, workers)) as states:
        for spans in states:
            values.append(applied.to(spans, workers))
            ids.append(spans.rows["layer"])
            del spans
    return np.concatenate(ids), np.concatenate(values)


def _states(
    engine: Engine, dimensions: DimensionsLike | None, workers: Workers
) -> Generator[Spans, None, None]:
    """Yield the layers to scan: all at once where all are in memory, else by dimension.

    While they are scanned, this thread counts as a reader and none of them is evicted. Who has
    scanned them drops them, since they may have to go for the next.
    """
    with engine.sampler.reader():
        snapshot = engine.snapshot
        engine.check_open()
        if dimensions is None:
            wanted = [each.dimension_id for each in snapshot.loaded]
        else:
            wanted = sorted(as_dimension_ids(dimensions))
            for dimension in wanted:
                snapshot.get(dimension)  # raises where it is not loaded
        if all(snapshot.path_of(dimension) is not None for dimension in wanted):
            with engine.keeping(wanted):
                spans = _spans_in(engine, snapshot, wanted)
                del snapshot
                workers.expect(spans.n_bytes)
                yield spans
                return
        expected = {each.dimension_id: each.edition.n_bytes for each in snapshot.loaded}
        del snapshot
        workers.expect(sum(expected[dimension] for dimension in wanted))
        for dimension in wanted:
            with engine.keeping([dimension]):
                snapshot = engine.write(_state_with, engine, dimension)
                if dimension not in snapshot:
                    workers.expect(-expected[dimension])
                    continue  # unloaded meanwhile
                spans = _spans_in(engine, snapshot, [dimension])
                del snapshot
                workers.expect(spans.n_bytes - expected[dimension])
                yield spans
                del spans


def _state_with(engine: Engine, dimension: DimensionId) -> Snapshot:
    """Return a state in which a dimension is in memory, or not loaded; under the writer lock."""
    if dimension in engine.snapshot:
        engine.bring_back(dimension)
    return engine.snapshot


def _spans_in(engine: Engine, snapshot: Snapshot, dimensions: list[DimensionId]) -> Spans:
    """Find the layers of dimensions in one state, and note the access."""
    packed = packed_ids(snapshot, dimensions)
    located = locations.locate(snapshot, packed)
    locations.note_missing(located, packed, is_strict=True)
    locations.note_accesses(engine, located)
    return Spans.of(located, packed)
