"""From a name to a charged and checked region: finding files, mapping them, or simulating them.

`Loader` knows the configuration and the budget, and nothing of what is published: the engine calls
it under its writer lock and publishes what comes back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from jessymem import osmem
from jessymem.budget import Budget
from jessymem.config import MemoryConfig
from jessymem.core_dimensions import CORE_DIMENSIONS
from jessymem.errors import DimensionNotFound, RegionIOError, empty_frames
from jessymem.ids import DimensionId
from jessymem.regions.files import RegionFiles
from jessymem.regions.region import MmapRegion

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

    def note_home(self, dimension: DimensionId, home: Path | None) -> None:
        """Note where a dimension was loaded from; None: from where it belongs."""
        if home is None or home in self._files_at(dimension, self.path_of(dimension)):
            self._homes.pop(dimension, None)
        else:
            self._homes[dimension] = home

    def files_of(self, dimension: DimensionId) -> RegionFiles:
        """Return a dimension's files."""
        return self._files_at(dimension, self.home_of(dimension))

    def _files_at(self, dimension: DimensionId, home: Path) -> RegionFiles:
        return RegionFiles(dimension, home, self._config.load_mode)

    def use_newest(self, dimension: DimensionId, home: Path, use: Callable[[Path], T]) -> T:
        """Return what `use` makes of the file that counts at `home`.

        What killed writers left there is tidied up first.

        Raises
        ------
        RegionIOError
            If the directory cannot be listed.
        DimensionNotFound, Exception
            What `use` raises; where a generation beside was folded back meanwhile, not before the
            file at `home` was looked for too.
        """
        while True:
            files = self._files_at(dimension, home)
            where = files.newest_path(tidy=not self._config.read_only)
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
            return self.use_newest(dimension, self.home_of(dimension), read)
        except DimensionNotFound:
            return np.zeros(0, np.uint16)

    def _numbers_in(self, dimension: DimensionId, where: Path) -> NDArray[np.uint16]:
        identity = self.identify(dimension, where)
        known = self._numbers.get(dimension)
        if known is None or known[0] != identity:
            region = MmapRegion.from_file(dimension, where, load_mode=self._config.load_mode)
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
        region = MmapRegion.admitted(dimension, where, config.taking, config.advice, charge)
        return region, region_id

    def simulate(self, dimension: DimensionId) -> tuple[MmapRegion, int]:
        """Charge a core dimension's bundled content, laid out in memory; as `map`."""
        from jessymem import simulation

        region_id = next(self._region_ids)
        region = simulation.simulated_region(dimension)
        osmem.keep_with(region.data, self._budget.reserve(region_id, dimension, region.size))
        return region, region_id

    def wants_simulation(self) -> bool:
        """Tell whether bundled content is to take the place of core dimensions."""
        if self._config.simulation != "auto":
            return self._config.simulation == "always"
        return not any(self._is_file(dimension) for dimension in CORE_DIMENSIONS)

    def _is_file(self, dimension: DimensionId) -> bool:
        """Tell whether something lies where a dimension's file belongs; if in doubt, yes."""
        try:
            return self._files_at(dimension, self.path_of(dimension)).exists()
        except RegionIOError:
            return True  # the load will say why
