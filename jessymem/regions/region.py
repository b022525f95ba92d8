"""`MmapRegion`: one region's bytes, mapped or copied, checked, and read without a copy."""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

import jessymem
from jessymem import osmem, system_calls
from jessymem.aligned import aligned_copy
from jessymem.computed_once import computed_once
from jessymem.config import ADVICE_MODES, LOAD_MODES
from jessymem.errors import (
    AllocationFailed,
    DimensionNotFound,
    OutOfBounds,
    RegionFormatError,
    RegionIOError,
    RegionNotFound,
    clears_frames,
    empty_frames,
    shown,
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
from jessymem.regions.layout import Edition
from jessymem.regions.owners import Owners
from jessymem.regions.table import LayerTable

VERIFY_LEVELS: Final = ("header", "metadata", "stored", "full")


def check_load_mode(load_mode: str) -> str:
    """Return a way to open files; raise ValueError where there is no such mode."""
    if load_mode not in LOAD_MODES:
        raise ValueError(f"load_mode is one of {', '.join(LOAD_MODES)}, not {shown(load_mode)}")
    return load_mode


class MmapRegion(LayerTable):
    """One region, read-only; made by `from_file` or by a `RegionBuilder`.

    Threads may share it. The memory is freed when the region and every view cut from it are
    gone.

    Attributes
    ----------
    dimension_id : DimensionId
    path : pathlib.Path or None
        None: the region was never a file.
    n_charged_bytes : int
        What its memory takes: its length in whole pages, huge ones where it was copied into such.
    is_own : bool
        Whether this process had just written it, and read it back.

    Examples
    --------
    >>> region = MmapRegion.from_file("D15", "data/D15/region.mmap")
    >>> region.name, region.generation, len(region.list_layers())
    ('tools', 1, 4)
    """

    def __init__(
        self,
        dimension_id: DimensionId,
        path: Path | None,
        data: np.typing.NDArray[np.uint8],
        state: int,
        identity: osmem.FileIdentity | None,
        n_bytes: int | None = None,  # of the file, where `data` is only what precedes the contents
        written: osmem.FileIdentity | None = None,
        *,
        checks_rows: bool = True,
    ) -> None:
        self.dimension_id = dimension_id
        self.path = path
        self.data = data  # the owner: every view leads here, so its end is the memory's end
        self.state = state
        self.identity = identity
        self.charge_id: int | None = None  # of its bytes
        self.table_charge: Any = None  # a `jessymem.budget.Charge`
        self.name_table: jessymem.hints.NameTable | None = None  # made when it is asked for
        self._bytes = data.view(np.ndarray)
        self.size = len(data) if n_bytes is None else n_bytes
        self.n_charged_bytes = osmem.round_to_pages(self.size)
        self.is_own = written is not None and written == identity
        source = self._source
        self.layout = layout.read_layout(
            self._bytes, source, n_bytes, checks_rows=checks_rows, is_own=self.is_own
        )
        self.name = self.layout.header.name
        self.generation = self.layout.generation
        self.edition = self._read_edition()
        self.rows = self.layout.rows
        self.index = layout.build_index(self.rows)
        self._view = memoryview(data)
        if self.layout.frames is not None:
            from jessymem.regions.frames import Frames

            self.frames = Frames(self.layout, self._view, source)
        self._cut_reader(self._view)

    #: Of a region with compressed layers.
    frames: jessymem.hints.Frames | None = None

    def _own_owners(self) -> Sequence[Any]:
        """Return owners of compressed layers, None for what is not inflated, or not compressed."""
        if self.frames is None:
            return ()
        return Owners([None] * len(self.rows))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as path and edition; who unpickles it maps the file anew.

        Raises
        ------
        TypeError
            If it was never a file.
        """
        if self.path is None:
            raise TypeError(
                f"{self.dimension_id} cannot be pickled: it was never a file, and its memory "
                "belongs to this process"
            )
        mode = "copy" if self.state == s.REGION_COPIED else "map"
        where = os.fspath(osmem.absolute(self.path))
        return _open_again, (int(self.dimension_id), where, tuple(self.edition), mode)

    @classmethod
    @clears_frames
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
            "copy" reads the file into private memory instead, and so does "map" where the file
            system lets no file be mapped.
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
            If `dimension_id` is not a dimension id, `path` not a path, or `load_mode` or `advice`
            not one of those above.

        Examples
        --------
        >>> region = MmapRegion.from_file("D16", "data/D16/region.mmap", load_mode="copy")
        >>> region.list_layers()
        [L16-00, L16-07]
        >>> MmapRegion.from_file("D15", "data/D16/region.mmap")
        Traceback (most recent call last):
            ...
        jessymem.errors.RegionFormatError: D15: ...: dimension_id at byte 0: expected 15, got 16
        """
        dimension = as_dimension_id(dimension_id)
        where = osmem.as_path(path)
        check_load_mode(load_mode)
        if advice not in ADVICE_MODES:
            raise ValueError(f"advice is one of {', '.join(ADVICE_MODES)}, not {shown(advice)}")
        return cls.admitted(dimension, where, load_mode, advice, osmem.admit_all)

    @classmethod
    def admitted(
        cls,
        dimension: DimensionId,
        where: Path,
        load_mode: str,
        advice: str,
        admit: Callable[[int], object],
        written: osmem.FileIdentity | None = None,
        *,
        checks_rows: bool = True,
        placement: jessymem.hints.Placement | None = None,
    ) -> MmapRegion:
        """Do as `from_file` does, asking `admit` first; `checks_rows` as for `layout.read_layout`.

        If it is the file that was just `written`, and read back, its rows are not checked again.
        What is copied lies in memory as a `placement` has it.

        Raises
        ------
        Exception
            As `from_file`, or what `admit` raises when it is called with the open file's length:
            nothing is mapped or read by then, and the file is closed again. What it returns is held
            for as long as the region's memory is.
        """
        take: Callable[..., osmem.FileBytes] = osmem.map_file
        if load_mode == "copy":
            take = osmem.read_file
            if placement is not None:
                take = partial(osmem.read_file, take=placement.copy_memory)
        elif load_mode == "lease":
            take = partial(osmem.map_file, is_leased=True)
        state = s.REGION_COPIED if load_mode == "copy" else s.REGION_MAPPED
        try:
            data, identity = take(where, admit)
        except osmem.NotMappable as error:
            empty_frames(error)
            mode, check = "copy", checks_rows
            facts = dimension, where, mode, advice, admit, written
            region = cls.admitted(*facts, checks_rows=check, placement=placement)
            system_calls.tell(error.operation, where.parent, error)
            return region
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
            parts = dimension, where, data, state, identity
            region = cls(*parts, written=written, checks_rows=checks_rows)
            if placement is not None:
                region.n_charged_bytes = osmem.n_taken(data)
        except BaseException as error:
            del data
            empty_frames(error)
            raise
        if not region.is_own:  # nothing was touched to check it
            osmem.drop_pages(data)
        osmem.advise(data, advice)
        return region

    @classmethod
    @clears_frames
    def from_url(
        cls,
        url: str,
        dimension_id: DimensionLike | None = None,
        *,
        load_mode: str = "map",
        advice: str = "none",
        storage_options: Mapping[str, Any] | None = None,
        cache: jessymem.FileCache | None = None,
    ) -> MmapRegion:
        """Map a region file behind a URL; one that is not on this machine is fetched first.

        Needs the extra ``remote``, and for most protocols what fsspec names.

        Parameters
        ----------
        url : str
            As fsspec takes it: ``s3://...``, ``https://...``, ``file://...``, ``memory://...``.
        dimension_id : DimensionId, int or str, optional
            The dimension that the file must hold; by default whichever it is of.
        load_mode : {"map", "copy"}
        advice : {"willneed", "random", "sequential", "none"}
            Both as in `from_file`.
        storage_options : mapping, optional
            What fsspec's file system is made with.
        cache : FileCache, optional
            Where a whole file is kept, and checked by every checksum before it is believed; by
            default one in the user's cache folder. It stays there for as long as the region, or a
            view of it, is held.

        Raises
        ------
        RemoteError
            If the store does not give the file: URL, range and cause.
        RegionIOError
            If the cache cannot be written, or has no room.
        RegionFormatError
            If the file breaks the format.
        ImportError
            If the extra, or what the protocol needs, is missing.
        ValueError, TypeError
            As `from_file`.

        Examples
        --------
        >>> url = (folder / "data/D15/region.mmap").as_uri()
        >>> region = MmapRegion.from_url(url)
        >>> region.dimension_id, region.n_layers
        (D15, 4)
        """
        from jessymem.regions.remote import open_url

        if not isinstance(url, str):
            raise TypeError(f"a URL is a str, not {shown(url)}")
        check_load_mode(load_mode)
        if advice not in ADVICE_MODES:
            raise ValueError(f"advice is one of {', '.join(ADVICE_MODES)}, not {shown(advice)}")
        dimension = None if dimension_id is None else as_dimension_id(dimension_id)
        return open_url(url, dimension, load_mode, advice, storage_options, cache)

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

        Examples
        --------
        >>> info = region.get_layer_info("L15-02")
        >>> bytes(region.read_content(info.offset, info.size))
        b'Grep finds lines.'
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

        Examples
        --------
        >>> region.read_string(84, 13)  # what begins every region file of version 1
        'JESSY_MMAP_V1'
        """
        return str(self.read_content(offset, size), "utf-8", "replace")

    @clears_frames
    def read_array(self, layer_id: LayerLike) -> np.typing.NDArray[Any]:
        """Return a layer as the array that it is, without a copy.

        Returns
        -------
        ndarray
            Read-only, with the dtype, shape and order that it was added with; valid and unchanged
            for as long as it is held. Its first byte is on a 64-byte boundary in files that this
            package wrote.

        Raises
        ------
        LayerNotFound
            If the region has no such layer.
        TypeError
            If the layer is no array, or `layer_id` not a layer id.
        RegionFormatError
            If its description is malformed.
        OutOfBounds
            If the file was changed under the mapping so that the layer would lie outside.
        ValueError
            If `layer_id` is not a layer id.

        Examples
        --------
        >>> region.read_array("L15-03")[:2]
        array([[0., 1., 2., 3.],
               [0., 1., 2., 3.]], dtype=float32)
        """
        return self.array_of(self.find_row(as_layer_id(layer_id)))

    @clears_frames
    def verify_integrity(self, level: str = "full") -> bool:
        """Compare the region's bytes, as they are now, with its checksums.

        Parameters
        ----------
        level : {"header", "metadata", "stored", "full"}
            Up to the header; up to the metadata, plain entries and table against each other; all
            bytes of the file; all, with every content, also of compressed layers. Plain V1 files
            carry no checksums: there the structure is checked.

        Returns
        -------
        bool
            True.

        Raises
        ------
        RegionFormatError
            At the first difference: field, offset, expected, got. A file that was truncated since
            it was mapped is found without touching the pages that are gone.
        ConfigError
            If a layer is compressed, and the extra ``zstd`` is missing.
        ValueError
            If there is no such level.

        Examples
        --------
        >>> data = bytearray((folder / "data/D15/region.mmap").read_bytes())
        >>> data[-1] ^= 1  # one bit of the last layer's content
        >>> size = (folder / "damaged.mmap").write_bytes(data)
        >>> damaged = MmapRegion.from_file("D15", "damaged.mmap")
        >>> damaged.verify_integrity("metadata")
        True
        >>> damaged.verify_integrity()
        Traceback (most recent call last):
            ...
        jessymem.errors.RegionFormatError: D15: ...: layer 3 content_xxh3 at byte ...
        """
        if level not in VERIFY_LEVELS:
            raise ValueError(f"level is one of {', '.join(VERIFY_LEVELS)}, not {shown(level)}")
        from jessymem.regions.verification import verify_layout

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

    @computed_once
    @clears_frames
    def metadata(self) -> jessymem.RegionMetadata:
        """All that is known of the region and its layers, without contents.

        Examples
        --------
        >>> region.metadata.dimension_name, region.metadata.version
        ('tools', 1)
        >>> [info.size for info in region.metadata.layers]
        [16, 24, 17, 48000]
        """
        from jessymem.regions.metadata import RegionMetadata

        return RegionMetadata(
            version=self.layout.header.version,
            generation=self.layout.generation,
            created_at=self.layout.created_at,
            dimension_name=self.layout.header.name,
            total_size=self.size,
            content_offset=self.layout.content_start,
            layers=tuple(self.describe_layers()),
        )

    def __repr__(self) -> str:
        """Show what it is."""
        n_layers = len(self.layout.rows)
        return f"<MmapRegion {self.dimension_id} {n_layers} layers {self.size:,} bytes {self.path}>"

    def _repr_html_(self) -> str:
        """Show it in a notebook's cell."""
        return jessymem.notebooks.show_region(self)

    # -- for the manager ---------------------------------------------------------------------------

    @property
    def base(self) -> MmapRegion:
        """Itself: nothing is learned in it."""
        return self

    def location_of(self, row: int) -> jessymem.ContentLocation:
        """Return where its contents are, the same for all."""
        return self._origin[0]

    def state_of(self, row: int) -> jessymem.LayerState:
        """Return how far its layers have come: on disk, or simulated."""
        return self._origin[1]

    @computed_once
    def _origin(self) -> tuple[jessymem.ContentLocation, jessymem.LayerState]:
        """Where its contents are and how far they have come, looked up once for all layers."""
        from jessymem.regions.metadata import ContentLocation, LayerState

        is_mapped, is_simulated = self.state == s.REGION_MAPPED, self.state == s.REGION_SIMULATED
        return (
            ContentLocation.MMAP if is_mapped else ContentLocation.HEAP,
            LayerState.ACTIVE if is_simulated else LayerState.PERMANENT,
        )

    def name_of(self, row: int) -> str:
        """Return a layer's name; what is no UTF-8 is shown as U+FFFD."""
        piece = layout.row_text(self.layout, self.layout.rows[row], "name")
        return piece.tobytes().decode("utf-8", "replace")

    def rows_named(self, name: bytes) -> list[int]:
        """Return the rows of layers that have a name, ascending."""
        from jessymem.regions.name_table import NameTable, rows_named

        return rows_named(self.layout, self.name_table or NameTable(self.layout), name)

    def numbers_named(self, name: bytes) -> list[int]:
        """Return the numbers of the layers that have a name, ascending."""
        return [int(self.rows[row]["layer_num"]) for row in self.rows_named(name)]

    def keep_names(self, charge: Callable[[int], Any]) -> None:
        """Make its table of names, and keep it if it may be charged."""
        from jessymem.regions.name_table import NameTable  # whoever asks has imported it

        if self.name_table is None:
            table = NameTable(self.layout)
            table.charge = charge(table.n_bytes)
            self.name_table = table

    def rows_matching(self, pattern: jessymem.hints.NamePattern) -> np.typing.NDArray[np.bool_]:
        """Tell of each row whether the layer's name matches a pattern."""
        return pattern.matches_in(self.layout)

    def keywords_of(self, row: int) -> tuple[str, ...]:
        """Return a layer's keywords; what is no UTF-8 is shown as U+FFFD."""
        return tuple(piece.decode("utf-8", "replace") for piece in self._raw_keywords(row))

    def read_form(self, row: int) -> jessymem.hints.ArrayForm | None:
        """Return what makes a layer's content an array; None where it is not an array."""
        return layout.read_form(self.layout, self.rows[row], self._source)

    def take_unchecked(self) -> tuple[Any, int, int, int] | None:
        """Return what is yet to be checked of its table, which from now on is the caller's task."""
        unchecked = self.layout.unchecked
        if unchecked is not None:
            self.layout = self.layout._replace(unchecked=None)
        return unchecked

    @property
    def members(self) -> tuple[MmapRegion, ...]:
        """Itself: it comes from one file."""
        return (self,)

    @property
    def charge_ids(self) -> tuple[int, ...]:
        """What the budget counts for its bytes and its tables."""
        own = () if self.charge_id is None else (self.charge_id,)
        return own if self.table_charge is None else (*own, self.table_charge.id)

    @property
    def table_charges(self) -> tuple[Any, ...]:
        """What its private tables cost."""
        return () if self.table_charge is None else (self.table_charge,)

    @property
    def flags(self) -> int:
        """What its file says of itself: FLAG_*."""
        return self.layout.flags

    @property
    def created_at(self) -> int:
        """When it was written, in ns since 1970-01-01 UTC; 0: not told."""
        return self.layout.created_at

    @property
    def table_bytes(self) -> int:
        """How long the tables are that were made of plain entries, or for compressed layers."""
        if self.frames is not None:
            return self.frames.n_bytes
        if self.layout.is_extended:
            return 0
        return self.rows.nbytes + (0 if self.index is None else self.index.nbytes)

    def private_rows(self, numbers: Sequence[int] | None = None) -> np.typing.NDArray[np.void]:
        """Return a copy of the rows, or of those of some layers, ascending, and checked.

        Nobody can change them any more.

        Raises
        ------
        OutOfBounds
            If the file was changed under its mapping.
        """
        rows = aligned_copy(self.rows if numbers is None else self.rows[self.rows_of(numbers)])
        starts, ends, found = rows["content_offset"], rows["content_end"], rows["layer_num"]
        wrong = (starts > ends) | (ends > self.size)
        if self.frames is not None:
            at = np.arange(len(rows)) if numbers is None else np.array(self.rows_of(numbers), int)
            stored, lengths = self.frames.is_stored[at], self.frames.lengths[at]
            is_other = (starts != s.COMPRESSED_AT) | (ends != s.COMPRESSED_AT + lengths)
            wrong = np.where(stored, is_other, wrong)
        if len(rows) > 1:
            wrong[1:] |= found[1:] <= found[:-1]
        if numbers is not None:
            wrong |= found != np.array(numbers)
        if np.count_nonzero(wrong):  # in a third of the time of `any`
            row = rows[int(wrong.argmax())]
            raise OutOfBounds(
                f"{self.dimension_id}: the row of layer {row['layer_num']} was changed in "
                f"{self.path} while it was mapped",
                offset=int(row["content_offset"]),
                size=int(row["content_end"]) - int(row["content_offset"]),
                region_size=self.size,
            )
        return rows

    def member_with(self, number: int) -> MmapRegion:
        """Return itself, which has all its layers."""
        return self

    def origin_of(self, row: int) -> tuple[MmapRegion, int]:
        """Return itself and the row: it has all its layers."""
        return self, row

    def extent_of(self, row: int) -> tuple[int, int]:
        """Return where a layer's content begins and ends; of a compressed one nowhere, at -1."""
        if self.frames is None or not self.frames.has(row):
            return super().extent_of(row)
        return -1, self.frames.size_of(row) - 1

    def stored_rows(self) -> np.typing.NDArray[np.void]:
        """Return the rows as they lead to what is stored."""
        return layout.stored_rows(self.layout, self._source)

    @property
    def bounds(self) -> tuple[memoryview, memoryview]:
        """Per row where its content begins and ends in its owner; see `Reader`."""
        if self.frames is None:
            return super().bounds
        return self.frames.bounds

    def is_simulated(self, number: int) -> bool:
        """Tell whether a layer is one of the simulation's."""
        return self.state == s.REGION_SIMULATED

    def edition_of(self, number: int) -> Edition | None:
        """Return the edition of its file; None: it is simulated."""
        return None if self.state == s.REGION_SIMULATED else self.edition

    def draft_of(self, row: int) -> jessymem.hints.LayerDraft:
        """Return the layer in a row as it would be written again: byte for byte, checksum included.

        Raises
        ------
        OutOfBounds, RegionFormatError
            If its content or its keywords cannot be read.
        """
        return self.drafts_of(np.array([row]), inflates=True)[0]

    def drafts(self, without: Collection[int] = ()) -> list[jessymem.hints.LayerDraft]:
        """Return all layers as they would be written again, but for some numbers."""
        chosen = ~np.isin(self.numbers, np.fromiter(without, np.int64, len(without)))
        return self.drafts_of(np.flatnonzero(chosen))

    def drafts_since(
        self, first: int, without: Collection[int] = ()
    ) -> list[jessymem.hints.LayerDraft]:
        """Return `drafts`; nothing has been laid over it."""
        return self.drafts(without)

    def deleted_since(self, first: int) -> set[int]:
        """Return nothing: nothing has been laid over it."""
        return set()

    def drafts_of(
        self, at: np.typing.NDArray[np.intp], *, inflates: bool = False
    ) -> list[jessymem.hints.LayerDraft]:
        """Return the layers in some rows as they would be written again.

        Compressed ones as they are stored, unless it `inflates`. Whole columns are read, since a
        record costs ten times more.
        """
        from jessymem.regions.drafts import LayerDraft

        frames = None if inflates else self.frames

        rows = self.rows[at]
        heap = self.layout.heap.tobytes() if len(rows) > 1 else self.layout.heap
        fields = ("layer_num", "frequency", "depth", "parent", "encoding", "content_xxh3")
        columns = [rows[field].tolist() for field in fields]
        names, arrays = (
            zip(rows[f"{kind}_offset"].tolist(), rows[f"{kind}_size"].tolist(), strict=True)
            for kind in ("name", "array")
        )
        keyword_counts = rows["keyword_count"].tolist()
        return [
            LayerDraft(
                layer=number,
                content=(
                    self.content_of(row)
                    if frames is None or not frames.has(row)
                    else frames.stored_bytes(row)
                ),
                name=bytes(heap[name_at : name_at + name_size]),
                frequency=frequency,
                depth=depth,
                keywords=self._raw_keywords(row) if n_keywords else (),
                parent=LayerId.from_packed(parent) if parent >> s.LAYER_BITS else None,
                encoding=encoding,
                array_header=bytes(heap[array_at : array_at + array_size]),
                content_xxh3=checksum if self.layout.is_extended else None,
                frame=None if frames is None or not frames.has(row) else frames.frame_of(row),
            )
            for row, (name_at, name_size), (array_at, array_size), n_keywords, (
                number,
                frequency,
                depth,
                parent,
                encoding,
                checksum,
            ) in zip(
                at.tolist(),
                names,
                arrays,
                keyword_counts,
                zip(*columns, strict=True),
                strict=True,
            )
        ]

    def _raw_keywords(self, row: int) -> tuple[bytes, ...]:
        return tuple(layout.split_keywords(self.layout, self.rows[row], self._source))

    def _read_edition(self) -> Edition:
        made_ns = self.layout.created_at
        if not self.layout.is_extended and self.identity is not None:
            made_ns = self.identity.modified_ns
        return Edition(self.generation, made_ns, self.size)

    @property
    def _source(self) -> faults.Source:
        return faults.Source(self.dimension_id, str(self.path) if self.path else "memory")


def _open_again(
    dimension: int, path: str, edition: tuple[int, int, int], load_mode: str
) -> MmapRegion:
    """Map what was pickled; raise RegionNotFound where another edition is there by now."""
    region = MmapRegion.from_file(dimension, path, load_mode=load_mode)
    if region.edition != edition:
        raise RegionNotFound(
            f"{region.dimension_id}: generation {edition[0]} with {edition[2]} bytes of {path} is "
            f"gone, generation {region.edition[0]} with {region.edition[2]} bytes is there",
            dimension=region.dimension_id,
            generation=edition[0],
        )
    return region
