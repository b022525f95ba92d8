"""Region files behind URLs: their tables by ranges, or the whole file by way of the cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

import jessymem
from jessymem import osmem
from jessymem.errors import DimensionNotFound, RegionFormatError, RegionIOError
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.regions import layout
from jessymem.regions.faults import Source
from jessymem.remote.cache import CachedFile, FileCache
from jessymem.remote.files import RemoteFile, open_file_system

#: What is read first: most tables of small files, at little beside the file.
_FIRST_BYTES: Final = 4 * 1024
#: What is read at once of plain entries, whose end only their beginning tells.
_ENTRIES_BYTES: Final = 64 * 1024
#: Of an entry in front of its keywords; their count is the last of it.
_ENTRY_BYTES: Final = s.LAYER_ENTRY.itemsize
_LOCAL: Final = "file:///"


def open_url(
    url: str,
    dimension: DimensionId | None,
    load_mode: str,
    advice: str,
    options: Mapping[str, Any] | None,
    cache: FileCache | None,
) -> jessymem.MmapRegion:
    """Map a file behind a URL; see `MmapRegion.from_url`."""
    local = local_path(url, options)
    if local is not None:
        number = dimension_in(local) if dimension is None else dimension
        return jessymem.MmapRegion.from_file(number, local, load_mode=load_mode, advice=advice)
    return open_fetched(RemoteFile.of(url, options), dimension, load_mode, advice, cache)


def open_fetched(
    file: RemoteFile,
    dimension: DimensionId | None,
    load_mode: str,
    advice: str,
    cache: FileCache | None,
) -> jessymem.MmapRegion:
    """Map what the cache has of a file, which stays in the cache for as long as it is mapped."""
    held = fetch(file, cache)
    number = dimension_in(held.path) if dimension is None else dimension
    keep: Callable[[int], object] = lambda n_bytes: held  # noqa: E731 - held with the memory
    return jessymem.MmapRegion.admitted(number, held.path, load_mode, advice, keep)


def fetch(file: RemoteFile, cache: FileCache | None) -> CachedFile:
    """Return a file of a store, checked, by way of the cache; without one, by the user's own."""
    return (cache or FileCache()).fetch(file, partial(check_file, file.url))


def check_file(url: str, path: Path) -> None:
    """Check all of a file that was fetched; raise RegionFormatError, naming its URL."""
    try:
        jessymem.MmapRegion.from_file(dimension_in(path), path).verify_integrity("stored")
    except RegionFormatError as error:
        details = {**error.details, "path": url}
        raise RegionFormatError(f"{url}: {error.message}", **details) from error


def dimension_in(path: Path) -> DimensionId:
    """Return the dimension that a file says it is of; raise RegionFormatError if it is none."""
    try:
        begin, n_bytes = osmem.read_start(path, s.HEADER_BYTES)
    except FileNotFoundError as error:
        message = f"no region file at {path} (errno {error.errno})"
        raise DimensionNotFound(message, dimension=None, path=str(path)) from None
    except OSError as error:
        raise RegionIOError.from_os_error(error, "open", path) from error
    known = np.frombuffer(begin, np.uint8)
    return layout.read_header(known, Source(None, str(path)), n_bytes).dimension


def local_path(url: str, options: Mapping[str, Any] | None = None) -> Path | None:
    """Return where a file is on this machine; None: elsewhere."""
    if not options and url.startswith(_LOCAL) and "::" not in url and os.name != "nt":
        return Path(url[len(_LOCAL) - 1 :])  # as most are, which need not ask fsspec
    system, path = open_file_system(url, options)
    protocol = system.protocol
    protocols = (protocol,) if isinstance(protocol, str) else protocol
    return Path(path) if "file" in protocols else None


def read_table(file: RemoteFile, dimension: DimensionId | None = None) -> jessymem.MmapRegion:
    """Return a region of which everything is there but the contents, which must not be read.

    Header and extension come with the first range, what the first one lacks of table and heap with
    the second. Of a plain file the entries are followed to their end.

    Raises
    ------
    RemoteError
        If a range cannot be had.
    RegionFormatError
        If it breaks the format.
    """
    source = Source(dimension, file.url)
    begin = file.read(0, min(_FIRST_BYTES, file.n_bytes))
    known = np.frombuffer(begin, np.uint8)
    header = layout.read_header(known, source, file.n_bytes)
    extension = layout.read_extension(known, header, source)
    metadata = bytearray(begin)
    if extension is None:
        _read_entries(file, metadata, header.layer_count)
        # Where contents are is compared with the file's end, so that has to be there, untouched.
        memory = osmem.private_memory(file.n_bytes).mapping
        memory[: len(metadata)] = bytes(metadata)
        data = np.frombuffer(memoryview(memory).toreadonly()[: file.n_bytes], np.uint8)
    else:
        if extension.content_start > len(metadata):
            metadata += file.read(len(metadata), extension.content_start)
        data = np.frombuffer(bytes(metadata), np.uint8)
    return jessymem.MmapRegion(header.dimension, None, data, s.REGION_COPIED, None, file.n_bytes)


def read_whole_table(file: RemoteFile, dimension: DimensionId | None = None) -> jessymem.MmapRegion:
    """Return `read_table`, of the edition that `file` tells of.

    Raises
    ------
    RemoteError
        Also if the file is another one by the time that it was read.
    """
    try:
        table = read_table(file, dimension)
    except RegionFormatError:
        file.check_same()
        raise
    file.check_same()
    return table


def _read_entries(file: RemoteFile, known: bytearray, n_layers: int) -> None:
    """Read plain entries, one after the other, behind what is known of a file."""
    limit = min(file.n_bytes, s.MAX_METADATA_BYTES)

    def has(end: int) -> bool:
        """Read up to `end`; False: the file, or what metadata may take, ends before."""
        if end > limit:
            return False
        if end > len(known):
            known.extend(file.read(len(known), min(max(end, len(known) + _ENTRIES_BYTES), limit)))
        return True

    at = s.HEADER_BYTES
    for _ in range(n_layers):
        if not has(at + _ENTRY_BYTES):
            return  # `read_plain` will say what is wrong
        n_keywords = int.from_bytes(known[at + _ENTRY_BYTES - 4 : at + _ENTRY_BYTES], "little")
        at += _ENTRY_BYTES
        if n_keywords > s.MAX_KEYWORDS:
            return
        for _ in range(n_keywords):
            if not has(at + s.KEYWORD_LENGTH_BYTES):
                return
            n_bytes = int.from_bytes(known[at : at + s.KEYWORD_LENGTH_BYTES], "little")
            at += s.KEYWORD_LENGTH_BYTES + n_bytes
        if not has(at + s.LAYER_EXTENT.itemsize):
            return
        at += s.LAYER_EXTENT.itemsize


def is_name_of_delta(name: str) -> bool:
    """Tell whether a file beside a region file is called as its deltas are."""
    return name.startswith("region.d") and name.endswith(".mmap")


def unfolded(url: str) -> RegionFormatError:
    """Return the error that a store holds a delta."""
    return RegionFormatError(
        f"{url} is a delta: in a store each dimension is one file, so fold it before it is copied "
        "there (jessymem fold)",
        field="follows_generation",
        offset=160,
        expected="no deltas beside",
        got=Path(url).name,
        dimension=None,
        path=url,
    )
