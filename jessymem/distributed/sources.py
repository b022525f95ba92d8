"""Which files a question is about: URLs, folders and globs to files of known editions."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Final, NamedTuple

from jessymem.errors import DimensionNotFound, RemoteError, shown
from jessymem.osmem import behind_links, is_url
from jessymem.regions.files import REGION_FILE
from jessymem.regions.remote import is_name_of_delta, unfolded
from jessymem.remote.files import RemoteFile, ask, open_file_system

_MAGIC: Final = "*?["
_BEGIN: Final = f"{PurePath(REGION_FILE).stem}."
_SUFFIX: Final = PurePath(REGION_FILE).suffix
_NOT_THERE: Final = FileNotFoundError, NotADirectoryError


class FileStatus(NamedTuple):
    """What the system says of a file, or of a delta beside it."""

    name: str
    modified_ns: int
    inode: int
    n_bytes: int

    @classmethod
    def of(cls, name: str, found: os.stat_result) -> FileStatus:
        """Take it from what was found."""
        return cls(name, found.st_mtime_ns, found.st_ino, found.st_size)

    def __str__(self) -> str:
        """Return it as it stands in an edition."""
        return f"{self.name} {self.modified_ns} {self.inode} {self.n_bytes}"


def expand(
    urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    options: Mapping[str, Any] | None = None,
) -> list[RemoteFile]:
    """Return the files that URLs name, each once, in the order given; those of one glob sorted.

    Parameters
    ----------
    urls : str, path-like, or iterable of them
        Of files; of folders, for each ``region.mmap`` below; or with ``*``, ``?``, ``[...]`` and
        ``**`` in them. What has no protocol is a path of this machine.
    options : mapping, optional
        What fsspec's file systems are made with.

    Raises
    ------
    DimensionNotFound
        If one of them names no file.
    RegionFormatError
        If a folder of a store holds deltas: they are followed on this machine's disks only.
    RemoteError
        If a store does not answer.
    """
    given = [urls] if isinstance(urls, str | os.PathLike) else list(urls)
    found: dict[str, RemoteFile] = {}
    local: dict[str, str] = {}  # the URLs of what has no edition yet, by path
    for each in given:
        for file in _expand_one(_as_url(each), options, local):
            found.setdefault(file.url, file)
    if local:
        first = next(iter(local.values()))
        for path, edition in ask(partial(local_editions, local), "list", first).items():
            found[local[path]] = found[local[path]]._replace(edition=edition)
    return list(found.values())


def local_editions(paths: Iterable[str]) -> dict[str, str]:
    """Return what changes when a file of this machine does, or a delta beside it; of each, by path.

    Of a file that is gone it is the empty text, or tells of deltas alone. Raises OSError where a
    folder cannot be listed.
    """
    return {path: edition_of(said) for path, said in look_at(paths).items()}


def edition_of(said: Iterable[FileStatus]) -> str:
    """Return one text of all that the system says; no name has a slash in it."""
    return " / ".join([str(each) for each in sorted(said)])


def look_at(paths: Iterable[str]) -> dict[str, list[FileStatus]]:
    """Return what the system says of files of this machine and of deltas beside them, by path.

    Of a link also what lies where it leads, under full paths. A folder is listed once, however many
    of its files are asked for. Raises OSError where one cannot be listed.
    """
    links: list[str] = []
    found = _look_at(paths, links)
    for path, said in _behind(links).items():
        found[path] += said
    return found


def _behind(links: Iterable[str]) -> dict[str, list[FileStatus]]:
    """Return what the system says of files that links lead to, and of deltas beside them, by link.

    A link that does not count says nothing here: who reads the region file is told why.
    """
    targets: dict[str, str] = {}
    for link in links:
        with suppress(OSError):
            targets[link] = str(behind_links(Path(link)))
    found: dict[str, list[FileStatus]] = {}
    there = _look_at(set(targets.values()), [], may_be_unknown=True)
    for link, target in targets.items():
        folder = os.path.dirname(target)
        found[link] = [
            each._replace(name=os.path.join(folder, each.name)) for each in there[target]
        ]
    return found


def _look_at(
    paths: Iterable[str], links: list[str], *, may_be_unknown: bool = False
) -> dict[str, list[FileStatus]]:
    """Return the same of files where they lie; add to `links` those that are links."""
    ignored = _NOT_THERE if not may_be_unknown else (*_NOT_THERE, PermissionError)
    wanted: dict[str, dict[str, str]] = {}
    for path in paths:
        folder, _, name = path.replace(os.sep, "/").rpartition("/")
        wanted.setdefault(f"{folder}/", {})[name] = path
    found: dict[str, list[FileStatus]] = {}
    for folder, names in wanted.items():
        said: dict[str, list[FileStatus]] = {name: [] for name in names}
        of_stem: dict[str, list[str]] = {}
        for name in said:
            of_stem.setdefault(os.path.splitext(name)[0], []).append(name)
        with suppress(*ignored), os.scandir(folder) as entries:
            for entry in entries:
                for name in _files_changed_by(entry.name, said, of_stem):
                    with suppress(FileNotFoundError):
                        status = _status_of(entry, is_asked=name == entry.name)
                        said[name].append(FileStatus.of(entry.name, status))
                        if name == entry.name and entry.is_symlink():
                            links.append(names[name])
        found |= {names[name]: each for name, each in said.items()}
    return found


def _files_changed_by(
    name: str, wanted: Mapping[str, object], of_stem: Mapping[str, list[str]]
) -> set[str]:
    """Return those of the wanted names that are, or have as a delta, what is called `name`."""
    found = {name} if name in wanted else set()
    if name.endswith(_SUFFIX):
        end = name.find(".")
        while end >= 0:
            found.update(of_stem.get(name[:end], ()))
            end = name.find(".", end + 1)
    return found


def _status_of(entry: os.DirEntry[str], *, is_asked: bool) -> os.stat_result:
    """Return what the system says of a file; of what only lies beside it, at least that it does.

    Whether a link that cannot be followed counts as a delta, who reads the region file decides.
    """
    try:
        return entry.stat()
    except FileNotFoundError:
        raise
    except OSError:
        if is_asked:
            raise
        return entry.stat(follow_symlinks=False)


def _walk(top: str, url: str, options: Mapping[str, Any] | None) -> list[RemoteFile]:
    """Return the region files of this machine below a folder, in the order of their paths.

    Each folder is listed once, for its files and for their editions, and so is where a region file
    that is a link leads. Links to folders are not followed. Raises OSError where a folder cannot be
    listed.
    """
    kept = tuple(sorted((options or {}).items()))
    files: list[RemoteFile] = []
    links: dict[str, tuple[RemoteFile, list[FileStatus]]] = {}
    top, url = top.rstrip("/"), url.rstrip("/")
    folders = [top]
    while folders:
        folder = folders.pop()
        said, own, is_link = [], None, False
        with suppress(*_NOT_THERE), os.scandir(folder or "/") as entries:
            for entry in entries:
                name = entry.name
                if name == REGION_FILE or (name.startswith(_BEGIN) and name.endswith(_SUFFIX)):
                    with suppress(FileNotFoundError):
                        status = _status_of(entry, is_asked=name == REGION_FILE)
                        said.append(FileStatus.of(name, status))
                        if name == REGION_FILE and stat.S_ISREG(status.st_mode):
                            own, is_link = status, entry.is_symlink()
                            continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{name}")
        if own is not None:
            edition, seconds = edition_of(said), int(own.st_mtime)
            name = f"{url}{folder[len(top) :]}/{REGION_FILE}"
            file = RemoteFile(name, own.st_size, edition, seconds * 1_000_000_000, kept)
            if is_link:
                links[f"{folder}/{REGION_FILE}"] = file, said
            else:
                files.append(file)
    behind = _behind(links)
    for path, (file, said) in links.items():
        files.append(file._replace(edition=edition_of([*said, *behind.get(path, ())])))
    return sorted(files)


def _as_url(text: str | os.PathLike[str]) -> str:
    if is_url(text):
        return str(text)
    if not isinstance(text, str | os.PathLike):
        raise TypeError(f"a URL or path is text, not {shown(text)}")
    return f"file://{os.path.abspath(os.fspath(text))}"


def _expand_one(
    url: str, options: Mapping[str, Any] | None, local: dict[str, str]
) -> list[RemoteFile]:
    """Return the files that one URL names; add to `local` those whose editions are to be asked."""
    system, path = open_file_system(url, options)
    is_local = "file" in _protocols(system)
    has_magic = any(sign in path for sign in _MAGIC)
    if is_local and not has_magic and os.path.isdir(path):
        walk = partial(_walk, path, system.unstrip_protocol(path), options)
        return _some(ask(walk, "list", url), url, is_folder=True)

    def look() -> Mapping[str, Mapping[str, Any]]:
        system.invalidate_cache()
        if has_magic:
            found: Mapping[str, Mapping[str, Any]] = system.glob(path, detail=True)
            return found
        info = system.info(path)
        if info.get("type") == "directory":
            return dict(system.find(path, detail=True))
        return {path: info}

    try:
        listed = ask(look, "list", url)
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            listed = {}
        else:
            raise
    is_folder = set(listed) != {path}
    files = []
    for name in sorted(listed):
        info = listed[name]
        base = name.rpartition("/")[2]
        if info.get("type") == "directory":
            continue
        if is_folder and not has_magic and base != REGION_FILE:
            if is_name_of_delta(base):
                raise unfolded(system.unstrip_protocol(name))
            continue
        file = RemoteFile.from_info(system.unstrip_protocol(name), info, options)
        files.append(file)
        if is_local:
            local[name] = file.url
    return _some(files, url, is_folder=is_folder)


def _some(files: list[RemoteFile], url: str, *, is_folder: bool) -> list[RemoteFile]:
    if not files:
        what = "region files" if is_folder else "file"
        raise DimensionNotFound(f"no {what} at {url}", dimension=None, path=url)
    return files


def _protocols(system: Any) -> tuple[str, ...]:
    protocol = system.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
