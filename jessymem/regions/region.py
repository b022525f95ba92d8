"""`MmapRegion`: one region's bytes, mapped or copied, checked, and read without a copy."""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from jessymem import osmem
from jessymem.computed_once import computed_once
from jessymem.config import ADVICE_MODES, LOAD_MODES
from jessymem.errors import (
    AllocationFailed,
    DimensionNotFound,
    LayerNotFound,
    OutOfBounds,
    RegionFormatError,
    RegionIOError,
    empty_frames,
)
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    LayerId,
    LayerLike,
    as_dimension_id,
    as_layer_id,
)
from jessymem.kernels import schema as s
from jessymem.regions import faults, layout
from jessymem.regions.metadata import ContentLocation, LayerInfo, LayerState, RegionMetadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERIFY_LEVELS: Final = ("header", "metadata", "full")


#: What one read from Python needs, each a zero-copy view: the whole region, per row where its
#: content begins and ends, layer number to row (None: they are the same), the region's length.
#: A plain tuple: a named one takes 30 ns longer to unpack, a fifth of the read.
Reader: TypeAlias = tuple[memoryview, memoryview, memoryview, memoryview | None, int]


class Edition(NamedTuple):
    """What tells a region from one that is published before or after it; the later is greater."""

    generation: int
    made_ns: int  # when it was created, by its own account; plain V1: when its file was modified
    n_bytes: int


class MmapRegion:
    """One region, read-only; made by `from_file` or by a `RegionBuilder`.

    Threads may share it. The memory is given back when the region and every view cut from it are
    gone.

    Attributes
    ----------
    dimension_id : DimensionId
    path : pathlib.Path or None
        None: the region was never a file.
    """

    def __init__(
        self,
        dimension_id: DimensionId,
        path: Path | None,
        data: NDArray[np.uint8],
        state: int,
        identity: osmem.FileIdentity | None,
    ) -> None:
        self.dimension_id = dimension_id
        self.path = path
        self.data = data  # the owner: every view leads here, so its end is the memory's end
        self.state = state
        self.identity = identity
        self._bytes = data.view(np.ndarray)
        self.layout = layout.read_layout(self._bytes, self._source)
        self.index = layout.build_index(self.layout.rows)
        self._view = memoryview(data)
        self.reader = self._cut_reader()

    @classmethod
    def from_file(
        cls,
        dimension_id: DimensionLike,
        path: str | os.PathLike[str],
        *,
        load_mode: str = "map",
        advice: str = "none",
    ) -> MmapRegion:
        """Map a region file and check its header and metadata.

        Parameters
        ----------
        dimension_id : DimensionId, int or str
            The dimension that the file must hold.
        path : path-like
        load_mode : {"map", "copy"}
            "copy" reads the file into private memory instead.
        advice : {"willneed", "random", "sequential", "none"}
            What the system is told of the mapping.

        Raises
        ------
        DimensionNotFound
            If there is no such file.
        RegionIOError
            If it cannot be opened, mapped or read, or is no regular file.
        RegionFormatError
            If it breaks the format. Nothing stays open or mapped.
        ValueError, TypeError
            If `dimension_id` or `path` is none, or `load_mode` or `advice` none of those.
        """
        dimension = as_dimension_id(dimension_id)
        where = osmem.as_path(path)
        for name, value, choices in (
            ("load_mode", load_mode, LOAD_MODES),
            ("advice", advice, ADVICE_MODES),
        ):
            if value not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}, not {value!r}")
        return cls.admitted(dimension, where, load_mode, advice, osmem.admit_all)

    @classmethod
    def admitted(
        cls,
        dimension: DimensionId,
        where: Path,
        load_mode: str,
        advice: str,
        admit: Callable[[int], None],
    ) -> MmapRegion:
        """Do as `from_file` does, asking `admit` first.

        Raises
        ------
        Exception
            As `from_file`, or what `admit` raises when it is called with the open file's length:
            nothing is mapped or read by then, and the file is closed again.
        """
        take = osmem.read_file if load_mode == "copy" else osmem.map_file
        state = s.REGION_COPIED if load_mode == "copy" else s.REGION_MAPPED
        try:
            data, identity = take(where, admit)
        except OSError as error:
            empty_frames(error)
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise DimensionNotFound(
                    f"{dimension}: no region file at {where} (errno {error.errno})",
                    dimension=dimension,
                    path=str(where),
                ) from None
            operation = "read" if load_mode == "copy" else "map"
            raise RegionIOError.from_os_error(error, operation, where, dimension) from error
        except AllocationFailed as error:
            raise AllocationFailed(f"{dimension}: {error}", **error.details) from error
        try:
            region = cls(dimension, where, data, state, identity)
        except BaseException as error:
            del data
            empty_frames(error)
            raise
        osmem.let_go_of_pages(data)
        osmem.advise(data, advice)
        return region

    # -- reading -----------------------------------------------------------------------------------

    def read_content(self, offset: int, size: int) -> memoryview:
        """Return bytes of the region without a copy.

        Parameters
        ----------
        offset, size : int
            In bytes, from the region's start.

        Returns
        -------
        memoryview
            Read-only, format "B", shape ``(size,)``; valid and unchanged for as long as it is held.

        Raises
        ------
        OutOfBounds
            If any of it lies outside the region.
        """
        offset, size = operator.index(offset), operator.index(size)
        if offset < 0 or size < 0 or offset + size > self.size:
            raise OutOfBounds(
                f"{self.dimension_id}: {size} bytes at {offset} lie outside its {self.size}",
                offset=offset,
                size=size,
                region_size=self.size,
            )
        return self._view[offset : offset + size]

    def read_string(self, offset: int, size: int) -> str:
        """Return bytes of the region as text; what is no UTF-8 is shown as U+FFFD.

        Raises
        ------
        OutOfBounds
            As `read_content`.
        """
        return str(self.read_content(offset, size), "utf-8", "replace")

    def get_layer_info(self, layer_id: LayerLike) -> LayerInfo:
        """Describe one layer; its children are those of this region.

        Raises
        ------
        LayerNotFound
            If the region has no such layer.
        RegionFormatError
            If its keywords are malformed.
        ValueError, TypeError
            If `layer_id` is none.
        """
        wanted = as_layer_id(layer_id)
        row = self.find_row(wanted)
        return self.info_of(wanted, row, self.children_of(wanted))

    def list_layers(self) -> list[LayerId]:
        """Return the ids of all layers, ascending."""
        return LayerId.in_order(self.dimension_id, self.layout.rows["layer_num"].tolist())

    def verify_integrity(self, level: str = "full") -> bool:
        """Compare the region's bytes, as they are now, with its checksums.

        Parameters
        ----------
        level : {"header", "metadata", "full"}
            Up to the header; up to the metadata, plain entries and table against each other; all,
            with every content. Plain V1 files carry no checksums: there the structure is checked.

        Returns
        -------
        bool
            True.

        Raises
        ------
        RegionFormatError
            At the first difference: field, offset, expected, got. A file that was truncated since
            it was mapped is found without touching the pages that are gone.
        ValueError
            If there is no such level.
        """
        from jessymem.regions.verification import verify_layout

        if level not in VERIFY_LEVELS:
            raise ValueError(f"level is one of {', '.join(VERIFY_LEVELS)}, not {level!r}")
        on_disk = osmem.mapped_file_bytes(self.data)
        if on_disk is not None and on_disk != self.size:
            raise RegionFormatError(
                f"{self.dimension_id}: {self.path} is {on_disk} bytes now, {self.size} were mapped",
                field="total_size",
                offset=s.HEADER.fields["total_size"][1],  # type: ignore[index]
                expected=self.size,
                got=on_disk,
                dimension=self.dimension_id,
                path=self._source.path,
            )
        verify_layout(self._bytes, level, self._source)
        return True

    @property
    def size(self) -> int:
        """Length of the region in bytes."""
        return len(self._bytes)

    @property
    def generation(self) -> int:
        """Its generation, 0 for plain V1."""
        return self.layout.generation

    @property
    def edition(self) -> Edition:
        """Which of the files that may bear its name it is."""
        made_ns = self.layout.created_at
        if not self.layout.is_extended and self.identity is not None:
            made_ns = self.identity.modified_ns
        return Edition(self.generation, made_ns, self.size)

    @computed_once
    def metadata(self) -> RegionMetadata:
        """All that is known of the region and its layers, without contents."""
        layers = (
            self.info_of(layer_id, row, self.children_of(layer_id))
            for row, layer_id in enumerate(self.list_layers())
        )
        return RegionMetadata(
            version=s.FORMAT_VERSION,
            generation=self.layout.generation,
            created_at=self.layout.created_at,
            dimension_name=self.layout.header.name,
            total_size=self.size,
            content_offset=self.layout.content_start,
            layers=tuple(layers),
        )

    def __repr__(self) -> str:
        """Show what it is."""
        n_layers = len(self.layout.rows)
        return f"<MmapRegion {self.dimension_id} {n_layers} layers {self.size:,} bytes {self.path}>"

    # -- for the manager ---------------------------------------------------------------------------

    @property
    def location(self) -> ContentLocation:
        """Where its contents are."""
        return ContentLocation.MMAP if self.state == s.REGION_MAPPED else ContentLocation.HEAP

    @property
    def layer_state(self) -> LayerState:
        """How far its layers have come: on disk, or simulated."""
        return LayerState.ACTIVE if self.state == s.REGION_SIMULATED else LayerState.PERMANENT

    def describe_into(self, slot: Any) -> None:
        """Fill one REGION row's addresses and lengths; the region must outlive the row."""
        slot["table_address"] = _address(self.layout.rows)
        slot["n_layers"] = len(self.layout.rows)
        slot["index_address"] = 0 if self.index is None else _address(self.index)
        slot["n_index"] = 0 if self.index is None else len(self.index)
        slot["content_address"] = _address(self._bytes)
        slot["n_bytes"] = self.size
        slot["n_charged"] = osmem.round_to_pages(self.size)
        slot["generation"] = self.layout.generation
        slot["dimension"] = self.dimension_id
        slot["state"] = self.state

    def find_row(self, layer_id: LayerId) -> int:
        """Return the row of a layer, or raise LayerNotFound."""
        number = layer_id.layer
        if layer_id.dimension == self.dimension_id:
            if self.index is not None:
                number = int(self.index[number]) if number < len(self.index) else s.NO_LAYER
            if number < len(self.layout.rows):
                return number
        raise LayerNotFound(f"{layer_id} is not in {self._source.path}", layer=layer_id)

    def info_of(self, layer_id: LayerId, row: int, children: tuple[LayerId, ...]) -> LayerInfo:
        """Describe the layer in a row; its number is not read again, the file may be rewritten."""
        record = self.layout.rows[row]
        start = int(record["content_offset"])
        return LayerInfo(
            layer_id=layer_id,
            name=self.name_of(row),
            frequency=float(record["frequency"]),
            depth=int(record["depth"]),
            offset=start,
            size=int(record["content_end"]) - start,
            keywords=self.keywords_of(row),
            parent=self.parent_of(row),
            children=children,
            location=self.location,
            state=self.layer_state,
        )

    def content_of(self, row: int) -> memoryview:
        """Return a layer's bytes; raise OutOfBounds where the file was changed under its row."""
        content, starts, ends, _, n_bytes = self.reader
        start, end = starts[row], ends[row]
        if start <= end <= n_bytes:
            return content[start:end]
        number = self.layout.rows[row]["layer_num"]
        raise OutOfBounds(
            f"layer {number} of {self.dimension_id}: bytes {start} to {end} lie outside its "
            f"{self.size}; {self.path} was changed while it was mapped",
            offset=start,
            size=end - start,
            region_size=self.size,
        )

    def parent_of(self, row: int) -> LayerId | None:
        """Return a layer's parent; None also where the file was changed to name no layer."""
        packed = int(self.layout.rows[row]["parent"])
        return LayerId.from_packed(packed) if packed >> s.LAYER_BITS else None

    def name_of(self, row: int) -> str:
        """Return a layer's name; what is no UTF-8 is shown as U+FFFD."""
        piece = layout.row_text(self.layout, self.layout.rows[row], "name")
        return piece.tobytes().decode("utf-8", "replace")

    def keywords_of(self, row: int) -> tuple[str, ...]:
        """Return a layer's keywords; what is no UTF-8 is shown as U+FFFD."""
        record = self.layout.rows[row]
        pieces = layout.split_keywords(self.layout, record, self._source)
        return tuple(piece.decode("utf-8", "replace") for piece in pieces)

    @computed_once
    def rows_by_keyword(self) -> dict[str, list[int]]:
        """Rows per keyword, ascending; made when first asked for, in O(keywords of the region)."""
        found: dict[str, list[int]] = {}
        for row in range(len(self.layout.rows)):
            for keyword in dict.fromkeys(self.keywords_of(row)):
                found.setdefault(keyword, []).append(row)
        return found

    def children_of(self, parent: LayerId) -> tuple[LayerId, ...]:
        """Return this region's layers that name `parent`, ascending."""
        return tuple(self._children_by_parent.get(int(parent), ()))

    @computed_once
    def _children_by_parent(self) -> dict[int, list[LayerId]]:
        rows = self.layout.rows
        named = rows[rows["parent"] != 0]
        found: dict[int, list[LayerId]] = {}
        children = LayerId.in_order(self.dimension_id, named["layer_num"].tolist())
        for parent, child in zip(named["parent"].tolist(), children, strict=True):
            found.setdefault(parent, []).append(child)
        return found

    def _cut_reader(self) -> Reader:
        """Cut the views that single reads from Python go through."""
        rows = self.layout.rows
        index = None if self.index is None else memoryview(self.index)
        starts, ends = memoryview(rows["content_offset"]), memoryview(rows["content_end"])
        return self._view, starts, ends, index, self.size

    @property
    def _source(self) -> faults.Source:
        return faults.Source(self.dimension_id, str(self.path) if self.path else "memory")


def _address(array: NDArray[Any]) -> int:
    """Return where an array's first byte lies."""
    return array.ctypes.data
