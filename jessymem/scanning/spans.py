"""Where the bytes of a scan are, how they are shared out, and what keeps them in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from jessymem.engine.locations import Located
from jessymem.errors import OutOfBounds
from jessymem.ids import DimensionId
from jessymem.kernels import memory
from jessymem.kernels import schema as s
from jessymem.regions.table import LayerTable, address_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.engine.inflated import InflatedLayers

_NOTHING: Final[Mapping[int, LayerTable]] = MappingProxyType({})

#: So much is inflated at a time, or one layer that is longer.
_PLAIN_BYTES: Final = 2**20

#: What a layer costs a scan beside its bytes, in bytes.
_LAYER_OVERHEAD: Final = 64


class Job(NamedTuple):
    """A piece of the work: from an offset in one span up to, and without, an offset in another."""

    span: int
    at: int
    last_span: int
    last_end: int  # 0: the last span is left out
    n_bytes: int


class Compressed(NamedTuple):
    """Which of some layers are compressed, and where.

    Attributes
    ----------
    is_compressed : ndarray of bool, shape (n,)
    tables : tuple of LayerTable
    at : ndarray of intp, shape (n,)
        Of each layer, which of the tables has it.
    rows : ndarray of int32, shape (n,)
        Of each layer, its row there.
    inflated : InflatedLayers
    """

    is_compressed: NDArray[np.bool_]
    tables: tuple[LayerTable, ...]
    at: NDArray[np.intp]
    rows: NDArray[np.int32]
    inflated: InflatedLayers

    def inflate(self, first: int, rows: NDArray[Any]) -> list[memoryview]:
        """Give SPAN rows, the layers from the first on, addresses; return what is to be held."""
        chosen = np.flatnonzero(self.is_compressed[first : first + len(rows)]).tolist()
        stored = []
        for each in chosen:
            frames = self.tables[self.at[first + each]].frames_of(int(self.rows[first + each]))
            if frames is None:  # the file was rewritten
                self.view(first + each)  # which raises, unless that was mended since
                raise OutOfBounds(
                    "a layer was being changed in its file", offset=0, size=0, region_size=0
                )
            stored.append(frames)
        views = self.inflated.together(stored)
        for each, view in zip(chosen, views, strict=True):
            rows["address"][each] = address_of(np.frombuffer(view, np.uint8))
        return views

    def view(self, span: int) -> memoryview:
        """Return a layer's bytes."""
        view: memoryview = self.tables[self.at[span]].content_of(int(self.rows[span]))
        return view


class Spans:
    """Layers to be scanned, all of one state of the store.

    Attributes
    ----------
    rows : ndarray of SPAN, shape (n,)
        Ascending by layer id; checked. What is behind them stays in memory with this object. What
        is compressed has no address: it is inflated for each job, see `plain`.
    n_bytes : int
        How long they are together.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        held: object,
        compressed: Compressed | None = None,
        tables: Mapping[int, LayerTable] = _NOTHING,
    ) -> None:
        self.rows = rows
        self._tables = tables  # by dimension
        self.n_bytes = int(rows["n_bytes"].sum())
        self._held = held
        self._compressed = compressed

    @classmethod
    def of(
        cls, located: Located, packed: NDArray[np.int64], inflated: InflatedLayers | None = None
    ) -> Spans:
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
        if not located.n_compressed or inflated is None:
            return cls(rows, tables, None, dict(zip(located.slots, tables, strict=True)))
        is_compressed = locations["status"] == s.COMPRESSED
        rows["address"][is_compressed] = 0
        compressed = Compressed(is_compressed, tables, at, locations["row"].copy(), inflated)
        return cls(rows, tables, compressed, dict(zip(located.slots, tables, strict=True)))

    @property
    def is_compressed(self) -> NDArray[np.bool_]:
        """Per row, whether the layer has no address yet."""
        if self._compressed is None:
            return np.zeros(len(self.rows), bool)
        return self._compressed.is_compressed

    def plain(self, job: Job) -> Iterator[tuple[Spans, Job]]:
        """Yield what a job reads, all of it in memory: itself, where nothing is compressed.

        Else a few layers after the other, so that little is inflated at a time.

        Lifetime: what was inflated goes with the spans that are yielded.

        Raises
        ------
        RegionFormatError, LimitExceeded, ConfigError
            As `Frames.view`.
        """
        last = job.last_span + (job.last_end > 0)
        compressed = self._compressed
        if compressed is None or not compressed.is_compressed[job.span : last].any():
            yield self, job
            return
        lengths = np.where(compressed.is_compressed, self.rows["n_bytes"], 0)[job.span : last]
        pieces = np.cumsum(lengths) // _PLAIN_BYTES
        firsts = [0, *(np.flatnonzero(pieces[1:] != pieces[:-1]) + 1).tolist(), last - job.span]
        for first, end in pairwise(firsts):
            rows = self.rows[job.span + first : job.span + end].copy()
            held = compressed.inflate(job.span + first, rows)
            is_last = end == last - job.span and job.last_end > 0
            moved = Job(
                0,
                0 if first else job.at,
                len(rows) - is_last,
                job.last_end if is_last else 0,
                int(rows["n_bytes"].sum()),
            )
            yield Spans(rows, (held, self._held)), moved
            del rows, held, moved  # before the next is inflated

    def name(self, span: int) -> str:
        """Return a layer's name, which may be empty; what is no UTF-8 in it is U+FFFD."""
        row = self.rows[span]
        table = self._tables[int(row["layer"]) >> s.LAYER_BITS]
        return table.name_of((int(row["row_address"]) - address_of(table.rows)) // s.LAYER_BYTES)

    def samples(self, n_pieces: int, n_bytes: int) -> NDArray[Any]:
        """Return up to `n_pieces` rows of at most `n_bytes` each, spread evenly over the bytes.

        Of what is compressed there are none.
        """
        rows, n_all = self.rows, self.n_bytes
        if self._compressed is not None:
            rows = rows[~self._compressed.is_compressed]
            n_all = int(rows["n_bytes"].sum())
            if not n_all:
                return rows[:0]
        ends = np.cumsum(rows["n_bytes"])
        starts = np.arange(n_pieces) * n_all // n_pieces
        holding = np.searchsorted(ends, starts, side="right")
        found: NDArray[Any] = rows[holding]
        skipped = starts - (ends[holding] - found["n_bytes"])
        found["address"] += skipped
        found["n_bytes"] = np.minimum(found["n_bytes"] - skipped, n_bytes)
        return found

    def view(self, span: int) -> memoryview:
        """Return a layer's bytes, which stay in memory with it; what is compressed is inflated."""
        compressed = self._compressed
        if compressed is not None and compressed.is_compressed[span]:
            return compressed.view(span)
        address, n_bytes = int(self.rows["address"][span]), int(self.rows["n_bytes"][span])
        return memoryview(memory.array_at(self, address, n_bytes, np.uint8))  # type: ignore[arg-type]

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
        if self._compressed is not None:  # one is inflated by one job
            offsets[self._compressed.is_compressed[spans]] = 0
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


def dimensions_of(packed: NDArray[np.int64]) -> list[DimensionId]:
    """Return the dimensions that layers are of, ascending."""
    return [DimensionId(each) for each in np.unique(packed >> s.LAYER_BITS).tolist()]
