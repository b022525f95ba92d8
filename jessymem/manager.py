"""`MmapManager`: what users hold.

Each method checks its arguments and calls one function below: of the engine, of learning, of the
allocator. A process that only maps and reads should start quickly, so parts that it may never need
are imported by the methods that lead there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import jessymem
from jessymem import osmem
from jessymem.config import MemoryConfig
from jessymem.core_dimensions import CORE_DIMENSIONS
from jessymem.engine import records
from jessymem.engine.ahead import ReadAhead
from jessymem.engine.engine import Engine
from jessymem.errors import (
    DimensionNotFound,
    DuplicateDimension,
    JessyMemoryError,
    clears_frames,
)
from jessymem.failure_records import records_failure
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    LayerId,
    LayerLike,
    as_dimension_id,
    as_layer_id,
)
from jessymem.locks import Unready
from jessymem.reading import LayerReader


class MmapManager(LayerReader):
    """Maps region files and hands out their layers with no copy and no lock.

    Threads may share a manager. Readers never wait: they see a layer's old state or its new one,
    whatever loads, unloads or is replaced beside them. Writers take turns. A context manager:
    leaving it closes it.

    Parameters
    ----------
    config : MemoryConfig or int
        Settings, or just the budget in MiB.
    base_path : path-like, optional
        Directory of the region files, in place of the configuration's.

    Raises
    ------
    ConfigError
        Naming the field that makes no sense.


    Notes
    -----
    What any method may raise, and does not list again: InvalidAccess if the manager is closed, if
    another thread is crystallizing what is to be changed, or where a signal handler or a finalizer
    calls it in the middle of another call of its thread, and it would have to wait. LimitExceeded
    or AllocationFailed if there is no memory for it: the budget would be passed, or the system
    refuses. RegionIOError, RegionFormatError or OutOfBounds if a file cannot be read, mapped or
    written, breaks the format, or was changed while it was mapped. ValueError or TypeError if an
    argument is not of the form that is asked for.

    Lifetime: a view that was handed out stays valid and unchanged for as long as someone holds it,
    after `unload_dimension`, `refresh` and `close` too. Its memory counts in the budget until then.

    A manager pickles as its configuration and the generations that it has loaded; the copy maps the
    same files anew. A forked child goes on reading what was loaded.

    Examples
    --------
    >>> config = MemoryConfig(simulation="always")  # bundled content in place of files
    >>> with MmapManager(config, base_path="no/such/directory") as manager:
    ...     report = manager.load_core_dimensions()
    ...     manager.access_layer("L01-00").nbytes
    432
    """

    def __init__(
        self,
        config: MemoryConfig | int = 280,
        *,
        base_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._engine = engine = Engine(MemoryConfig.of(config, base_path))
        if engine.config.status != "off":
            from jessymem.status.writer import StatusWriter

            engine.watcher = StatusWriter(engine, engine.config.status)

    # -- finding and loading -----------------------------------------------------------------------

    @clears_frames
    def discover(self) -> list[DimensionId]:
        """Return the dimensions that have a region file under the base path, ascending.

        Raises
        ------
        RegionIOError
            If the directory cannot be listed; one that does not exist holds nothing.

        Examples
        --------
        >>> manager.discover()
        [D15, D16]
        """
        self._engine.check_open()
        return self._engine.loader.discover()

    @clears_frames
    @records_failure("load_failed", "loaded")
    def load_dimension(
        self, dimension_id: DimensionLike, path: str | os.PathLike[str] | None = None
    ) -> int:
        """Map a dimension's region file and publish its layers.

        Parameters
        ----------
        dimension_id : DimensionId, int or str
        path : path-like, optional
            By default ``D01/region.mmap`` and so on under the base path. What is learned in the
            dimension is crystallized into the file that it was loaded from.

        Returns
        -------
        int
            The region id: unique among all loads of this manager.

        Raises
        ------
        DuplicateDimension
            If it is loaded; one that is simulated is replaced.
        DimensionNotFound
            If there is no file.
        LimitExceeded
            If it does not fit the budget, also after evicting what may go; or a core file does not
            fit its slot and the headroom.

        Examples
        --------
        >>> with MmapManager(64, base_path="data") as other:
        ...     region_id = other.load_dimension("D16")
        ...     other.list_layers()
        [L16-00, L16-07]
        """
        dimension = as_dimension_id(dimension_id)
        home = None if path is None else osmem.absolute(osmem.as_path(path))
        self._engine.check_open(dimension)
        if home is None and dimension not in self._engine.snapshot:
            self._engine.loader.fetch(dimension)
        return self._engine.write(self._engine.load, dimension, home)

    @clears_frames
    def load_core_dimensions(self) -> jessymem.LoadReport:
        """Load D01 to D14; what cannot be loaded is skipped with a warning.

        A record tells of each, and a `JessyWarning` of each whose file is there. Where no core file
        exists and ``simulation="auto"``, or with ``"always"``, the bundled layers take their place;
        they are listed as skipped all the same, since nothing was loaded from a file, and with
        "auto" a `JessyWarning` says so.

        Returns
        -------
        LoadReport

        Examples
        --------
        >>> with MmapManager(MemoryConfig(simulation="always")) as other:
        ...     report = other.load_core_dimensions()
        ...     print(len(report.loaded), report.skipped[0], other.is_loaded("D01"))
        0 (D01, 'simulated') True
        """
        return self._load_several(list(CORE_DIMENSIONS))

    @clears_frames
    def load_all(self) -> jessymem.LoadReport:
        """Load the core dimensions, as `load_core_dimensions` does, and every other one on disk.

        Where there are others, and nothing stands in for core dimensions that have no file, nothing
        is said of those. With ``simulation="auto"`` nothing is simulated where there is any file.
        Readers see them all at one instant, at the end; or some before, where others have to be
        evicted for those that follow.

        Returns
        -------
        LoadReport

        Raises
        ------
        RegionIOError
            If the base path cannot be listed.

        Examples
        --------
        >>> with MmapManager(64, base_path="data") as other:
        ...     other.load_all().loaded
        (D15, D16)
        """
        found = self.discover()
        others = [each for each in found if each not in CORE_DIMENSIONS]
        core = list(CORE_DIMENSIONS)
        if found and not self._engine.loader.wants_simulation(others):
            core = [each for each in core if each in found]
        return self._load_several(core + others)

    @clears_frames
    @records_failure("load_failed", "refreshed")
    def refresh(self, dimension_id: DimensionLike) -> bool:
        """Adopt the file that another process has published under the loaded one's name.

        Readers go on meanwhile; views that are held keep the old file's bytes.

        Returns
        -------
        bool
            False if it is still the same one. Any other is adopted, as when an evicted dimension
            is mapped again: also an older generation, to which somebody has gone back.

        Raises
        ------
        DimensionNotFound
            If the dimension is not loaded from a file, or the file is gone.
        RegionFormatError, RegionIOError, LimitExceeded, AllocationFailed
            As `load_dimension`; the old file stays loaded.

        Examples
        --------
        >>> builder = RegionBuilder("D16", "diary")
        >>> layer = builder.append_layer("Sun at last.")
        >>> written = builder.build_to_file("data/D16/region.mmap")
        >>> manager.refresh("D16"), manager.refresh("D16")
        (True, False)
        >>> bytes(manager[layer])
        b'Sun at last.'
        """
        dimension = as_dimension_id(dimension_id)
        self._engine.check_open(dimension)
        if dimension in self._engine.snapshot:
            self._engine.loader.fetch(dimension)
        return self._engine.write(self._engine.refresh, dimension)

    @clears_frames
    @records_failure("unload_failed", "unloaded")
    def unload_dimension(self, dimension_id: DimensionLike) -> None:
        """Take a dimension's layers away from new reads; views that are held stay valid.

        Raises
        ------
        DimensionNotFound
            If it is not loaded.
        InvalidAccess
            If it has learned layers, which would be lost: crystallize or discard them first. Or if
            the manager is closed.

        Examples
        --------
        >>> view = manager.access_layer("L16-00")
        >>> manager.unload_dimension("D16")
        >>> "L16-00" in manager, bytes(view[:4])
        (False, b'Rain')
        """
        dimension = as_dimension_id(dimension_id)
        self._engine.check_open(dimension)
        self._engine.give_up(self._engine.unload, dimension)

    @clears_frames
    @records_failure("pin_failed", "pinned")
    def pin(self, dimension_id: DimensionLike) -> None:
        """Keep a dimension in memory, whatever the pressure, until `unpin` or its unloading.

        One that was evicted is mapped again. Pinning twice is pinning once.

        Raises
        ------
        DimensionNotFound
            If it is not loaded.

        Examples
        --------
        >>> manager.pin("D16")
        >>> [each["dimension"] for each in manager.dump_state()["regions"] if each["pinned"]]
        ['D16']
        """
        dimension = as_dimension_id(dimension_id)
        self._engine.check_open(dimension)
        self._engine.write(self._engine.pin, dimension)

    @clears_frames
    def unpin(self, dimension_id: DimensionLike) -> None:
        """Let a dimension be evicted again; nothing to do for one that is not pinned.

        Examples
        --------
        >>> manager.pin("D16")
        >>> manager.unpin("D16")
        >>> [each["dimension"] for each in manager.dump_state()["regions"] if each["pinned"]]
        []
        """
        dimension = as_dimension_id(dimension_id)
        self._engine.check_open(dimension)
        self._engine.give_up(self._engine.unpin, dimension)

    @clears_frames
    def close(self) -> None:
        """Unload everything and free every block; a second call does nothing.

        Learned layers that were not crystallized are gone; a record at warning names them, and a
        `JessyWarning`. Views that are held stay valid. Afterwards every call but `get_stats`,
        `dump_state` and `is_loaded` raises InvalidAccess.

        Examples
        --------
        >>> view = manager.access_layer("L16-00")
        >>> manager.close()
        >>> bytes(view[:4])
        b'Rain'
        >>> manager.access_layer("L16-00")
        Traceback (most recent call last):
            ...
        jessymem.errors.InvalidAccess: ...the manager of ... is closed
        """
        self._engine.afterwards(self._engine.close)

    # -- learning ----------------------------------------------------------------------------------

    @clears_frames
    @records_failure("create_failed", "created")
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

        Notes
        -----
        Durability: none before `crystallize_proto_dimension`; `close` drops the layer.

        Examples
        --------
        >>> manager.create_proto_dimension("D16", "Sun at last.", name="wednesday")
        L16-08
        >>> bytes(manager["wednesday"])
        b'Sun at last.'
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

    @clears_frames
    @records_failure("create_failed", "created")
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
        DuplicateLayer, ImmutableDimension
            As `create_proto_dimension`, for the first item that is wrong.

        Examples
        --------
        >>> plan = {"dimension_id": "D20", "content": "Repair the bridge.", "layer": 3}
        >>> manager.create_proto_layers([("D16", "Sun at last."), plan])
        [L16-08, L20-03]
        """
        from jessymem.learning import creation

        return creation.create(self._engine, items)

    @clears_frames
    @records_failure("update_failed", "updated")
    def update_proto_dimension(
        self, layer_id: LayerLike, content: jessymem.hints.ContentOrArray
    ) -> None:
        """Give a proto layer another content; a reader sees the old one or the new one, whole.

        Views on the old content stay valid; its block is freed with the last of them.

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

        Examples
        --------
        >>> layer = manager.create_proto_dimension("D16", "Sun?")
        >>> before = manager.access_layer(layer)
        >>> manager.update_proto_dimension(layer, "Sun at last.")
        >>> bytes(before), bytes(manager.access_layer(layer))
        (b'Sun?', b'Sun at last.')
        """
        from jessymem.learning import writer

        writer.update(self._engine, as_layer_id(layer_id), content)

    @clears_frames
    @records_failure("discard_failed", "discarded")
    def discard_proto_dimension(self, layer_id: LayerLike) -> None:
        """Take a proto layer away from new reads; views that are held stay valid.

        Raises
        ------
        LayerNotFound, ImmutableDimension
            As `update_proto_dimension`.

        Examples
        --------
        >>> layer = manager.create_proto_dimension("D16", "Snow?")
        >>> manager.discard_proto_dimension(layer)
        >>> layer in manager
        False
        """
        from jessymem.learning import writer

        writer.discard(self._engine, as_layer_id(layer_id))

    @clears_frames
    @records_failure("overlay_failed", "overlaid")
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
        DimensionNotFound
            If the dimension was evicted and cannot be mapped again.
        TypeError
            If the layer is an array, or an argument is not of that form.
        ValueError
            If an argument is not of that form, or the whole would pass the format's limit.

        Examples
        --------
        >>> manager.overlay_layer("L16-00", "Since Sunday, in fact.", separator=" ")
        >>> bytes(manager.access_layer("L16-00"))
        b'Rain since Monday. Since Sunday, in fact.'
        >>> manager.get_layer_info("L16-00").location.name
        'HYBRID'
        """
        from jessymem.learning import writer

        writer.overlay(self._engine, as_layer_id(layer_id), content, separator)

    @clears_frames
    @records_failure("drop_failed", "dropped")
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
        DimensionNotFound
            If the dimension was evicted and cannot be mapped again.

        Examples
        --------
        >>> manager.overlay_layer("L16-00", "Since Sunday, in fact.", separator=" ")
        >>> manager.drop_overlay("L16-00")
        >>> bytes(manager.access_layer("L16-00"))
        b'Rain since Monday.'
        """
        from jessymem.learning import writer

        writer.drop(self._engine, as_layer_id(layer_id))

    @clears_frames
    @records_failure("crystallize_failed", "crystallized")
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
            If `layer_id` is not a layer id; or names and keywords together pass the format's limit.

        Notes
        -----
        Durability: when this returns, the layer outlives a power failure, as far as the medium
        keeps its word; see docs/durability.md.

        Examples
        --------
        >>> layer = manager.create_proto_dimension("D16", "Sun at last.")
        >>> manager.crystallize_proto_dimension(layer)
        >>> with MmapManager(64, base_path="data") as other:
        ...     report = other.load_all()
        ...     bytes(other.access_layer(layer))
        b'Sun at last.'
        """
        from jessymem.learning import crystallization

        wanted = as_layer_id(layer_id)
        crystallization.crystallize(self._engine, wanted.dimension, wanted)

    @clears_frames
    @records_failure("delete_failed", "deleted")
    def delete_layer(self, layer_id: LayerLike) -> None:
        """Take a layer away: out of its dimension's files, or, if it is a proto layer, of memory.

        Readers see it up to an instant, and from then on do not; views that are held stay valid.
        The dimension need not be loaded. The number may be used again.

        Parameters
        ----------
        layer_id : LayerId, int or str

        Raises
        ------
        LayerNotFound
            If there is no such layer on disk, nor loaded.
        ImmutableDimension
            For D09 and D14, or under ``read_only``.
        InvalidAccess
            If the layer is simulated, content lies over it that is not on disk, another thread is
            crystallizing it, or this call interrupts another one of its thread.
        RegionIOError, RegionFormatError, LimitExceeded, AllocationFailed
            As `crystallize_proto_dimension`. After an error of the system it may be called again.

        Notes
        -----
        Durability: when this returns, the layer is gone also after a power failure, as with
        `crystallize_proto_dimension`. Its bytes stay in the region file until the dimension is
        folded. Layers that name it as their parent go on doing so.

        Examples
        --------
        >>> manager.delete_layer("L16-00")
        >>> manager.list_layers("D16")
        [L16-07]
        """
        from jessymem.learning import deletion

        deletion.delete(self._engine, as_layer_id(layer_id))

    @clears_frames
    @records_failure("fold_failed", "folded")
    def fold(self, dimension_id: DimensionLike, *, compress: str | None = None) -> bool:
        """Write a dimension's region file and the deltas beside it into one region file.

        Readers go on meanwhile. Afterwards a reader of the plain format sees all of the dimension,
        unless layers of it are compressed. It need not be loaded.

        Parameters
        ----------
        dimension_id : DimensionId, int or str
        compress : {"zstd", "zstd:1" to "zstd:22", "none"}, optional
            What is to become of its layers: plain ones that become an eighth shorter are
            compressed, at level 3 or the one given; or all are made plain. By default each stays
            as it is, unless the dimension is cold and `MemoryConfig.compress_cold` says more.

        Returns
        -------
        bool
            False: there was no delta, no layer is to be stored in another way, and nothing was
            written.

        Raises
        ------
        DimensionNotFound
            If there is no file of it.
        RegionIOError, RegionFormatError, LimitExceeded, AllocationFailed, ImmutableDimension
            As `crystallize_proto_dimension`.
        InvalidAccess
            If this call interrupts another one of its thread, or the manager is closed.
        ConfigError
            If `compress` is not one of those above, or the extra ``zstd`` is missing.
        ValueError, TypeError
            If `dimension_id` is not a dimension id.

        Notes
        -----
        Durability: as `crystallize_proto_dimension`.

        Examples
        --------
        >>> manager.delete_layer("L15-01")  # said in a small file beside
        >>> sorted(path.name for path in folder.glob("data/D15/*"))
        ['region.d2.mmap', 'region.mmap']
        >>> manager.fold("D15"), manager.fold("D15")
        (True, False)
        >>> sorted(path.name for path in folder.glob("data/D15/*"))
        ['region.mmap']
        """
        from jessymem.learning import crystallization

        return crystallization.fold(self._engine, as_dimension_id(dimension_id), compress)

    @clears_frames
    @records_failure("crystallize_failed", "crystallized")
    def crystallize_dimension(
        self, dimension_id: DimensionLike, *, compress: str | None = None
    ) -> list[LayerId]:
        """Write all that is learned in a dimension into its file, in one go.

        Parameters
        ----------
        dimension_id : DimensionId, int or str
        compress : {"zstd", "zstd:1" to "zstd:22", "none"}, optional
            As `fold` takes it, for what is written anew. Where nothing of the dimension's region
            file is compressed yet, all of that is written again with it.

        Returns
        -------
        list of LayerId
            What was written, ascending; without anything learned, nothing is.

        Raises
        ------
        DimensionNotFound
            If the dimension is not loaded.
        DuplicateLayer, ImmutableDimension
            As `crystallize_proto_dimension`, for the first layer that it holds for; none is
            written then.
        ConfigError
            As `fold`.

        Notes
        -----
        Durability: as `crystallize_proto_dimension`, for all of them at once.

        Examples
        --------
        >>> manager.overlay_layer("L16-00", "Since Sunday, in fact.", separator=" ")
        >>> layer = manager.create_proto_dimension("D16", "Sun at last.")
        >>> manager.crystallize_dimension("D16")
        [L16-00, L16-08]
        """
        from jessymem.learning import crystallization

        dimension = as_dimension_id(dimension_id)
        return crystallization.crystallize(self._engine, dimension, compress=compress)

    # -- blocks of memory, see `PoolAllocator` -----------------------------------------------------

    def allocate(self, size: int) -> jessymem.MmapOffset:
        """Take a block of at least `size` bytes; see `PoolAllocator.allocate`.

        Examples
        --------
        >>> offset = manager.allocate(5_000)
        >>> pool = manager.get_stats().per_pool[offset.pool_id]
        >>> pool.block_size, pool.used_blocks
        (16384, 1)
        """
        engine = self._engine
        return (engine.present_allocator or engine.allocator()).allocate(size)

    def deallocate(self, offset: jessymem.MmapOffset, size: int | None = None) -> None:
        """Free a block, now or with its last view; see `PoolAllocator.deallocate`.

        Examples
        --------
        >>> offset = manager.allocate(100)
        >>> manager.deallocate(offset)
        >>> manager.deallocate(offset)
        Traceback (most recent call last):
            ...
        jessymem.errors.InvalidAccess: MmapOffset(...): it was freed before
        """
        engine = self._engine
        (engine.present_allocator or engine.allocator()).deallocate(offset, size)

    @clears_frames
    def view(self, offset: jessymem.MmapOffset, size: int) -> memoryview:
        """Return the first `size` bytes of a block, writable; see `PoolAllocator.view`.

        Examples
        --------
        >>> offset = manager.allocate(5)
        >>> manager.view(offset, 5)[:] = b"hello"
        >>> bytes(manager.view(offset, 2))
        b'he'
        """
        return self._engine.allocator().view(offset, size)

    def allocate_many(
        self, sizes: Iterable[int] | np.typing.NDArray[np.integer[Any]]
    ) -> np.typing.NDArray[np.int64]:
        """Take a block for each of `sizes`, or none; see `PoolAllocator.allocate_many`.

        Examples
        --------
        >>> offsets = manager.allocate_many([100, 5_000, 100])
        >>> [MmapOffset.from_packed(each).pool_id for each in offsets]
        [0, 1, 0]
        """
        return self._engine.allocator().allocate_many(sizes)

    @clears_frames
    def deallocate_many(self, offsets: Iterable[int] | np.typing.NDArray[np.int64]) -> None:
        """Free many blocks, or none; see `PoolAllocator.deallocate_many`.

        Examples
        --------
        >>> offsets = manager.allocate_many(np.full(1000, 64))
        >>> manager.deallocate_many(offsets)
        >>> manager.get_stats().total_deallocations
        1000
        """
        self._engine.allocator().deallocate_many(offsets)

    @clears_frames
    def allocate_array(
        self, shape: int | Sequence[int], dtype: np.typing.DTypeLike = np.float64
    ) -> np.typing.NDArray[Any]:
        """Return an array in a block of its own; see `PoolAllocator.allocate_array`.

        Examples
        --------
        >>> before = manager.get_stats().total_used_bytes
        >>> scores = manager.allocate_array((100, 10))
        >>> manager.get_stats().total_used_bytes - before
        8000
        >>> del scores  # its block goes back by itself
        >>> manager.get_stats().total_used_bytes - before
        0
        """
        return self._engine.allocator().allocate_array(shape, dtype)

    @clears_frames
    def trim(self) -> int:
        """Return memory that is free to the system; see `PoolAllocator.trim`.

        Examples
        --------
        >>> offset = manager.allocate(200_000)
        >>> manager.view(offset, 200_000)[:] = bytes(200_000)
        >>> manager.deallocate(offset)
        >>> manager.trim() >= 200_000, manager.get_stats().retained_bytes
        (True, 0)
        """
        return self._engine.allocator().trim()

    # -- seeing ------------------------------------------------------------------------------------

    @clears_frames
    @records_failure("resize_failed", "resized")
    def resize(self, total_memory_mb: int) -> int:
        """Change the budget, under whatever else goes on; core slots and headroom follow it.

        For a smaller one the coldest regions are evicted, and pages of freed blocks returned, as
        far as that is needed. When this returns, what is in use fits the new budget, and goes on
        doing so.

        Parameters
        ----------
        total_memory_mb : int
            In MiB.

        Returns
        -------
        int
            What it was, in MiB.

        Raises
        ------
        LimitExceeded
            If more is in use than may go, or a dimension that is loaded would not fit by itself.
            Nothing has changed then, but for regions that may have been evicted; they come back
            when they are read.
        ConfigError
            If `total_memory_mb` is no budget.

        Examples
        --------
        >>> before = manager.resize(128)
        >>> before, manager.config.total_memory_mb
        (64, 128)
        >>> array = manager.allocate_array(90 * 2**20, "u1")
        >>> manager.resize(before)
        Traceback (most recent call last):
            ...
        jessymem.errors.LimitExceeded: the budget cannot be 67,108,864 bytes: ... are in use, ...
        """
        from jessymem.engine import resizing

        self._engine.check_open()
        return resizing.resize(self._engine, total_memory_mb)

    @property
    def config(self) -> MemoryConfig:
        """The settings in force.

        Examples
        --------
        >>> manager.config.limit_bytes, manager.config.eviction_policy
        (67108864, 'sieve')
        """
        return self._engine.config

    @clears_frames
    def get_stats(self) -> jessymem.MemoryStats:
        """Return what the manager measured of itself; works on a closed one too.

        Examples
        --------
        >>> stats = manager.get_stats()
        >>> stats.dimensions_loaded, stats.layers_loaded, stats.total_limit_bytes
        (2, 6, 67108864)
        """
        from jessymem import diagnostics

        return diagnostics.collect_stats(self._engine)

    @clears_frames
    def dump_state(self) -> dict[str, Any]:
        """Return the whole state, ready for `json.dumps`; works on a closed manager too.

        Returns
        -------
        dict
            Keys "config", "budget", "pools", "regions", "layers", "counters", "waiting".

        Examples
        --------
        >>> import json
        >>> state = json.loads(json.dumps(manager.dump_state()))
        >>> [(each["dimension"], each["n_layers"]) for each in state["regions"]]
        [('D15', 4), ('D16', 2)]
        """
        from jessymem import diagnostics

        return diagnostics.dump_state(self._engine)

    @clears_frames
    def metrics_text(self) -> str:
        """Return what `get_stats` tells as OpenMetrics text, ready for Prometheus.

        For prometheus-client there is `jessymem.metrics.collector`. Works on a closed manager too.

        Returns
        -------
        str
            Ends with ``# EOF``; its content type is ``application/openmetrics-text;
            version=1.0.0; charset=utf-8``. ``docs/monitoring.md`` lists the metrics.

        Examples
        --------
        >>> lines = manager.metrics_text().splitlines()
        >>> [line for line in lines if line.startswith("jessymem_dimensions{")]
        ['jessymem_dimensions{state="memory"} 2', 'jessymem_dimensions{state="evicted"} 0']
        """
        from jessymem.openmetrics import metrics_text

        return metrics_text(self.get_stats(), self.config)

    @clears_frames
    def memory_map(self) -> jessymem.MemoryMap:
        """Return a picture of what is in memory now; works on a closed manager too.

        Nothing is loaded, mapped or read for it.

        Returns
        -------
        MemoryMap
            The budget, the loaded dimensions to scale, and what lies where in the pools. A notebook
            shows it, `str` writes it as text, and its `save` makes it a file.

        Examples
        --------
        >>> picture = manager.memory_map()
        >>> print(picture)
        Memory of ...data
        budget     [......] ... of 64.0 MB (... %), peak ...
        D15 tools  [######...] ... mapped, 4 layers
        D16 diary  [#...] 602 B mapped, 2 layers
        """
        return jessymem.notebooks.map_memory(self._engine)

    # -- the rest of being an object ---------------------------------------------------------------

    def __enter__(self) -> MmapManager:
        """Return the manager itself."""
        self._engine.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Show where it looks and what it holds."""
        engine = self._engine
        if engine.is_closed:
            return f"<MmapManager {engine.loader.place} closed>"
        totals = engine.snapshot.totals
        simulated = f", {totals.n_simulated} of them simulated" if totals.n_simulated else ""
        dimensions = "1 dimension" if totals.n_loaded == 1 else f"{totals.n_loaded:,} dimensions"
        return f"<MmapManager {engine.loader.place} {dimensions}{simulated}>"

    def _repr_html_(self) -> str:
        """Show it in a notebook's cell."""
        return jessymem.notebooks.show_manager(self, self._engine)

    @clears_frames
    def __reduce__(self) -> tuple[Callable[..., MmapManager], tuple[Any, ...]]:
        """Pickle as configuration and loaded generations; what is being learned stays here."""
        from jessymem import pickling

        return _reopen, (type(self), *pickling.reduce_engine(self._engine))

    # -- inside ------------------------------------------------------------------------------------

    def _load_several(
        self, dimensions: list[DimensionId], given: Mapping[DimensionId, Path] | None = None
    ) -> jessymem.LoadReport:
        """Load dimensions, and publish them at once; some from files that are given."""
        from jessymem.stats import LoadReport

        engine, start = self._engine, perf_counter()
        homes = {} if given is None else given
        loaded: list[DimensionId] = []
        simulated: list[DimensionId] = []
        skipped: list[tuple[DimensionId, str]] = []
        refused: deque[DimensionId] = deque()
        engine.check_open()
        unfetched = engine.loader.fetch_many(
            each for each in dimensions if each not in engine.snapshot and each not in homes
        )

        def path_of(dimension: DimensionId) -> Path:
            return homes.get(dimension) or engine.loader.path_of(dimension)

        with ReadAhead(dimensions, path_of) as following:
            left = deque(islice(following, 1))

            def load(dimension: DimensionId, simulate: bool, *, is_gathered: bool) -> None:
                try:
                    is_simulated = simulate and dimension in CORE_DIMENSIONS
                    if dimension in unfetched and not is_simulated:
                        raise unfetched[dimension]
                    if not is_simulated or engine.loader.stands_over_simulation(dimension):
                        engine.load(dimension, homes.get(dimension), is_gathered=is_gathered)
                        loaded.append(dimension)
                    elif dimension in engine.snapshot:
                        skipped.append((dimension, "is loaded"))
                    else:
                        engine.simulate(dimension)
                        simulated.append(dimension)
                        skipped.append((dimension, "simulated"))
                except Unready:
                    raise  # it comes back to this one
                except JessyMemoryError as error:
                    skipped.append((dimension, str(error)))
                    if not isinstance(error, DimensionNotFound | DuplicateDimension):
                        path = homes.get(dimension) or engine.loader.home_of(dimension)
                        engine.record(records.of_skipped(path, error))

            def load_those_left() -> None:
                others = (each for each in dimensions if each not in CORE_DIMENSIONS)
                simulate = engine.loader.wants_simulation(others)
                try:
                    while left:
                        load(left[0], simulate, is_gathered=True)
                        left.popleft()
                        left.extend(islice(following, 1))
                finally:
                    engine.publish()
                    refused.extend(engine.gathering.refused)
                    engine.gathering.refused.clear()
                while refused:
                    load(refused[0], simulate, is_gathered=False)
                    loaded.remove(refused.popleft())
                if simulated:
                    engine.record(records.of_simulation(simulated, engine.loader.place))

            engine.write(load_those_left)
        loaded.sort()
        skipped.sort(key=itemgetter(0))
        return LoadReport(tuple(loaded), tuple(skipped), perf_counter() - start)


def _reopen(cls: type[MmapManager], config: MemoryConfig, loaded: list[Any]) -> MmapManager:
    """Make the manager that a pickled one is in this process; see `pickling.reload`."""
    from jessymem import pickling

    manager = cls(config)
    pickling.reload(manager._engine, loaded)
    return manager
