"""What is known of a region and its layers, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

import jessymem
from jessymem.errors import shown
from jessymem.ids import LayerId


class ContentLocation(Enum):
    """Where a layer's bytes are.

    Examples
    --------
    >>> manager.overlay_layer("L16-00", "Snow.")
    >>> layer = manager.create_proto_dimension("D16", "Sun.")
    >>> [manager.get_layer_info(each).location.name for each in ("L16-07", "L16-00", layer)]
    ['MMAP', 'HYBRID', 'HEAP']
    """

    MMAP = "mmap"  # in a region file's pages
    HEAP = "heap"  # in this process's own memory
    HYBRID = "hybrid"  # a file's layer with content laid over it


class LayerState(Enum):
    """How far a layer has come on its way from memory to disk.

    Examples
    --------
    >>> layer = manager.create_proto_dimension("D16", "Sun.")
    >>> manager.get_layer_info(layer).state.name
    'ACTIVE'
    >>> manager.crystallize_proto_dimension(layer)
    >>> manager.get_layer_info(layer).state.name
    'PERMANENT'
    """

    CREATED = "created"
    ACTIVE = "active"
    CRYSTALLIZING = "crystallizing"
    CRYSTALLIZED = "crystallized"
    PERMANENT = "permanent"


def shortest(frequency: float) -> str:
    """Write a frequency as it was given: the shortest number that is this 32-bit float."""
    return str(np.float32(frequency))


def kind_of(layer: LayerInfo) -> str:
    """Say what a layer's content is: ``text``, ``bytes``, or an array's dtype and shape."""
    if layer.dtype is None or layer.shape is None:
        return layer.encoding
    return f"array {layer.dtype} {'x'.join(map(str, layer.shape))}".rstrip()


@dataclass(frozen=True, repr=False)
class LayerInfo:
    """One layer, without its content.

    Attributes
    ----------
    layer_id : LayerId
    name : str
        Empty where its writer gave no name; plain V1 files have no layer names.
    frequency : float
        A finite 32-bit float, in the writer's unit.
    depth : int
        0 (surface) to 255.
    offset : int
        Of the content, in bytes from the start of the file that holds it, or of the pool where it
        is in memory; `MmapManager.dump_state` tells which. -1: it is compressed, so the file does
        not hold it.
    size : int
        Of the content, in bytes. One that is compressed takes `stored_size` in its file.
    keywords : tuple of str
    parent : LayerId or None
    children : tuple of LayerId
        The loaded layers that name this one as their parent, ascending.
    location : ContentLocation
    state : LayerState
    dtype : numpy.dtype or None
        Of an array; None where the content is not an array.
    shape : tuple of int or None
        Of an array.
    encoding : str
        What its writer gave: "text" (UTF-8), "array", or "bytes"; plain V1 files do not say, and
        have "bytes".
    compression : str or None
        How its file has it: "zstd"; None: as it is.
    stored_size : int
        Of the bytes that it takes in its file, or in memory.

    Examples
    --------
    >>> info = manager.get_layer_info("L15-03")
    >>> info
    <LayerInfo L15-03 'vectors', 48,000 bytes, array float32 3000x4,
     frequency=1.0, depth=0, MMAP, PERMANENT>
    >>> info.shape, info.dtype.itemsize
    ((3000, 4), 4)
    """

    layer_id: LayerId
    name: str
    frequency: float
    depth: int
    offset: int
    size: int
    keywords: tuple[str, ...]
    parent: LayerId | None
    children: tuple[LayerId, ...]
    location: ContentLocation
    state: LayerState
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] | None = None
    encoding: str = "bytes"
    compression: str | None = None
    stored_size: int = 0

    def __repr__(self) -> str:
        """Say in one line what it is; what it has not is left out."""
        name = f" {shown(self.name)}" if self.name else ""
        parts = [f"{self.layer_id}{name}", f"{self.size:,} bytes", kind_of(self)]
        if self.compression is not None:
            parts.append(f"{self.compression} {self.stored_size:,} bytes")
        parts += [f"frequency={shortest(self.frequency)}", f"depth={self.depth}"]
        if self.keywords:
            parts.append(f"keywords={self.keywords}")
        if self.parent is not None:
            parts.append(f"parent={self.parent}")
        if self.children:
            parts.append(f"children={len(self.children)}")
        return f"<LayerInfo {', '.join([*parts, self.location.name, self.state.name])}>"

    def _repr_html_(self) -> str:
        """Show it in a notebook's cell."""
        return jessymem.notebooks.show_layer(self)


@dataclass(frozen=True)
class RegionMetadata:
    """One region, without its contents.

    Attributes
    ----------
    version : int
        Of the file format: 1.
    generation : int
        Grows by one each time a writer of this package replaces the file; 0: plain V1, which does
        not say.
    created_at : int
        Nanoseconds since 1970-01-01 UTC; 0 where the file does not say.
    dimension_name : str
    total_size : int
        Of the file, in bytes.
    content_offset : int
        Where metadata end and contents may begin, in bytes.
    layers : tuple of LayerInfo
        Ascending by layer number; their children are those of the same region.

    Examples
    --------
    >>> found = region.metadata
    >>> found.dimension_name, found.generation, [info.name for info in found.layers]
    ('tools', 1, ['bash/README', 'bash/usage', 'grep/README', 'vectors'])
    """

    version: int
    generation: int
    created_at: int
    dimension_name: str
    total_size: int
    content_offset: int
    layers: tuple[LayerInfo, ...]
