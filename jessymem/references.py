"""`LayerRef`: one layer of one region file, small enough to be sent to any process that sees it.

A reference names its file's edition and its layer; the bytes stay where they are. Where it is first
asked for them the file is mapped, or shared with whoever in this process has that edition open.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np

import jessymem
from jessymem import osmem
from jessymem.errors import clears_frames
from jessymem.ids import LayerId, LayerLike, as_integer, as_layer_id
from jessymem.regions.layout import Edition

#: By path, edition and load mode, what a manager that made references, or a reference, has open.
_open_regions: Final[weakref.WeakValueDictionary[tuple[str, Edition, str], jessymem.MmapRegion]] = (
    weakref.WeakValueDictionary()
)


class LayerRef:
    """One layer of one region file, to be read in whatever process it is unpickled in.

    Made by `MmapManager.ref`. A few hundred bytes when it is pickled, however long the layer;
    immutable, and threads may share it. NumPy takes it for the layer's array (of bytes, where the
    layer is not an array), and so does what speaks DLPack.

    Parameters
    ----------
    path : path-like or URL
        Of the region file; absolute, since others may be elsewhere. One behind a URL is fetched as
        `MmapRegion.from_url` does it, where it is first read.
    edition : (int, int, int)
        Which file of that name it is: generation, creation time in ns since 1970-01-01 UTC (of
        plain V1: when it was modified), length in bytes.
    layer_id : LayerId, int or str
    load_mode : {"map", "copy"}
        Whether the file is mapped, or read into private memory: as the manager does it that made
        the reference.

    Raises
    ------
    ValueError, TypeError
        If an argument is not of that form.

    Notes
    -----
    Lifetime: the file is mapped when the layer is first read, and stays so for as long as the
    reference, or a view, is held. Where this process has that edition open already, through the
    manager that made the reference or through another one, it is shared; otherwise it is mapped
    anew, and no manager's budget counts it.

    Examples
    --------
    >>> ref = manager.ref("L15-03")
    >>> np.sum(ref, axis=0)  # NumPy takes it for the array
    array([   0., 3000., 6000., 9000.], dtype=float32)
    >>> other = manager.ref("L15-03")
    >>> ref == other, len({ref, other})
    (True, 1)
    """

    __slots__ = ("__weakref__", "_edition", "_layer_id", "_load_mode", "_path", "_region")

    def __init__(
        self,
        path: str | os.PathLike[str],
        edition: tuple[int, int, int],
        layer_id: LayerLike,
        load_mode: str = "map",
    ) -> None:
        if isinstance(path, str) and "://" in path:
            self._path = path
        else:
            self._path = os.fspath(osmem.absolute(osmem.as_path(path)))
        self._edition = Edition(*(as_integer(each, "edition") for each in edition))
        self._layer_id = as_layer_id(layer_id)
        if load_mode != "map":
            from jessymem.regions.region import check_load_mode

            check_load_mode(load_mode)
        self._load_mode = load_mode
        self._region: jessymem.MmapRegion | None = None

    @property
    def layer_id(self) -> LayerId:
        """The layer.

        Examples
        --------
        >>> manager.ref("L15-02").layer_id
        L15-02
        """
        return self._layer_id

    @property
    def path(self) -> Path | str:
        """Where the region file is; a newer generation may lie beside it (Windows). Or its URL.

        Examples
        --------
        >>> manager.ref("L15-02").path.relative_to(folder).as_posix()
        'data/D15/region.mmap'
        """
        return self._path if "://" in self._path else Path(self._path)

    @property
    def generation(self) -> int:
        """The file's generation, 0 for plain V1.

        Examples
        --------
        >>> manager.delete_layer("L15-01")
        >>> layer = manager.create_proto_dimension("D15", "Sed edits streams.")
        >>> manager.crystallize_proto_dimension(layer)
        >>> manager.ref("L15-02").generation, manager.ref(layer).generation
        (1, 3)
        """
        return self._edition.generation

    # -- reading -----------------------------------------------------------------------------------

    @clears_frames
    def get(self) -> memoryview:
        """Return the layer's bytes without a copy.

        Returns
        -------
        memoryview
            Read-only, format "B", shape ``(size,)``; valid and unchanged for as long as it is held.

        Raises
        ------
        RegionNotFound
            If another edition is at the path by now.
        DimensionNotFound
            If no file is there.
        RegionIOError, RegionFormatError
            If it cannot be mapped, or breaks the format.
        LayerNotFound, OutOfBounds
            If the file is not what it says, or was changed under its mapping.

        Examples
        --------
        >>> ref = manager.ref("L15-02")
        >>> manager.close()
        >>> bytes(ref.get())  # from the file, which the reference maps itself
        b'Grep finds lines.'
        """
        region = self._attach()
        return region.content_of(region.find_row(self._layer_id))

    @clears_frames
    def array(self) -> np.typing.NDArray[Any]:
        """Return the layer as the array that it is, without a copy.

        Returns
        -------
        ndarray
            As `MmapManager.array`.

        Raises
        ------
        TypeError
            If the layer is no array.
        RegionNotFound, DimensionNotFound, RegionIOError, RegionFormatError
            As `get`.
        LayerNotFound, OutOfBounds
            As `get`.

        Examples
        --------
        >>> ref = manager.ref("L15-03")
        >>> ref.array()[-1]
        array([0., 1., 2., 3.], dtype=float32)
        """
        return self._attach().read_array(self._layer_id)

    # -- as an array -------------------------------------------------------------------------------

    def __array__(
        self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None
    ) -> np.typing.NDArray[Any]:
        """Return the layer as NumPy asks for it; what is no array is one of bytes."""
        import numpy as np

        return np.array(self._as_array(), dtype=dtype, copy=copy)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Where the layer's elements are; they stay there for as long as the reference is held.

        Raises AttributeError where it cannot tell the dtype, as with gaps between fields: NumPy
        then asks for `__array__`.
        """
        import numpy as np

        array = self._as_array()
        found: dict[str, Any] = array.__array_interface__
        if array.dtype.names is not None and np.dtype(found["descr"]) != array.dtype:
            raise AttributeError(f"{self._layer_id}: no array interface tells {array.dtype}")
        return found

    def __buffer__(self, flags: int) -> memoryview:
        """Return the layer's buffer: of an array in its format and shape. Python 3.12 asks for it.

        Raises BufferError where no format tells the dtype, as that of dates: NumPy then asks for
        the other ways.
        """
        import numpy as np

        array = self._as_array()
        try:
            view = memoryview(array)
            if np.asarray(view).dtype == array.dtype:
                return view
        except (ValueError, RuntimeError):  # NumPy can give no format, or not read its own
            pass
        raise BufferError(f"{self._layer_id}: no format of a buffer tells {array.dtype}")

    def __dlpack__(self, **options: Any) -> Any:
        """Return the layer as a DLPack capsule, through NumPy, with NumPy's options and errors."""
        return self._as_array().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return where the layer is: in the memory of the CPU."""
        return self._as_array().__dlpack_device__()

    # -- as a value --------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        """Tell whether both name the same layer of the same edition at the same path."""
        return self._key == other._key if isinstance(other, LayerRef) else NotImplemented

    def __hash__(self) -> int:
        """Return the hash of what is named."""
        return hash(self._key)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what names the layer, in every process the same; the bytes are not read for it."""
        return "jessymem.LayerRef", self._path, *self._edition, int(self._layer_id)

    def __reduce__(self) -> tuple[type[LayerRef], tuple[Any, ...]]:
        """Pickle as what is named."""
        named = self._path, tuple(self._edition), int(self._layer_id)
        return type(self), named if self._load_mode == "map" else (*named, self._load_mode)

    def __repr__(self) -> str:
        """Show what is named."""
        return f"<LayerRef {self._layer_id} of generation {self.generation} of {self._path}>"

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _key(self) -> tuple[str, Edition, LayerId]:
        return self._path, self._edition, self._layer_id

    @property
    def _source(self) -> tuple[str, Edition, str]:
        return self._path, self._edition, self._load_mode

    @clears_frames
    def _as_array(self) -> np.typing.NDArray[Any]:
        import numpy as np

        region = self._attach()
        row = region.find_row(self._layer_id)
        if region.form_of(row) is not None:
            return region.array_of(row)
        return np.frombuffer(region.content_of(row), np.uint8)

    def _attach(self) -> jessymem.MmapRegion:
        if self._region is None:
            region = _open_regions.get(self._source)
            if region is None:
                region = self._share(self._open())
            self._region = region
        return self._region

    def _share(self, region: jessymem.MmapRegion) -> jessymem.MmapRegion:
        """Let references to this edition use a region of it; return the one that they do use."""
        return _open_regions.setdefault(self._source, region)

    def _open(self) -> jessymem.MmapRegion:
        from jessymem.pickling import edition_gone
        from jessymem.regions.files import RegionFiles

        dimension, path = self._layer_id.dimension, self.path
        if isinstance(path, str):
            region = jessymem.MmapRegion.from_url(path, dimension, load_mode=self._load_mode)
        else:
            files = RegionFiles(dimension, path, self._load_mode)
            region = files.open_edition(self._edition)
        if region.edition != self._edition:
            raise edition_gone(dimension, path, self._edition, region.edition)
        return region
