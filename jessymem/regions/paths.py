"""Where the files of a dimension are under a folder of region files."""

from __future__ import annotations

from pathlib import Path

from jessymem.ids import DimensionId
from jessymem.regions.files import REGION_FILE, RegionFiles


def region_path(data: Path, dimension: DimensionId) -> Path:
    """Return where a dimension's region file is written to under `data`."""
    return data / str(dimension) / REGION_FILE


def region_files(data: Path, dimension: DimensionId) -> RegionFiles:
    """Return the files of a dimension under `data`; they know which one is read."""
    return RegionFiles(dimension, region_path(data, dimension))
