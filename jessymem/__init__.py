"""jessymem: a memory manager for layered content.

Region files, one per *dimension*, are memory-mapped; their *layers* are handed out with no copy and
no lock. Names are imported when they are first used, so ``import jessymem`` costs next to nothing.

The examples in docstrings start from a small store: docs/docstring_examples.md makes it.
"""

from __future__ import annotations

from importlib import import_module
from os import path
from sys import modules
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jessymem import hints as hints
    from jessymem import notebooks as notebooks
    from jessymem._version import __version__
    from jessymem.config import MemoryConfig, PoolConfig
    from jessymem.contexts import ContextCollection, LoadedContext, NavigationPath
    from jessymem.errors import (
        AllocationFailed,
        AmbiguousName,
        ConfigError,
        DimensionNotFound,
        DuplicateDimension,
        DuplicateLayer,
        ImmutableDimension,
        InvalidAccess,
        JessyMemoryError,
        JessyWarning,
        LayerNotFound,
        LimitExceeded,
        OutOfBounds,
        RegionFormatError,
        RegionIOError,
        RegionNotFound,
        RemoteError,
    )
    from jessymem.histograms import LatencyHistogram
    from jessymem.ids import DimensionId, LayerId
    from jessymem.ingest.building import build
    from jessymem.ingest.exporting import export
    from jessymem.ingest.reports import (
        BuildReport,
        BuiltDimension,
        ExportedDimension,
        ExportReport,
    )
    from jessymem.manager import MmapManager
    from jessymem.notebooks.memory_map import MemoryMap
    from jessymem.pools.allocator import PoolAllocator
    from jessymem.pools.offsets import MmapOffset
    from jessymem.pools.pool import MmapPool
    from jessymem.pools.survey import PoolStats
    from jessymem.references import LayerRef
    from jessymem.regions.builder import RegionBuilder
    from jessymem.regions.metadata import ContentLocation, LayerInfo, LayerState, RegionMetadata
    from jessymem.regions.region import MmapRegion
    from jessymem.remote.cache import FileCache
    from jessymem.scanning.hits import Hit, Hits
    from jessymem.scanning.layer_ids import LayerIds
    from jessymem.stats import ClassUsage, LoadReport, MemoryStats, PlacementStats
    from jessymem.warming import WarmupReport, warmup

# In a source tree without the link to kernels/ (not every system makes links), it lies beside.
if not path.isdir(path.join(__path__[0], "kernels")):
    _root: Final = path.dirname(__path__[0])
    if path.isfile(path.join(_root, "kernels", "_jit.py")):
        __path__.append(_root)

__all__ = [
    "AllocationFailed",
    "AmbiguousName",
    "BuildReport",
    "BuiltDimension",
    "ClassUsage",
    "ConfigError",
    "ContentLocation",
    "ContextCollection",
    "DimensionId",
    "DimensionNotFound",
    "DuplicateDimension",
    "DuplicateLayer",
    "ExportReport",
    "ExportedDimension",
    "FileCache",
    "Hit",
    "Hits",
    "ImmutableDimension",
    "InvalidAccess",
    "JessyMemoryError",
    "JessyWarning",
    "LatencyHistogram",
    "LayerId",
    "LayerIds",
    "LayerInfo",
    "LayerNotFound",
    "LayerRef",
    "LayerState",
    "LimitExceeded",
    "LoadReport",
    "LoadedContext",
    "MemoryConfig",
    "MemoryMap",
    "MemoryStats",
    "MmapManager",
    "MmapOffset",
    "MmapPool",
    "MmapRegion",
    "NavigationPath",
    "OutOfBounds",
    "PlacementStats",
    "PoolAllocator",
    "PoolConfig",
    "PoolStats",
    "RegionBuilder",
    "RegionFormatError",
    "RegionIOError",
    "RegionMetadata",
    "RegionNotFound",
    "RemoteError",
    "WarmupReport",
    "__version__",
    "build",
    "export",
    "warmup",
]

_HOMES: Final = {
    "_version": ("__version__",),
    "config": ("MemoryConfig", "PoolConfig"),
    "contexts": ("ContextCollection", "LoadedContext", "NavigationPath"),
    "histograms": ("LatencyHistogram",),
    "ids": ("DimensionId", "LayerId"),
    "ingest.building": ("build",),
    "ingest.exporting": ("export",),
    "ingest.reports": ("BuildReport", "BuiltDimension", "ExportReport", "ExportedDimension"),
    "manager": ("MmapManager",),
    "notebooks.memory_map": ("MemoryMap",),
    "pools.allocator": ("PoolAllocator",),
    "pools.offsets": ("MmapOffset",),
    "pools.pool": ("MmapPool",),
    "pools.survey": ("PoolStats",),
    "references": ("LayerRef",),
    "regions.builder": ("RegionBuilder",),
    "regions.metadata": ("ContentLocation", "LayerInfo", "LayerState", "RegionMetadata"),
    "regions.region": ("MmapRegion",),
    "remote.cache": ("FileCache",),
    "scanning.hits": ("Hit", "Hits"),
    "scanning.layer_ids": ("LayerIds",),
    "stats": ("ClassUsage", "LoadReport", "MemoryStats", "PlacementStats"),
    "warming": ("WarmupReport", "warmup"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in ("hints", "notebooks"):  # for annotations; for what a cell shows of an object
        return import_module(f"jessymem.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOME_OF.get(name, 'errors')}"
    errors = modules.get(f"{__name__}.errors")  # None: this is what is imported first
    load = import_module if errors is None else errors.clears_frames(import_module)
    value = getattr(load(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
