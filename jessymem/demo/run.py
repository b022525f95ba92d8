"""The main job on real input: region files are built, mapped, read back, compared and measured.

Core dimensions come from the bundled data, grown ones from the standard library's source files, one
per package. `run_demo` returns what it found and measured, next to what the documents ask for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

import numpy as np

from jessymem import osmem
from jessymem.config import MemoryConfig, as_path
from jessymem.core_dimensions import core_dimensions
from jessymem.demo import measurements as measure
from jessymem.demo.library import library_folder, library_sources
from jessymem.demo.measurements import Measurement
from jessymem.errors import DuplicateDimension
from jessymem.ids import DimensionId, LayerId
from jessymem.ingest.contents import read_content
from jessymem.ingest.numbering import FIRST_GROWN_DIMENSION
from jessymem.inspection import find_regions
from jessymem.kernels import _jit
from jessymem.manager import MmapManager
from jessymem.regions.builder import RegionBuilder
from jessymem.regions.paths import region_path
from jessymem.simulation import core_builder, simulated_text

#: What is done, in order.
STEPS: Final = (
    "build",
    "load",
    "compare",
    "read",
    "compile",
    "allocate",
    "crystallize",
    "scan",
    "threads",
    "zero copy",
)

#: Where a layer's content came from: a file, or text of the package itself.
Source = Path | bytes


class Step(NamedTuple):
    """One of `STEPS` and how long it took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class DemoReport:
    """What the demo found.

    Attributes
    ----------
    n_dimensions, n_layers, n_bytes : int
        What was built; bytes are those of the contents.
    n_file_bytes : int
        Of the region files.
    differing : tuple of LayerId
        Layers that are not, byte for byte, what they were made from; or are not there at all.
    steps : tuple of Step
    measurements : tuple of Measurement
    """

    n_dimensions: int
    n_layers: int
    n_bytes: int
    n_file_bytes: int
    differing: tuple[LayerId, ...]
    steps: tuple[Step, ...]
    measurements: tuple[Measurement, ...]

    @property
    def missed(self) -> tuple[Measurement, ...]:
        """The targets that this machine misses."""
        return tuple(each for each in self.measurements if not each.is_met)


def run_demo(
    data: str | os.PathLike[str],
    *,
    packages: Iterable[str] | None = None,
    library: Path | None = None,
    n_threads: int = 100,
    window_seconds: float = 0.2,
    announce: Callable[[str], object] = lambda step: None,
) -> DemoReport:
    """Build region files under `data`, read every layer back, and measure.

    Parameters
    ----------
    data : path-like
        Must hold no region files yet; those that are made stay.
    packages : iterable of str, optional
        Only these of the standard library.
    library : pathlib.Path, optional
        Where the standard library's sources are, in place of this Python's own.
    n_threads : int
    window_seconds : float
        How long each round of the crowd of readers takes, at least.
    announce : callable, optional
        Called with the name of each step as it begins. In "compile" nothing is timed: it takes
        some 15 s where no kernel is in the cache, and next to nothing later.

    Returns
    -------
    DemoReport

    Raises
    ------
    DuplicateDimension
        If there are region files under `data`.
    RegionIOError, RegionFormatError, LimitExceeded
        If a file cannot be read, written or loaded.
    ConfigError
        If no file can have the name of `data`.
    """
    data = as_path("data", data)
    for dimension, path, _ in find_regions(data):
        raise DuplicateDimension(
            f"{dimension}: {path} is there already; the demo needs a folder without region files",
            dimension=dimension,
        )
    steps: list[Step] = []

    @contextmanager
    def step(name: str) -> Iterator[None]:
        announce(name)
        start = perf_counter()
        yield
        steps.append(Step(name, perf_counter() - start))

    with step("build"):
        sources = build_core(data) | build_library(data, library or library_folder(), packages)
    start = perf_counter()
    with MmapManager(MemoryConfig(base_path=data, simulation="never")) as manager:
        init_seconds = perf_counter() - start
        with step("load"):
            dimensions = sorted({layer.dimension for layer in sources})
            series = measure.time_each(manager.load_dimension, ((each,) for each in dimensions))
            loads = dict(zip(dimensions, series.seconds, strict=True))
            init_seconds += sum(loads[core] for core in core_dimensions())
        with step("compare"):
            differing = differing_layers(manager, sources)
        sizes = {layer: len(manager.access_layer(layer)) for layer in manager.list_layers()}
        filled = [layer for layer in sizes if sizes[layer]]
        found = [
            measure.judge_identity(len(sources), differing),
            measure.judge_initialization(init_seconds, series.waited),
            measure.judge_loads(loads, series.waited),
        ]
        with step("read"):
            found += [measure.measure_access(manager, filled), measure.measure_statistics(manager)]
        with step("compile"):
            _jit.promote(_jit.MEMORY)
        with step("allocate"):
            found.append(measure.measure_blocks(manager))
        with step("crystallize"):
            found.append(measure.measure_crystallization(manager))
        with step("scan"):
            found.append(measure.measure_scan(manager))
        with step("threads"):
            found.append(measure.measure_loss(manager, filled, n_threads, window_seconds))
        with step("zero copy"):
            found.append(measure.measure_zero_copy(manager, filled))
            found.append(measure.measure_allocation(manager, filled))
        stats = manager.get_stats()
    return DemoReport(
        n_dimensions=len(dimensions),
        n_layers=len(sources),
        n_bytes=sum(sizes.values()),
        n_file_bytes=stats.total_used_bytes,
        differing=tuple(differing),
        steps=tuple(steps),
        measurements=tuple(
            each._replace(why="") if each.is_met else each
            for each in (*found, measure.judge_memory(stats))
        ),
    )


# -- building --------------------------------------------------------------------------------------


def build_core(data: Path) -> dict[LayerId, Source]:
    """Build the 14 core dimensions from the bundled data; return each layer's source."""
    sources: dict[LayerId, Source] = {}
    for dimension, core in core_dimensions().items():
        core_builder(dimension).build_to_file(region_path(data, dimension))
        for layer in core.layers:
            text = simulated_text(core, layer)
            sources[LayerId(dimension, layer["layer"])] = text.encode()
    return sources


def build_library(
    data: Path, library: Path, packages: Iterable[str] | None = None
) -> dict[LayerId, Source]:
    """Build D15 and on from a standard library's packages; return each layer's source.

    A module's layer is as deep as its folder, and hangs below the layer of its package.
    """
    wanted = None if packages is None else set(packages)
    sources: dict[LayerId, Source] = {}
    found = library_sources(library).items()
    chosen = [(name, paths) for name, paths in found if wanted is None or name in wanted]
    for number, (name, paths) in enumerate(chosen, FIRST_GROWN_DIMENSION):
        builder = RegionBuilder(number, name)
        modules = [path.relative_to(library) for path in paths]
        layers = {module: layer for layer, module in enumerate(modules)}
        for module, path in zip(modules, paths, strict=True):
            package = module.parent.parent if module.name == "__init__.py" else module.parent
            parent = layers.get(package / "__init__.py")
            layer_id = LayerId(number, layers[module])
            builder._add(
                layer_id,
                read_content(path, layer_id),
                name=module.as_posix(),
                depth=len(module.parts) - 1,
                keywords=module.with_suffix("").parts,
                parent=None if parent is None else LayerId(number, parent),
            )
            sources[layer_id] = path
        builder.build_to_file(region_path(data, DimensionId(number)))
    return sources


def differing_layers(manager: MmapManager, sources: Mapping[LayerId, Source]) -> list[LayerId]:
    """Return the layers that are not byte for byte as their sources are now, ascending.

    A layer that is missing, or that no source is known of, counts too.
    """
    loaded = set(manager.list_layers())
    differing = loaded ^ sources.keys()
    for layer in loaded & sources.keys():
        source = sources[layer]
        if isinstance(source, Path):
            expected = osmem.read_file(source).data
        else:
            expected = measure.as_array(source)
        if not np.array_equal(measure.as_array(manager.access_layer(layer)), expected):
            differing.add(layer)
    return sorted(differing)
