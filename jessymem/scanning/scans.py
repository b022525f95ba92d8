"""Scans over all bytes of the layers chosen: `find`, `find_batches`, `count` and `scan`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from jessymem.engine import locations
from jessymem.engine.engine import Engine
from jessymem.engine.snapshot import Snapshot
from jessymem.errors import shown
from jessymem.ids import DimensionId, DimensionsLike, as_dimension_ids, as_integer
from jessymem.kernels import schema as s
from jessymem.scanning.batches import HitBatch
from jessymem.scanning.hits import Hits, join_hits
from jessymem.scanning.searching import Wanted, as_wanted, count_in, finds_in, length_of
from jessymem.scanning.spans import Spans, dimensions_of
from jessymem.scanning.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from jessymem.engine.locations import LayersLike

#: Finds that are handed over together.
MAX_HITS_OF_BATCH: Final = 8_192


class Question(NamedTuple):
    """What is searched for, and where.

    Attributes
    ----------
    needle : bytes-like, str or compiled pattern
    ignore_case, word : bool
    dimensions : iterable of dimension ids, or None
    layers : many layer ids, or None
    """

    needle: Any
    ignore_case: bool
    word: bool
    dimensions: DimensionsLike | None
    layers: LayersLike | None

    def wanted(self) -> Wanted:
        """Return what is searched for, checked."""
        return as_wanted(self.needle, ignore_case=self.ignore_case, word=self.word)


def find(engine: Engine, question: Question, workers: Workers, limit: int | None) -> Hits:
    """Find every position at which something is; see `MmapManager.find`."""
    wanted = question.wanted()
    parts = []
    for spans, found in _finds(engine, question, wanted, workers, limit, is_awaited=False):
        del spans  # it may have to go for the next
        parts.append(found)
    return join_hits(parts, length_of(wanted))


def find_batches(
    engine: Engine, question: Question, workers: Workers, limit: int | None
) -> Generator[HitBatch, None, None]:
    """Find the same, and yield it as it is found; see `MmapManager.find_batches`."""
    wanted = question.wanted()
    n_bytes = length_of(wanted)
    finds = _finds(engine, question, wanted, workers, limit, is_awaited=True)
    with closing(finds):
        for spans, found in finds:
            for start in range(0, len(found), MAX_HITS_OF_BATCH):
                hits = join_hits([found[start : start + MAX_HITS_OF_BATCH]], n_bytes)
                yield HitBatch(hits.array, hits.lengths, spans)
            del spans


def count(engine: Engine, question: Question, workers: Workers) -> int:
    """Count the positions at which something is; see `MmapManager.count`."""
    wanted = question.wanted()
    n_found = 0
    with closing(_states(engine, question.dimensions, question.layers, workers)) as states:
        for spans in states:
            n_found += count_in(spans, wanted, workers)
            del spans
    return n_found


def _finds(
    engine: Engine,
    question: Question,
    wanted: Wanted,
    workers: Workers,
    limit: int | None,
    *,
    is_awaited: bool,
) -> Generator[tuple[Spans, NDArray[Any]], None, None]:
    """Yield the first `limit` finds, as arrays that follow each other, and where they are."""
    left = None if limit is None else as_integer(limit, "limit")
    if left is not None and left < 0:
        raise ValueError(f"limit is a number of finds, not {shown(limit)}")
    with closing(_states(engine, question.dimensions, question.layers, workers)) as states:
        for spans in states:
            is_waiting = is_awaited or left is not None
            finds = finds_in(spans, wanted, workers, left, is_awaited=is_waiting)
            with closing(finds):
                for found in finds:
                    yield spans, found
                    left = None if left is None else left - len(found)
            del spans, finds  # it may have to go for the next
            if left == 0:
                return


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
    with closing(_states(engine, dimensions, None, workers)) as states:
        for spans in states:
            values.append(applied.to(spans, workers))
            ids.append(spans.rows["layer"])
            del spans
    return np.concatenate(ids), np.concatenate(values)


def _states(
    engine: Engine,
    dimensions: DimensionsLike | None,
    layers: LayersLike | None,
    workers: Workers,
) -> Generator[Spans, None, None]:
    """Yield the layers to scan: all at once where all are in memory, else by dimension.

    While they are scanned, this thread counts as a reader and none of them is evicted. Who has
    scanned them drops them, since they may have to go for the next.
    """
    with engine.sampler.reader():
        snapshot = engine.snapshot
        engine.check_open()
        chosen = None if layers is None else np.unique(locations.as_packed(layers))
        if chosen is not None:
            if dimensions is not None:
                raise ValueError("a scan is of dimensions or of layers, not of both")
            wanted = dimensions_of(chosen)
        elif dimensions is None:
            wanted = [each.dimension_id for each in snapshot.loaded]
        else:
            wanted = sorted(as_dimension_ids(dimensions))
        for dimension in wanted:
            snapshot.get(dimension)  # raises where it is not loaded
        if all(snapshot.path_of(dimension) is not None for dimension in wanted):
            with engine.keeping(wanted):
                spans = _spans_in(engine, snapshot, wanted, chosen)
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
                spans = _spans_in(engine, snapshot, [dimension], chosen)
                del snapshot
                workers.expect(spans.n_bytes - expected[dimension])
                yield spans
                del spans


def _state_with(engine: Engine, dimension: DimensionId) -> Snapshot:
    """Return a state in which a dimension is in memory, or not loaded; under the writer lock."""
    if dimension in engine.snapshot:
        engine.bring_back(dimension)
    return engine.snapshot


def _spans_in(
    engine: Engine,
    snapshot: Snapshot,
    dimensions: list[DimensionId],
    chosen: NDArray[np.int64] | None,
) -> Spans:
    """Find layers of dimensions in one state, those chosen or all, and note the access."""
    if chosen is None:
        packed, located = locations.locate_all(snapshot, dimensions)
    else:
        packed = chosen[np.isin(chosen >> s.LAYER_BITS, list(map(int, dimensions)))]
        located = locations.locate(snapshot, packed)
    locations.note_missing(located, packed, is_strict=True)
    locations.note_accesses(engine, located)
    return Spans.of(located, packed, engine.inflated)
