"""Which sources there are: folders, files, and what patterns match."""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from jessymem.errors import ConfigError, RegionIOError, shown
from jessymem.ingest.archives import Npz, Safetensors, Zarr, is_zarr
from jessymem.ingest.arrow import ArrowTable
from jessymem.ingest.columns import Columns
from jessymem.ingest.folders import Skipped, SourceFile, natural_key, read_files, read_folders
from jessymem.ingest.numbering import NameFile, name_by_path, name_by_stem
from jessymem.ingest.sources import FolderSource, Source
from jessymem.ingest.tables import JsonLines, SeparatedValues

Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_NAMINGS: Final = {"path": name_by_path, "stem": name_by_stem}

#: Endings of the files that are opened, where they are named themselves.
OPENED: Final = (
    *(".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".ipc"),
    *(".npz", ".safetensors"),
)


class Options(NamedTuple):
    """How sources are read.

    Parameters
    ----------
    names : "path", "stem" or callable
        What a file's layer is called.
    columns : Columns
        Of tables.
    """

    names: str | NameFile = "path"
    columns: Columns = Columns()

    @property
    def name_file(self) -> NameFile:
        """What names files; raises ConfigError where there is no such way."""
        if callable(self.names):
            return self.names
        if self.names not in _NAMINGS:
            known = " or ".join(map(repr, _NAMINGS))
            raise ConfigError(
                f"names is {known}, or a function of a path, not {shown(self.names)}",
                field="names",
                value=self.names,
            )
        return _NAMINGS[self.names]


def find_sources(
    given: Sequence[Path], excluded: Path, options: Options
) -> tuple[list[Source], list[Skipped]]:
    """Find what is to become dimensions.

    Parameters
    ----------
    given : sequence of Path
        Folders, files, and patterns.
    excluded : pathlib.Path
        A folder that is not read.
    options : Options

    Returns
    -------
    list of Source, list of Skipped
        In the order given; files that are no tables or archives together with the first of
        their folder.

    Raises
    ------
    RegionIOError
        If something cannot be listed or read.
    ConfigError
        If a pattern matches nothing, no file can have a name, or something is malformed.
    """
    name_file = options.name_file
    sources: list[Source] = []
    skipped: list[Skipped] = []
    single: dict[Path, list[Path]] = {}
    places: dict[Path, int] = {}
    for path in _unique(_expand(given)):
        kind = _look(path)
        if stat.S_ISDIR(kind) and not is_zarr(path):
            found, left_out = read_folders(path, excluded)
            prefix = "" if len(given) == 1 else f"{path}/"
            skipped += [Skipped(prefix + each.path, each.reason) for each in left_out]
            sources += [FolderSource(folder, name_file) for folder in found if folder.files]
            skipped += [
                Skipped(prefix + each.name, "a folder without files")
                for each in found
                if not each.files
            ]
        elif stat.S_ISDIR(kind):
            sources.append(Zarr(path, path.name))
        elif not stat.S_ISREG(kind):
            raise ConfigError(f"{path}: no regular file, and no folder", field="source", value=path)
        elif path.suffix.lower() in OPENED:
            sources.append(_open_file(path, options.columns))
        else:
            folder = Path(os.path.realpath(path.parent))
            places.setdefault(folder, len(sources))
            single.setdefault(folder, []).append(path)
    for folder in reversed(places):
        made = read_files(single[folder][0].parent, single[folder], excluded)
        if made.files:
            sources.insert(places[folder], FolderSource(made, name_file))
    return sources, skipped


def _expand(given: Sequence[Path]) -> list[Path]:
    """Return the paths that are given, and those that patterns match in their places."""
    found: list[Path] = []
    for path in given:
        if not os.path.lexists(path) and glob.has_magic(str(path)):
            matches = sorted(glob.glob(str(path), recursive=True), key=natural_key)
            if not matches:
                raise ConfigError(f"{path}: nothing matches", field="source", value=path)
            found += map(Path, matches)
        else:
            found.append(path)
    if not found:
        raise ConfigError("there is no source: nothing to build", field="source", value=given)
    return found


def _unique(paths: list[Path]) -> list[Path]:
    """Return each path once, whichever way it is written."""
    return list({os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]


def _look(path: Path) -> int:
    """Return what a path leads to."""
    try:
        return path.stat().st_mode
    except OSError as error:
        operation = "list" if error.errno == errno.ENOENT else "read"
        raise RegionIOError.from_os_error(error, operation, path) from error


def _open_file(path: Path, columns: Columns) -> Source:
    """Return what a table or an archive is made of."""
    ending = path.suffix.lower()
    if ending == ".npz":
        return Npz(path, path.name)
    if ending == ".safetensors":
        return Safetensors(path, path.name)
    file = SourceFile.of(path.name, path, path.stat())
    if ending in (".jsonl", ".ndjson"):
        return JsonLines(file, columns)
    if ending in (".csv", ".tsv"):
        return SeparatedValues(file, columns, "," if ending == ".csv" else "\t")
    return ArrowTable(file, columns)
