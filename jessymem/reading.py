"""The manager's reading verbs: each binds one snapshot and takes all that it needs from it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from jessymem.errors import DimensionNotFound, InvalidAccess, LayerNotFound, lets_go
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    LayerId,
    LayerLike,
    as_dimension_id,
    as_layer_id,
)
from jessymem.kernels import _jit, locate
from jessymem.kernels import schema as s
from jessymem.loading import Loader
from jessymem.regions.region import MmapRegion
from jessymem.sampling import Gates, ReadSampler
from jessymem.snapshot import Snapshot

if TYPE_CHECKING:
    from jessymem.contexts import ContextCollection, LoadedContext, NavigationPath
    from jessymem.regions.metadata import LayerInfo


class ReadingVerbs:
    """What a manager offers to readers, who take no lock."""

    _snapshot: Snapshot
    _sampler: ReadSampler
    _gates: Gates
    _loader: Loader
    _closed: bool

    def is_loaded(self, dimension_id: DimensionLike) -> bool:
        """Tell whether a dimension's layers can be read (simulated ones too).

        Raises
        ------
        ValueError, TypeError
            If `dimension_id` is none.
        """
        return int(as_dimension_id(dimension_id)) in self._snapshot.readers

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
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If `layer_id` is none.
        """
        # One snapshot, two direct indexings, one bounds check, all over zero-copy views of the
        # published tables. A compiled kernel does the same in nanoseconds but costs more than this
        # to call.
        try:
            content, starts, ends, index, n_bytes = self._snapshot.readers[layer_id >> 16]  # type: ignore[operator]
            next(self._gates.gate)
            row = layer_id & 0xFFFF  # type: ignore[operator]
            if index is not None:
                row = index[row]
            start = starts[row]
            end = ends[row]
            if start <= end <= n_bytes:
                return content[start:end]
        except (LookupError, StopIteration, TypeError):
            pass
        content = starts = ends = index = None  # type: ignore[assignment]  # see `lets_go`
        return self._access_measured(layer_id)

    @lets_go
    def load_layer_context(self, layer_id: LayerLike) -> LoadedContext:
        """Return a layer with its description.

        Returns
        -------
        LoadedContext
            Its content is a view as `access_layer` hands out, of the same state as the description.

        Raises
        ------
        LayerNotFound, OutOfBounds, InvalidAccess, ValueError, TypeError
            As `access_layer`.
        RegionFormatError
            If the layer's keywords are malformed.
        """
        from jessymem.contexts import LoadedContext

        wanted = as_layer_id(layer_id)
        snapshot = self._snapshot
        self._check_open()
        if not self._sampler.is_due():
            return LoadedContext.of(wanted, *snapshot.find(wanted))
        with self._sampler.measured_read():
            return LoadedContext.of(wanted, *snapshot.find(wanted))

    @lets_go
    def load_contexts(
        self,
        paths: NavigationPath | Iterable[LayerLike | NavigationPath],
        missing: str = "raise",
    ) -> ContextCollection:
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
        OutOfBounds, InvalidAccess, RegionFormatError, ValueError, TypeError
            As `load_layer_context`.
        """
        from jessymem.contexts import ContextCollection, LoadedContext, flatten_paths

        if not isinstance(missing, str) or missing not in ("raise", "skip"):
            raise ValueError(f"missing is 'raise' or 'skip', not {missing!r}")
        wanted = flatten_paths(paths)
        with self._sampler.reader():
            snapshot = self._snapshot
            self._check_open()
            _jit.promote_for(len(wanted))
            places = np.zeros(len(wanted), s.LOCATION)
            ids = np.array(wanted, np.int64)
            locate.locate_many(snapshot.directory, snapshot.regions, ids, places)
            codes = places["code"]
            wrong = codes != s.OK if missing == "raise" else codes == s.OUT_OF_BOUNDS
            if wrong.any():
                layer_id = wanted[int(wrong.argmax())]
                snapshot.content(
                    layer_id
                )  # raises what is wrong with it, unless it was mended since
                raise LayerNotFound(f"{layer_id} was being changed in its file", layer=layer_id)
            is_found = codes == s.OK
            rows = places[is_found][["region_row", "layer_row"]].tolist()
            return ContextCollection(
                LoadedContext.of(layer_id, snapshot.handles[region_row], layer_row)
                for layer_id, (region_row, layer_row) in zip(
                    compress(wanted, is_found.tolist()), rows, strict=True
                )
            )

    @lets_go
    def get_layer_info(self, layer_id: LayerLike) -> LayerInfo:
        """Describe a layer; its children are found among all loaded layers.

        Raises
        ------
        LayerNotFound, InvalidAccess, ValueError, TypeError
            As `access_layer`.
        RegionFormatError
            If the layer's keywords are malformed.
        """
        wanted = as_layer_id(layer_id)
        snapshot = self._snapshot
        self._check_open()
        region, row = snapshot.find(wanted)
        return region.info_of(wanted, row, snapshot.children_of(wanted))

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
            return self._loaded_region(as_dimension_id(dimension_id), snapshot).list_layers()
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
        InvalidAccess
            If the manager is closed.
        """
        from jessymem import selection

        query = selection.Query.of(keywords, depth, frequency, dimensions)
        snapshot = self._snapshot
        self._check_open()
        return [layer for region in snapshot.loaded for layer in query.layers_of(region)]

    def __contains__(self, item: object) -> bool:
        """Tell whether a layer can be read, or a dimension is loaded."""
        try:
            if isinstance(item, DimensionId) or (isinstance(item, str) and item[:1] in ("D", "d")):
                return self.is_loaded(item)
            self._snapshot.find(as_layer_id(item))  # type: ignore[arg-type]
        except (LayerNotFound, ValueError, TypeError):
            return False
        return True

    def __len__(self) -> int:
        """Return how many layers are loaded."""
        return sum(len(region.layout.rows) for region in self._snapshot.loaded)

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
        snapshot = self._snapshot
        self._check_open()
        with self._sampler.measured_read():
            return snapshot.content(wanted)

    def _check_open(self) -> None:
        """Raise InvalidAccess once closed; asked *after* a snapshot is bound, which then has all.

        The other way round a close in between would be answered as a layer that is not there.
        """
        if self._closed:
            raise InvalidAccess(f"the manager of {self._loader.base} is closed")

    def _loaded_region(
        self, dimension: DimensionId, snapshot: Snapshot | None = None
    ) -> MmapRegion:
        region = (snapshot or self._snapshot).region_of(dimension)
        if region is None:
            raise DimensionNotFound(f"{dimension} is not loaded", dimension=dimension, path=None)
        return region
