"""Sources to region files: each folder, table or archive becomes a dimension.

`plan_build` looks at everything and checks it against the format; only `Plan.write` writes, one
dimension at a time, each file durable and whole before the next is begun.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from jessymem.budget import Budget
from jessymem.config import MemoryConfig, as_path
from jessymem.core_dimensions import IMMUTABLE, slots_of
from jessymem.errors import (
    ConfigError,
    DuplicateDimension,
    JessyMemoryError,
    LimitExceeded,
    clears_frames,
)
from jessymem.ids import DimensionId
from jessymem.ingest import receipts
from jessymem.ingest.columns import Columns
from jessymem.ingest.discovery import Options, Paths, find_sources
from jessymem.ingest.folders import Skipped
from jessymem.ingest.numbering import (
    FIRST_GROWN_DIMENSION,
    NameFile,
    name_folder,
    number_folders,
)
from jessymem.ingest.reports import BuildReport, BuiltDimension
from jessymem.ingest.sources import PlannedLayer, Source
from jessymem.logger import logger
from jessymem.manager import MmapManager
from jessymem.regions.builder import RegionBuilder
from jessymem.regions.chain import RegionChain
from jessymem.regions.files import RegionFiles
from jessymem.regions.layout import Edition
from jessymem.regions.paths import region_files, region_path
from jessymem.regions.region import MmapRegion
from jessymem.zstd import as_compression

#: Called with the bytes that were dealt with since the last call.
Advance = Callable[[int], object]

_DEFAULT_OPTIONS: Final = Options()

#: Of what is left out, so many are named in the warning.
_N_TOLD: Final = 5


def _ignore(n_bytes: int) -> None:
    """Take no notice."""


@dataclass(frozen=True)
class PlannedDimension:
    """One source and the region file that it becomes.

    Attributes
    ----------
    dimension_id : DimensionId
    name : str
    folder : str
        What the source is called where it was found.
    path : pathlib.Path
        Where the region file will be.
    is_replaced : bool
        Whether a file is there that will be replaced.
    is_unchanged : bool
        Whether a file is there that is what would be written.
    layers : tuple of PlannedLayer
        Ascending.
    source : Source
    looked_ns : int
        When the source was looked at, in ns since 1970-01-01 UTC.
    replaces : Edition or None
        Which file may be replaced; None: there must be none.
    is_forced : bool
        Whether any may.
    compress : str or None
        As `build` takes it.
    """

    dimension_id: DimensionId
    name: str
    folder: str
    path: Path
    is_replaced: bool
    is_unchanged: bool
    layers: tuple[PlannedLayer, ...]
    source: Source
    looked_ns: int
    replaces: Edition | None = None
    is_forced: bool = False
    compress: str | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of all contents, as they were looked at."""
        return sum(layer.n_bytes for layer in self.layers)

    def check_place(self, files: RegionFiles) -> None:
        """Raise DuplicateDimension where others have written there since; under the files' lock."""
        if self.is_forced:
            return
        found: Edition | None = None
        if files.exists():
            try:
                found = files.open_newest().edition
            except JessyMemoryError:
                raise _taken([self.dimension_id], self.path.parent.parent) from None
        if found != self.replaces:
            raise _taken([self.dimension_id], self.path.parent.parent)

    def outcome(self, region: MmapRegion | RegionChain | None) -> BuiltDimension:
        """Return what came of it; `region` None: nothing was written."""
        return BuiltDimension(
            dimension_id=self.dimension_id,
            name=self.name,
            folder=self.folder,
            path=self.path,
            n_layers=len(self.layers),
            n_bytes=self.n_bytes if region is None else region.n_file_bytes,
            generation=0 if region is None else region.generation,
            is_replaced=self.is_replaced,
            is_unchanged=self.is_unchanged,
            fault=None
            if region is None
            else fault_by_default(self.dimension_id, region.n_file_bytes),
        )


@dataclass(frozen=True)
class Plan:
    """What a build will do; nothing is written yet.

    Attributes
    ----------
    dimensions : tuple of PlannedDimension
        Ascending.
    skipped : tuple of Skipped
        What of the source is left out, and why.
    data : pathlib.Path
        Where the region files go.
    """

    dimensions: tuple[PlannedDimension, ...]
    skipped: tuple[Skipped, ...]
    data: Path

    @property
    def n_bytes(self) -> int:
        """Bytes of all contents, as they were looked at."""
        return sum(dimension.n_bytes for dimension in self.dimensions)

    def report(self) -> BuildReport:
        """Return what would come of it."""
        outcomes = tuple(planned.outcome(None) for planned in self.dimensions)
        return BuildReport(outcomes, self.skipped, is_dry_run=True)

    def write(self, advance: Advance = _ignore) -> list[BuiltDimension]:
        """Read the sources and write the region files, dimension by dimension.

        Parameters
        ----------
        advance : callable, optional
            Called after each layer with the length of its content.

        Returns
        -------
        list of BuiltDimension
            In the order of the plan.

        Raises
        ------
        RegionIOError
            If a file cannot be read or written.
        DuplicateDimension
            If a region file has appeared that was not there before.
        ConfigError
            If a file is no longer what it was when the plan was made.

        Notes
        -----
        Durability: as `RegionBuilder.build_to_file`, for each file. What was written before an
        error stays, and the next build goes on from there; the dimension that failed is as it was.
        """
        return [self._write_one(dimension, advance) for dimension in self.dimensions]

    def _write_one(self, planned: PlannedDimension, advance: Advance) -> BuiltDimension:
        if planned.is_unchanged:
            region = region_files(self.data, planned.dimension_id).open_newest()
            self._keep_receipt(planned, region)
            advance(planned.n_bytes)
            return planned.outcome(region)
        builder = RegionBuilder(planned.dimension_id, planned.name, spool=_existing(self.data))
        with closing(planned.source.read(planned.dimension_id, planned.layers)) as contents:
            for layer, encoded in contents:
                builder.add_encoded(layer.layer_id, encoded, **layer.description)
                del encoded  # before the next is read
                advance(layer.n_bytes)
        # What may be replaced was asked of the user when the plan was made.
        region = builder.write_to(planned.path, planned.check_place, compress=planned.compress)
        self._keep_receipt(planned, region)
        return planned.outcome(region)

    @staticmethod
    def _keep_receipt(planned: PlannedDimension, region: MmapRegion | RegionChain) -> None:
        """Note what the region file was built from, unless that is noted already."""
        folder = planned.path.parent
        built = receipts.describe(planned.source, planned.name, planned.compress)
        if isinstance(region, RegionChain):
            receipts.remove_receipt(folder)
            return
        found = receipts.read_receipt(folder)
        is_told = found is not None and found.tells_of(
            planned.source, planned.name, planned.compress
        )
        if found is None or found.edition != region.edition or not is_told:
            receipt = receipts.Receipt(region.edition, built, planned.looked_ns)
            receipts.write_receipt(folder, receipt)


@clears_frames
def build(
    source: Paths,
    out: str | os.PathLike[str],
    *,
    names: str | NameFile = "path",
    column: str | None = None,
    name_column: str | None = None,
    keywords_column: str | None = None,
    force: bool = False,
    resume: bool = True,
    dry_run: bool = False,
    compress: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> BuildReport:
    """Make region files of folders, files, tables and archives.

    Each sub-folder of a folder becomes a dimension, and so do the files directly in it together;
    each file is a layer. A table (`.jsonl`, `.ndjson`, `.csv`, `.tsv`; `.parquet`, `.arrow`,
    `.feather`, `.ipc`) or an archive (`.npz`, `.safetensors`, a Zarr folder) that is named itself
    becomes a dimension with a layer for each row or array; inside a folder it is a file like any
    other. All other files that are named themselves become one dimension for each folder that they
    lie in. docs/building.md tells how dimensions and layers are numbered and named.

    Parameters
    ----------
    source : path-like, or iterable of path-like
        Folders, files, and patterns such as ``"notes/**/*.md"``.
    out : path-like
        The folder that the region files go to; a manager's `base_path`.
    names : {"path", "stem"} or callable
        What a file's layer is called: its path in the folder, that without the ending, or what a
        function returns for the path.
    column, name_column, keywords_column : str, optional
        Of tables: the columns of contents, names and keywords. By default, the first that there is
        of text, content and body; of name, title and id; of keywords and tags.
    force : bool
        Whether region files that are there are replaced, whatever they hold.
    resume : bool
        Whether what an earlier build wrote is left alone where its source has not changed, and
        replaced where it has. Else all that is there is in the way, or with `force` replaced.
    dry_run : bool
        Whether to say only what would be written.
    compress : {"zstd", "zstd:1" to "zstd:22", "none"}, optional
        Whether layers are kept compressed, where that makes them an eighth shorter: by Zstandard,
        at level 3 or the one given. Needs the extra ``zstd``. What an earlier build wrote in
        another way is written again. By default what is written is not compressed.
    progress : callable, optional
        Called as ``progress(n_bytes, n_bytes_in_all)`` after each layer.

    Returns
    -------
    BuildReport
        What was left out is told by a `JessyWarning` too.

    Raises
    ------
    DuplicateDimension
        If two sources claim one number; or a region file is there that this source was not built
        to, or in which something was learned since, and `force` is not set.
    DuplicateLayer
        If two files or rows claim one number.
    ConfigError
        If something does not fit the format, is malformed, or a library for it is not installed;
        or there is nothing to build.
    RegionIOError
        If something cannot be read or written.

    Notes
    -----
    Everything is checked before the first file is written. Each region file is written durably and
    as a whole, so that a build that was interrupted, or killed, is gone on with by the same call.
    In memory there is one content at a time, and the names of all.

    Examples
    --------
    >>> (folder / "notes/weather").mkdir(parents=True)
    >>> size = (folder / "notes/weather/today.md").write_text("Fog.")
    >>> build("notes", "built")
    <BuildReport 1 written, 0 unchanged, 0 skipped: 1 layers, 452 bytes>
    >>> with MmapManager(64, base_path="built") as other:
    ...     report = other.load_all()
    ...     bytes(other["weather/today.md"])
    b'Fog.'
    """
    options = Options(names, Columns(column, name_column, keywords_column))
    plan = plan_build(source, out, options, force=force, resume=resume, compress=compress)
    if dry_run:
        return plan.report()
    n_done, n_all = 0, plan.n_bytes

    def advance(n_bytes: int) -> None:
        nonlocal n_done
        n_done += n_bytes
        if progress is not None:
            progress(n_done, n_all)

    report = BuildReport(tuple(plan.write(advance)), plan.skipped)
    if report.skipped:
        tell_skipped(report.skipped, out)
    return report


def tell_skipped(skipped: Sequence[Skipped], out: str | os.PathLike[str]) -> None:
    """Say, by one warning, what was left out of a build; all of it is in the report."""
    some = "; ".join(f"{each.path} ({each.reason})" for each in skipped[:_N_TOLD])
    more = f" and {len(skipped) - _N_TOLD:,} more" if len(skipped) > _N_TOLD else ""
    files = "1 file is" if len(skipped) == 1 else f"{len(skipped):,} files are"
    message = f"{files} left out of the build of {os.fspath(out)}: {some}{more}"
    extra = {"event": "file_skipped", "path": os.fspath(out), "n_files": len(skipped)}
    logger.warning("%s", message, extra=extra)
    logger.alert("file_skipped", out, message)


def plan_build(
    source: Paths,
    data: str | os.PathLike[str],
    options: Options = _DEFAULT_OPTIONS,
    *,
    force: bool = False,
    resume: bool = True,
    compress: str | None = None,
) -> Plan:
    """Plan a build: what becomes which layer of which dimension.

    What is called ``D07-name`` or ``D07`` becomes that dimension. Any other becomes the grown
    dimension that has its name already, or takes the first number from D15 upwards that neither the
    source nor `data` uses. A file that lies directly in a folder and is called ``NN-name`` becomes
    layer NN; all others, those of deeper folders included, fill the free numbers in natural order.
    What a `dimension.toml` says comes first. A folder without files makes no dimension.

    Parameters
    ----------
    source : path-like, or iterable of path-like
    data : path-like
        Where the region files go.
    options : Options
    force, resume : bool
    compress : str, optional
        As `build` takes them.

    Returns
    -------
    Plan
        Checked against the format: names, numbers, lengths, all metadata.

    Raises
    ------
    DuplicateDimension, DuplicateLayer, ConfigError, RegionIOError
        As `build`.
    """
    given, data = _as_paths(source), as_path("data", data)
    if os.path.lexists(data) and not data.is_dir():
        raise ConfigError(f"{data}: is a file; it takes a folder", field="data", value=data)
    for each in given:
        if os.path.realpath(data) == os.path.realpath(each):
            raise ConfigError(
                f"{each}: source and target are the same folder", field="data", value=data
            )
    as_compression(compress)
    looked_ns = receipts.now_ns()
    sources, skipped = find_sources(given, data, options)
    if not sources:
        shown = ", ".join(map(str, given))
        raise ConfigError(
            f"{shown}: nothing to build; there is no file in it", field="source", value=source
        )
    numbers = number_folders(sources, _grown_names(data))
    numbered = sorted(zip(numbers, sources, strict=True), key=lambda pair: pair[0])
    dimensions, in_the_way = [], []
    for number, found in numbered:
        may_resume = resume and not force
        planned = _plan_dimension(
            number, found, data, looked_ns, may_resume=may_resume, compress=compress
        )
        if planned.is_replaced and not force:
            replaces = planned.replaces or (_replaceable(planned, data) if resume else None)
            planned = replace(planned, replaces=replaces)
            if planned.replaces is None:
                in_the_way.append(number)
        dimensions.append(replace(planned, is_forced=force))
    if in_the_way:
        raise _taken(in_the_way, data)
    return Plan(tuple(dimensions), tuple(skipped), data)


def newest_path(data: Path, dimension: DimensionId) -> Path:
    """Return the file that is read for a dimension under `data`; nothing is tidied up.

    Raises
    ------
    RegionIOError
        If the directory cannot be listed.
    """
    return region_files(data, dimension).newest_path(tidy=False)


def fault_by_default(dimension: DimensionId, n_bytes: int) -> str | None:
    """Say why a manager with default settings could never load a file; None: it can."""
    config = MemoryConfig()
    try:
        Budget(config.limit_bytes, slots_of(config)).check_possible(dimension, n_bytes)
    except LimitExceeded as error:
        return f"{error} by default"
    return None


def _grown_names(data: Path) -> dict[DimensionId, str | None]:
    """Return the names of the grown dimensions on disk; None where the file cannot be read."""
    names: dict[DimensionId, str | None] = {}
    with MmapManager(base_path=data) as manager:
        found = manager.discover()
    for dimension in found:
        if dimension < FIRST_GROWN_DIMENSION:
            continue
        try:
            region = MmapRegion.from_file(dimension, newest_path(data, dimension))
            names[dimension] = region.layout.header.name
        except JessyMemoryError:
            names[dimension] = None
    return names


def _existing(folder: Path) -> Path:
    """Return the folder, or what there is of the way to it."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _is_taken(dimension: DimensionId, path: Path) -> bool:
    """Tell whether there is anything where a region file is to be."""
    return os.path.lexists(path) or RegionFiles(dimension, path).exists()


def _taken(dimensions: list[DimensionId], data: Path) -> DuplicateDimension:
    listed = ", ".join(map(str, dimensions[:5]))
    more = f" and {len(dimensions) - 5} more" if len(dimensions) > 5 else ""
    return DuplicateDimension(
        f"{listed}{more}: on disk under {data} already, and not as a build of this source left it: "
        "layers were learned or deleted since, or it is another program's; force is not set",
        dimension=dimensions[0],
    )


def _as_paths(source: Paths) -> list[Path]:
    """Return what was given as paths; raise ConfigError where no file can have a name."""
    if isinstance(source, Iterable) and not isinstance(source, str | bytes | os.PathLike):
        return [as_path("source", each) for each in source]
    return [as_path("source", source)]


def _plan_dimension(
    dimension: DimensionId,
    source: Source,
    data: Path,
    looked_ns: int,
    *,
    may_resume: bool,
    compress: str | None,
) -> PlannedDimension:
    path = region_path(data, dimension)
    is_taken = _is_taken(dimension, path)
    if os.path.lexists(path) and not path.is_file():
        raise ConfigError(f"{dimension}: {path} is no regular file", field="data", value=path)
    name = name_folder(source, dimension)
    layers = tuple(source.plan(dimension))
    _check_format(dimension, name, source, layers)
    is_unchanged, same = False, None
    if is_taken and may_resume:
        same = _same_on_disk(dimension, name, source, layers, data)
        is_unchanged = same is not None and _is_so_compressed(same, path, compress)
    is_kept = is_unchanged or same is None or dimension in IMMUTABLE
    return PlannedDimension(
        dimension_id=dimension,
        name=name,
        folder=source.label,
        path=path,
        is_replaced=is_taken and not is_unchanged,
        is_unchanged=is_unchanged,
        layers=layers,
        source=source,
        looked_ns=looked_ns,
        compress=compress,
        replaces=None if is_kept or same is None else same.edition,
    )


def _same_on_disk(
    dimension: DimensionId,
    name: str,
    source: Source,
    layers: tuple[PlannedLayer, ...],
    data: Path,
) -> MmapRegion | RegionChain | None:
    """Return what is there, if it holds what would be written: by the receipt, or all contents."""
    try:
        region = region_files(data, dimension).open_newest()
    except JessyMemoryError:
        return None
    receipt = receipts.read_receipt(region_path(data, dimension).parent)
    if (
        receipt is not None
        and isinstance(region, MmapRegion)
        and receipt.edition == region.edition
        and receipt.tells_of(source, name)
    ):
        return region
    with closing(source.read(dimension, layers)) as contents:
        return region if receipts.is_in(region, dimension, name, contents, len(layers)) else None


def _is_so_compressed(region: MmapRegion | RegionChain, path: Path, compress: str | None) -> bool:
    """Tell whether what is there is compressed as is asked for: only its receipt can tell."""
    if compress is None:
        return True
    receipt = receipts.read_receipt(path.parent)
    is_of_it = receipt is not None and receipt.edition == region.edition
    return is_of_it and receipt is not None and receipt.built.get("compress") == compress


def _replaceable(planned: PlannedDimension, data: Path) -> Edition | None:
    """Return the edition on disk if a build of this source wrote it, and nothing since."""
    if planned.dimension_id in IMMUTABLE:
        return None
    try:
        region = region_files(data, planned.dimension_id).open_newest()
    except JessyMemoryError:
        return None
    receipt = receipts.read_receipt(planned.path.parent)
    if receipt is None or not isinstance(region, MmapRegion) or receipt.edition != region.edition:
        return None
    return region.edition if receipt.is_of(planned.source) else None


def _check_format(
    dimension: DimensionId, name: str, source: Source, layers: tuple[PlannedLayer, ...]
) -> None:
    """Lay the dimension out without its contents, which meets every other limit of the format."""
    where = ""
    try:
        builder = RegionBuilder(dimension, name)
        for layer in layers:
            where = layer.key
            builder.add_encoded(layer.layer_id, layer.form, **layer.description)
        where = ""
        builder.build_to_memory()
    except (ValueError, TypeError) as error:
        raise source.error(where, error) from None
