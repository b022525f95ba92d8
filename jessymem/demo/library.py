"""Real text that is always at hand: the Python standard library's own source files."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: What the modules that belong to no package go by.
TOP_LEVEL: Final = "top-level modules"

_SKIPPED: Final = frozenset(
    ("__pycache__", "dist-packages", "idlelib", "site-packages", "test", "tests")
)


def library_folder() -> Path:
    """Return where this Python keeps its standard library; it need not exist."""
    return Path(sysconfig.get_path("stdlib"))


def library_sources(root: Path) -> dict[str, list[Path]]:
    """Find a standard library's source files, package by package.

    Tests, installed packages and whatever cannot be read are left out.

    Parameters
    ----------
    root : pathlib.Path
        May be missing, wholly or in part.

    Returns
    -------
    dict of str to list of pathlib.Path
        Packages by name in sorted order, then `TOP_LEVEL`; the files of each sorted. Packages
        without files are left out.
    """
    found = {TOP_LEVEL: _sources_in(root)}
    for folder in _folders_in(root):
        found[folder.name] = sorted(_walk(folder))
    names = sorted(found.keys() - {TOP_LEVEL})
    return {name: found[name] for name in [*names, TOP_LEVEL] if found[name]}


def _walk(folder: Path) -> Iterator[Path]:
    yield from _sources_in(folder)
    for inner in _folders_in(folder):
        yield from _walk(inner)


def _sources_in(folder: Path) -> list[Path]:
    return [
        path
        for path in _entries(folder)
        if path.suffix == ".py" and path.is_file() and os.access(path, os.R_OK)
    ]


def _folders_in(folder: Path) -> list[Path]:
    return [
        path
        for path in _entries(folder)
        if path.name.isidentifier()
        and path.name not in _SKIPPED
        and path.is_dir()
        and not path.is_symlink()
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
