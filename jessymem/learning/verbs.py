"""The manager's learning verbs: layers made in memory, changed, laid over others, written to disk.

Contents are stored before the writer lock is taken, where nothing has to be read first; under it
the next state is built and published. Blocks of what was replaced go back afterwards: those that
are still viewed wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import jessymem
from jessymem.budget import Budget
from jessymem.config import MemoryConfig
from jessymem.core_dimensions import IMMUTABLE
from jessymem.errors import ImmutableDimension, InvalidAccess, LayerNotFound, lets_go
from jessymem.eviction import Policy
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    LayerId,
    LayerLike,
    as_dimension_id,
    as_layer_id,
)
from jessymem.kernels import schema as s
from jessymem.learning.finding import learned_layer, learned_of, log_learning, unwritten_in
from jessymem.loading import Loader
from jessymem.locks import Lock
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import LayerTable
from jessymem.snapshot import Snapshot, Standing

if TYPE_CHECKING:
    from jessymem.learning.layers import LearnedLayer
    from jessymem.pools.storing import StoredBlock


class LearningVerbs:
    """What a manager offers to those who write."""

    _allocator: jessymem.PoolAllocator | None
    _budget: Budget
    _config: MemoryConfig
    _crystallizing: list[ref[jessymem.hints.Running]]
    _loader: Loader
    _lock: Lock
    _pinned: set[DimensionId]
    _policy: Policy
    _snapshot: Snapshot

    if TYPE_CHECKING:

        def _writing(self) -> AbstractContextManager[None]: ...
        def _check_open(self) -> None: ...
        def _give_up(self, action: Callable[[], None]) -> None: ...
        def _make_allocator(self) -> jessymem.PoolAllocator: ...
        def _map(self, dimension: DimensionId, where: Path) -> tuple[MmapRegion, int]: ...
        def _bring_back(self, dimension: DimensionId) -> LayerTable: ...
        def _keeping(self, dimensions: Iterable[DimensionId]) -> AbstractContextManager[None]: ...
        def _place(self, *standings: tuple[Standing, int]) -> None: ...
        def _standing_for(
            self, dimension: DimensionId, snapshot: Snapshot | None = None
        ) -> Standing: ...

    # -- proto-dimensions --------------------------------------------------------------------------

    @lets_go
    def create_proto_dimension(
        self,
        dimension_id: DimensionLike,
        content: jessymem.hints.ContentOrArray,
        *,
        layer: int | None = None,
        name: str = "",
        frequency: float = 1.0,
        depth: int = 0,
        keywords: Iterable[str] = (),
        parent: LayerLike | None = None,
    ) -> LayerId:
        """Make a layer in memory; every reader sees it at once.

        Parameters
        ----------
        dimension_id : DimensionId, int or str
            Loaded or not, on disk or not.
        content : str, bytes, bytearray, memoryview or ndarray
            Copied; text becomes UTF-8, and an array stays one, as `RegionBuilder.add_array` takes
            it. Without content the layer is *created*, with it *active*.
        layer : int, optional
            Its number; by default the next one above those on disk and in memory, from 0.
        name, frequency, depth, keywords, parent
            As `RegionBuilder.add_layer` takes them.

        Returns
        -------
        LayerId

        Raises
        ------
        DuplicateLayer
            If the number is taken, on disk or in memory, or all are.
        ImmutableDimension
            For D09 and D14, or under ``read_only``.
        LimitExceeded, AllocationFailed
            If there is no memory for it.
        RegionIOError, RegionFormatError
            If the dimension has a file whose numbers cannot be read.
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If an argument is not of that form.

        Notes
        -----
        Durability: none before `crystallize_proto_dimension`; `close` lets go of the layer.
        """
        item = {
            "dimension_id": dimension_id,
            "content": content,
            "layer": layer,
            "name": name,
            "frequency": frequency,
            "depth": depth,
            "keywords": keywords,
            "parent": parent,
        }
        return self.create_proto_layers([item])[0]

    @lets_go
    def create_proto_layers(
        self, items: Iterable[Mapping[str, Any] | Sequence[Any]]
    ) -> list[LayerId]:
        """Make many layers in memory, all of them or none, visible at one instant.

        Parameters
        ----------
        items : iterable of mapping, or of (dimension_id, content)
            A mapping has the names of `create_proto_dimension`'s parameters as keys. Numbers that
            are given are taken first; the others follow above them.

        Returns
        -------
        list of LayerId
            In the order of the items.

        Raises
        ------
        DuplicateLayer, ImmutableDimension, LimitExceeded, AllocationFailed, RegionIOError,
        RegionFormatError, InvalidAccess, ValueError, TypeError
            As `create_proto_dimension`, for the first item that is wrong.
        """
        from jessymem.learning import creation

        self._check_open()
        requests = creation.read_items(items)
        for request in requests:
            self._check_writable(request.dimension)
        if not requests:
            return []
        drafts = [request.draft for request in requests]
        blocks = creation.store(self._blocks(), drafts, requests[0].dimension)
        try:
            with self._writing():
                ids = creation.publish(self, requests, blocks)
        except BaseException:
            dimensions = {request.dimension for request in requests}
            self._give_back(creation.not_standing(self._snapshot, dimensions, blocks))
            raise
        for layer_id, request in zip(ids, requests, strict=True):
            log_learning("proto_created", layer_id, len(request.draft.content))
        return ids

    @lets_go
    def update_proto_dimension(
        self, layer_id: LayerLike, content: jessymem.hints.ContentOrArray
    ) -> None:
        """Give a proto layer another content; a reader sees the old one or the new one, whole.

        Views on the old content stay valid; its block goes back with the last of them.

        Raises
        ------
        LayerNotFound
            If there is no such layer.
        ImmutableDimension
            If the layer is on disk already, or as `create_proto_dimension`.
        LimitExceeded, AllocationFailed
            If there is no memory for it beside the old content, which stays.
        InvalidAccess
            If another thread is crystallizing it, or the manager is closed.
        ValueError, TypeError
            If an argument is not of that form.
        """
        from jessymem.learning import creation
        from jessymem.learning.layers import LearnedLayer

        wanted = as_layer_id(layer_id)
        self._check_writable(wanted.dimension)
        self._proto_layer(wanted)
        draft = creation.content_draft(wanted, content)
        blocks = creation.store(self._blocks(), [draft], wanted)
        try:
            with self._writing():
                old = self._proto_layer(wanted)
                fresh = LearnedLayer.keeping(
                    old.draft,
                    blocks[0],
                    encoding=draft.encoding,
                    array_header=draft.array_header,
                )
                blocks.append(old.block)
                self._change(wanted.dimension, fresh)
        finally:
            self._give_back_unless_standing(wanted, blocks)
        log_learning("proto_updated", wanted, len(draft.content))

    @lets_go
    def discard_proto_dimension(self, layer_id: LayerLike) -> None:
        """Take a proto layer away from new reads; views that are held stay valid.

        Raises
        ------
        LayerNotFound, ImmutableDimension, InvalidAccess, ValueError, TypeError
            As `update_proto_dimension`.
        """
        wanted = as_layer_id(layer_id)
        self._check_writable(wanted.dimension)
        self._give_up(partial(self._discard, wanted))

    def _discard(self, wanted: LayerId) -> None:
        blocks: list[StoredBlock | None] = []
        try:
            with self._writing():
                old = self._proto_layer(wanted)
                blocks.append(old.block)
                self._remove(wanted)
        finally:
            self._give_back_unless_standing(wanted, blocks)
        log_learning("proto_discarded", wanted, len(old.content))

    # -- overlays ----------------------------------------------------------------------------------

    @lets_go
    def overlay_layer(
        self,
        layer_id: LayerLike,
        content: jessymem.hints.Content,
        *,
        separator: str | bytes = b"\n",
    ) -> None:
        """Lay content over a loaded layer: readers get base, separator and content in one view.

        The three are put together once, in a block. A second overlay appends to the first.

        Parameters
        ----------
        layer_id : LayerId, int or str
            Of a layer from a file, or a simulated one.
        content : str, bytes, bytearray or memoryview
        separator : str or bytes
            Between what is there and `content`.

        Raises
        ------
        LayerNotFound
            If no such layer is loaded.
        ImmutableDimension
            For D09 and D14, or under ``read_only``.
        InvalidAccess
            If the layer is a proto layer, which is updated instead; if another thread is
            crystallizing it; or if the manager is closed.
        LimitExceeded, AllocationFailed
            If there is no memory for the whole.
        RegionIOError, RegionFormatError, DimensionNotFound
            If the dimension was evicted and cannot be mapped again.
        TypeError
            If the layer is an array, or an argument is not of that form.
        ValueError
            If an argument is not of that form, or the whole would pass the format's limit.
        """
        from jessymem.learning import overlays

        wanted = as_layer_id(layer_id)
        self._check_writable(wanted.dimension)
        addition = overlays.as_addition(wanted, content, separator)
        blocks: list[StoredBlock | None] = []
        try:
            # The block for it may evict others, but not what it is laid over.
            with self._writing(), self._keeping([wanted.dimension]):
                table = self._table_to_write(wanted)
                old = self._learned_layer(wanted)
                if old is not None:
                    if not old.is_overlay:
                        raise InvalidAccess(
                            f"{wanted} is a proto layer: update it instead", layer=wanted
                        )
                    self._check_not_on_its_way(wanted, old)
                    blocks.append(old.block)
                fresh = overlays.lay_over(self._blocks(), table, wanted, old, addition)
                blocks.append(fresh.block)
                self._change(wanted.dimension, fresh)
        finally:
            self._give_back_unless_standing(wanted, blocks)
        log_learning("overlaid", wanted, len(fresh.content))

    @lets_go
    def drop_overlay(self, layer_id: LayerLike) -> None:
        """Take away all that was laid over a layer; views on it stay valid.

        Raises
        ------
        LayerNotFound
            If no such layer is loaded.
        InvalidAccess
            If nothing lies over it, another thread is crystallizing it, or the manager is closed.
        ImmutableDimension
            If it is on disk already, or under ``read_only``.
        LimitExceeded, RegionIOError, RegionFormatError, DimensionNotFound
            If the dimension was evicted and cannot be mapped again.
        ValueError, TypeError
            If `layer_id` is none.
        """
        wanted = as_layer_id(layer_id)
        self._check_writable(wanted.dimension)
        self._give_up(partial(self._drop, wanted))

    def _drop(self, wanted: LayerId) -> None:
        blocks: list[StoredBlock | None] = []
        try:
            with self._writing():
                self._table_to_write(wanted).find_row(wanted)
                old = self._learned_layer(wanted)
                if old is None or not old.is_overlay:
                    raise InvalidAccess(f"nothing lies over {wanted}", layer=wanted)
                self._check_not_on_its_way(wanted, old)
                blocks.append(old.block)
                self._remove(wanted)
        finally:
            self._give_back_unless_standing(wanted, blocks)
        log_learning("overlay_dropped", wanted, len(old.content))

    # -- crystallization ---------------------------------------------------------------------------

    @lets_go
    def crystallize_proto_dimension(self, layer_id: LayerLike) -> None:
        """Write a proto layer, or a layer with what lies over it, into its dimension's file.

        Readers go on meanwhile: from memory up to an instant, from the file from then on.

        Raises
        ------
        LayerNotFound
            If no such layer is loaded.
        DuplicateLayer
            If another process has taken the number on disk meanwhile; the proto layer stays.
        InvalidAccess
            If another thread is crystallizing it, it is on disk already, it lies over a simulated
            layer, or the manager is closed.
        ImmutableDimension
            For D09 and D14, or under ``read_only``.
        RegionIOError
            If the system refuses a step: up to the renaming everything is as it was, and no file
            remains. Where only the mapping fails, the layer is on disk and read from memory on.
        RegionFormatError
            If the dimension's file cannot be read.
        LimitExceeded
            If the file could not be loaded even if nothing else were; it is not written then.
        AllocationFailed, OutOfBounds
            If the file has to be copied and there is no memory (``load_mode="copy"``), or if it is
            changed while it is merged.
        ValueError, TypeError
            If `layer_id` is none; or names and keywords together pass the format's limit.

        Notes
        -----
        Durability: when this returns, the layer outlives a power failure, as far as the medium
        keeps its word; see docs/durability.md.
        """
        from jessymem.learning import crystallization

        wanted = as_layer_id(layer_id)
        self._check_writable(wanted.dimension)
        crystallization.crystallize(self, wanted.dimension, wanted)

    @lets_go
    def crystallize_dimension(self, dimension_id: DimensionLike) -> list[LayerId]:
        """Write all that is learned in a dimension into its file, in one go.

        Parameters
        ----------
        dimension_id : DimensionId, int or str

        Returns
        -------
        list of LayerId
            What was written, ascending; without anything learned, nothing is.

        Raises
        ------
        DimensionNotFound
            If the dimension is not loaded.
        DuplicateLayer, InvalidAccess, ImmutableDimension, RegionIOError, RegionFormatError,
        LimitExceeded, AllocationFailed, OutOfBounds, ValueError, TypeError
            As `crystallize_proto_dimension`, for the first layer that it holds for; none is
            written then.

        Notes
        -----
        Durability: as `crystallize_proto_dimension`, for all of them at once.
        """
        from jessymem.learning import crystallization

        dimension = as_dimension_id(dimension_id)
        self._check_writable(dimension)
        return crystallization.crystallize(self, dimension)

    # -- inside ------------------------------------------------------------------------------------

    def _blocks(self) -> jessymem.PoolAllocator:
        return self._allocator or self._make_allocator()

    def _give_back(self, blocks: Iterable[StoredBlock | None]) -> None:
        """Let blocks go; those that are viewed wait."""
        from jessymem.pools import storing

        if self._allocator is not None:
            storing.forget(self._allocator, blocks)

    def _give_back_unless_standing(
        self, layer_id: LayerId, blocks: Iterable[StoredBlock | None]
    ) -> None:
        """Let go of those of a layer's blocks that readers are not led to.

        After a change, the old one; after a failure, the new one; and whatever an interrupt left.
        """
        standing = self._learned_layer(layer_id)
        kept = None if standing is None else standing.block
        self._give_back(block for block in blocks if block is not kept)

    def _check_writable(self, dimension: DimensionId) -> None:
        if self._config.read_only:
            raise ImmutableDimension(f"{dimension}: the manager is read-only", dimension=dimension)
        if dimension in IMMUTABLE:
            raise ImmutableDimension(
                f"{dimension} is immutable: nothing may be learned in it", dimension=dimension
            )

    def _learned_layer(self, layer_id: LayerId) -> LearnedLayer | None:
        return learned_layer(self._snapshot.region_of(layer_id.dimension), layer_id)

    def _proto_layer(self, layer_id: LayerId) -> LearnedLayer:
        """Return a proto layer that may be changed, or raise why it is none."""
        standing = self._snapshot
        self._check_open()
        region = standing.standing_for(layer_id)
        layer = learned_layer(region, layer_id)
        if layer is None and not region.has_layer(layer_id.layer):
            raise LayerNotFound(f"{layer_id} is not in {region.path or 'memory'}", layer=layer_id)
        if layer is None or layer.is_overlay:
            kind = "is simulated" if region.state == s.REGION_SIMULATED else "is crystallized"
            raise ImmutableDimension(
                f"{layer_id} {kind}: what is no proto layer can only be overlaid",
                dimension=layer_id.dimension,
                layer=layer_id,
            )
        self._check_not_on_its_way(layer_id, layer)
        return layer

    def _running(self) -> list[jessymem.hints.Running]:
        """Return the crystallizations that have begun and not ended, however they ended."""
        return [running for each in self._crystallizing if (running := each()) is not None]

    def _check_not_being_written(self, layer_id: LayerId, layer: LearnedLayer) -> None:
        if any(layer in running.layers for running in self._running()):
            raise InvalidAccess(
                f"{layer_id} is being crystallized by another thread", layer=layer_id
            )

    def _check_not_on_its_way(self, layer_id: LayerId, layer: LearnedLayer) -> None:
        self._check_not_being_written(layer_id, layer)
        if layer.is_crystallized:
            raise ImmutableDimension(
                f"{layer_id} is on disk already, though still read from memory",
                dimension=layer_id.dimension,
                layer=layer_id,
            )

    def _check_calm(self, dimension: DimensionId) -> None:
        """Raise InvalidAccess where another thread is crystallizing a dimension."""
        if any(running.dimension == dimension for running in self._running()):
            raise InvalidAccess(
                f"{dimension} is being crystallized by another thread", dimension=dimension
            )

    def _check_nothing_is_lost(self, standing: Standing) -> None:
        found = unwritten_in(standing)
        if found:
            named = ", ".join(map(str, found[:5])) + (" ..." if len(found) > 5 else "")
            raise InvalidAccess(
                f"{standing.dimension_id}: {len(found)} layers are not on disk ({named}): "
                "crystallize or discard them first",
                dimension=standing.dimension_id,
            )

    def _table_to_write(self, layer_id: LayerId) -> LayerTable:
        """Return the table of a layer's dimension, mapped again if it was evicted."""
        standing = self._snapshot.standing_for(layer_id)
        if isinstance(standing, EvictedRegion):
            return self._bring_back(layer_id.dimension)
        return standing

    def _change(self, dimension: DimensionId, layer: LearnedLayer) -> None:
        """Publish a learned layer that is new or takes another's place; under the writer lock."""
        from jessymem.learning.region import with_learned

        standing = self._standing_for(dimension)
        region_id = self._snapshot.region_id_of(dimension)
        self._place((with_learned(dimension, standing, [layer]), region_id))

    def _remove(self, layer_id: LayerId) -> None:
        """Publish a dimension without a learned layer, or nothing of it where none is left."""
        from jessymem.learning.region import LearnedRegion

        dimension = layer_id.dimension
        standing, region_id = self._standing_for(dimension), self._snapshot.region_id_of(dimension)
        if not isinstance(standing, LearnedRegion):
            raise AssertionError("only what was learned can be forgotten")
        left = standing.without_layers([layer_id.layer])
        if left.learned:
            self._place((left, region_id))
        elif left.base is not None:
            self._place((left.base, region_id))
        else:
            self._snapshot = self._snapshot.without(dimension)
            self._policy.forget(int(dimension))
            self._pinned.discard(dimension)

    @contextmanager
    def _laid_over(
        self, base: MmapRegion, learned: dict[int, LearnedLayer]
    ) -> Iterator[LayerTable]:
        """Put what is learned in a dimension over its new base, for whoever publishes it within."""
        if not learned:
            yield base
            return
        from jessymem.learning import overlays
        from jessymem.learning.region import learned_over

        settled = {number for number, layer in learned.items() if layer.is_in(base)}
        left = {number: learned[number] for number in learned.keys() - settled}
        fresh = overlays.lay_again(self._blocks(), base, left.values())
        try:
            yield learned_over(base.dimension_id, base, (left | fresh).values()) or base
        finally:
            replaced = [learned[number] for number in settled | fresh.keys()]
            for layer in [*fresh.values(), *replaced]:
                layer_id = LayerId(base.dimension_id, layer.number)
                self._give_back_unless_standing(layer_id, [layer.block])

    def _rest_all(self) -> None:
        """In a forked child: what a thread of the parent was crystallizing, nobody is here."""
        self._crystallizing = []
        for region in self._snapshot.loaded:
            for layer in learned_of(region).values():
                if layer.is_crystallizing:
                    layer.state = layer.resting_state
