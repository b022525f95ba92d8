"""What came of a build or an export, as values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jessymem.ids import DimensionId
from jessymem.ingest.folders import Skipped


class BuiltDimension(NamedTuple):
    """One region file, and what it was made of.

    Attributes
    ----------
    dimension_id : DimensionId
    name : str
    folder : str
        The sub-folder's or file's name.
    path : pathlib.Path
    n_layers : int
    n_bytes : int
        Of the region file; where none was written, of the contents.
    generation : int
        Of the region file; 0 where none was written.
    is_replaced : bool
        Whether it was written in the place of another.
    is_unchanged : bool
        Whether it was there already, as it had to be, and was left alone.
    fault : str or None
        Why a manager with default settings could not load it; None: it can.

    Examples
    --------
    >>> (folder / "notes/weather").mkdir(parents=True)
    >>> size = (folder / "notes/weather/today.md").write_text("Fog.")
    >>> (built,) = build("notes", "built").dimensions
    >>> built.dimension_id, built.name, built.n_layers, built.is_replaced
    (D15, 'weather', 1, False)
    """

    dimension_id: DimensionId
    name: str
    folder: str
    path: Path
    n_layers: int
    n_bytes: int
    generation: int
    is_replaced: bool
    is_unchanged: bool
    fault: str | None


@dataclass(frozen=True)
class BuildReport:
    """What a build wrote, left alone and left out.

    Attributes
    ----------
    dimensions : tuple of BuiltDimension
        Ascending.
    skipped : tuple of Skipped
        What of the source was left out: its path, and the reason.
    is_dry_run : bool
        Whether it only says what it would do.

    Examples
    --------
    >>> (folder / "notes/weather").mkdir(parents=True)
    >>> size = (folder / "notes/weather/today.md").write_text("Fog.")
    >>> build("notes", "built", dry_run=True)
    <BuildReport 1 would be written, 0 unchanged, 0 skipped: 1 layers, 4 bytes>
    >>> build("notes", "built")
    <BuildReport 1 written, 0 unchanged, 0 skipped: 1 layers, 452 bytes>
    """

    dimensions: tuple[BuiltDimension, ...]
    skipped: tuple[Skipped, ...]
    is_dry_run: bool = False

    def __repr__(self) -> str:
        """Show in one line what came of it."""
        done = "would be written" if self.is_dry_run else "written"
        return (
            f"<BuildReport {len(self.written):,} {done}, {len(self.unchanged):,} unchanged, "
            f"{len(self.skipped):,} skipped: {self.n_layers:,} layers, {self.n_bytes:,} bytes>"
        )

    @property
    def n_layers(self) -> int:
        """Layers of all dimensions.

        Examples
        --------
        >>> size = (folder / "today.md").write_text("Fog.")
        >>> build(["today.md"], "built").n_layers
        1
        """
        return sum(each.n_layers for each in self.dimensions)

    @property
    def n_bytes(self) -> int:
        """Bytes of all dimensions.

        Examples
        --------
        >>> size = (folder / "today.md").write_text("Fog.")
        >>> report = build(["today.md"], "built")
        >>> report.n_bytes == report.dimensions[0].path.stat().st_size
        True
        """
        return sum(each.n_bytes for each in self.dimensions)

    @property
    def written(self) -> tuple[BuiltDimension, ...]:
        """The dimensions that were written, or would be.

        Examples
        --------
        >>> size = (folder / "today.md").write_text("Fog.")
        >>> [len(build("today.md", "built").written) for _ in range(2)]
        [1, 0]
        """
        return tuple(each for each in self.dimensions if not each.is_unchanged)

    @property
    def unchanged(self) -> tuple[BuiltDimension, ...]:
        """The dimensions that were left alone.

        Examples
        --------
        >>> size = (folder / "today.md").write_text("Fog.")
        >>> [len(build("today.md", "built").unchanged) for _ in range(2)]
        [0, 1]
        """
        return tuple(each for each in self.dimensions if each.is_unchanged)


class ExportedDimension(NamedTuple):
    """One dimension, and the file or folder that it was written to.

    Attributes
    ----------
    dimension_id : DimensionId
    name : str
    path : pathlib.Path
    n_layers : int
    n_bytes : int
        Of the contents.

    Examples
    --------
    >>> report = export(manager, "out", "npz")
    >>> [(each.name, each.path.name) for each in report.dimensions]
    [('tools', 'D15-tools.npz'), ('diary', 'D16-diary.npz')]
    """

    dimension_id: DimensionId
    name: str
    path: Path
    n_layers: int
    n_bytes: int


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes
    ----------
    format : str
    dimensions : tuple of ExportedDimension
        Ascending.

    Examples
    --------
    >>> export(manager, "out", dimensions="D16")
    <ExportReport files, 1 written: 2 layers, 44 bytes>
    """

    format: str
    dimensions: tuple[ExportedDimension, ...]

    def __repr__(self) -> str:
        """Show in one line what was written."""
        return (
            f"<ExportReport {self.format}, {len(self.dimensions):,} written: "
            f"{self.n_layers:,} layers, {self.n_bytes:,} bytes>"
        )

    @property
    def n_layers(self) -> int:
        """Layers of all dimensions.

        Examples
        --------
        >>> export(manager, "out").n_layers
        6
        """
        return sum(each.n_layers for each in self.dimensions)

    @property
    def n_bytes(self) -> int:
        """Bytes of all contents.

        Examples
        --------
        >>> export(manager, "out", dimensions="D16").n_bytes  # 18 of Monday, 26 of Tuesday
        44
        """
        return sum(each.n_bytes for each in self.dimensions)
