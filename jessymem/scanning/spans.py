"""Where the bytes of a scan are, how they are shared out, and what keeps them in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from jessymem.engine.locations import Located
from jessymem.engine.snapshot import Snapshot
from jessymem.ids import DimensionId
from jessymem.kernels import memory
from jessymem.kernels import schema as s
from jessymem.regions.table import LayerTable, address_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What a layer costs a scan beside its bytes, in bytes.
_LAYER_OVERHEAD: Final = 64


class Job(NamedTuple):
    """A piece of the work: from an offset in one span up to, and without, an offset in another."""

    span: int
    at: int
    last_span: int
    last_end: int  # 0: the last span is left out
    n_bytes: int


class Spans:
    """Layers to be scanned, all of one state of the store.

    Attributes
    ----------
    rows : ndarray of SPAN, shape (n,)
        Ascending by layer id; checked. What is behind them stays in memory with this object.
    n_bytes : int
        How long they are together.
    """

    def __init__(self, rows: NDArray[Any], held: tuple[LayerTable, ...]) -> None:
        self.rows = rows
        self.n_bytes = int(rows["n_bytes"].sum())
        self._held = held

    @classmethod
    def of(cls, located: Located, packed: NDArray[np.int64]) -> Spans:
        """Take layers that were all found; of the state only their tables are held."""
        locations = located.locations
        tables = tuple(map(located.snapshot.table_at, located.slots))
        contents = np.array([table.content_address for table in tables], np.int64)
        first_rows = np.array([address_of(table.rows) for table in tables], np.int64)
        at = np.searchsorted(np.array(located.slots, np.int64), locations["slot"])
        rows = np.empty(len(packed), s.SPAN)
        rows["address"] = contents[at] + locations["offset"]
        rows["n_bytes"] = locations["size"]
        rows["layer"] = packed
        rows["row_address"] = first_rows[at] + locations["row"] * s.LAYER_BYTES
        return cls(rows, tables)

    def samples(self, n_pieces: int, n_bytes: int) -> NDArray[Any]:
        """Return up to `n_pieces` rows of at most `n_bytes` each, spread evenly over the bytes."""
        ends = np.cumsum(self.rows["n_bytes"])
        starts = np.arange(n_pieces) * self.n_bytes // n_pieces
        holding = np.searchsorted(ends, starts, side="right")
        found: NDArray[Any] = self.rows[holding]
        skipped = starts - (ends[holding] - found["n_bytes"])
        found["address"] += skipped
        found["n_bytes"] = np.minimum(found["n_bytes"] - skipped, n_bytes)
        return found

    def view(self, span: int) -> memoryview:
        """Return a layer's bytes, which stay in memory with it."""
        address, n_bytes = int(self.rows["address"][span]), int(self.rows["n_bytes"][span])
        return memoryview(memory.array_at(self, address, n_bytes, np.uint8))  # type: ignore[arg-type]

    def view_of(self, job: Job) -> tuple[memoryview, int]:
        """Return what reaches from the first to the last byte of a job's layers, and its address.

        Between the layers may be no memory at all: what lies within them may be read, nothing else.
        """
        rows = self.rows[job.span : job.last_span + (job.last_end > 0)]
        rows = rows[rows["n_bytes"] > 0]
        if not len(rows):
            return memoryview(b""), 0
        first, end = int(rows["address"].min()), int((rows["address"] + rows["n_bytes"]).max())
        return memoryview(memory.array_at(self, first, end - first, np.uint8)), first  # type: ignore[arg-type]

    def pieces_of(self, job: Job) -> Iterator[tuple[tuple[int, int, int], int, int]]:
        """Yield address, length and layer of each of a job's layers, and from where to where."""
        rows = self.rows[job.span : job.last_span + (job.last_end > 0)]
        columns = rows["address"].tolist(), rows["n_bytes"].tolist(), rows["layer"].tolist()
        for i, row in enumerate(zip(*columns, strict=True), job.span):
            start = job.at if i == job.span else 0
            end = min(row[1], job.last_end) if i == job.last_span else row[1]
            if start < end:
                yield row, start, end

    def jobs(self, n_jobs: int, bounds: tuple[int, int], *, is_whole: bool) -> Iterator[Job]:
        """Cut the work into about `n_jobs`, in order; with `is_whole` between layers.

        `bounds` are the least and the most bytes that a job should have.
        """
        lengths = self.rows["n_bytes"]
        weights = lengths + _LAYER_OVERHEAD
        before = np.concatenate(([0], np.cumsum(lengths)))
        ends = np.cumsum(weights)
        n_weighed = int(ends[-1]) if len(ends) else 0
        n_bytes = min(max(n_weighed // n_jobs, bounds[0]), bounds[1])
        cuts = np.arange(n_bytes, n_weighed, n_bytes)
        spans = np.searchsorted(ends, cuts, side="right")
        offsets = np.minimum(cuts - (ends - weights)[spans], lengths[spans])
        if is_whole:
            spans = np.unique(spans[spans > 0])
            offsets = np.zeros_like(spans)
        span = at = n_done = 0
        for next_span, next_at in zip(
            [*spans.tolist(), len(lengths)], [*offsets.tolist(), 0], strict=True
        ):
            if (next_span, next_at) == (span, at):
                continue  # more cuts than bytes
            n_then = int(before[next_span]) + next_at
            yield Job(span, at, next_span, next_at, n_then - n_done)
            span, at, n_done = next_span, next_at, n_then


def packed_ids(snapshot: Snapshot, dimensions: Iterable[DimensionId]) -> NDArray[np.int64]:
    """Return the packed ids of all layers of some dimensions that are in memory."""
    tables = ((each, snapshot.find(each)) for each in dimensions)
    return np.concatenate(
        [np.zeros(0, np.int64)]
        + [
            table.numbers.astype(np.int64) | (int(each) << s.LAYER_BITS)
            for each, table in tables
            if table is not None
        ]
    )


def dimensions_of(packed: NDArray[np.int64]) -> list[DimensionId]:
    """Return the dimensions that layers are of, ascending."""
    return [DimensionId(each) for each in np.unique(packed >> s.LAYER_BITS).tolist()]
