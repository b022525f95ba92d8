"""`WriteCase`, one way to write region files, and the pieces that such cases are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from jessymem import (
    DimensionId,
    DimensionNotFound,
    LayerId,
    MmapManager,
    MmapRegion,
    RegionBuilder,
)
from jessymem.regions.files import RegionFiles
from support.system_calls import Intercept, intercepted, writing_in_chunks

DIMENSION = DimensionId(7)
#: The base path of a case's manager, in its folder.
BASE = "base"


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
class WriteCase:
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
        Sees every system call and raises what the system is to refuse.
    is_promised : bool
        Whether only "new" will do once `act` has returned.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    check: Callable[[Path], str]
    refuse: Intercept | None = None
    is_promised: bool = True


def act(case: WriteCase, folder: Path, watch: Intercept | None = None) -> None:
    """Run a case's write; `watch` sees each call that the system does not refuse."""
    with writing_in_chunks(), intercepted(case.refuse, watch):
        case.act(folder)


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
    # What deltas no longer count, the next writer removes.
    deltas = set(target.parent.glob("region.d*.mmap"))
    left = files_in(folder) - {target} - deltas
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
