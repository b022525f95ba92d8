"""`export`: layers to files that others read, and that `build` reads back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jessymem.config import as_path
from jessymem.errors import (
    ConfigError,
    DimensionNotFound,
    JessyMemoryError,
    RegionIOError,
    clears_frames,
)
from jessymem.ids import DimensionId, DimensionsLike, LayerId, as_dimension_ids
from jessymem.ingest.file_names import escape
from jessymem.ingest.reports import ExportedDimension, ExportReport
from jessymem.ingest.writers import Layer, Writer, encoding_of, is_export, writer_of
from jessymem.manager import MmapManager
from jessymem.regions.paths import region_files
from jessymem.regions.table import LayerTable


class _Dimension(NamedTuple):
    """What is to be exported; `layers` reads them anew each time."""

    dimension_id: DimensionId
    name: str
    n_layers: int
    n_bytes: int
    layers: Callable[[], Iterator[Layer]]


@clears_frames
def export(
    source: MmapManager | str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: str = "files",
    *,
    dimensions: DimensionsLike | None = None,
    force: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> ExportReport:
    """Write layers to files that others read; `build` makes the same layers of them again.

    Parameters
    ----------
    source : MmapManager or path-like
        A manager, of which all that is loaded is written, learned and simulated layers too; or the
        folder with region files.
    out : path-like
        The folder that they go to. For each dimension there is one file or folder in it, called
        ``D15-name``.
    format : {"files", "npz", "safetensors", "arrow", "parquet"}
        A folder with a file for each layer; an archive with an array for each; a table with a row
        for each. docs/building.md tells what becomes of names and types.
    dimensions : DimensionId, int or str, or iterable of them, optional
        Which; by default all.
    force : bool
        Whether a file of the name, or a folder that an export wrote, is replaced, whatever is in it
        by now.
    progress : callable, optional
        Called as ``progress(n_bytes, n_bytes_in_all)`` after each layer.

    Returns
    -------
    ExportReport

    Raises
    ------
    ConfigError
        If there is no such format, its library is not installed, something is where a file is to be
        and `force` is not set, or a folder is there that no export wrote.
    DimensionNotFound
        If a dimension is not there, or none is.
    RegionIOError
        If something cannot be read or written.
    JessyMemoryError
        Whatever reading a layer raises.

    Notes
    -----
    Names of layers lead nowhere: in files and archives, what is special to some system is written
    as ``%2F``, and nothing is written outside `out`. Each file or folder is made under another name
    and then renamed, but not synced: what it was made from is safe already.

    Examples
    --------
    >>> report = export(manager, "out", dimensions="D16")
    >>> sorted(path.name for path in report.dimensions[0].path.iterdir())
    ['dimension.toml', 'monday', 'tuesday']
    """
    writer, target = writer_of(format), as_path("out", out)
    chosen = None if dimensions is None else sorted(as_dimension_ids(dimensions))
    if chosen == []:
        raise ConfigError("there is no dimension to export", field="dimensions", value=dimensions)
    if not isinstance(source, MmapManager):
        source = as_path("source", source)
        if os.path.realpath(source) == os.path.realpath(target):
            raise ConfigError(
                f"{source}: source and target are the same folder", field="out", value=target
            )
    writer.prepare(target)
    found = _of_manager(source, chosen) if isinstance(source, MmapManager) else None
    if found is None:
        assert isinstance(source, Path)
        found = _of_folder(source, chosen)
    paths = [target / (_file_name(each) + writer.ending) for each in found]
    for path in paths:
        _check_free(path, writer, force=force)
    n_done, n_all = 0, sum(each.n_bytes for each in found)
    done = []

    def counted(layers: Iterator[Layer]) -> Iterator[Layer]:
        nonlocal n_done
        for layer in layers:
            n_bytes = len(layer.content)
            yield layer
            del layer
            n_done += n_bytes
            if progress is not None:
                progress(n_done, n_all)

    for each, path in zip(found, paths, strict=True):
        try:
            target.mkdir(parents=True, exist_ok=True)
            _replace(path, writer, each.name, counted(each.layers()))
        except OSError as error:
            if isinstance(error, JessyMemoryError):
                raise
            raise RegionIOError.from_os_error(error, "write", path, each.dimension_id) from error
        done.append(
            ExportedDimension(each.dimension_id, each.name, path, each.n_layers, each.n_bytes)
        )
    return ExportReport(format, tuple(done))


def _of_folder(source: Path, chosen: list[DimensionId] | None) -> list[_Dimension]:
    try:
        is_folder, is_there = source.is_dir(), source.exists()
    except OSError as error:  # no file can have that name
        raise RegionIOError.from_os_error(error, "look at", source) from error
    if not is_folder:
        problem = "is a file; it takes a folder" if is_there else "there is no such folder"
        raise ConfigError(f"{source}: {problem}", field="source", value=source)
    if chosen is None:
        with MmapManager(base_path=source) as manager:
            chosen = manager.discover()
    if not chosen:
        raise DimensionNotFound(f"no region files under {source}", dimension=None, path=str(source))
    found = []
    for dimension in sorted(set(chosen)):
        table = region_files(source, dimension).open_newest()
        n_bytes = sum(end - start for start, end in map(table.extent_of, range(table.n_layers)))

        def layers(table: LayerTable = table) -> Iterator[Layer]:
            for row, info in enumerate(table.describe_layers()):
                content = table.content_of(row)
                array = table.array_of(row) if info.dtype is not None else None
                told = (info.name, info.frequency, info.depth, info.keywords, info.parent)
                encoding = encoding_of(info.encoding, content)
                layer = Layer(info.layer_id, *told, content, encoding, array)
                del content, array  # one that is compressed may need the room
                yield layer
                del layer

        found.append(_Dimension(dimension, table.name, table.n_layers, n_bytes, layers))
    return found


def _of_manager(manager: MmapManager, chosen: list[DimensionId] | None) -> list[_Dimension]:
    loaded = manager.list_dimensions()
    wanted = loaded if chosen is None else sorted(set(chosen))
    for dimension in wanted:
        if dimension not in loaded:
            raise DimensionNotFound(f"{dimension} is not loaded", dimension=dimension, path=None)
    if not wanted:
        raise DimensionNotFound("no dimension is loaded", dimension=None, path=None)
    found = []
    for dimension in wanted:
        ids = manager.list_layers(dimension)
        name = manager.load_layer_context(ids[0]).dimension_name if ids else ""
        n_bytes = sum(manager.get_layer_info(layer_id).size for layer_id in ids)

        def layers(ids: list[LayerId] = ids) -> Iterator[Layer]:
            for layer_id in ids:
                info = manager.get_layer_info(layer_id)
                context = manager.load_layer_context(layer_id)
                array = None if info.dtype is None else manager.array(layer_id)
                told = (context.name, context.frequency, context.depth, context.keywords)
                encoding = encoding_of(info.encoding, context.content)
                content, parent = context.content, context.parent
                layer = Layer(layer_id, *told, parent, content, encoding, array)
                del context, content, array  # one that is compressed may need the room
                yield layer
                del layer

        found.append(_Dimension(dimension, name, len(ids), n_bytes, layers))
    return found


def _file_name(dimension: _Dimension) -> str:
    """Return under which name a dimension goes to `out`: its number claims itself again."""
    name = f"-{escape(dimension.name)}" if dimension.name else ""
    return f"{dimension.dimension_id}{name}"


def _check_free(path: Path, writer: Writer, *, force: bool) -> None:
    if not os.path.lexists(path):
        return
    if not force:
        raise ConfigError(
            f"{path}: there is something already, and force is not set", field="out", value=path
        )
    is_ours = path.is_file() if writer.ending else is_export(path)
    if not is_ours:
        raise ConfigError(
            f"{path}: no export has written what is there; take it away", field="out", value=path
        )


def _replace(path: Path, writer: Writer, name: str, layers: Iterator[Layer]) -> None:
    """Make a file or folder under another name, and give it its own."""
    temporary, before = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for left in (temporary, before):  # of an export that was killed
        _remove(left)
    try:
        writer.write(temporary, name, layers)
        if path.is_dir():
            os.rename(path, before)
        os.replace(temporary, path)
        _remove(before)
    except BaseException:
        with suppress(OSError):
            _remove(temporary)
        if os.path.lexists(before) and not os.path.lexists(path):
            os.rename(before, path)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)
