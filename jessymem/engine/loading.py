"""From a name to a charged and checked region: finding files, mapping them, or simulating them.

`Loader` knows the configuration and the budget, and nothing of what is published: the engine calls
it under its writer lock and publishes what comes back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from jessymem import osmem
from jessymem.budget import Budget, Charge
from jessymem.config import MemoryConfig, placement_of
from jessymem.core_dimensions import CORE_DIMENSIONS
from jessymem.engine import records
from jessymem.errors import (
    AllocationFailed,
    DimensionNotFound,
    JessyMemoryError,
    RegionIOError,
)
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.locks import before_import
from jessymem.regions.chain import RegionChain
from jessymem.regions.deltas import Chain, Peeked, peek_flags
from jessymem.regions.files import REGION_FILE, RegionFiles, held_at
from jessymem.regions.region import MmapRegion
from jessymem.regions.table import LayerTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.engine.inflated import InflatedLayers
    from jessymem.regions.mirror import Mirror

T = TypeVar("T")


class Loader:
    """Finds, maps and simulates regions for one manager.

    Attributes
    ----------
    base : pathlib.Path
        Where the region files are: those of a store, where the mirror has them.
    place : pathlib.Path or str
        What people call that: the store's URL, where it is one.
    """

    def __init__(
        self, config: MemoryConfig, budget: Budget, inflated: InflatedLayers | None = None
    ) -> None:
        self._mirror: Mirror | None = None
        if osmem.is_url(config.base_path):
            before_import("jessymem.regions.mirror")
            from jessymem.regions.mirror import Mirror

            self._mirror = Mirror(str(config.base_path))
            self.base = osmem.absolute(self._mirror.folder)
        else:
            self.base = osmem.absolute(Path(os.fspath(config.base_path)))
        self.placement = placement_of(config)
        self.place = self.base if self._mirror is None else self._mirror.url
        self._config = config
        self._budget = budget
        self._inflated = inflated
        self._region_ids = count(1)
        self._table_ids = count(-1, -1)  # of charges that are of no region
        self._peeked: Peeked = {}
        self._recorded: set[str] = set()  # what was told of files that are ignored
        self._numbers: dict[
            DimensionId, tuple[tuple[osmem.FileIdentity, ...], NDArray[np.uint16]]
        ] = {}
        self._homes: dict[DimensionId, Path] = {}  # where they are not under the base path

    def path_of(self, dimension: DimensionId) -> Path:
        """Return where a dimension's region file belongs under the base path."""
        return Path(f"{self.base}{os.sep}{dimension}{os.sep}{REGION_FILE}")  # in half the time of /

    def home_of(self, dimension: DimensionId) -> Path:
        """Return where a dimension's region file is: under the base path if it was not told."""
        return self._homes.get(dimension, self.path_of(dimension))

    def origin_of(self, dimension: DimensionId) -> Path | str:
        """Return where a dimension's region file is for other processes too: a path, or a URL."""
        if self._mirror is None or dimension in self._homes:
            return self.home_of(dimension)
        return self._mirror.url_of(dimension)

    @property
    def config(self) -> MemoryConfig:
        """The settings, with a base path that is the same in every folder."""
        if self._mirror is not None:
            return self._config
        return MemoryConfig.of(self._config, self.base)

    def adopt(self, config: MemoryConfig) -> None:
        """Go on with these settings, which differ in the budget alone."""
        self._config = config

    def close(self) -> None:
        """Take away what was made to find files; nothing is loaded any more."""
        if self._mirror is not None:
            self._mirror.close()

    def fetch(self, dimension: DimensionId) -> None:
        """Have what a store has of a dimension by now; under no lock.

        Nothing is to be had for a folder, nor for what was loaded from a path.

        Raises
        ------
        DimensionNotFound, RemoteError, RegionIOError, RegionFormatError
            As `Mirror.fetch`.
        """
        if self._mirror is not None and dimension not in self._homes:
            self._mirror.fetch(dimension)

    def fetch_many(
        self, dimensions: Iterable[DimensionId]
    ) -> Mapping[DimensionId, JessyMemoryError]:
        """Have what a store has of several by now; return what was wrong with which."""
        return {} if self._mirror is None else self._mirror.fetch_many(dimensions)

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
        mode = self._config.load_mode
        return RegionFiles(dimension, home, mode, self._record_once, self._peeked)

    def _record_once(self, write: Callable[[], None]) -> None:
        """Write a record of what lies on disk, once for as long as it is the same."""
        what = str(getattr(write, "args", ()))
        if what not in self._recorded:
            self._recorded.add(what)
            write()

    def use_newest(
        self, dimension: DimensionId, home: Path, use: Callable[[RegionFiles, Chain], T]
    ) -> T:
        """Return what `use` makes of the files that count at `home`.

        What killed writers left there is tidied up first. Errors are those of
        `RegionFiles.use_newest`.
        """
        files = self._files_at(dimension, home)
        return files.use_newest(partial(use, files), tidy=not self._config.read_only)

    def numbers_on_disk(
        self, dimension: DimensionId, loaded: LayerTable | None = None
    ) -> NDArray[np.uint16]:
        """Return the layer numbers that a dimension's files have now, ascending.

        Parameters
        ----------
        loaded : LayerTable or None
            What is loaded of them: where they are still the same files, they are not read again.

        Raises
        ------
        RegionIOError, RegionFormatError
            If they cannot be read.
        """
        read = partial(self._numbers_in, dimension, loaded)
        try:
            return self.use_newest(dimension, self.home_of(dimension), read)
        except DimensionNotFound:
            return np.zeros(0, np.uint16)

    def _numbers_in(
        self,
        dimension: DimensionId,
        loaded: LayerTable | None,
        files: RegionFiles,
        chain: Chain,
    ) -> NDArray[np.uint16]:
        identities = self.identify(dimension, files, chain)
        if loaded is not None and loaded.identities == identities:
            return loaded.numbers
        known = self._numbers.get(dimension)
        if known is None or known[0] != identities:
            numbers = np.array(files.open_chain(chain, files.open).numbers)
            known = self._numbers[dimension] = identities, numbers
        return known[1]

    def new_region_id(self) -> int:
        """Return an id for a region that is not charged."""
        return next(self._region_ids)

    def discover(self) -> list[DimensionId]:
        """Return the dimensions that have a region file, ascending; see `MmapManager.discover`."""
        if self._mirror is not None:
            return list(self._mirror.list())
        try:
            names = osmem.list_directory(self.base)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self.base.exists():
                return []
            raise RegionIOError.from_os_error(error, "list", self.base) from error
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

    def identify(
        self, dimension: DimensionId, files: RegionFiles, chain: Chain
    ) -> tuple[osmem.FileIdentity, ...]:
        """Tell which files a chain is of; raise DimensionNotFound or RegionIOError."""
        try:
            return chain.identify()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DimensionNotFound(
                f"{dimension}: no region file at {chain.base} (errno {error.errno})",
                dimension=dimension,
                path=str(chain.base),
            ) from None
        except OSError as error:
            raise RegionIOError.from_os_error(error, "open", chain.base, dimension) from error

    def map(
        self,
        dimension: DimensionId,
        files: RegionFiles,
        chain: Chain,
        held: Sequence[MmapRegion] = (),
        *,
        checks_rows: bool = True,
    ) -> tuple[MmapRegion | RegionChain, int]:
        """Charge, map and check the files of a chain; return them as one, and its new region id.

        Those that are `held` already are not mapped again, nor charged. On any failure nothing
        more stays charged or mapped. A charge ends with the last view on its file. `checks_rows` is
        as for `layout.read_layout`, where there is one file alone.

        Raises
        ------
        ChainChanged
            As `RegionFiles.open_chain`.
        """
        n_charged = 0

        def take(path: Path) -> MmapRegion:
            nonlocal n_charged
            region = held_at(path, held, is_peeked=bool(chain.deltas))
            if region is None:
                is_alone = not chain.deltas and dimension not in CORE_DIMENSIONS
                check = checks_rows or not is_alone
                region = self._map_file(dimension, path, n_charged, checks_rows=check)
            n_charged += region.n_charged_bytes
            return region

        opened = files.open_chain(chain, take)
        below = self._simulated_below(dimension, opened.members, held)
        return self.assemble([*below, *opened.members], None if below else opened)

    def follow(
        self,
        dimension: DimensionId,
        where: Path,
        before: Sequence[MmapRegion],
        loaded: MmapRegion | RegionChain | None,
        written: osmem.FileIdentity | None,
    ) -> tuple[MmapRegion | RegionChain, int]:
        """Charge and map a file that was written after others; otherwise as `map`.

        Parameters
        ----------
        before : sequence of MmapRegion
            The files that it follows; none: it is the region file.
        loaded : MmapRegion, RegionChain or None
            What is loaded of the dimension.
        written : FileIdentity or None
            Which file it was; if it still is, it need not be checked.
        """
        n_before = sum([region.n_charged_bytes for region in before])
        members = [*before, self._map_file(dimension, where, n_before, written)]
        held = () if loaded is None else loaded.members
        below = self._simulated_below(dimension, members, held)
        return self.assemble([*below, *members], before=loaded)

    def open_file(self, dimension: DimensionId, where: Path) -> MmapRegion:
        """Open a file as one that is loaded, but whatever the budget says."""
        how = self._config.taking, "none", osmem.admit_all
        return MmapRegion.admitted(dimension, where, *how, placement=self.placement)

    def open_uncharged(
        self, dimension: DimensionId, where: Path, before: Sequence[MmapRegion]
    ) -> MmapRegion | RegionChain:
        """Open a file after others as `follow` does, whatever the budget says: for its names."""
        region = MmapRegion.from_file(dimension, where, load_mode=self._config.load_mode)
        below = self._simulated_below(dimension, [region], ())
        members = [*below, *before, region]
        return members[0] if len(members) == 1 else RegionChain(members)

    def assemble(
        self,
        members: Sequence[MmapRegion],
        opened: MmapRegion | RegionChain | None = None,
        before: MmapRegion | RegionChain | None = None,
    ) -> tuple[MmapRegion | RegionChain, int]:
        """Charge what is not yet charged of regions and of the tables that make them one.

        Parameters
        ----------
        opened : MmapRegion, RegionChain or None
            What they are together, if that is made already.
        before : MmapRegion, RegionChain or None
            What all but the last of them may be together.

        Raises
        ------
        LimitExceeded
            If there is no room; what was charged for it is released.
        """
        dimension = members[-1].dimension_id
        n_charged = 0
        charged: list[MmapRegion] = []
        try:
            for member in members:
                if member.charge_id is None:
                    charge = self._reserve(dimension, member.n_charged_bytes, n_charged)
                    osmem.keep_with(member.data, charge)
                    member.charge_id = charge.id
                    charged.append(member)
                n_charged += member.n_charged_bytes
                if member.frames is not None:
                    member.frames.supply = self._inflated
            if opened is None:
                opened = members[0] if len(members) == 1 else RegionChain(members, before)
            for table in {id(each): each for each in (*members, opened)}.values():
                n_pages = table.table_bytes // osmem.page_size()
                if n_pages and table.table_charge is None:
                    n_bytes = n_pages * osmem.page_size()
                    table.table_charge = self._reserve(
                        dimension, n_bytes, n_charged, next(self._table_ids)
                    )
                n_charged += sum(charge.n_bytes for charge in table.table_charges)
        except BaseException:
            for member in charged:
                osmem.keep_with(member.data, None)
                member.charge_id = None
            raise
        self._budget.reclaim(opened.charge_ids)
        if len(members) == 1:
            return opened, opened.charge_ids[0]
        return opened, self.new_region_id()

    def charge_table(self, table: LayerTable, n_bytes: int) -> Charge:
        """Charge what is made of a table later on; raise LimitExceeded where there is no room."""
        beside = table.n_charged
        return self._reserve(table.dimension_id, n_bytes, beside, next(self._table_ids))

    def _reserve(
        self, dimension: DimensionId, n_bytes: int, beside: int, charge_id: int | None = None
    ) -> Charge:
        charge_id = self.new_region_id() if charge_id is None else charge_id
        return self._budget.reserve(charge_id, dimension, n_bytes, beside)

    def _map_file(
        self,
        dimension: DimensionId,
        where: Path,
        beside: int,
        written: osmem.FileIdentity | None = None,
        *,
        checks_rows: bool = True,
    ) -> MmapRegion:
        charge_id = self.new_region_id()
        charge = partial(self._budget.reserve, charge_id, dimension, beside=beside)
        config = self._config
        region = MmapRegion.admitted(
            dimension,
            where,
            config.taking,
            config.advice,
            charge,
            written,
            checks_rows=checks_rows,
            placement=self.placement,
        )
        region.charge_id = charge_id
        return region

    def simulate(self, dimension: DimensionId) -> tuple[MmapRegion | RegionChain, int]:
        """Charge a core dimension's bundled content, laid out in memory; as `map`."""
        return self.assemble([self._simulate(dimension, 0)])

    def _simulate(self, dimension: DimensionId, beside: int) -> MmapRegion:
        before_import("jessymem.simulation")
        from jessymem import simulation

        try:
            region = simulation.simulated_region(dimension)
        except AllocationFailed as error:
            raise AllocationFailed(f"{dimension}: {error}", **error.details) from error
        charge = self._reserve(dimension, region.size, beside)
        osmem.keep_with(region.data, charge)
        region.charge_id = charge.id
        if self._config.simulation == "auto":
            records.of_stand_ins(self.place)()
        return region

    def _simulated_below(
        self, dimension: DimensionId, members: Sequence[MmapRegion], held: Sequence[MmapRegion]
    ) -> list[MmapRegion]:
        """Return the simulation that is to lie under a dimension's files, if any is."""
        is_on = self._config.simulation != "never" and dimension in CORE_DIMENSIONS
        if not is_on or not members[0].flags & s.FLAG_SIMULATION:
            return []
        for region in held:
            if region.state == s.REGION_SIMULATED:
                return [region]
        return [self._simulate(dimension, sum(each.size for each in members))]

    def wants_simulation(self, others: Iterable[DimensionId] = ()) -> bool:
        """Tell whether bundled content is to take the place of core dimensions without a file.

        Parameters
        ----------
        others : iterable of DimensionId
            Dimensions that have a file, and so tell that there is content of the user's own.
        """
        if self._config.simulation != "auto":
            return self._config.simulation == "always"
        present = [each for each in CORE_DIMENSIONS if self._is_file(each)]
        if not present:
            return not any(True for _ in others)
        return any(map(self._is_from_simulation, present))

    def stands_over_simulation(self, dimension: DimensionId) -> bool:
        """Tell whether a core dimension has a file to be loaded where others are simulated.

        With ``simulation="always"`` only one that says that simulation was on.
        """
        if self._config.simulation == "always":
            return self._is_from_simulation(dimension)
        return self._is_file(dimension)

    def _is_from_simulation(self, dimension: DimensionId) -> bool:
        """Tell whether a core dimension's file says that simulation was on; if in doubt, no."""
        with suppress(OSError, JessyMemoryError):
            base = self._files_at(dimension, self.path_of(dimension)).newest_path(tidy=False)
            return bool(peek_flags(base) & s.FLAG_SIMULATION)
        return False

    def _is_file(self, dimension: DimensionId) -> bool:
        """Tell whether something lies where a dimension's file belongs; if in doubt, yes."""
        if self._mirror is not None and dimension in self._mirror.listed:
            return True
        try:
            return self._files_at(dimension, self.path_of(dimension)).exists()
        except RegionIOError:
            return True  # the load will say why
