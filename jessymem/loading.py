"""From a name to a charged and checked region: finding files, mapping them, or simulating them.

`Loader` knows the configuration and the budget, and nothing of what is published: the manager calls
it under its writer lock and publishes what comes back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from jessymem import osmem
from jessymem.budget import Budget
from jessymem.config import MemoryConfig
from jessymem.core_dimensions import CORE_DIMENSIONS
from jessymem.errors import DimensionNotFound, JessyMemoryError, RegionIOError, empty_frames
from jessymem.ids import DimensionId
from jessymem.logger import INFO, logger
from jessymem.regions.files import RegionFiles
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import LayerTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")

REGION_FILE: Final = "region.mmap"


class Loader:
    """Finds, maps and simulates regions for one manager.

    Attributes
    ----------
    base : pathlib.Path
        Where the region files are.
    """

    def __init__(self, config: MemoryConfig, budget: Budget) -> None:
        self.base = Path(os.fspath(config.base_path)).absolute()
        self._config = config
        self._budget = budget
        self._region_ids = count(1)
        self._numbers: dict[DimensionId, tuple[osmem.FileIdentity, NDArray[np.uint16]]] = {}
        self._homes: dict[DimensionId, Path] = {}  # where they are not under the base path

    def path_of(self, dimension: DimensionId) -> Path:
        """Return where a dimension's region file belongs under the base path."""
        return self.base / str(dimension) / REGION_FILE

    def home_of(self, dimension: DimensionId) -> Path:
        """Return where a dimension's region file is: under the base path if it was not told."""
        return self._homes.get(dimension, self.path_of(dimension))

    def settle(self, dimension: DimensionId, home: Path | None) -> None:
        """Note where a dimension was loaded from; None: from where it belongs."""
        if home is None or home in RegionFiles(dimension, self.path_of(dimension)):
            self._homes.pop(dimension, None)
        else:
            self._homes[dimension] = home

    def files_of(self, dimension: DimensionId) -> RegionFiles:
        """Return a dimension's files."""
        return RegionFiles(dimension, self.home_of(dimension))

    def find(self, dimension: DimensionId, home: Path) -> Path:
        """Return the file that counts, after tidying up what killed writers left at `home`.

        Raises RegionIOError.
        """
        return RegionFiles(dimension, home).newest_path(tidy=not self._config.read_only)

    def with_newest(self, dimension: DimensionId, home: Path, use: Callable[[Path], T]) -> T:
        """Return what `use` makes of the file that counts at `home`.

        Raises
        ------
        DimensionNotFound, Exception
            What `use` raises; where a generation beside was folded back meanwhile, not before the
            file at `home` was looked for too.
        """
        while True:
            where = self.find(dimension, home)
            try:
                return use(where)
            except DimensionNotFound as error:
                if where == home:
                    raise
                empty_frames(error)

    def numbers_on_disk(self, dimension: DimensionId) -> NDArray[np.uint16]:
        """Return the layer numbers that a dimension's file has now, ascending.

        Raises
        ------
        RegionIOError, RegionFormatError
            If they cannot be read.
        """
        read = partial(self._numbers_in, dimension)
        try:
            return self.with_newest(dimension, self.home_of(dimension), read)
        except DimensionNotFound:
            return np.zeros(0, np.uint16)

    def _numbers_in(self, dimension: DimensionId, where: Path) -> NDArray[np.uint16]:
        identity = self.identify(dimension, where)
        known = self._numbers.get(dimension)
        if known is None or known[0] != identity:
            region = MmapRegion.from_file(dimension, where)
            known = self._numbers[dimension] = identity, np.array(region.numbers)
        return known[1]

    def new_region_id(self) -> int:
        """Return an id for a region that is not charged."""
        return next(self._region_ids)

    def discover(self) -> list[DimensionId]:
        """Return the dimensions that have a region file, ascending; see `MmapManager.discover`."""
        try:
            names = osmem.list_directory(self.base)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise RegionIOError.from_os_error(error, "list", self.base) from error
        found = []
        for name in names:
            try:
                dimension = DimensionId.parse(name)
            except ValueError:
                continue
            if name == str(dimension) and self._is_file(dimension):
                found.append(dimension)
        return sorted(found)

    def identify(self, dimension: DimensionId, where: Path) -> osmem.FileIdentity:
        """Tell which file lies at `where`; raise DimensionNotFound or RegionIOError."""
        try:
            return osmem.identify(where)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DimensionNotFound(
                f"{dimension}: no region file at {where} (errno {error.errno})",
                dimension=dimension,
                path=str(where),
            ) from None
        except OSError as error:
            raise RegionIOError.from_os_error(error, "open", where, dimension) from error

    def map(self, dimension: DimensionId, where: Path) -> tuple[MmapRegion, int]:
        """Charge, map and check a file; return the region and its new region id.

        On any failure nothing stays charged or mapped. The charge ends with the last view on the
        region.
        """
        region_id = next(self._region_ids)
        charge = partial(self._budget.reserve, region_id, dimension)
        config = self._config
        region = MmapRegion.admitted(dimension, where, config.load_mode, config.advice, charge)
        return region, region_id

    def simulate(self, dimension: DimensionId) -> tuple[MmapRegion, int]:
        """Charge a core dimension's bundled content, laid out in memory; as `map`."""
        from jessymem import simulation

        region_id = next(self._region_ids)
        region = simulation.simulated_region(dimension)
        osmem.keep_with(region.data, self._budget.reserve(region_id, dimension, region.size))
        return region, region_id

    def wants_simulation(self) -> bool:
        """Tell whether bundled content is to stand in for core dimensions."""
        if self._config.simulation != "auto":
            return self._config.simulation == "always"
        return not any(self._is_file(dimension) for dimension in CORE_DIMENSIONS)

    def _is_file(self, dimension: DimensionId) -> bool:
        """Tell whether something lies where a dimension's file belongs; if in doubt, yes."""
        try:
            return RegionFiles(dimension, self.path_of(dimension)).exists()
        except RegionIOError:
            return True  # the load will say why


# -- records ---------------------------------------------------------------------------------------


def log_region(event: str, region: LayerTable, **facts: Any) -> None:
    """Record, at info, that a region was loaded, refreshed, unloaded, evicted, crystallized."""
    if not logger.isEnabledFor(INFO):
        return
    n_layers = region.n_layers
    logger.info(
        "%s %s: %d layers, %d bytes, %s",
        event.removeprefix("dimension_"),
        region.dimension_id,
        n_layers,
        region.size,
        region.path or "simulated",
        extra={
            "event": event,
            "dimension": str(region.dimension_id),
            "path": None if region.path is None else str(region.path),
            "n_layers": n_layers,
            "n_bytes": region.size,
            "generation": region.generation,
            **facts,
        },
    )


@contextmanager
def logged_failure(dimension: DimensionId, where: Path) -> Iterator[None]:
    """Record, as a warning, the error that keeps a dimension from being loaded."""
    try:
        yield
    except JessyMemoryError as error:
        logger.warning(
            "not loaded: %s",
            str(error),  # the error would hold the frames it passed, and their views
            extra={
                "event": "load_failed",
                "dimension": str(dimension),
                "path": str(where),
                "error": type(error).__name__,
                "details": {name: str(value) for name, value in error.details.items()},
            },
        )
        raise


def log_simulation(dimensions: list[DimensionId], base: Path) -> None:
    """Record, as a warning, that bundled content stands in for files."""
    logger.warning(
        "simulated %d core dimensions: their content is bundled with the package, not read from %s",
        len(dimensions),
        base,
        extra={
            "event": "simulation",
            "dimensions": [str(dimension) for dimension in dimensions],
            "base_path": str(base),
        },
    )
