"""Which files a question is about: URLs, folders and globs to files of known editions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from jessymem.errors import DimensionNotFound, RemoteError, shown
from jessymem.osmem import is_url
from jessymem.regions.files import REGION_FILE
from jessymem.regions.remote import is_name_of_delta, unfolded
from jessymem.remote.files import RemoteFile, ask, open_file_system

_MAGIC: Final = "*?["


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
    for each in given:
        for file in _expand_one(_as_url(each), options):
            found.setdefault(file.url, file)
    return list(found.values())


def group(files: Sequence[RemoteFile], task_bytes: int) -> list[tuple[int, int]]:
    """Return the first and the last but one of the files of each task, small ones together."""
    groups: list[tuple[int, int]] = []
    first, n_bytes = 0, 0
    for at, file in enumerate(files):
        if at > first and n_bytes + file.n_bytes > task_bytes:
            groups.append((first, at))
            first, n_bytes = at, 0
        n_bytes += file.n_bytes
    if files:
        groups.append((first, len(files)))
    return groups


def local_edition(path: str) -> str:
    """Return what changes when a file of this machine does, or a delta beside it."""
    folder, name = os.path.split(path)
    begin = os.path.splitext(name)[0] + "."
    said = []
    for entry in os.scandir(folder):
        if entry.name == name or (entry.name.startswith(begin) and entry.name.endswith(".mmap")):
            status = entry.stat()
            said.append(f"{entry.name} {status.st_mtime_ns} {status.st_ino} {status.st_size}")
    return "; ".join(sorted(said))


def _as_url(text: str | os.PathLike[str]) -> str:
    if is_url(text):
        return str(text)
    if not isinstance(text, str | os.PathLike):
        raise TypeError(f"a URL or path is text, not {shown(text)}")
    return f"file://{os.path.abspath(os.fspath(text))}"


def _expand_one(url: str, options: Mapping[str, Any] | None) -> list[RemoteFile]:
    system, path = open_file_system(url, options)
    is_local = "file" in _protocols(system)

    def look() -> Mapping[str, Mapping[str, Any]]:
        system.invalidate_cache()
        if any(sign in path for sign in _MAGIC):
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
    has_magic = any(sign in path for sign in _MAGIC)
    files = []
    for name in sorted(listed):
        info = listed[name]
        base = name.rpartition("/")[2]
        if info.get("type") == "directory":
            continue
        if is_folder and not has_magic and base != REGION_FILE:
            if not is_local and is_name_of_delta(base):
                raise unfolded(system.unstrip_protocol(name))
            continue
        full = system.unstrip_protocol(name)
        file = RemoteFile.from_info(full, info, options)
        if is_local:
            file = file._replace(edition=local_edition(name))
        files.append(file)
    if not files:
        what = "region files" if is_folder else "file"
        raise DimensionNotFound(f"no {what} at {url}", dimension=None, path=url)
    return files


def _protocols(system: Any) -> tuple[str, ...]:
    protocol = system.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
