"""What a way to write region files is to its tests, and the pieces that such ways are made of."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jessymem import (
    DimensionId,
    DimensionNotFound,
    LayerId,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    osmem,
)
from jessymem.regions.files import RegionFiles

Intercept = Callable[..., None]

DIMENSION = DimensionId(7)
#: The base path of a scenario's manager, in its folder.
BASE = "base"
#: From so many bytes on a piece is written by a call of its own: small files take several.
WRITE_CHUNK_BYTES = 4096


@dataclass(frozen=True)
class Layer:
    """A layer as a user sees it."""

    content: bytes
    name: str = ""
    keywords: tuple[str, ...] = ()
    frequency: float = 1.0
    depth: int = 0
    parent: LayerId | None = None


Layers = dict[int, Layer]


@dataclass(frozen=True)
class Scenario:
    """One way to write, in a folder of its own.

    Attributes
    ----------
    prepare : callable
        Makes the old state in a folder.
    act : callable
        Writes, once. It may be repeated after it has failed.
    check : callable
        Opens the folder as a user would, which tidies it, and returns "old" or "new". Raises on
        anything else, and where a file remains that should not.
    refuse : callable, optional
        Stands at the seam all the while and raises what the system is to refuse.
    is_promised : bool
        Whether only "new" will do once `act` has returned.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    check: Callable[[Path], str]
    refuse: Intercept | None = None
    is_promised: bool = True


@contextmanager
def standing_at_the_seam(*intercepts: Intercept | None) -> Iterator[None]:
    """Let each of `intercepts` see every system call, in this order, until one of them raises."""
    before = osmem.intercept

    def intercept(operation: str, path: str, *details: Any) -> None:
        for one in (*intercepts, before):
            if one is not None:
                one(operation, path, *details)

    osmem.intercept = intercept
    try:
        yield
    finally:
        osmem.intercept = before


@contextmanager
def writing_in_chunks() -> Iterator[None]:
    before = osmem._WRITE_CHUNK_BYTES
    osmem._WRITE_CHUNK_BYTES = WRITE_CHUNK_BYTES  # type: ignore[misc]
    try:
        yield
    finally:
        osmem._WRITE_CHUNK_BYTES = before  # type: ignore[misc]


def act(scenario: Scenario, folder: Path, watch: Intercept | None = None) -> None:
    """Run a scenario's write; `watch` sees each call that the system does not refuse."""
    with writing_in_chunks(), standing_at_the_seam(scenario.refuse, watch):
        scenario.act(folder)


# -- files -----------------------------------------------------------------------------------------


def target_in(folder: Path) -> Path:
    return folder / BASE / str(DIMENSION) / "region.mmap"


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def build(layers: Layers, folder: Path) -> None:
    """Write D07."""
    builder = RegionBuilder(DIMENSION, "Technical")
    for number, layer in layers.items():
        builder.add_layer(number, **asdict(layer))
    builder.build_to_file(target_in(folder))


def layers_in(folder: Path) -> Layers | None:
    """Open D07 as a user would, which tidies it; None: there is none."""
    target = target_in(folder)
    newest = RegionFiles(DIMENSION, target).newest_path(tidy=True)
    found: Layers | None = None
    with MmapManager(base_path=folder / BASE) as manager:
        try:
            manager.load_dimension(DIMENSION, newest)
        except DimensionNotFound:
            pass
        else:
            assert MmapRegion.from_file(DIMENSION, newest).verify_integrity("full")
            found = layers_of(manager)
    left = files_in(folder) - {target}
    # Only a writer removes the lock of one that was killed.
    assert left <= {target.with_name(".region.mmap.lock")}, f"left over: {left}"
    return found


def layers_of(manager: MmapManager) -> Layers:
    """Return D07 as a manager shows it."""
    found = {}
    for layer_id in manager.list_layers(DIMENSION):
        info = manager.get_layer_info(layer_id)
        content = bytes(manager.access_layer(layer_id))
        assert len(content) == info.size
        found[layer_id.layer] = Layer(
            content, info.name, info.keywords, info.frequency, info.depth, info.parent
        )
    return found


def make_empty(folder: Path) -> None:
    """Leave a folder as it is: nothing is there yet."""


# -- refusals --------------------------------------------------------------------------------------


def refuse_to_replace(operation: str, path: str, *details: Any) -> None:
    """Refuse what Windows refuses while a file is mapped."""
    if operation == "rename" and os.path.basename(path) == "region.mmap":
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def refuse_to_remove(operation: str, path: str, *details: Any) -> None:
    if operation == "remove":
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def refuse_to_sync_directories(operation: str, path: str, *details: Any) -> None:
    if operation == "sync directory":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
