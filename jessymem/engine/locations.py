"""Where the layers of a batch lie, and what is made of it: views, or one buffer of all.

`locate` goes by the kernel once that is compiled, before that by the same tables that single reads
go through; both write the same.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jessymem.engine.snapshot import Snapshot
from jessymem.errors import AllocationFailed, LayerNotFound, OutOfBounds, shown
from jessymem.ids import DimensionId, LayerId, LayerLike, as_integer, items_of
from jessymem.kernels import _jit, gather, lookup
from jessymem.kernels import schema as s
from jessymem.regions.table import LayerTable

if TYPE_CHECKING:
    from jessymem.engine.engine import Engine

#: Many layers: packed ids in an array of integers, or ids of any kind one by one.
LayersLike: TypeAlias = NDArray[np.integer[Any]] | Iterable[LayerLike]

_N_NAMED: Final = 5  # of the layers that an error is about
#: So many layers of a dimension are found sooner by columns than one by one.
_N_BY_COLUMNS: Final = 32
_NOWHERE: Final = (0, 0, s.ABSENT, s.NO_SUCH_LAYER, s.ABSENT, s.ABSENT)


class Located(NamedTuple):
    """Where the layers of a batch lie.

    Attributes
    ----------
    snapshot : Snapshot
        The state in which they do.
    locations : ndarray of LOCATION, shape (n,)
        In the order of the batch.
    slots : list of int
        Each slot that any of them is in, ascending: the numbers of dimensions.
    n_missing : int
        How many are not there.
    n_compressed : int
        How many are, and have to be inflated first.
    """

    snapshot: Snapshot
    locations: NDArray[Any]
    slots: list[int]
    n_missing: int
    n_compressed: int = 0

    @property
    def is_found(self) -> NDArray[np.bool_]:
        """Tell of each whether it is there."""
        statuses = self.locations["status"]
        found: NDArray[np.bool_] = (statuses == s.OK) | (statuses == s.COMPRESSED)
        return found

    @property
    def compressed(self) -> NDArray[np.intp]:
        """Which have to be inflated first."""
        if not self.n_compressed:
            return np.zeros(0, np.intp)
        return np.flatnonzero(self.locations["status"] == s.COMPRESSED)


def as_packed(layer_ids: LayersLike) -> NDArray[np.int64]:
    """Return ids as an array of packed ones; raise ValueError or TypeError for other things."""
    if hasattr(layer_ids, "__array__"):
        layer_ids = np.asarray(layer_ids)
        if layer_ids.dtype.kind not in "iu":
            raise TypeError(f"ids in an array are integers, not {layer_ids.dtype}")
        if layer_ids.ndim != 1:
            raise ValueError(f"ids in an array have one axis, not {layer_ids.ndim}")
        return np.ascontiguousarray(layer_ids, np.int64)
    if isinstance(layer_ids, str | bytes) or not isinstance(layer_ids, Iterable):
        raise TypeError(f"layer ids are an array or a sequence, not {shown(layer_ids)}")
    found = items_of(layer_ids, "layer ids")
    try:
        return np.fromiter(map(operator.index, found), np.int64, len(found))
    except (TypeError, OverflowError):
        return np.fromiter(map(_as_packed, found), np.int64, len(found))


def _as_packed(layer_id: Any) -> int:
    if isinstance(layer_id, str):
        return LayerId.parse(layer_id)
    packed = as_integer(layer_id, "a packed layer id")
    if not -(2**63) <= packed < 2**63:
        raise ValueError(f"no layer has the number {packed}")
    return packed


def locate(snapshot: Snapshot, packed: NDArray[np.int64]) -> Located:
    """Find the layers of a batch, by the quicker of two twins."""
    touched = np.zeros(snapshot.n_slots, bool)
    locations = np.empty(len(packed), s.LOCATION)
    _jit.promote_for(len(packed))
    if _jit.is_promoted():
        marks = touched.view(np.uint8)
        n_missing = int(lookup.locate_many(snapshot.directory, packed, locations, marks))
    else:
        n_missing = _locate_plain(snapshot, packed, locations, touched)
    n_compressed = 0
    if n_missing:
        n_compressed = int(np.count_nonzero(locations["status"] == s.COMPRESSED))
    slots = np.flatnonzero(touched).tolist()
    return Located(snapshot, locations, slots, n_missing - n_compressed, n_compressed)


def _locate_plain(
    snapshot: Snapshot, packed: NDArray[np.int64], out: NDArray[Any], touched: NDArray[Any]
) -> int:
    """Do what the kernel does, through the views of single reads; nothing is compiled.

    Return how many are not OK.
    """
    found = []
    n_missing = 0
    outside: dict[int, tuple[memoryview, memoryview]] = {}
    for number in packed.tolist():
        dimension, layer = number >> s.LAYER_BITS, number & s.MAX_LAYER
        slot = snapshot.slot_of(dimension) if dimension >= 0 else None
        status, location = s.NO_DIMENSION if slot is None else s.EVICTED, _NOWHERE
        if slot is not None and slot.path is not None:
            _, starts, ends, index, n_bytes, *_ = slot.path
            table = snapshot.table_at(dimension)
            if table.extents is not None:  # those would tell where in which member
                if dimension not in outside:
                    outside[dimension] = table.bounds
                starts, ends = outside[dimension]
            try:
                row = layer if index is None else index[layer]
                start, end = starts[row], ends[row]
            except IndexError:
                status = s.NO_SUCH_LAYER
            else:
                status = s.OUT_OF_BOUNDS
                if s.COMPRESSED_AT < end <= s.COMPRESSED_AT + s.MAX_CONTENT_BYTES:
                    length = end - s.COMPRESSED_AT
                    location = (0, length, slot.region_id, s.COMPRESSED, dimension, row)
                    n_missing += 1
                elif start <= end <= n_bytes or table.leads_outside:
                    offset = start if start < 2**63 else start - 2**64
                    n_layer_bytes = (end - start) % 2**64
                    location = (offset, n_layer_bytes, slot.region_id, s.OK, dimension, row)
        if location is _NOWHERE:
            location = (*_NOWHERE[:3], status, *_NOWHERE[4:])
            n_missing += 1
        else:
            touched[dimension] = True
        found.append(location)
    out[:] = found
    return n_missing


def locate_all(
    snapshot: Snapshot, dimensions: Iterable[DimensionId]
) -> tuple[NDArray[np.int64], Located]:
    """Find all layers of some dimensions that are in memory.

    Returns
    -------
    packed : ndarray of int64
        Their ids, in the order of the dimensions.
    located : Located
    """
    tables = {each: snapshot.table_at(each) for each in dimensions}
    ids = [
        table.numbers.astype(np.int64) | int(each) << s.LAYER_BITS for each, table in tables.items()
    ]
    packed = np.concatenate([np.zeros(0, np.int64), *ids])
    if _jit.is_promoted() or len(packed) < _N_BY_COLUMNS * len(tables):
        return packed, locate(snapshot, packed)
    found = [_locate_table(snapshot, *each) for each in tables.items()]
    slots = [
        int(each) for each, part in zip(tables, found, strict=True) if (part["slot"] >= 0).any()
    ]
    locations = np.concatenate([np.zeros(0, s.LOCATION), *found])
    n_compressed = int(np.count_nonzero(locations["status"] == s.COMPRESSED))
    n_missing = int(np.count_nonzero(locations["status"] != s.OK)) - n_compressed
    return packed, Located(snapshot, locations, sorted(slots), n_missing, n_compressed)


def _locate_table(snapshot: Snapshot, dimension: DimensionId, table: LayerTable) -> NDArray[Any]:
    """Return the LOCATION of each row, column by column; each is read once, then checked."""
    start, end = (np.array(bound, np.uint64) for bound in table.bounds)
    is_compressed = (end > s.COMPRESSED_AT) & (end <= s.COMPRESSED_AT + s.MAX_CONTENT_BYTES)
    is_there = (start <= end) & (end <= table.size) | bool(table.leads_outside)
    found = np.empty(len(start), s.LOCATION)
    found["offset"] = np.where(is_compressed, 0, start.view(np.int64))
    found["size"] = np.where(is_compressed, end - np.uint64(s.COMPRESSED_AT), end - start)
    found["region"] = snapshot.region_id_of(dimension)
    found["status"] = np.where(is_compressed, s.COMPRESSED, s.OK)
    found["slot"] = dimension
    found["row"] = np.arange(len(start))
    is_damaged = ~(is_compressed | is_there)
    if is_damaged.any():
        found[is_damaged] = (*_NOWHERE[:3], s.OUT_OF_BOUNDS, *_NOWHERE[4:])
    return found


def is_strict(missing: str) -> bool:
    """Tell whether what is missing is to be raised, or raise ValueError."""
    if not isinstance(missing, str) or missing not in ("raise", "mark"):
        raise ValueError(f"missing is 'raise' or 'mark', not {shown(missing)}")
    return missing == "raise"


def _first_of(packed: NDArray[np.int64]) -> LayerId | None:
    """Return the first layer of a batch; None where it is empty, or begins with no layer's id."""
    with suppress(ValueError, IndexError):
        return LayerId.from_packed(packed[0])
    return None


@contextmanager
def located_in(engine: Engine, packed: NDArray[np.int64], *, is_strict: bool) -> Iterator[Located]:
    """Find the layers of a batch in one state, which is held within; evicted ones are mapped.

    Raises LayerNotFound or OutOfBounds if strict.
    """
    start = perf_counter_ns()
    with engine.sampler.reader():
        snapshot = engine.snapshot
        engine.check_open(_first_of(packed) if engine.is_closed else None)
        located = locate(snapshot, packed)
        is_evicted = located.locations["status"] == s.EVICTED if located.n_missing else False
        if not np.any(is_evicted):
            note_missing(located, packed, is_strict)
            note_accesses(engine, located)
            yield located
            engine.latencies.add("batch", perf_counter_ns() - start)
            return
        # Of each dimension one layer: also one that is in memory may have to go before it is kept.
        is_there = is_evicted | located.is_found
        there = {LayerId.from_packed(each) for each in packed[is_there].tolist()}
        wanted = {layer_id.dimension: layer_id for layer_id in there}
        del snapshot, located  # what else they hold may have to go
        with engine.keeping(wanted):
            snapshot = engine.write(engine.bring_all_back, list(wanted.values()))
            located = locate(snapshot, packed)
            del snapshot
            note_missing(located, packed, is_strict)
            note_accesses(engine, located)
            yield located
            engine.latencies.add("batch", perf_counter_ns() - start)


def note_accesses(engine: Engine, located: Located) -> None:
    """Note one access of each dimension in a batch."""
    numbers = located.slots
    for number, tick in zip(numbers, engine.policy.gate(len(numbers)), strict=True):
        located.snapshot.mark_of(number)[0] = tick


class Cut(NamedTuple):
    """What a batch reads.

    Attributes
    ----------
    views : list of memoryview or None
        None where a layer is missing, or has to be inflated first.
    compressed : list of (int, LayerTable, int)
        Of those: which it is of the batch, its table and its row there.
    """

    views: list[memoryview | None]
    compressed: list[tuple[int, LayerTable, int]]

    def inflated(self, engine: Engine) -> list[memoryview | None]:
        """Return all views; whoever calls this holds no state, which may have to go for it."""
        with inflating(engine, [(table, row) for _, table, row in self.compressed]):
            for at, table, row in self.compressed:
                self.views[at] = table.content_of(row)
        return self.views


@contextmanager
def inflating(engine: Engine, layers: Sequence[tuple[LayerTable, int]]) -> Iterator[None]:
    """Keep the dimensions of layers that are inflated within, and are held together.

    Raises LimitExceeded where they could never fit; nothing has gone for them then.
    """
    stored = [(*found, table) for table, row in layers if (found := table.frames_of(row))]
    if stored:
        frames, row, _ = stored[0]
        engine.check_inflatable(frames.layer_id(row), sum(f.size_of(r) for f, r, _ in stored))
    with engine.keeping({table.dimension_id for *_, table in stored}):
        yield


def cut_views(located: Located) -> Cut:
    """Return a fresh view of each layer of a batch that is at hand."""
    if not located.n_compressed:
        return Cut(_cut_plain(located), [])
    locations, compressed = located.locations, located.compressed
    plain = np.flatnonzero(locations["status"] != s.COMPRESSED)
    slots = np.unique(locations["slot"][plain])
    there = located._replace(
        locations=locations[plain], slots=slots[slots >= 0].tolist(), n_compressed=0
    )
    views: list[memoryview | None] = [None] * len(locations)
    for at, view in zip(plain.tolist(), _cut_plain(there), strict=True):
        views[at] = view
    places = locations[["slot", "row"]][compressed].tolist()
    table_at = located.snapshot.table_at
    left = [(at, table_at(slot), row) for at, (slot, row) in zip(compressed, places, strict=True)]
    return Cut(views, left)


def _cut_plain(located: Located) -> list[memoryview | None]:
    """Return a fresh view of each layer of a batch in which none is compressed, None: missing."""
    snapshot, locations = located.snapshot, located.locations
    tables = [snapshot.table_at(slot) for slot in located.slots]
    if not located.n_missing and all(table.extents is None for table in tables):
        contents = dict(zip(located.slots, (table.reader[0] for table in tables), strict=True))
        starts, ends = locations["offset"], locations["offset"] + locations["size"]
        slots = locations["slot"].tolist()
        bounds = zip(slots, starts.tolist(), ends.tolist(), strict=True)
        return [contents[slot][start:end] for slot, start, end in bounds]
    if len(tables) == 1 and not located.n_missing:
        return _cut(tables[0], locations)
    found: list[memoryview | None] = [None] * len(locations)
    for table, mine in zip(tables, _split(located), strict=True):
        for at, view in zip(mine.tolist(), _cut(table, locations[mine]), strict=True):
            found[at] = view
    return found


def _cut(table: LayerTable, locations: NDArray[Any]) -> list[memoryview | None]:
    """Return a fresh view of each of some layers of a table."""
    if table.extents is None:
        content = table.reader[0]
        starts, ends = locations["offset"], locations["offset"] + locations["size"]
        return [content[x:y] for x, y in zip(starts.tolist(), ends.tolist(), strict=True)]
    owners, which, starts, ends = table.extents_of(locations["row"].astype(np.intp))
    bounds = zip(which.tolist(), starts.tolist(), ends.tolist(), strict=True)
    return [owners[each][start:end] for each, start, end in bounds]


def _split(located: Located) -> list[NDArray[np.intp]]:
    """Return which layers of a batch are in each of its slots."""
    slots = located.locations["slot"]
    order = np.argsort(slots, kind="stable")
    ascending = slots[order]
    firsts, ends = (np.searchsorted(ascending, located.slots, side) for side in ("left", "right"))
    return [order[first:end] for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)]


def copy_out(located: Located) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Copy the layers of a batch into one buffer; return it and where each begins."""
    locations = located.locations
    offsets = np.zeros(len(locations) + 1, np.int64)
    is_compiled = _jit.is_promoted()
    if is_compiled:
        n_bytes = int(gather.sum_sizes(locations, offsets))
    else:
        np.cumsum(locations["size"], out=offsets[1:])
        n_bytes = int(offsets[-1])
    try:
        data = np.empty(n_bytes, np.uint8)
    except MemoryError as error:
        raise AllocationFailed(
            f"the system refused {n_bytes:,} bytes for {len(locations):,} layers",
            reason="os_refused",
            requested=n_bytes,
        ) from error
    if is_compiled:
        gather.copy_layers(located.snapshot.directory, locations, offsets, data)
        if not located.n_compressed:
            return data, offsets
    target, bounds = memoryview(data), offsets.tolist()
    if not is_compiled:
        for i, view in enumerate(cut_views(located).views):
            if view is not None:
                target[bounds[i] : bounds[i + 1]] = view
    for at in located.compressed.tolist():  # into the buffer at once
        table = located.snapshot.table_at(int(locations["slot"][at]))
        table.copy_content(int(locations["row"][at]), target[bounds[at] : bounds[at + 1]])
    return data, offsets


def note_missing(located: Located, packed: NDArray[np.int64], is_strict: bool) -> None:
    """Say of what is still evicted that it is not there; if strict, raise what is missing.

    All that can be had was mapped again before.
    """
    if not located.n_missing:
        return
    statuses = located.locations["status"]
    statuses[statuses == s.EVICTED] = s.NO_SUCH_LAYER
    if is_strict:
        raise_missing(located, packed)


def raise_missing(located: Located, packed: NDArray[np.int64]) -> None:
    """Raise what is wrong with the layers of a batch that were not found."""
    snapshot, statuses = located.snapshot, located.locations["status"]
    damaged = np.flatnonzero(statuses == s.OUT_OF_BOUNDS)
    if len(damaged):
        layer_id = LayerId.from_packed(int(packed[damaged[0]]))
        table = snapshot.table_at(layer_id.dimension)
        table.content_of(table.find_row(layer_id))  # raises, unless that was mended since
        raise OutOfBounds(
            f"{layer_id} was being changed in its file", offset=0, size=0, region_size=table.size
        )
    wrong = packed[~located.is_found].tolist()
    layers = tuple(_as_id(each) for each in dict.fromkeys(wrong))
    first = layers[0]
    if len(layers) > 1:
        named = ", ".join(map(str, layers[:_N_NAMED])) + (" ..." if len(layers) > _N_NAMED else "")
        message = f"{len(layers):,} layers are not loaded: {named}"
    elif isinstance(first, LayerId):
        # Raises where its dimension is not loaded.
        message = str(snapshot.get_for(first).not_found(first))
    else:
        message = f"{first} is the number of no layer"
    raise LayerNotFound(message, layer=first, layers=layers)


def _as_id(packed: int) -> LayerId | int:
    try:
        return LayerId.from_packed(packed)
    except ValueError:  # no layer has such a number
        return packed
