"""`MemoryMap`: what is in a manager's memory at one moment, to be drawn, written or saved."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import jessymem
from jessymem import osmem
from jessymem.diagnostics import Moment, collect_stats
from jessymem.errors import ConfigError, RegionIOError, clears_frames
from jessymem.notebooks.dimensions import MappedDimension, length_of

if TYPE_CHECKING:
    from jessymem.engine.engine import Engine

#: How many dimensions and pools are drawn, and into how many pieces a pool is cut.
MAX_DIMENSIONS: Final = 40
MAX_POOLS: Final = 24
MAX_PIECES: Final = 128

_SUFFIX: Final = ".svg"


@dataclass(frozen=True, repr=False, eq=False)
class MemoryMap:
    """A manager's memory at one moment; `MmapManager.memory_map` makes it.

    A notebook shows it as a picture, `str` writes it as text. It holds numbers and names, no memory
    of the manager's.

    Attributes
    ----------
    place : str
        Where the manager looks for its files.
    is_closed : bool
    stats : MemoryStats
        The numbers of the same moment.
    thresholds : tuple of float
        Shares of the budget: warning, eviction, critical.
    dimensions : tuple of MappedDimension
        The 40 largest of those loaded, ascending by number.
    n_others, n_other_bytes : int
        How many further ones there are, and how long they are together.
    pools : tuple of Occupancy
        Of the first 24 pools, where blocks are used.

    Examples
    --------
    >>> [(each.name, each.n_layers) for each in manager.memory_map().dimensions]
    [('tools', 4), ('diary', 2)]
    """

    place: str
    is_closed: bool
    stats: jessymem.MemoryStats
    thresholds: tuple[float, ...]
    dimensions: tuple[MappedDimension, ...]
    n_others: int
    n_other_bytes: int
    pools: tuple[jessymem.hints.Occupancy, ...]

    # -- showing -----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Say in one line what it is of; `str` writes all of it."""
        n_dimensions = len(self.dimensions) + self.n_others
        return f"<MemoryMap {self.place} {n_dimensions:,} dimensions, {len(self.pools)} pools>"

    def __str__(self) -> str:
        """Write it as text: a bar for the budget, each dimension and each pool."""
        from jessymem.notebooks.map_text import text_of

        return text_of(self)

    def _repr_svg_(self) -> str:
        """Draw it as a file of its own would have it."""
        from jessymem.notebooks.map_drawing import draw

        return draw(self)

    def _repr_html_(self) -> str:
        """Draw it in a notebook's cell."""
        return jessymem.notebooks.show_map(self)

    @clears_frames
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture as an SVG file, whole or not at all; what is there is replaced.

        Parameters
        ----------
        path : path-like
            Its name ends in ``.svg``; the folder is there.

        Returns
        -------
        pathlib.Path

        Raises
        ------
        ConfigError
            If the name has another ending.
        RegionIOError
            If the file cannot be written.
        ValueError, TypeError
            If `path` is not a path.

        Examples
        --------
        >>> manager.memory_map().save("memory.svg").read_text()[:4]
        '<svg'
        """
        where = osmem.as_path(path)
        if where.suffix.lower() != _SUFFIX:
            raise ConfigError(
                f"{where}: a picture is saved as {_SUFFIX}, not {where.suffix or 'without ending'}",
                field="path",
                value=where,
            )
        content = self._repr_svg_().encode("utf-8")
        try:
            _write(where, content)
        except OSError as error:
            raise RegionIOError.from_os_error(error, "write", where) from error
        return where


def map_of(engine: Engine) -> MemoryMap:
    """Look at a manager's engine, open or closed."""
    moment = Moment.of(engine)
    allocator, config = engine.present_allocator, engine.config
    pools = () if allocator is None else allocator.occupancies(MAX_PIECES)[:MAX_POOLS]
    all_loaded = moment.snapshot.loaded
    largest = nlargest(MAX_DIMENSIONS, all_loaded, key=length_of)
    shown = sorted(largest, key=lambda loaded: loaded.dimension_id)
    n_bytes = sum(map(length_of, all_loaded)) - sum(map(length_of, shown))
    return MemoryMap(
        str(engine.loader.place),
        engine.is_closed,
        collect_stats(engine, moment),
        tuple(config.thresholds.values()),
        tuple(
            MappedDimension.of(loaded, is_pinned=loaded.dimension_id in engine.pinned)
            for loaded in shown
        ),
        len(all_loaded) - len(shown),
        n_bytes,
        tuple(pools),
    )


def _write(where: Path, content: bytes) -> None:
    """Write a file under another name, and give it its own."""
    temporary = where.with_name(f".{token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, where)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
