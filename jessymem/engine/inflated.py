"""`InflatedLayers`: contents of compressed layers, each in one block that all readers share.

A reader that finds a layer compressed inflates it, without the writer lock; others who want the
same layer wait for that. Every table that the layer is read through is then led to the block. What
is inflated belongs to its region and goes with it. When memory runs short it goes before any
region: what was inflated first goes first, unless it is viewed.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary, ref

from jessymem.engine.naming import naming
from jessymem.errors import InvalidAccess
from jessymem.locks import Unready, is_any_mine
from jessymem.pieces import Parts
from jessymem.regions.table import is_viewed

if TYPE_CHECKING:
    from jessymem.ids import LayerId
    from jessymem.latencies import Latencies
    from jessymem.pools.allocator import PoolAllocator
    from jessymem.pools.shared import OpenBlocks
    from jessymem.pools.stored import StoredBlock
    from jessymem.regions.frames import Frames
    from jessymem.regions.owners import Owners


#: When it is looked which of the tables that lead to a layer are gone.
_MANY_PLACES: Final = 8

#: How long who waits for a layer does not look whether anybody is still inflating it, and how long
#: he waits at all: that thread may have to call what this one is in the middle of, as a handler of
#: records is that reads.
_LOOK_AGAIN_SECONDS: Final = 0.05
_PATIENCE_SECONDS: Final = 2.0


class InflatedLayer:
    """One content, and the tables that lead to it.

    Attributes
    ----------
    view : memoryview
        Read-only, all of it.
    block : StoredBlock
    is_dropped : bool
        Whether its memory is to go with the last view; nothing is led to it any more.
    """

    __slots__ = ("__weakref__", "_home", "_places", "_row", "block", "is_dropped", "view")

    def __init__(self, frames: Frames, row: int, block: StoredBlock) -> None:
        self.block = block
        self.view = block.view
        self.is_dropped = False
        self._home = ref(frames)
        self._row = row
        self._places: list[tuple[ref[Owners], int]] = []

    def lead(self, owners: Owners, row: int) -> None:
        """Lead reads of a row to it, until it is dropped."""
        if len(self._places) >= _MANY_PLACES:
            self._places = [each for each in self._places if each[0]() is not None]
        self._places.append((ref(owners), row))
        owners[row] = self.view
        if self.is_dropped:  # by another thread, which may have passed by this place
            owners[row] = None

    def drop(self) -> None:
        """Lead nobody to it any more."""
        self.is_dropped = True  # first; see `lead`
        frames = self._home()
        if frames is not None and frames.inflated.get(self._row) is self:
            frames.inflated.pop(self._row, None)
        for owners_of, row in self._places:
            owners = owners_of()
            if owners is not None and owners[row] is self.view:
                owners[row] = None

    @property
    def is_viewed(self) -> bool:
        """Whether anybody holds a view of it, so that its memory would not come free.

        Of a content that shares a block with others nobody can tell.
        """
        return self.block.start is None and is_viewed(self.view)


def _parts_of_all(wanted: Sequence[tuple[Frames, int]], starts: list[int]) -> Iterator[bytes]:
    for (frames, row), start, end in zip(wanted, starts, starts[1:], strict=False):
        yield from frames.parts_of(row)
        yield bytes(end - start - frames.size_of(row))


class _Inflating:
    """One layer that a thread is inflating, until this object ends at the latest."""

    __slots__ = ("__weakref__", "ended", "thread")

    def __init__(self) -> None:
        self.thread = get_ident()
        self.ended = allocate_lock()
        self.ended.acquire()

    def end(self) -> None:
        """Let others go on."""
        self.ended.release()


class InflatedLayers:
    """What one engine has inflated.

    Parameters
    ----------
    allocator : callable
        Returns what returns the allocator; None: the engine is gone.
    on_kept : callable
        Returns what is called when something was inflated that can be dropped again; or None.
    latencies : Latencies
    """

    def __init__(
        self,
        allocator: Callable[[], Callable[[], PoolAllocator] | None],
        on_kept: Callable[[], Callable[[], object] | None],
        latencies: Latencies,
    ) -> None:
        self._allocator = allocator
        self._on_kept = on_kept
        self._latencies = latencies
        self._open: OpenBlocks | None = None
        self._kept: dict[ref[InflatedLayer], int] = {}  # how long each is, the oldest first
        self._running: WeakValueDictionary[tuple[int, int], _Inflating] = WeakValueDictionary()

    @property
    def n_bytes(self) -> int:
        """How many bytes are inflated and kept."""
        return sum(list(self._kept.values()))

    def __len__(self) -> int:
        """Return how many layers are inflated and kept."""
        return len(self._kept)

    def view(self, frames: Frames, row: int) -> tuple[memoryview, InflatedLayer | None]:
        """Return a layer's content, and what is kept of it; see `Frames.view`."""
        deadline = monotonic() + _PATIENCE_SECONDS
        while (found := frames.inflated.get(row)) is None:
            mine = _Inflating()
            running = self._running.setdefault((id(frames), row), mine)
            if running is mine:
                try:
                    found = frames.inflated.get(row) or self._keep(frames, row)
                finally:
                    mine.end()
                break
            # Who inflates it may wait for what this thread holds, or be what this interrupts.
            if running.thread == mine.thread or is_any_mine() or monotonic() > deadline:
                break
            ended = running.ended
            del running  # it goes with its thread's call at the latest
            if ended.acquire(timeout=_LOOK_AGAIN_SECONDS):
                ended.release()
        return (self.once(frames, row), None) if found is None else (found.view, found)

    def once(self, frames: Frames, row: int) -> memoryview:
        """Return a layer's content in memory that goes with the last view, unless it is kept."""
        found = frames.inflated.get(row)
        if found is not None:
            view: memoryview = found.view
            return view[:]
        block = self._inflate(frames, row)
        return frames.private_view(row) if block is None else block.view

    def together(self, wanted: Sequence[tuple[Frames, int]]) -> list[memoryview]:
        """Return contents of several layers in memory that goes with the last view of any.

        Each begins on a boundary of 64 bytes. Raises as `Frames.view`.
        """
        if not wanted:
            return []
        from jessymem.pools.shared import next_start

        starts = [0]
        for frames, row in wanted:
            starts.append(next_start(starts[-1] + frames.size_of(row)))
        parts = Parts(starts[-1], partial(_parts_of_all, wanted, starts))
        frames, row = wanted[0]
        block = self._store(frames.layer_id(row), parts)
        if block is None:
            return [frames.private_view(row) for frames, row in wanted]
        ends = (start + each.size_of(at) for start, (each, at) in zip(starts, wanted, strict=False))
        return [block.view[start:end] for start, end in zip(starts, ends, strict=False)]

    def drop(self, n_bytes: int) -> int:
        """Drop so many bytes that nobody views, the oldest first; return how many those were.

        More or fewer may come free: of blocks that are shared, once all that share them are gone.
        """
        n_dropped = 0
        for each, length in list(self._kept.items()):
            if n_dropped >= n_bytes:
                break
            if self._drop(each):
                n_dropped += length
        return n_dropped

    def _drop(self, each: ref[InflatedLayer]) -> bool:
        layer = each()
        if layer is None or layer.is_viewed:
            return False
        layer.drop()  # its block is freed with the last reference, which is this one
        return True

    def after_fork(self) -> None:
        """In a forked child: what threads of the parent were inflating, nobody is here."""
        self._running = WeakValueDictionary()

    def _keep(self, frames: Frames, row: int) -> InflatedLayer | None:
        """Inflate a layer and keep it; None where there are no blocks any more."""
        block = self._inflate(frames, row)
        if block is None:
            return None
        kept = InflatedLayer(frames, row, block)
        self._kept[ref(kept, self._kept.pop)] = len(block.view)
        frames.inflated[row] = kept
        on_kept = self._on_kept()
        if on_kept is not None:
            on_kept()
        return kept

    def _inflate(self, frames: Frames, row: int) -> StoredBlock | None:
        """Inflate a layer into a block; None where the manager, or what made blocks, is gone."""
        parts = Parts(frames.size_of(row), partial(frames.parts_of, row))
        return self._store(frames.layer_id(row), parts)

    def _store(self, layer_id: LayerId, parts: Parts) -> StoredBlock | None:
        start, make = perf_counter_ns(), self._allocator()
        with naming(layer_id):
            if make is None:
                return None
            try:
                blocks = make()
                from jessymem.pools import stored

                if self._open is None:  # what is inflated together is dropped together
                    self._open = stored.open_blocks(blocks)
                block = stored.store(blocks, [[parts]], self._open)[0]
            except InvalidAccess as error:
                if isinstance(error, Unready):
                    raise
                return None  # it is closed
        self._latencies.add("inflation", perf_counter_ns() - start)
        return block
