"""`RegionBuilder`: layers in, one durable region file out."""

from __future__ import annotations

import math
import operator
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from jessymem import osmem
from jessymem.errors import DimensionNotFound, DuplicateLayer, RegionFormatError, RegionIOError
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    LayerId,
    LayerLike,
    as_dimension_id,
    as_layer_id,
)
from jessymem.kernels import schema as s
from jessymem.regions import faults
from jessymem.regions.encoding import LayerDraft, write_layout
from jessymem.regions.region import MmapRegion

_MAX_FREQUENCY: Final = float(np.finfo(np.float32).max)

Content = str | bytes | bytearray | memoryview


class RegionBuilder:
    """Collects layers and writes them as one region file.

    Parameters
    ----------
    dimension_id : DimensionId, int or str
    name : str
        The dimension's name, at most 64 bytes as UTF-8.

    Raises
    ------
    ValueError, TypeError
        If the id or the name is not of that form.

    Examples
    --------
    >>> builder = RegionBuilder("D07", "Technical")
    >>> builder.add_layer(0, "How things work", keywords=["tools"], frequency=1.2)
    L07-00
    """

    def __init__(self, dimension_id: DimensionLike, name: str) -> None:
        self._dimension = as_dimension_id(dimension_id)
        encoded = _encode(name, f"{self._dimension}: the dimension's name")
        if len(encoded) > s.MAX_NAME_BYTES:
            raise ValueError(
                f"{self._dimension}: the dimension's name is {len(encoded)} bytes as UTF-8, "
                f"the format has room for {s.MAX_NAME_BYTES}"
            )
        if "\0" in name:
            raise ValueError(f"{self._dimension}: the dimension's name contains a null character")
        self._name = name
        self._drafts: dict[int, LayerDraft] = {}

    @property
    def dimension_id(self) -> DimensionId:
        """The dimension that is being built."""
        return self._dimension

    def __len__(self) -> int:
        """Return how many layers were added."""
        return len(self._drafts)

    def add_layer(
        self,
        layer: int,
        content: Content,
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
        content : str, bytes, bytearray or memoryview
            Kept as it is (bytes) or as UTF-8 (str); may be empty, at most 4 GiB - 1. What is
            mutable is copied at once.
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
        """
        layer_id = LayerId(self._dimension, layer)
        if layer_id.layer in self._drafts:
            raise DuplicateLayer(f"{layer_id} was added before", layer=layer_id)
        data, encoding = _as_content(content, layer_id)
        _encode(name, f"{layer_id}: the name")
        self._drafts[layer_id.layer] = LayerDraft(
            layer=layer_id.layer,
            content=data,
            name=name,
            frequency=_as_frequency(frequency, layer_id),
            depth=_as_depth(depth, layer_id),
            keywords=_as_keywords(keywords, layer_id),
            parent=_as_parent(parent, layer_id),
            encoding=encoding,
        )
        return layer_id

    def build_to_file(self, path: str | os.PathLike[str]) -> MmapRegion:
        """Write the region and map it.

        Readers of an older file under that name keep it until they let go. A file of the same
        dimension that is replaced passes its generation on: the new one's is higher by one.

        Parameters
        ----------
        path : path-like
            Missing directories are made.

        Returns
        -------
        MmapRegion
            The file as it now is on disk.

        Raises
        ------
        RegionIOError
            If the system refuses a step; the old file is untouched and no temporary file remains.
            Where only the last steps fail (syncing the directory, mapping the new file), the new
            file is in place already, whole.
        ValueError, TypeError
            If names and keywords together pass the format's limit for metadata, or `path` is none.
        RegionFormatError
            If the file that is there has the highest generation that there is.

        Notes
        -----
        Durability: the bytes are written to a temporary file beside `path`, synced, renamed over
        `path`, and the directory is synced (with each directory that was made). When this returns
        the file outlives a power failure, as far as the medium keeps its word.
        """
        target = osmem.as_path(path)
        total_size, pieces = write_layout(
            self._dimension,
            self._name,
            list(self._drafts.values()),
            generation=self._next_generation(target),
            created_at=time.time_ns(),
        )
        write_region(target, pieces, total_size, self._dimension)
        return MmapRegion.from_file(self._dimension, target)

    def build_to_memory(self) -> MmapRegion:
        """Lay the region out in private memory, as it would stand in a file.

        Returns
        -------
        MmapRegion
            Without a path.

        Raises
        ------
        AllocationFailed
            If the system has no memory left.
        ValueError
            As `build_to_file`.
        """
        drafts = list(self._drafts.values())
        total_size, pieces = write_layout(self._dimension, self._name, drafts, 1, 0)
        data = osmem.private_copy(pieces, total_size)
        return MmapRegion(self._dimension, None, data, s.REGION_SIMULATED, identity=None)

    def _next_generation(self, target: Path) -> int:
        """Follow the file that is replaced; a file that cannot be read is no reason to go back."""
        try:
            replaced = MmapRegion.from_file(self._dimension, target)
        except (DimensionNotFound, RegionFormatError):
            return 1  # nothing there, or nothing that has a generation
        if replaced.generation == s.MAX_GENERATION:
            raise faults.broken_extension(
                faults.Source(self._dimension, str(target)),
                "generation",
                f"< {s.MAX_GENERATION}, so that another can follow",
                replaced.generation,
            )
        return replaced.generation + 1


def write_region(target: Path, pieces: list[Any], total_size: int, dimension: DimensionId) -> None:
    """Put `pieces` under the name `target` durably: old bytes or new ones, never a mixture.

    Raises RegionIOError; the temporary file is gone then, and so is each directory that was made
    for it.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    operation = "make the directory of"
    made: list[Path] = []
    try:
        made = osmem.make_directory(target.parent)
        operation = "create"
        descriptor = osmem.create_file(temporary)
        try:
            operation = "write"
            osmem.write_pieces(descriptor, temporary, pieces)
            operation = "sync"
            osmem.sync_file(descriptor, temporary)
        finally:
            osmem.close_file(descriptor)
        operation = "rename"
        osmem.replace_file(temporary, target)
    except BaseException as error:
        _discard(temporary, made)
        if isinstance(error, OSError):
            raise RegionIOError.from_os_error(error, operation, target, dimension) from error
        raise
    try:
        operation = "sync the directory of"
        for directory in [target.parent, *(new.parent for new in reversed(made))]:
            osmem.sync_directory(directory)
    except OSError as error:
        raise RegionIOError.from_os_error(error, operation, target, dimension) from error


def _discard(temporary: Path, made: list[Path]) -> None:
    with suppress(OSError):  # the error that led here says more
        osmem.remove_file(temporary)
        for directory in reversed(made):
            directory.rmdir()


def _encode(text: object, what: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"{what} is a string, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} cannot be written as UTF-8: {error}") from None


def _as_content(content: object, layer_id: LayerId) -> tuple[Any, int]:
    if isinstance(content, str):
        data, encoding = _encode(content, f"{layer_id}: the content"), s.ENCODING_TEXT
    elif isinstance(content, bytes | bytearray | memoryview):
        data, encoding = bytes(content), s.ENCODING_BYTES
    else:
        raise TypeError(f"{layer_id}: content is text or bytes, not {type(content).__name__}")
    if len(data) > s.MAX_CONTENT_BYTES:
        raise ValueError(
            f"{layer_id}: content of {len(data):,} bytes; the format allows {s.MAX_CONTENT_BYTES:,}"
        )
    return data, encoding


def _as_frequency(value: object, layer_id: LayerId) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{layer_id}: the frequency is a number, not {type(value).__name__}")
    try:
        frequency = float(value)
    except OverflowError:  # an integer beyond every float
        frequency = math.inf
    if not abs(frequency) <= _MAX_FREQUENCY:  # NaN included
        raise ValueError(f"{layer_id}: the frequency is finite as a 32-bit float, not {value}")
    return frequency


def _as_depth(value: Any, layer_id: LayerId) -> int:
    try:
        depth = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        raise TypeError(
            f"{layer_id}: the depth is an integer, not {type(value).__name__}"
        ) from None
    if not 0 <= depth <= 255:
        raise ValueError(f"{layer_id}: the depth is 0 to 255, not {value}")
    return depth


def _as_keywords(value: Iterable[str], layer_id: LayerId) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{layer_id}: keywords are a sequence of strings, not {value!r}")
    keywords = tuple(value)
    for keyword in keywords:
        _encode(keyword, f"{layer_id}: a keyword")
    if len(keywords) > s.MAX_KEYWORDS:
        raise ValueError(
            f"{layer_id}: {len(keywords):,} keywords; the format allows {s.MAX_KEYWORDS:,}"
        )
    return keywords


def _as_parent(value: LayerLike | None, layer_id: LayerId) -> LayerId | None:
    parent = None if value is None else as_layer_id(value)
    if parent == layer_id:
        raise ValueError(f"{layer_id}: a layer is not its own parent")
    return parent
