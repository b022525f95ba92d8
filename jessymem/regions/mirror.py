"""`Mirror`: the dimensions of a store, under names of this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from jessymem.errors import DimensionNotFound, JessyMemoryError, RemoteError
from jessymem.ids import DimensionId
from jessymem.regions import remote
from jessymem.regions.files import REGION_FILE
from jessymem.remote.cache import CachedFile, FileCache
from jessymem.remote.files import RemoteFile, ask, open_file_system

#: At once: what a fetch mostly does is wait.
_N_FETCHES: Final = 8


class Mirror:
    """A folder in which ``D15/region.mmap`` leads to what the cache has of ``URL/D15/region.mmap``.

    A dimension is there once it was fetched, and stays the same edition until it is fetched again.
    The folder goes when this is closed or goes; what is mapped stays valid.

    Parameters
    ----------
    url : str
        What is above the dimensions' folders.
    cache : FileCache, optional
        By default the user's own.

    Attributes
    ----------
    folder : pathlib.Path
    listed : collection of DimensionId
        What the store had when it was asked last for all.

    Raises
    ------
    ImportError
        If fsspec, or what it needs for the protocol, is missing.
    """

    def __init__(self, url: str, cache: FileCache | None = None) -> None:
        open_file_system(url)
        self.url = url.rstrip("/")
        self.folder = Path(tempfile.mkdtemp(prefix="jessymem-"))
        self._cache = cache or FileCache()
        self.listed: Collection[DimensionId] = ()
        self._held: dict[DimensionId, CachedFile] = {}
        self._end = weakref.finalize(self, _remove, self.folder, os.getpid())

    def close(self) -> None:
        """Take the folder away, and let the cache sweep what was fetched."""
        self._end()
        self._held.clear()

    def url_of(self, dimension: DimensionId) -> str:
        """Return where a dimension's region file is."""
        return f"{self.url}/{dimension}/{REGION_FILE}"

    def list(self) -> dict[DimensionId, RemoteFile]:
        """Return what the store has by now, ascending.

        Raises
        ------
        RemoteError
            If it cannot be listed.
        RegionFormatError
            If it holds deltas.
        """
        found = self._list("D*")
        self.listed = found.keys()
        return found

    def fetch(self, dimension: DimensionId) -> None:
        """Have the edition that the store has of a dimension by now.

        Raises
        ------
        DimensionNotFound
            If there is none.
        RemoteError, RegionIOError, RegionFormatError
            As `MmapRegion.from_url`; also where there are deltas.
        """
        try:
            found = self._list(str(dimension))
        except RemoteError as error:  # not every store can be listed
            if not isinstance(error.__cause__, FileNotFoundError | NotImplementedError):
                raise
            found = {}
        try:
            file = found.get(dimension) or RemoteFile.of(self.url_of(dimension))
        except RemoteError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise self._missing(dimension) from None
            raise
        self._take(dimension, file)

    def fetch_many(
        self, dimensions: Iterable[DimensionId] | None = None
    ) -> Mapping[DimensionId, JessyMemoryError]:
        """Have the editions of several, or of all, by now; return what was wrong with which.

        Raises
        ------
        RemoteError, RegionFormatError
            As `list`.
        """
        found = self.list()
        failed: dict[DimensionId, JessyMemoryError] = {}

        def take(dimension: DimensionId) -> None:
            try:
                if dimension not in found:
                    raise self._missing(dimension)
                self._take(dimension, found[dimension])
            except JessyMemoryError as error:
                failed[dimension] = error.with_traceback(None)

        with ThreadPoolExecutor(_N_FETCHES, "jessymem-fetch") as threads:
            for _ in threads.map(take, found if dimensions is None else dimensions):
                pass
        return failed

    def _missing(self, dimension: DimensionId) -> DimensionNotFound:
        url = self.url_of(dimension)
        return DimensionNotFound(
            f"{dimension}: no region file at {url}", dimension=dimension, path=url
        )

    def _take(self, dimension: DimensionId, file: RemoteFile) -> None:
        """Fetch an edition, and let the name lead to it."""
        held = remote.fetch(file, self._cache)
        name = self.folder / str(dimension) / REGION_FILE
        name.parent.mkdir(exist_ok=True)
        fresh = name.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(held.path)
        fresh.replace(name)
        self._held[dimension] = held

    def _list(self, pattern: str) -> dict[DimensionId, RemoteFile]:
        system, path = open_file_system(self.url)

        def look() -> Mapping[str, Mapping[str, Any]]:
            system.invalidate_cache()
            names = f"{path.rstrip('/')}/{pattern}/*.mmap"
            found: Mapping[str, Mapping[str, Any]] = system.glob(names, detail=True)
            if not found and self.url.startswith("http"):
                system.ls(path)  # which raises where the page is no listing
            return found

        listed = ask(look, "list", self.url)
        files: dict[DimensionId, RemoteFile] = {}
        for name in sorted(listed):
            folder, _, base = name.rpartition("/")
            try:
                dimension = DimensionId.parse(folder.rpartition("/")[2])
            except ValueError:
                continue
            if base == REGION_FILE:
                url = self.url_of(dimension)
                is_told = listed[name].get("size") is not None  # not in every listing
                file = RemoteFile.from_info(url, listed[name]) if is_told else RemoteFile.of(url)
                files[dimension] = file
            elif remote.is_name_of_delta(base):
                raise remote.unfolded(system.unstrip_protocol(name))
        return dict(sorted(files.items()))


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
