"""A source folder's sub-folders and their files, in order; and what is left out, and why."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from jessymem.errors import RegionIOError
from jessymem.ingest.manifest import MANIFEST_FILE, Manifest, read_manifest

_DIGITS: Final = re.compile(rb"([0-9]+)")
_ZERO: Final = ord("0")

#: What a dimension's folder may be called.
NUMBERED_FOLDER: Final = re.compile(r"D([0-9]+)(?:-(.*))?", re.IGNORECASE | re.DOTALL)


class Skipped(NamedTuple):
    """Something that is left out: its path relative to the source, and the reason."""

    path: str
    reason: str


class SourceFile(NamedTuple):
    """One file that becomes a layer.

    Attributes
    ----------
    name : str
        Its path relative to the dimension's folder, with ``/``; what is not UTF-8 becomes U+FFFD.
    path : pathlib.Path
        Where it lies; no link.
    n_bytes : int
        Its length when it was looked at.
    changed_ns : int
        When it was changed last, in ns since 1970-01-01 UTC: its content, or what is known of it.
    """

    name: str
    path: Path
    n_bytes: int
    changed_ns: int = 0

    @classmethod
    def of(cls, name: str, path: Path, status: os.stat_result) -> SourceFile:
        """Make one of what the system says."""
        return cls(name, path, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))


class SourceFolder(NamedTuple):
    """One folder that becomes a dimension, with its files in natural order."""

    name: str
    path: Path
    files: tuple[SourceFile, ...]
    manifest: Manifest


class _Entry(NamedTuple):
    name: str
    shown: str  # relative to the source
    path: Path
    status: os.stat_result

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


def read_folders(source: Path, excluded: Path) -> tuple[list[SourceFolder], list[Skipped]]:
    """Look through a source folder: its sub-folders, and as one more what lies directly in it.

    One that is called ``D07-name`` or ``D07``, or has a `dimension.toml`, is one dimension itself,
    with all that lies in it.

    Links are followed as long as they stay inside the source. Left out and reported are hidden
    files and folders, links that lead out of the source, to nothing or back to a folder that they
    lie in, whatever is not a regular file, and `excluded`.

    Parameters
    ----------
    source : pathlib.Path
    excluded : pathlib.Path
        A folder that is not read, wherever it lies; it need not exist.

    Returns
    -------
    list of SourceFolder, list of Skipped
        In natural order: file2 before file10, and what is equal but for zeros by its bytes. Last
        the source itself, with the files that are directly in it.

    Raises
    ------
    RegionIOError
        If something cannot be listed or read.
    ConfigError
        If a `dimension.toml` is not of its form.
    """
    try:
        root = Path(os.path.realpath(source, strict=True))
    except OSError as error:
        raise RegionIOError.from_os_error(error, "list", source) from error
    walk = _Walk(root, Path(os.path.realpath(excluded)))
    name = name_of(source, root)
    if NUMBERED_FOLDER.fullmatch(name) or (root / MANIFEST_FILE).is_file():
        whole = _Entry(name, "", root, look_at(root))
        return [walk.read_folder(whole)], walk.skipped
    folders, direct = [], []
    for entry in walk.list_folder(root, ""):
        if entry.is_folder:
            folders.append(walk.read_folder(entry))
        else:
            direct.append(entry)
    if direct:
        folders.append(walk.make_folder(name, root, direct))
    return folders, walk.skipped


def read_files(folder: Path, files: list[Path], excluded: Path) -> SourceFolder:
    """Look at some files of one folder, as if nothing else were in it.

    A `dimension.toml` beside them counts for those that it names.
    """
    root = Path(os.path.realpath(folder))
    walk = _Walk(root, Path(os.path.realpath(excluded)))
    entries = [
        _Entry(
            _as_text(path.name), _as_text(path.name), Path(os.path.realpath(path)), look_at(path)
        )
        for path in sorted(files, key=lambda path: natural_key(path.name))
    ]
    manifest = Manifest(root / MANIFEST_FILE)
    if manifest.path.is_file():
        manifest = read_manifest(manifest.path)
        chosen = {entry.shown for entry in entries}
        said = {name: entry for name, entry in manifest.layers.items() if name in chosen}
        manifest = Manifest(manifest.path, manifest.name, said)
    made = walk.make_folder(name_of(folder, root), root, entries)
    return made._replace(manifest=manifest)


def look_at(path: Path) -> os.stat_result:
    """Return what a path leads to; raise RegionIOError where that cannot be had."""
    try:
        return path.stat()
    except OSError as error:
        raise RegionIOError.from_os_error(error, "read", path) from error


def name_of(source: Path, root: Path) -> str:
    """Return what a source is called: as it was given, or where that says nothing, as it is."""
    name = source.name if source.name not in ("", "..") else root.name
    return _as_text(name or "files")


def natural_key(name: str) -> tuple[list[tuple[int, int]], bytes]:
    """Return what sorts names naturally: runs of digits by value, all else and ties by bytes."""
    raw = os.fsencode(name)
    tokens: list[tuple[int, int]] = []
    for i, piece in enumerate(_DIGITS.split(raw)):
        # A number is sorted as its first digit would be: after "." and "-", before letters.
        tokens += [(_ZERO, int(piece))] if i % 2 else [(byte, 0) for byte in piece]
    return tokens, raw


class _Walk:
    def __init__(self, root: Path, excluded: Path) -> None:
        self.root = root
        self.excluded = excluded
        self.skipped: list[Skipped] = []

    def skip(self, shown: str, reason: str) -> None:
        self.skipped.append(Skipped(shown, reason))

    def read_folder(self, folder: _Entry) -> SourceFolder:
        entries = self._files(folder.path, folder.shown, (folder.path,))
        above = f"{folder.shown}/" if folder.shown else ""
        return self.make_folder(folder.name, folder.path, entries, above)

    def make_folder(
        self, name: str, path: Path, entries: Iterable[_Entry], above: str = ""
    ) -> SourceFolder:
        """Make the folder that some files are in; `above` is what leads to it from the source."""
        manifest = Manifest(path / MANIFEST_FILE)
        folder, files = name, []
        for entry in entries:
            name = entry.shown.removeprefix(above)
            if name == MANIFEST_FILE:
                manifest = read_manifest(entry.path)
                continue
            if not os.access(entry.path, os.R_OK):
                error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                raise RegionIOError.from_os_error(error, "read", entry.path)
            files.append(SourceFile.of(name, entry.path, entry.status))
        return SourceFolder(folder, path, tuple(files), manifest)

    def list_folder(self, folder: Path, shown: str) -> Iterator[_Entry]:
        """Yield what is to be read in a folder, by natural order; note what is not."""
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: natural_key(entry.name))
        except OSError as error:
            raise RegionIOError.from_os_error(error, "list", folder) from error
        for entry in entries:
            name = _as_text(entry.name)
            where = f"{shown}/{name}" if shown else name
            path = Path(entry.path)
            if entry.name.startswith("."):
                self.skip(where, "hidden")
                continue
            is_link = entry.is_symlink() or _is_junction(entry)
            try:
                if is_link:
                    path = Path(os.path.realpath(path, strict=True))
                status = path.stat()
            except OSError as error:
                if not is_link:
                    raise RegionIOError.from_os_error(error, "read", path) from error
                self.skip(where, "a link to nothing")
                continue
            if not path.is_relative_to(self.root):
                self.skip(where, "a link that leads out of the source")
            elif path == self.excluded:
                self.skip(where, "where the region files go")
            elif stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                yield _Entry(name, where, path, status)
            else:
                self.skip(where, "no regular file")

    def _files(self, folder: Path, shown: str, above: tuple[Path, ...]) -> Iterator[_Entry]:
        for entry in self.list_folder(folder, shown):
            if not entry.is_folder:
                yield entry
            elif entry.path in above or self.root == entry.path:
                self.skip(entry.shown, "a link back to a folder that it lies in")
            else:
                yield from self._files(entry.path, entry.shown, (*above, entry.path))


def _is_junction(entry: os.DirEntry[str]) -> bool:
    """Tell a Windows directory junction, which Python 3.11 cannot do."""
    ask = getattr(entry, "is_junction", None)
    return bool(ask is not None and ask())


def _as_text(name: str) -> str:
    """Return a file's name as Unicode text, also where its bytes are not valid text."""
    return os.fsencode(name).decode("utf-8", "replace")
