"""`LayerReader`: everything that a manager offers to readers, who take no lock.

Each call binds one snapshot and takes all that it needs from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

import jessymem
from jessymem.errors import (
    DimensionNotFound,
    InvalidAccess,
    LayerNotFound,
    RegionFormatError,
    clears_frames,
    shown,
)
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    DimensionsLike,
    LayerId,
    LayerLike,
    as_dimension_id,
    as_layer_id,
)
from jessymem.kernels import schema as s
from jessymem.mapping import LayerMapping
from jessymem.regions.table import LayerTable

if TYPE_CHECKING:
    import numpy as np

    from jessymem.scanning.workers import Workers


class LayerReader(LayerMapping):
    """Reads layers: one, many of one state, or all bytes of all of them.

    Notes
    -----
    What any method may raise, and does not list again: InvalidAccess if the manager is closed.
    LimitExceeded, DimensionNotFound, RegionIOError, RegionFormatError or AllocationFailed if a
    dimension was evicted and cannot be mapped again: there is no room, or its file is gone or
    cannot be read. OutOfBounds if a file was changed under its mapping so that a layer would lie
    outside. ValueError or TypeError if an argument is not of the form that is asked for. If a
    layer is compressed, RegionFormatError, where it is damaged, LimitExceeded or AllocationFailed,
    where there is no room to inflate it, and ConfigError, where the extra ``zstd`` is missing.
    """

    @clears_frames
    def list_dimensions(self) -> list[DimensionId]:
        """Return the loaded dimensions, ascending.

        Examples
        --------
        >>> manager.list_dimensions()
        [D15, D16]
        """
        snapshot = self._engine.snapshot
        self._engine.check_open()
        return [loaded.dimension_id for loaded in snapshot.loaded]

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

        Examples
        --------
        >>> view = manager.access_layer("L15-02")
        >>> str(view, "utf-8"), view.readonly
        ('Grep finds lines.', True)
        """
        # One snapshot, two direct indexings, one bounds check, all over zero-copy views of the
        # published tables. A compiled kernel does the same in nanoseconds but costs more than this
        # to call.
        try:
            content, starts, ends, index, n_bytes, owners, mark, gates = (
                self._engine.snapshot.readers[layer_id >> 16]  # type: ignore[operator]
            )
            mark[0] = next(gates.gate)
            row = layer_id & 0xFFFF  # type: ignore[operator]
            if index is not None:
                row = index[row]
            start = starts[row]
            end = ends[row]
            if start <= end <= n_bytes:
                return content[start:end]
            return owners[row][start:end]
        except (LookupError, StopIteration, TypeError):
            pass
        content = starts = ends = index = owners = None  # type: ignore[assignment]  # see `clears_frames`
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
            If the layer is no array, or `layer_id` not a layer id.
        RegionFormatError
            If its description in the file is malformed, or as `access_layer`.
        LayerNotFound
            As `access_layer`.

        Examples
        --------
        >>> vectors = manager.array("L15-03")
        >>> vectors.shape, vectors[0], vectors.flags.owndata
        ((3000, 4), array([0., 1., 2., 3.], dtype=float32), False)
        """
        # As `access_layer`, up to the row.
        try:
            snapshot = self._engine.snapshot
            *_, index, _, _, mark, gates = snapshot.readers[layer_id >> 16]  # type: ignore[operator]
            mark[0] = next(gates.gate)
            row = layer_id & 0xFFFF  # type: ignore[operator]
            if index is not None:
                row = index[row]
            table = snapshot.table_at(layer_id >> 16)  # type: ignore[operator]
            return table.array_of(row)
        except (LookupError, StopIteration, TypeError, RegionFormatError):
            pass
        snapshot = index = table = None  # type: ignore[assignment]  # see `clears_frames`
        return self._array_measured(layer_id)

    @clears_frames
    def ref(self, layer_id: LayerLike) -> jessymem.LayerRef:
        """Return a small reference to a layer of a file, to be sent to other processes.

        Parameters
        ----------
        layer_id : LayerId, int or str
            A dimension that was evicted is not mapped for it.

        Returns
        -------
        LayerRef
            To the edition of the one file that has the layer, and no other.

        Raises
        ------
        LayerNotFound
            If no such layer is loaded.
        InvalidAccess
            If the layer is in no file: it is a proto layer, simulated, or overlaid; or if the
            manager is closed.

        Examples
        --------
        >>> import pickle
        >>> sent = pickle.dumps(manager.ref("L15-02"))
        >>> bytes(pickle.loads(sent).get())
        b'Grep finds lines.'
        """
        from jessymem.references import LayerRef

        wanted = as_layer_id(layer_id)
        snapshot = self._engine.snapshot
        self._engine.check_open(wanted)
        loaded = snapshot.get_for(wanted)
        loaded.check_has(wanted)
        if loaded.learned_layer(wanted.layer) is not None:
            raise InvalidAccess(
                f"{wanted} is in memory, where no other process sees it: crystallize it first",
                layer=wanted,
            )
        edition = loaded.edition_of(wanted.layer)
        if edition is None:
            raise InvalidAccess(f"{wanted} is simulated: it is in no file", layer=wanted)
        home = self._engine.loader.origin_of(wanted.dimension)
        ref = LayerRef(home, edition, wanted, self._engine.config.load_mode)
        base = loaded.base
        if base is not None:
            ref._share(base.member_with(wanted.layer))
        return ref

    @clears_frames
    def load_layer_context(self, layer_id: LayerLike) -> jessymem.LoadedContext:
        """Return a layer with its description.

        Returns
        -------
        LoadedContext
            Its content is a view as `access_layer` hands out, of the same state as the description.

        Raises
        ------
        LayerNotFound
            As `access_layer`.
        RegionFormatError
            As `access_layer`; or if the layer's keywords are malformed.

        Examples
        --------
        >>> context = manager.load_layer_context("L15-02")
        >>> context.name, context.keywords, context.text
        ('grep/README', ('search',), 'Grep finds lines.')
        """
        from jessymem.contexts import LoadedContext

        wanted = as_layer_id(layer_id)
        mark = self._engine.snapshot.mark_of(wanted.dimension)
        if not self._engine.sampler.is_due(mark):
            return LoadedContext.of(wanted, *self._find(wanted))
        with self._engine.sampler.measured_read(mark):
            return LoadedContext.of(wanted, *self._find(wanted))

    @clears_frames
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

        Examples
        --------
        >>> contexts = manager.load_contexts(["L16-07", "L15-02", "L16-99"], missing="skip")
        >>> [context.name for context in contexts]
        ['tuesday', 'grep/README']
        """
        from jessymem.contexts import ContextCollection, LoadedContext, flatten_paths
        from jessymem.engine.locations import as_packed, inflating, located_in, raise_missing

        if not isinstance(missing, str) or missing not in ("raise", "skip"):
            raise ValueError(f"missing is 'raise' or 'skip', not {shown(missing)}")
        wanted = flatten_paths(paths)
        packed = as_packed(wanted)
        with located_in(self._engine, packed, is_strict=missing == "raise") as located:
            statuses = located.locations["status"]
            if (statuses == s.OUT_OF_BOUNDS).any():  # damage is not skipped
                raise_missing(located, packed)
            is_found = located.is_found
            rows = located.locations[is_found][["slot", "row"]].tolist()
            layer_ids = compress(wanted, is_found.tolist())
            table_at = located.snapshot.table_at
            found = [
                (each, table_at(at), row) for each, (at, row) in zip(layer_ids, rows, strict=True)
            ]
            n_compressed = located.n_compressed
        del located, table_at  # what is compressed may need the room of what else they hold
        with inflating(self._engine, [each[1:] for each in found] if n_compressed else []):
            return ContextCollection(LoadedContext.of(*each) for each in found)

    @clears_frames
    def get_layer_info(self, layer_id: LayerLike) -> jessymem.LayerInfo:
        """Describe a layer; its children are found among all loaded layers.

        Raises
        ------
        LayerNotFound
            As `access_layer`.
        RegionFormatError
            As `access_layer`; or if the layer's keywords, or its description as an array, are
            malformed.

        Examples
        --------
        >>> manager.get_layer_info("L15-03")
        <LayerInfo L15-03 'vectors', 48,000 bytes, array float32 3000x4,
         frequency=1.0, depth=0, MMAP, PERMANENT>
        >>> manager.get_layer_info("L15-00").children
        (L15-01,)
        """
        wanted = as_layer_id(layer_id)
        region, row = self._find(wanted)  # holding no state: what it has may have to go
        return region.info_of(wanted, row, self._engine.snapshot.children_of(wanted))

    @clears_frames
    def list_layers(self, dimension_id: DimensionLike | None = None) -> list[LayerId]:
        """Return the loaded layers, ascending; of one dimension or of all.

        Examples
        --------
        >>> manager.list_layers("D16")
        [L16-00, L16-07]
        """
        dimension = None if dimension_id is None else as_dimension_id(dimension_id)
        snapshot = self._engine.snapshot
        self._engine.check_open(dimension)
        if dimension is not None:
            return snapshot.get(dimension).list_layers()
        return [layer for loaded in snapshot.loaded for layer in loaded.list_layers()]

    @clears_frames
    def select(
        self,
        keywords: Iterable[str] | None = None,
        depth: tuple[float, float] | None = None,
        frequency: tuple[float, float] | None = None,
        dimensions: DimensionsLike | None = None,
        name: str | None = None,
    ) -> list[LayerId]:
        """Return the loaded layers that meet every condition given, ascending.

        Parameters
        ----------
        keywords : iterable of str, optional
            Any of them, compared exactly. A region's first such question reads all its keywords.
        depth, frequency : (low, high), optional
            Both ends included.
        dimensions : DimensionId, int or str, or iterable of them, optional
            Those that are not loaded have no layers to offer.
        name : str, optional
            A pattern that the layer's name matches, all of it, as `fnmatch.fnmatchcase` has it:
            ``*`` any characters, ``/`` among them, ``?`` one, ``[abc]`` one of these. What is not
            special is compared exactly.

        Examples
        --------
        >>> manager.select(keywords=["shell", "search"], frequency=(2, 3))
        [L15-02]
        >>> manager.select(name="*/README")
        [L15-00, L15-02]
        """
        from jessymem import selection

        query = selection.Query.of(keywords, depth, frequency, dimensions, name)
        return selection.select(self._engine, query)

    @clears_frames
    def locate_many(
        self, layer_ids: jessymem.hints.LayersLike, missing: str = "raise"
    ) -> np.typing.NDArray[Any]:
        """Find many layers in one call, without touching their contents.

        Parameters
        ----------
        layer_ids : ndarray of integers, shape (n,), or iterable of LayerId, int or str
            An array of packed ids is quickest: some nanoseconds a layer.
        missing : {"raise", "mark"}
            What to do about layers that are not loaded.

        Returns
        -------
        ndarray of LOCATION, shape (n,)
            In the order of the ids, the caller's own. Fields: ``offset`` and ``size`` of the
            content in bytes (int64), the offset from the region's first byte, out of which that of
            a layer in memory may lead; ``region``, the region id (int32); ``status`` (int32), 0
            where the layer was found, COMPRESSED where it was, and has to be inflated first, with
            its size and no offset; else NO_DIMENSION, NO_SUCH_LAYER or OUT_OF_BOUNDS of
            `jessymem.kernels.schema`, with region -1; ``slot`` and ``row`` (int32), its rows in the
            tables of `store`. Locations are those of one state: they keep nothing alive.

        Raises
        ------
        LayerNotFound
            With ``missing="raise"``; its attribute `layers` lists all that are not loaded.
        OutOfBounds
            With ``missing="raise"``, if a file was changed under its mapping.

        Examples
        --------
        >>> found = manager.locate_many(["L15-02", "L15-99"], missing="mark")
        >>> found["size"].tolist(), (found["status"] == 0).tolist()
        ([17, 0], [True, False])
        """
        from jessymem.engine.locations import as_packed, is_strict, located_in

        strict = is_strict(missing)
        with located_in(self._engine, as_packed(layer_ids), is_strict=strict) as located:
            return located.locations

    @overload
    def access_many(
        self, layer_ids: jessymem.hints.LayersLike, missing: Literal["raise"] = "raise"
    ) -> list[memoryview]: ...
    @overload
    def access_many(
        self, layer_ids: jessymem.hints.LayersLike, missing: str
    ) -> list[memoryview | None]: ...
    @clears_frames
    def access_many(
        self, layer_ids: jessymem.hints.LayersLike, missing: str = "raise"
    ) -> list[memoryview] | list[memoryview | None]:
        """Return the bytes of many layers without a copy, all of one state of the store.

        Parameters
        ----------
        layer_ids, missing
            As `locate_many`.

        Returns
        -------
        list of memoryview
            In the order of the ids; views as `access_layer` hands out, with the same lifetime. None
            for what is missing, with ``missing="mark"``.

        Raises
        ------
        LayerNotFound
            As `locate_many`.

        Examples
        --------
        >>> first, second = manager.access_many(["L16-07", "L15-02"])
        >>> bytes(first[:9]), bytes(second[:4])
        (b'The river', b'Grep')
        """
        from jessymem.engine.locations import as_packed, cut_views, is_strict, located_in

        strict = is_strict(missing)
        with located_in(self._engine, as_packed(layer_ids), is_strict=strict) as located:
            cut = cut_views(located)
        del located  # what is compressed may need the room of what else it holds
        return cut.inflated(self._engine)

    @clears_frames
    def gather(
        self, layer_ids: jessymem.hints.LayersLike, missing: str = "raise"
    ) -> tuple[np.typing.NDArray[np.uint8], np.typing.NDArray[np.int64]]:
        """Copy many layers into one contiguous buffer, as Arrow lays out a column of binaries.

        One kernel call for all, without the GIL.

        Parameters
        ----------
        layer_ids, missing
            As `locate_many`.

        Returns
        -------
        data : ndarray of uint8, shape (n_bytes,)
            The contents one behind the other, in the order of the ids. The caller's own memory: not
            in the budget.
        offsets : ndarray of int64, shape (n + 1,)
            Layer i is ``data[offsets[i]:offsets[i + 1]]``; one that is missing is empty, with
            ``missing="mark"``.

        Raises
        ------
        AllocationFailed
            If the system has no memory for the buffer; or as `locate_many`.
        LayerNotFound
            As `locate_many`.

        Examples
        --------
        >>> data, offsets = manager.gather(["L15-02", "L16-00"])
        >>> offsets.tolist(), bytes(data[offsets[1] : offsets[2]])
        ([0, 17, 35], b'Rain since Monday.')
        """
        from jessymem.engine.locations import as_packed, copy_out, is_strict, located_in

        strict = is_strict(missing)
        with located_in(self._engine, as_packed(layer_ids), is_strict=strict) as located:
            return copy_out(located)

    @clears_frames
    def store(self) -> jessymem.hints.Store:
        """Return the present state for use in compiled code, with no lock and no GIL.

        Returns
        -------
        Store
            A tuple of two arrays, to be passed to functions compiled with ``numba.njit``; see
            `jessymem.kernels`. What it leads to stays in memory, unchanged, while it is held.
            Layers that were evicted are not in it: read them, or pin their dimensions, before.
            Compressed ones have the status COMPRESSED there, and no bytes; see `inflate`.

        Examples
        --------
        >>> from numba import njit
        >>> from jessymem.kernels import layer_bytes
        >>> @njit
        ... def count_spaces(store, layer_id):
        ...     return np.sum(layer_bytes(store, layer_id) == ord(" "))
        >>> int(count_spaces(manager.store(), int(LayerId("L16-00"))))
        2
        """
        from jessymem.pickling import Origin

        snapshot = self._engine.snapshot
        self._engine.check_open()
        self._engine.sampler.note_reader()
        return Origin(self._engine, snapshot).store()

    @clears_frames
    def inflate(self, layer_ids: jessymem.hints.LayersLike) -> jessymem.hints.Store:
        """Return the present state for use in compiled code, with some compressed layers inflated.

        Parameters
        ----------
        layer_ids : array of packed ids, or iterable of LayerId, int or str
            What is not compressed may be among them. Evicted dimensions are mapped again.

        Returns
        -------
        Store
            As `store` returns, in which each of these layers is there as any other. Compressed
            layers that are not among them have the status COMPRESSED there. What is inflated counts
            in the budget for as long as the store is held; other readers use it too.

        Raises
        ------
        LayerNotFound
            If one of them is not loaded.
        LimitExceeded, AllocationFailed
            If there is no room for them all together.
        RegionFormatError
            If one is damaged.
        ConfigError
            If the extra ``zstd`` is missing.

        Examples
        --------
        >>> from jessymem.kernels import layer_bytes
        >>> text = "Rain, and rain again. " * 50
        >>> layer = manager.create_proto_dimension("D16", text)
        >>> manager.crystallize_dimension("D16", compress="zstd")
        [L16-08]
        >>> layer_bytes(manager.store(), int(layer)).size
        0
        >>> layer_bytes(manager.inflate([layer]), int(layer)).size
        1100
        """
        from jessymem.engine.locations import as_packed, located_in
        from jessymem.pickling import Origin

        packed = as_packed(layer_ids)
        with located_in(self._engine, packed, is_strict=True) as located:
            snapshot, compressed = located.snapshot, packed[located.compressed].tolist()
            del located
            self._engine.sampler.note_reader()
            return Origin(self._engine, snapshot).store(tuple(dict.fromkeys(compressed)))

    # -- scans -------------------------------------------------------------------------------------

    @clears_frames
    def find(
        self,
        needle: jessymem.hints.Buffer | str | jessymem.hints.SearchPattern,
        dimensions: DimensionsLike | None = None,
        limit: int | None = None,
        *,
        ignore_case: bool = False,
        word: bool = False,
        layers: jessymem.hints.LayersLike | None = None,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> jessymem.Hits:
        """Find every position in the layers' contents at which some bytes, or a pattern, are.

        Contents are searched as they are stored. A find lies within one layer. Finds of bytes may
        overlap; those of a pattern do not, and are never empty.

        Parameters
        ----------
        needle : bytes-like, str or re.Pattern
            At least one byte; a string is encoded as UTF-8. A pattern is compiled from bytes, by
            `re` or another engine that has the same ``finditer``; it is searched for by that
            engine, in the caller's thread.
        dimensions : DimensionId, int or str, or iterable of them, optional
            Which to search; by default all that are loaded. Evicted ones are mapped again.
        limit : int, optional
            Stop after so many finds, the first in order.
        ignore_case : bool
            Whether capital and small letters are the same: those of ASCII, as in `bytes.lower`; in
            a string also any others that have one capital and one small form.
        word : bool
            Whether a letter, a digit or an underscore just before or behind makes it no find.
            Beyond ASCII, letters and digits in UTF-8 are told by `str.isalnum`.
        layers : array of packed ids, or iterable of LayerId, int or str, optional
            Which to search, instead of dimensions.
        workers : int, optional
            Threads; by default one for each CPU that the process may use. A small store is searched
            in the caller's.
        progress : callable, optional
            Called now and then as ``progress(n_done, n_total)``, in bytes, in the caller's thread.
            Dimensions that still have to be mapped count with the length of their files. What it
            raises ends the scan.
        cancel : threading.Event, optional
            Ends the scan soon after it is set; any object with such an ``is_set`` will do.

        Returns
        -------
        Hits
            Ascending by layer, then by offset in the layer's content. All of one state of the store
            where everything chosen is in memory; else of one state per dimension, which are then
            mapped and searched one after the other, so that they need not fit in memory together.

        Raises
        ------
        DimensionNotFound
            If one of `dimensions` is not loaded; or as `access_layer`.
        LayerNotFound
            If one of `layers` is not loaded.
        TypeError
            If a pattern was compiled from text; or if it is of another engine than `re`, with
            `ignore_case` or `word`.
        concurrent.futures.CancelledError
            If `cancel` was set.

        Examples
        --------
        >>> manager.find("rain", ignore_case=True)
        <2 hits: L16-00+0, L16-07+21>
        >>> manager.find("rain", dimensions="D15")
        <0 hits>
        """
        from jessymem.scanning.scans import Question, find

        question = Question(needle, ignore_case, word, dimensions, layers)
        return find(
            self._engine,
            question,
            self._workers(workers, progress, cancel),
            limit,
        )

    @clears_frames
    def find_batches(
        self,
        needle: jessymem.hints.Buffer | str | jessymem.hints.SearchPattern,
        dimensions: DimensionsLike | None = None,
        limit: int | None = None,
        *,
        ignore_case: bool = False,
        word: bool = False,
        layers: jessymem.hints.LayersLike | None = None,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> Iterator[jessymem.hints.HitBatch]:
        """Find what `find` finds, and yield it as it is found, some thousand finds at a time.

        Parameters
        ----------
        needle, dimensions, limit, ignore_case, word, layers, workers, progress, cancel
            As `find`.

        Yields
        ------
        HitBatch
            `Hits` that follow each other, none of them empty; each has ``content(layer)``, the
            bytes of a layer as they were searched. The search goes on as batches are taken: what
            is searched stays in memory until the iterator is at its end, or closed. Where not all
            fits in memory together, drop a batch (``del``) before the next one is asked for: it
            holds its dimension.

        Examples
        --------
        >>> for batch in manager.find_batches("rain", ignore_case=True):
        ...     print([bytes(batch.content(hit.layer_id)[hit.offset :]) for hit in batch])
        [b'Rain since Monday.', b'rain.']
        """
        from jessymem.scanning.scans import Question, find_batches

        question = Question(needle, ignore_case, word, dimensions, layers)
        return find_batches(
            self._engine,
            question,
            self._workers(workers, progress, cancel),
            limit,
        )

    @clears_frames
    def count(
        self,
        needle: jessymem.hints.Buffer | str | jessymem.hints.SearchPattern,
        dimensions: DimensionsLike | None = None,
        *,
        ignore_case: bool = False,
        word: bool = False,
        layers: jessymem.hints.LayersLike | None = None,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> int:
        """Return at how many positions in the layers' contents some bytes, or a pattern, are.

        Those that `find` would return, without a list of them.

        Parameters
        ----------
        needle, dimensions, ignore_case, word, layers, workers, progress, cancel
            As `find`.

        Raises
        ------
        concurrent.futures.CancelledError
            As `find`.

        Examples
        --------
        >>> import re
        >>> manager.count("rain"), manager.count("rain", ignore_case=True)
        (1, 2)
        >>> manager.count(re.compile(rb"[A-Z][a-z]+"), dimensions="D16")
        4
        """
        from jessymem.scanning.scans import Question, count

        question = Question(needle, ignore_case, word, dimensions, layers)
        return count(self._engine, question, self._workers(workers, progress, cancel))

    @overload
    def scan(
        self,
        kernel: Callable[..., Any],
        dtype: np.typing.DTypeLike,
        dimensions: DimensionsLike | None = None,
        *,
        return_ids: Literal[False] = False,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> np.typing.NDArray[Any]: ...
    @overload
    def scan(
        self,
        kernel: Callable[..., Any],
        dtype: np.typing.DTypeLike,
        dimensions: DimensionsLike | None = None,
        *,
        return_ids: Literal[True],
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> tuple[jessymem.LayerIds, np.typing.NDArray[Any]]: ...
    @overload
    def scan(
        self,
        kernel: Callable[..., Any],
        dtype: np.typing.DTypeLike,
        dimensions: DimensionsLike | None = None,
        *,
        return_ids: bool,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> np.typing.NDArray[Any] | tuple[jessymem.LayerIds, np.typing.NDArray[Any]]: ...
    @clears_frames
    def scan(
        self,
        kernel: Callable[..., Any],
        dtype: np.typing.DTypeLike,
        dimensions: DimensionsLike | None = None,
        *,
        return_ids: bool = False,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> np.typing.NDArray[Any] | tuple[jessymem.LayerIds, np.typing.NDArray[Any]]:
        """Call a compiled function for every layer; return what it makes of each.

        Parameters
        ----------
        kernel : callable
            ``kernel(content, row) -> number``, a function that numba can compile, or has: one that
            is no dispatcher yet is compiled, and remembered for the next call. `content` is the
            layer's bytes, a read-only array of uint8; `row` a record of its own, with the fields
            ``layer_num``, ``depth``, ``frequency``, ``parent`` and the others of LAYER in
            `jessymem.kernels.schema`. Both end with the call. It runs in several threads at once,
            without the GIL, on layers in no certain order.
        dtype : data type
            Of the values: a boolean or number to which what the kernel returns casts, as
            `numpy.can_cast` says with ``"same_kind"``.
        dimensions : DimensionId, int or str, or iterable of them, optional
            As `find`.
        return_ids : bool
            Whether to return the layers' ids too.
        workers, progress, cancel
            As `find`; threads share the work layer by layer.

        Returns
        -------
        values : ndarray of `dtype`, shape (n,)
            One for each layer, ascending by layer id.
        ids : LayerIds
            With ``return_ids=True``, and before the values: the ids of the layers, of the same
            state. A sequence of `LayerId`; to NumPy an array of packed ids.

        Raises
        ------
        TypeError
            If the kernel is no function, cannot be compiled for these arguments, or returns what is
            no `dtype`; or an argument is not of that form.
        Exception
            What the kernel raises, with a note that names it and the layer.
        concurrent.futures.CancelledError
            As `find`.

        Examples
        --------
        >>> def count_spaces(content, row):
        ...     return np.sum(content == 32)
        >>> ids, counts = manager.scan(count_spaces, np.int64, "D16", return_ids=True)
        >>> dict(zip(ids, counts.tolist()))
        {L16-00: 2, L16-07: 4}
        """
        from jessymem.scanning.layer_ids import LayerIds
        from jessymem.scanning.scans import scan

        threads = self._workers(workers, progress, cancel)
        ids, values = scan(self._engine, kernel, dtype, dimensions, threads)
        return (LayerIds(ids), values) if return_ids else values

    # -- inside ------------------------------------------------------------------------------------

    def _workers(
        self,
        workers: int | None,
        progress: Callable[[int, int], object] | None,
        cancel: jessymem.hints.CancelToken | None,
    ) -> Workers:
        from jessymem.scanning.workers import Workers

        return Workers(workers, progress, cancel, self._engine.sampler.reader)

    @clears_frames
    def _access_measured(self, layer_id: LayerLike) -> memoryview:
        """Read a layer the slow way: parse what is no id, measure the read, raise what is wrong."""
        if not isinstance(layer_id, int):
            return self.access_layer(as_layer_id(layer_id))
        wanted = as_layer_id(layer_id)
        with self._engine.sampler.measured_read(self._engine.snapshot.mark_of(wanted.dimension)):
            region, row = self._find(wanted)
            return region.content_of(row)

    @clears_frames
    def _array_measured(self, layer_id: LayerLike) -> np.typing.NDArray[Any]:
        """Read an array the slow way, as `_access_measured`."""
        if not isinstance(layer_id, int):
            return self.array(as_layer_id(layer_id))
        wanted = as_layer_id(layer_id)
        with self._engine.sampler.measured_read(self._engine.snapshot.mark_of(wanted.dimension)):
            table, row = self._find(wanted)
            return table.array_of(row)

    def _find(self, layer_id: LayerId) -> tuple[LayerTable, int]:
        """Return a layer's table, mapped again if it has to be, and its row."""
        engine = self._engine
        snapshot = engine.snapshot
        engine.check_open(layer_id)
        loaded = snapshot.get_for(layer_id)
        table = loaded.resident
        if table is not None:
            return table, table.find_row(layer_id)
        loaded.check_has(layer_id)
        del snapshot, loaded  # what else it holds may have to go
        try:
            table = engine.write(engine.bring_back, layer_id.dimension)
        except DimensionNotFound as error:
            if error.path is not None:
                raise  # the file is gone
            raise LayerNotFound(f"{layer_id} was unloaded meanwhile", layer=layer_id) from None
        return table, table.find_row(layer_id)
