"""Which folder is which dimension and which file is which layer: their numbers and names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from jessymem.core_dimensions import core_dimensions
from jessymem.errors import ConfigError, DuplicateDimension, DuplicateLayer
from jessymem.ids import DimensionId, LayerId
from jessymem.ingest.folders import NUMBERED_FOLDER, SourceFile
from jessymem.ingest.manifest import LayerEntry, Manifest
from jessymem.kernels.schema import MAX_DIMENSION, MAX_LAYER, MAX_LAYERS, N_CORE_DIMENSIONS

FIRST_GROWN_DIMENSION: Final = N_CORE_DIMENSIONS + 1

_NUMBERED_FILE: Final = re.compile(r"([0-9]{1,5})-([^/]+)", re.DOTALL)


class Named(Protocol):
    """What becomes a dimension: its name says which, unless its manifest does."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def path(self) -> object:
        """Where it lies, for messages."""

    @property
    def manifest(self) -> Manifest:
        """What is said of it."""


class NumberedFile(NamedTuple):
    """One file and the layer that it becomes."""

    layer_id: LayerId
    name: str
    file: SourceFile
    entry: LayerEntry


#: What a layer is called that nothing names, by the file's path.
NameFile = Callable[[str], str]


def name_by_path(path: str) -> str:
    """Return the path itself; a number in front of it is gone by then."""
    return path


def name_by_stem(path: str) -> str:
    """Return the path without what follows its last dot."""
    folder, slash, name = path.rpartition("/")
    stem = name.rpartition(".")[0]
    return folder + slash + (stem or name)


# -- dimensions ------------------------------------------------------------------------------------


def number_folders(
    folders: Sequence[Named], grown: dict[DimensionId, str | None]
) -> list[DimensionId]:
    """Return each folder's dimension: the one it claims, the one it made before, or the next free.

    Parameters
    ----------
    folders : sequence of Named
    grown : dict of DimensionId to str or None
        The dimensions from D15 upwards that are on disk, by name; None: it cannot be read.

    Raises
    ------
    DuplicateDimension
        If two folders claim one number.
    ConfigError
        If a folder claims a number that no dimension has, or no number is left.
    """
    claims: dict[DimensionId, Named] = {}
    for folder in folders:
        claim = _claimed_dimension(folder)
        if claim in claims:
            both = f"{claims[claim].path} and {folder.path}"
            raise DuplicateDimension(f"{claim} is claimed by both {both}", dimension=claim)
        if claim is not None:
            claims[claim] = folder
    # Where several dimensions have one name, so have the folders: they take them in order.
    made: dict[str, list[DimensionId]] = {}
    for number, name in sorted(grown.items(), reverse=True):
        if name is not None and number not in claims:
            made.setdefault(name, []).append(number)
    taken = {*claims, *grown}
    free = (n for n in range(FIRST_GROWN_DIMENSION, MAX_DIMENSION + 1) if n not in taken)
    numbers = []
    for folder in folders:
        claim, known = _claimed_dimension(folder), made.get(name_folder(folder, None))
        if claim is not None:
            numbers.append(claim)
        else:
            numbers.append(known.pop() if known else _next_free(free, folder))
    return numbers


def name_folder(folder: Named, dimension: DimensionId | None) -> str:
    """Return the name of the dimension that a folder becomes; `dimension` None: not known yet."""
    if folder.manifest.name is not None:
        return folder.manifest.name
    match = NUMBERED_FOLDER.fullmatch(folder.name)
    if match and match[2]:
        return match[2]
    if match and dimension is not None and dimension in core_dimensions():
        return core_dimensions()[dimension].name
    return folder.name


def _claimed_dimension(folder: Named) -> DimensionId | None:
    match = NUMBERED_FOLDER.fullmatch(folder.name)
    if match is None:
        return None
    try:
        return DimensionId(int(match[1]))
    except ValueError as error:
        raise ConfigError(f"{folder.path}: {error}", field=folder.name, value=folder.name) from None


def _next_free(free: Iterator[int], folder: Named) -> DimensionId:
    for number in free:
        return DimensionId(number)
    raise ConfigError(
        f"{folder.path}: no dimension number is free", field=folder.name, value=folder.name
    )


# -- layers ----------------------------------------------------------------------------------------


def number_files(
    dimension: DimensionId,
    folder: Named,
    members: Sequence[SourceFile],
    name_file: NameFile = name_by_path,
    *,
    has_prefixes: bool = True,
) -> list[NumberedFile]:
    """Return the layers that a folder's files become, ascending.

    Numbers that `dimension.toml` or a leading ``NN-`` claim come first; the other files fill the
    free ones in order.

    Parameters
    ----------
    dimension : DimensionId
    folder : Named
    members : sequence of SourceFile
        In order.
    name_file : callable
        Names what the manifest does not.
    has_prefixes : bool
        Whether a leading ``NN-`` is a number.

    Raises
    ------
    DuplicateLayer
        If two files claim one number.
    ConfigError
        If a number is out of range, there are too many files, or `dimension.toml` names one that is
        not there.
    """
    check_count(len(members), folder, folder.manifest.kind)
    entries = dict(folder.manifest.layers)
    files = [(file, entries.pop(file.name, LayerEntry())) for file in members]
    for unknown in entries:
        where = f'layers."{unknown}"'
        problem = f"there is no such {folder.manifest.kind} in {folder.path}"
        raise folder.manifest.error(where, unknown, problem)
    prefixes = [_NUMBERED_FILE.fullmatch(file.name) if has_prefixes else None for file, _ in files]
    numbers = [
        _claimed_layer(file, entry, prefix)
        for (file, entry), prefix in zip(files, prefixes, strict=True)
    ]
    claims: dict[int, SourceFile] = {}
    for (file, _), number in zip(files, numbers, strict=True):
        if number in claims:
            layer_id = LayerId(dimension, number)
            both = f"{claims[number].path} and {file.path}"
            raise DuplicateLayer(f"{layer_id} is claimed by both {both}", layer=layer_id)
        if number is not None:
            claims[number] = file
    free = (number for number in range(MAX_LAYERS) if number not in claims)
    numbered = []
    for (file, entry), prefix, claim in zip(files, prefixes, numbers, strict=True):
        layer_id = LayerId(dimension, next(free) if claim is None else claim)
        name = entry.name
        if name is None:
            name = name_file(prefix[2] if prefix else file.name)
        numbered.append(NumberedFile(layer_id, name, file, entry))
    return sorted(numbered, key=lambda layer: layer.layer_id)


def check_count(n_layers: int, source: Named, kind: str) -> None:
    """Raise ConfigError where there is more than fits into one dimension."""
    if n_layers > MAX_LAYERS:
        problem = f"{n_layers:,} {kind}s; a dimension has at most {MAX_LAYERS:,} layers"
        raise ConfigError(f"{source.path}: {problem}", field=source.name, value=n_layers)


def _claimed_layer(file: SourceFile, entry: LayerEntry, prefix: re.Match[str] | None) -> int | None:
    if prefix is None or entry.layer is not None:
        return entry.layer
    number = int(prefix[1])
    if number > MAX_LAYER:
        problem = f"a layer number is 0 to {MAX_LAYER}, not {number}"
        raise ConfigError(f"{file.path}: {problem}", field=file.name, value=number)
    return number
