"""`RegionBuilder`: layers in, one durable region file out."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from jessymem import osmem
from jessymem.core_dimensions import IMMUTABLE
from jessymem.errors import DuplicateLayer, ImmutableDimension, RegionIOError, clears_frames
from jessymem.failure_records import records_failure
from jessymem.ids import DimensionId, DimensionLike, LayerId, LayerLike, as_dimension_id
from jessymem.kernels import schema as s
from jessymem.regions.drafts import (
    ContentOrArray,
    EncodedContent,
    LayerDraft,
    as_array,
    as_content_or_array,
    encode_text,
    make_draft,
)
from jessymem.regions.encoding import write_layout
from jessymem.regions.files import RegionFiles
from jessymem.regions.region import MmapRegion, check_load_mode
from jessymem.regions.spool import Spool, SpooledPieces


class RegionBuilder:
    """Collects layers and writes them as one region file.

    Parameters
    ----------
    dimension_id : DimensionId, int or str
    name : str
        The dimension's name, at most 64 bytes as UTF-8.
    spool : path-like, optional
        A folder on whose disk contents wait until the region is built, all but 8 MiB of them, in a
        file without a name; it has to exist. By default they wait in memory.

    Raises
    ------
    ValueError, TypeError
        If the id or the name is not of that form, or `spool` is not a path.

    Examples
    --------
    >>> builder = RegionBuilder("D07", "Technical")
    >>> builder.add_layer(0, "How things work", keywords=["tools"], frequency=1.2)
    L07-00
    >>> builder.append_layer(b"and why", name="reasons")
    L07-01
    """

    def __init__(
        self,
        dimension_id: DimensionLike,
        name: str,
        *,
        spool: str | os.PathLike[str] | None = None,
    ) -> None:
        self._dimension = as_dimension_id(dimension_id)
        encoded = encode_text(name, f"{self._dimension}: the dimension's name")
        if len(encoded) > s.MAX_NAME_BYTES:
            raise ValueError(
                f"{self._dimension}: the dimension's name is {len(encoded)} bytes as UTF-8, "
                f"the format allows {s.MAX_NAME_BYTES}"
            )
        if "\0" in name:
            raise ValueError(f"{self._dimension}: the dimension's name contains a null character")
        self._name = encoded
        self._drafts: dict[int, LayerDraft] = {}
        self._next = 0
        self._spool = None if spool is None else Spool(osmem.as_path(spool))
        osmem.prepare_writing()

    @property
    def dimension_id(self) -> DimensionId:
        """The dimension that is being built.

        Examples
        --------
        >>> RegionBuilder("D17", "plans").dimension_id
        D17
        """
        return self._dimension

    def __len__(self) -> int:
        """Return how many layers were added."""
        return len(self._drafts)

    @clears_frames
    def add_layer(
        self,
        layer: int,
        content: ContentOrArray,
        *,
        name: str = "",
        frequency: float = 1.0,
        depth: int = 0,
        keywords: Iterable[str] = (),
        parent: LayerLike | None = None,
    ) -> LayerId:
        """Add one layer; numbers may come in any order and leave gaps.

        Parameters
        ----------
        layer : int
            Its number in the dimension, 0 to 65535.
        content : str, bytes, ndarray or anything that lends its bytes
            A str is kept as UTF-8, an array as `add_array` does, and as bytes whatever has a
            buffer: a bytearray, a memoryview, an mmap, an array.array, a pyarrow.Buffer. May be
            empty, at most 4 GiB - 1. What is mutable is copied at once.
        name : str
        frequency : float
            A finite number within the range of a 32-bit float, as which it is stored.
        depth : int
            0 to 255.
        keywords : iterable of str
            At most 4,096, kept in order.
        parent : LayerId, int or str, optional
            Any layer but this one; it need not exist.

        Returns
        -------
        LayerId

        Raises
        ------
        DuplicateLayer
            If the number was added before.
        ValueError, TypeError
            If an argument is not of that form; nothing was added.

        Examples
        --------
        >>> builder = RegionBuilder("D17", "plans")
        >>> builder.add_layer(3, "Repair the bridge.", name="bridge", keywords=["river"])
        L17-03
        >>> builder.add_layer(3, "Paint it.")
        Traceback (most recent call last):
            ...
        jessymem.errors.DuplicateLayer: L17-03 was added before
        """
        layer_id = self._free_id(layer)
        encoded = as_content_or_array(content, layer_id, is_copied=self._spool is None)
        return self._add(
            layer_id,
            encoded,
            name=name,
            frequency=frequency,
            depth=depth,
            keywords=keywords,
            parent=parent,
        )

    def append_layer(
        self,
        content: ContentOrArray,
        *,
        name: str = "",
        frequency: float = 1.0,
        depth: int = 0,
        keywords: Iterable[str] = (),
        parent: LayerLike | None = None,
    ) -> LayerId:
        """Add one layer under the next number: 0, or the one above the highest so far.

        Parameters
        ----------
        content, name, frequency, depth, keywords, parent
            As `add_layer` takes them.

        Returns
        -------
        LayerId

        Raises
        ------
        DuplicateLayer
            If the highest number that there is was added before.
        ValueError, TypeError
            If an argument is not of that form; nothing was added.

        Examples
        --------
        >>> builder = RegionBuilder("D17", "plans")
        >>> builder.add_layer(3, "Repair the bridge.")
        L17-03
        >>> builder.append_layer("Paint it.", parent="L17-03")
        L17-04
        """
        if self._next > s.MAX_LAYER:
            last = LayerId(self._dimension, s.MAX_LAYER)
            raise DuplicateLayer(
                f"{last} was added before, and there is no number above it", layer=last
            )
        return self.add_layer(
            self._next,
            content,
            name=name,
            frequency=frequency,
            depth=depth,
            keywords=keywords,
            parent=parent,
        )

    @clears_frames
    def add_array(
        self,
        layer: int,
        array: np.typing.NDArray[Any],
        *,
        name: str = "",
        frequency: float = 1.0,
        depth: int = 0,
        keywords: Iterable[str] = (),
        parent: LayerLike | None = None,
    ) -> LayerId:
        """Add an array as a layer: it comes back with its dtype, its shape and its order.

        Parameters
        ----------
        layer : int
            As `add_layer` takes it.
        array : ndarray
            Of any dtype and shape, at most 4 GiB - 1; copied at once. In C or in Fortran order it
            stays so, other strides become C order.
        name, frequency, depth, keywords, parent
            As `add_layer` takes them.

        Returns
        -------
        LayerId

        Raises
        ------
        DuplicateLayer
            If the number was added before.
        TypeError
            If it is no array, or one that would not come back as it is: of objects (also in a
            field), masked, of a dtype with metadata or one that .npy files cannot tell.
        ValueError
            If an argument is not of that form, or the dtype takes too long to tell; nothing was
            added.

        Examples
        --------
        >>> builder = RegionBuilder("D17", "plans")
        >>> builder.add_array(0, np.eye(2, dtype="f2"), name="identity")
        L17-00
        >>> builder.build_to_memory().read_array("L17-00")
        array([[1., 0.],
               [0., 1.]], dtype=float16)
        """
        layer_id = self._free_id(layer)
        encoded = as_array(array, layer_id, is_copied=self._spool is None)
        return self._add(
            layer_id,
            encoded,
            name=name,
            frequency=frequency,
            depth=depth,
            keywords=keywords,
            parent=parent,
        )

    def _free_id(self, layer: int) -> LayerId:
        layer_id = LayerId(self._dimension, layer)
        if layer_id.layer in self._drafts:
            raise DuplicateLayer(f"{layer_id} was added before", layer=layer_id)
        return layer_id

    def add_encoded(
        self, layer_id: LayerId, encoded: EncodedContent, **description: Any
    ) -> LayerId:
        """Add one layer whose content is encoded already, and not copied unless it is spooled.

        Raises as `add_layer`.
        """
        return self._add(self._free_id(layer_id.layer), encoded, **description)

    def _add(self, layer_id: LayerId, encoded: EncodedContent, **description: Any) -> LayerId:
        draft = make_draft(layer_id, encoded, **description)
        if self._spool is not None and len(draft.content):
            checksum = xxhash.xxh3_64_intdigest(draft.content)
            spooled = self._spool.append(draft.content)
            draft = replace(draft, content=spooled, content_xxh3=checksum)
        self._drafts[layer_id.layer] = draft
        self._next = max(self._next, layer_id.layer + 1)
        return layer_id

    @clears_frames
    @records_failure("build_failed", "built")
    def build_to_file(
        self,
        path: str | os.PathLike[str],
        *,
        replace_immutable: bool = False,
        load_mode: str = "map",
        compress: str | None = None,
    ) -> MmapRegion:
        """Write the region and map it.

        Readers of an older file under that name keep it until their last view is gone. A file of
        the same dimension that is replaced passes its generation on: the new one's is higher by
        one.

        Parameters
        ----------
        path : path-like
            Missing directories are made. Of a link the file behind it is replaced.
        replace_immutable : bool
            Whether a file of D09 or D14 may be replaced.
        load_mode : {"map", "copy"}
            How the new file is opened; files that are there are looked at in the same way.
        compress : {"zstd", "zstd:1" to "zstd:22", "none"}, optional
            Whether layers are kept compressed, where that makes them an eighth shorter: by
            Zstandard, at level 3 or the one given. Needs the extra ``zstd``. By default none is.

        Returns
        -------
        MmapRegion
            The file as it now is on disk. Where a mapped file cannot be replaced (Windows), the new
            one lies beside it under the name ``region.g<N>.mmap``, N its generation.

        Raises
        ------
        RegionIOError
            If `path` is a folder, or the system refuses a step; the old file is untouched and no
            temporary file remains. Where only the last steps fail (syncing the directory, mapping
            the new file), the new file is in place already, whole.
        ImmutableDimension
            If there is a file of D09 or D14, and `replace_immutable` is not set.
        RegionFormatError
            If names and keywords together pass the format's limit for metadata, or the file that is
            there has the highest generation that there is.
        InvalidAccess
            If this thread is writing the same file already, and a signal handler, a finalizer or a
            handler of records has led here.
        ConfigError
            If `compress` is not one of those above, or the extra is missing.
        ValueError, TypeError
            If `path` is not a path, or `load_mode` not one of those above.

        Notes
        -----
        Durability: under a lock that keeps other writers out, the bytes are written to a temporary
        file beside `path`, synced, read back, renamed over `path`, and the directory is synced
        (before that, the name of each directory that was made). When this returns the file outlives
        a power failure, as far as the medium keeps its word.

        Examples
        --------
        >>> builder = RegionBuilder("D17", "plans")
        >>> layer = builder.append_layer("Repair the bridge.")
        >>> builder.build_to_file("data/D17/region.mmap").generation
        1
        >>> builder.build_to_file("data/D17/region.mmap").generation
        2
        >>> manager.discover()
        [D15, D16, D17]
        """

        def check(files: RegionFiles) -> None:
            if self._dimension in IMMUTABLE and not replace_immutable and files.exists():
                raise ImmutableDimension(
                    f"{self._dimension} never changes: {files.target} is replaced only with "
                    "replace_immutable=True",
                    dimension=self._dimension,
                )

        return self.write_to(path, check, load_mode, compress)

    def write_to(
        self,
        path: str | os.PathLike[str],
        check: Callable[[RegionFiles], None],
        load_mode: str = "map",
        compress: str | None = None,
    ) -> MmapRegion:
        """Do as `build_to_file` does; `check`, called under the files' lock, may refuse it.

        Raises
        ------
        RegionIOError, RegionFormatError, InvalidAccess, ValueError, TypeError
            As `build_to_file`.
        Exception
            What `check` raises; nothing is changed then.

        Examples
        --------
        >>> def check(files):
        ...     if files.exists():
        ...         raise FileExistsError(files.target.name)
        >>> RegionBuilder("D17", "plans").write_to("data/D17/region.mmap", check).n_layers
        0
        >>> RegionBuilder("D17", "plans").write_to("data/D17/region.mmap", check)
        Traceback (most recent call last):
            ...
        FileExistsError: region.mmap
        """
        target = self._as_target(path)
        files = RegionFiles(self._dimension, target, check_load_mode(load_mode))
        drafts, dictionary = self._settled(compress)
        with files.writing():
            check(files)
            files.check_base()
            files.find(tidy=False)
            generation = files.next_generation()
            _, pieces = write_layout(
                self._dimension,
                self._name,
                drafts,
                generation=generation,
                created_at=max(time.time_ns(), 0),
                dictionary=dictionary,
            )
            path = files.put(self._readable(pieces), generation)
            files.remove_deltas()
            return files.open(path)

    def _as_target(self, path: str | os.PathLike[str]) -> Path:
        """Take the path of a file; what is a folder is not one."""
        target = osmem.as_path(path)
        if not target.name or target.name == ".." or os.path.isdir(target):
            shown = os.fspath(path) or "''"
            what = "names no file" if not os.fspath(path) else "is a folder"
            raise RegionIOError(
                f"{self._dimension}: cannot write {shown}: it {what}; say which file, such as"
                f" {target / str(self._dimension) / 'region.mmap'}",
                operation="write",
                path=os.fspath(path),
                errno=errno.EISDIR,
                strerror=os.strerror(errno.EISDIR),
                filename=os.fspath(path),
                dimension=self._dimension,
            )
        return target

    def _settled(self, compress: str | None) -> tuple[list[LayerDraft], bytes]:
        """Return the layers as they are to be written, and the dictionary that frames share."""
        drafts = list(self._drafts.values())
        if compress is None:
            return drafts, b""
        from jessymem.regions.compression import settle
        from jessymem.zstd import as_compression

        compression = as_compression(compress)
        spool = None if self._spool is None else Spool(self._spool.folder)
        settled = settle(drafts, compression, self._dimension, spool)
        return settled.drafts, settled.dictionary

    def build_to_memory(self, *, compress: str | None = None) -> MmapRegion:
        """Lay the region out in private memory, as it would be in a file.

        Parameters
        ----------
        compress : {"zstd", "zstd:1" to "zstd:22", "none"}, optional
            As `build_to_file`.

        Returns
        -------
        MmapRegion
            Without a path.

        Raises
        ------
        AllocationFailed
            If the system has no memory left.
        RegionFormatError
            As `build_to_file`.

        Examples
        --------
        >>> builder = RegionBuilder("D17", "plans")
        >>> layer = builder.append_layer("Repair the bridge.")
        >>> region = builder.build_to_memory()
        >>> region.path is None, bytes(region.content_of(0))
        (True, b'Repair the bridge.')
        """
        drafts, dictionary = self._settled(compress)
        total_size, pieces = write_layout(
            self._dimension, self._name, drafts, 1, 0, dictionary=dictionary
        )
        data = osmem.private_copy(self._readable(pieces), total_size)
        return MmapRegion(self._dimension, None, data, s.REGION_SIMULATED, identity=None)

    def _readable(self, pieces: list[Any]) -> Any:
        """Return the pieces of a file as what lends its bytes."""
        return pieces if self._spool is None else SpooledPieces(pieces)
