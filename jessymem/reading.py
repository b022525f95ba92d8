"""The manager's reading verbs: each binds one snapshot and takes all that it needs from it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

import jessymem
from jessymem.errors import (
    DimensionNotFound,
    InvalidAccess,
    LayerNotFound,
    RegionFormatError,
    lets_go,
)
from jessymem.eviction import Mark, Policy
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    LayerId,
    LayerLike,
    as_dimension_id,
    as_layer_id,
)
from jessymem.kernels import schema as s
from jessymem.learning.finding import base_of, learned_layer
from jessymem.loading import Loader
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.table import LayerTable
from jessymem.sampling import Gates, ReadSampler
from jessymem.snapshot import Snapshot, Standing

if TYPE_CHECKING:
    from jessymem.places import Located


class ReadingVerbs:
    """What a manager offers to readers, who take no lock."""

    _snapshot: Snapshot
    _sampler: ReadSampler
    _gates: Gates
    _loader: Loader
    _policy: Policy
    _closed: bool

    if TYPE_CHECKING:

        def _bring_back(self, dimension: DimensionId) -> LayerTable: ...
        def _bring_back_if_loaded(self, dimension: DimensionId) -> LayerTable | None: ...
        def _located(
            self, packed: np.typing.NDArray[np.int64], missing: str
        ) -> AbstractContextManager[Located]: ...

    def is_loaded(self, dimension_id: DimensionLike) -> bool:
        """Tell whether a dimension's layers can be read (simulated and evicted ones too).

        Raises
        ------
        ValueError, TypeError
            If `dimension_id` is none.
        """
        return self._snapshot.region_of(as_dimension_id(dimension_id)) is not None

    @lets_go
    def list_dimensions(self) -> list[DimensionId]:
        """Return the loaded dimensions, ascending.

        Raises
        ------
        InvalidAccess
            If the manager is closed.
        """
        snapshot = self._snapshot
        self._check_open()
        return [region.dimension_id for region in snapshot.loaded]

    def access_layer(self, layer_id: LayerLike) -> memoryview:
        """Return a layer's bytes without a copy and without a lock.

        Parameters
        ----------
        layer_id : LayerId, int or str
            A `LayerId` (or its packed number) is quickest; a string is parsed.

        Returns
        -------
        memoryview
            Read-only, format "B", shape ``(size,)``; a fresh one each call. Valid and unchanged for
            as long as it is held, whatever happens to the dimension.

        Raises
        ------
        LayerNotFound
            If no such layer is loaded.
        OutOfBounds
            If the file was changed under the mapping so that the layer would lie outside.
        LimitExceeded, DimensionNotFound, RegionIOError, RegionFormatError, AllocationFailed
            If the dimension was evicted and cannot be mapped again: there is no room, the file is
            gone, or cannot be read.
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If `layer_id` is none.
        """
        # One snapshot, two direct indexings, one bounds check, all over zero-copy views of the
        # published tables. A compiled kernel does the same in nanoseconds but costs more than this
        # to call.
        try:
            content, starts, ends, index, n_bytes, in_memory, mark = self._snapshot.readers[
                layer_id >> 16  # type: ignore[operator]
            ]
            mark[0] = next(self._gates.gate)
            row = number = layer_id & 0xFFFF  # type: ignore[operator]
            if index is not None:
                row = index[number]
            start = starts[row]
            end = ends[row]
            if start <= end <= n_bytes:
                return content[start:end]
            return in_memory[number][:]
        except (LookupError, StopIteration, TypeError):
            pass
        content = starts = ends = index = in_memory = None  # type: ignore[assignment]  # see `lets_go`
        return self._access_measured(layer_id)

    def array(self, layer_id: LayerLike) -> np.typing.NDArray[Any]:
        """Return an array's layer as the array that went in, without a copy and without a lock.

        Parameters
        ----------
        layer_id : LayerId, int or str
            Of a layer that was added as an array.

        Returns
        -------
        ndarray
            Read-only, with its dtype, its shape and its order (C or Fortran); a fresh one each
            call. Valid and unchanged for as long as it, or a view of it, is held. Its first byte is
            on a 64-byte boundary in files that this package wrote, and in memory.

        Raises
        ------
        TypeError
            If the layer is no array, or `layer_id` no id.
        RegionFormatError
            If its description in the file is malformed, or as `access_layer`.
        LayerNotFound, OutOfBounds, LimitExceeded, DimensionNotFound, RegionIOError,
        AllocationFailed, InvalidAccess, ValueError
            As `access_layer`.
        """
        # As `access_layer`, up to the row.
        snapshot = self._snapshot
        try:
            door = snapshot.readers[layer_id >> 16]  # type: ignore[operator]
            door[-1][0] = next(self._gates.gate)
            row = number = layer_id & 0xFFFF  # type: ignore[operator]
            if door[3] is not None:
                row = door[3][number]
            table = snapshot.handles[snapshot.directory[layer_id >> 16]]  # type: ignore[operator]
            return table.array_of(row)  # type: ignore[union-attr]
        except (LookupError, StopIteration, TypeError, RegionFormatError):
            pass
        snapshot = door = table = None  # type: ignore[assignment]  # see `lets_go`
        return self._array_measured(layer_id)

    @lets_go
    def ref(self, layer_id: LayerLike) -> jessymem.LayerRef:
        """Return a small reference to a layer of a file, to be sent to other processes.

        Parameters
        ----------
        layer_id : LayerId, int or str
            A dimension that was evicted is not mapped for it.

        Returns
        -------
        LayerRef
            To the edition of the file that is loaded, and no other.

        Raises
        ------
        LayerNotFound
            If no such layer is loaded.
        InvalidAccess
            If the layer is in no file: it is a proto layer, simulated, or overlaid; or if the
            manager is closed.
        ValueError, TypeError
            If `layer_id` is none.
        """
        from jessymem.references import LayerRef

        wanted = as_layer_id(layer_id)
        snapshot = self._snapshot
        self._check_open()
        standing = snapshot.standing_for(wanted)
        if not standing.has_layer(wanted.layer):
            raise LayerNotFound(f"{wanted} is not in {standing.path or 'memory'}", layer=wanted)
        if learned_layer(standing, wanted) is not None:
            raise InvalidAccess(
                f"{wanted} is in memory, where no other process sees it: crystallize it first",
                layer=wanted,
            )
        if standing.path is None:
            raise InvalidAccess(f"{wanted} is simulated: it is in no file", layer=wanted)
        ref = LayerRef(self._loader.home_of(wanted.dimension), standing.edition, wanted)
        base = base_of(standing)
        if base is not None:
            ref._share(base)
        return ref

    @lets_go
    def load_layer_context(self, layer_id: LayerLike) -> jessymem.LoadedContext:
        """Return a layer with its description.

        Returns
        -------
        LoadedContext
            Its content is a view as `access_layer` hands out, of the same state as the description.

        Raises
        ------
        LayerNotFound, OutOfBounds, LimitExceeded, DimensionNotFound, RegionIOError,
        AllocationFailed, InvalidAccess, ValueError, TypeError
            As `access_layer`.
        RegionFormatError
            As `access_layer`; or if the layer's keywords are malformed.
        """
        from jessymem.contexts import LoadedContext

        wanted = as_layer_id(layer_id)
        mark = self._mark_of(wanted.dimension)
        if not self._sampler.is_due(mark):
            return LoadedContext.of(wanted, *self._find(wanted))
        with self._sampler.measured_read(mark):
            return LoadedContext.of(wanted, *self._find(wanted))

    @lets_go
    def load_contexts(
        self,
        paths: jessymem.NavigationPath | Iterable[LayerLike | jessymem.NavigationPath],
        missing: str = "raise",
    ) -> jessymem.ContextCollection:
        """Return many layers with their descriptions, all of one state of the store.

        Parameters
        ----------
        paths : NavigationPath, or iterable of NavigationPath, LayerId, int or str
        missing : {"raise", "skip"}
            What to do about a layer that is not loaded.

        Returns
        -------
        ContextCollection
            In the order of the paths; what occurs twice is there twice.

        Raises
        ------
        LayerNotFound
            For the first layer that is not loaded, with ``missing="raise"``.
        LimitExceeded
            If evicted dimensions have to be mapped again, and all of these do not fit at once.
        OutOfBounds, DimensionNotFound, RegionIOError, RegionFormatError, AllocationFailed,
        InvalidAccess, ValueError, TypeError
            As `load_layer_context`.
        """
        from jessymem.contexts import ContextCollection, LoadedContext, flatten_paths
        from jessymem.places import as_packed, raise_missing, table_at

        if not isinstance(missing, str) or missing not in ("raise", "skip"):
            raise ValueError(f"missing is 'raise' or 'skip', not {missing!r}")
        wanted = flatten_paths(paths)
        packed = as_packed(wanted)
        with self._located(packed, "raise" if missing == "raise" else "mark") as located:
            statuses = located.places["status"]
            if (statuses == s.OUT_OF_BOUNDS).any():  # damage is not skipped
                raise_missing(located, packed)
            is_found = statuses == s.OK
            rows = located.places[is_found][["slot", "row"]].tolist()
            return ContextCollection(
                LoadedContext.of(layer_id, table_at(located.snapshot, slot), row)
                for layer_id, (slot, row) in zip(
                    compress(wanted, is_found.tolist()), rows, strict=True
                )
            )

    @lets_go
    def get_layer_info(self, layer_id: LayerLike) -> jessymem.LayerInfo:
        """Describe a layer; its children are found among all loaded layers.

        Raises
        ------
        LayerNotFound, LimitExceeded, DimensionNotFound, RegionIOError, AllocationFailed,
        InvalidAccess, ValueError, TypeError
            As `access_layer`.
        RegionFormatError
            As `access_layer`; or if the layer's keywords, or its description as an array, are
            malformed.
        """
        wanted = as_layer_id(layer_id)
        region, row = self._find(wanted)  # holding no state: what it has may have to go
        return region.info_of(wanted, row, self._snapshot.children_of(wanted))

    @lets_go
    def list_layers(self, dimension_id: DimensionLike | None = None) -> list[LayerId]:
        """Return the loaded layers, ascending; of one dimension or of all.

        Raises
        ------
        DimensionNotFound
            If `dimension_id` is not loaded.
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If `dimension_id` is none.
        """
        snapshot = self._snapshot
        self._check_open()
        if dimension_id is not None:
            return self._standing_for(as_dimension_id(dimension_id), snapshot).list_layers()
        return [layer for region in snapshot.loaded for layer in region.list_layers()]

    @lets_go
    def select(
        self,
        keywords: Iterable[str] | None = None,
        depth: tuple[float, float] | None = None,
        frequency: tuple[float, float] | None = None,
        dimensions: Iterable[DimensionLike] | None = None,
    ) -> list[LayerId]:
        """Return the loaded layers that meet every condition given, ascending.

        Parameters
        ----------
        keywords : iterable of str, optional
            Any of them, compared exactly. A region's first such question reads all its keywords.
        depth, frequency : (low, high), optional
            Both ends included.
        dimensions : iterable of DimensionId, int or str, optional
            Those that are not loaded have no layers to offer.

        Raises
        ------
        ValueError, TypeError
            If a condition is not of that form.
        LimitExceeded, DimensionNotFound, RegionIOError, RegionFormatError, AllocationFailed
            If a dimension was evicted and cannot be mapped again: it is, one after the other.
        InvalidAccess
            If the manager is closed.
        """
        from jessymem import selection

        query = selection.Query.of(keywords, depth, frequency, dimensions)
        snapshot = self._snapshot
        self._check_open()
        wanted = [each for each in snapshot.loaded if query.may_concern(each.dimension_id)]
        tables = [each for each in wanted if isinstance(each, LayerTable)]
        if len(tables) == len(wanted):
            return [layer_id for table in tables for layer_id in query.layers_of(table)]
        names = [each.dimension_id for each in wanted]
        del snapshot, wanted, tables  # each may have to go for the next
        found: list[LayerId] = []
        for dimension in names:
            table = self._bring_back_if_loaded(dimension)
            found += [] if table is None else query.layers_of(table)
            del table
        return found

    def __contains__(self, item: object) -> bool:
        """Tell whether a layer can be read, or a dimension is loaded."""
        try:
            if isinstance(item, DimensionId) or (isinstance(item, str) and item[:1] in ("D", "d")):
                return self.is_loaded(item)
            wanted = as_layer_id(item)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            return False
        region = self._snapshot.region_of(wanted.dimension)
        return region is not None and region.has_layer(wanted.layer)

    def __len__(self) -> int:
        """Return how many layers are loaded."""
        return sum(region.n_layers for region in self._snapshot.loaded)

    def __bool__(self) -> bool:
        """Return True: a manager is there, also when nothing is loaded."""
        return True

    # -- inside ------------------------------------------------------------------------------------

    @lets_go
    def _access_measured(self, layer_id: LayerLike) -> memoryview:
        """Read a layer the slow way: parse what is no id, measure the read, raise what is wrong."""
        if not isinstance(layer_id, int):
            return self.access_layer(as_layer_id(layer_id))
        wanted = as_layer_id(layer_id)
        with self._sampler.measured_read(self._mark_of(wanted.dimension)):
            region, row = self._find(wanted)
            return region.content_of(row)

    @lets_go
    def _array_measured(self, layer_id: LayerLike) -> np.typing.NDArray[Any]:
        """Read an array the slow way, as `_access_measured`."""
        if not isinstance(layer_id, int):
            return self.array(as_layer_id(layer_id))
        wanted = as_layer_id(layer_id)
        with self._sampler.measured_read(self._mark_of(wanted.dimension)):
            table, row = self._find(wanted)
            return table.array_of(row)

    def _find(self, layer_id: LayerId) -> tuple[LayerTable, int]:
        """Return a layer's table, mapped again if it has to be, and its row."""
        snapshot = self._snapshot
        self._check_open()
        standing = snapshot.standing_for(layer_id)
        if not isinstance(standing, EvictedRegion):
            return standing, standing.find_row(layer_id)
        if not standing.has_layer(layer_id.layer):
            raise LayerNotFound(f"{layer_id} is not in {standing.path}", layer=layer_id)
        del snapshot, standing  # what else it holds may have to go
        try:
            table = self._bring_back(layer_id.dimension)
        except DimensionNotFound as error:
            if error.path is not None:
                raise  # the file is gone
            raise LayerNotFound(f"{layer_id} was unloaded meanwhile", layer=layer_id) from None
        return table, table.find_row(layer_id)

    def _mark_of(self, dimension: DimensionId) -> Mark:
        """Return where accesses of a dimension are noted.

        Nowhere, if it is not in memory: mapping it again is the access that counts.
        """
        door = self._snapshot.readers.get(int(dimension))
        return [None] if door is None else door[-1]

    def _check_open(self) -> None:
        """Raise InvalidAccess once closed; asked *after* a snapshot is bound, which then has all.

        The other way round a close in between would be answered as a layer that is not there.
        """
        if self._closed:
            raise InvalidAccess(f"the manager of {self._loader.base} is closed")

    def _standing_for(self, dimension: DimensionId, snapshot: Snapshot | None = None) -> Standing:
        region = (snapshot or self._snapshot).region_of(dimension)
        if region is None:
            raise DimensionNotFound(f"{dimension} is not loaded", dimension=dimension, path=None)
        return region
