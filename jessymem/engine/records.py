"""What the engine and learning tell through `logging`, with structured fields."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jessymem.errors import JessyMemoryError
from jessymem.ids import DimensionId, LayerId
from jessymem.logger import DEBUG, INFO, logger
from jessymem.regions.table import LayerTable

#: A record that waits until no lock is held.
Record = Callable[[], None]


def of_region(event: str, region: LayerTable, **facts: Any) -> Record | None:
    """Tell, at info, that a region was loaded, refreshed, unloaded, evicted or reloaded."""
    if not logger.isEnabledFor(INFO):
        return None
    where = None if region.path is None else str(region.path)
    return partial(
        logger.info,
        "%s %s: %d layers, %d bytes, %s",
        event.removeprefix("dimension_"),
        region.dimension_id,
        region.n_layers,
        region.size,
        where or "simulated",
        extra={
            "event": event,
            "dimension": str(region.dimension_id),
            "path": where,
            "n_layers": region.n_layers,
            "n_bytes": region.size,
            "generation": region.generation,
            **facts,
        },
    )


def of_failed_load(dimension: DimensionId, where: Path, error: JessyMemoryError) -> Record:
    """Tell, as a warning, what keeps a dimension from being loaded."""
    return partial(
        logger.warning,
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


def of_simulation(dimensions: list[DimensionId], base: Path) -> Record:
    """Tell, as a warning, that bundled content takes the place of files."""
    return partial(
        logger.warning,
        "simulated %d core dimensions: their content is bundled with the package, not read from %s",
        len(dimensions),
        base,
        extra={
            "event": "simulation",
            "dimensions": [str(dimension) for dimension in dimensions],
            "base_path": str(base),
        },
    )


def of_postponed(error: JessyMemoryError) -> Record:
    """Tell, as a warning, that what was to follow an interrupted call could not be done."""
    return partial(
        logger.warning,
        "not done after what it interrupted: %s",
        str(error),
        extra={"event": "postponed_failed", "error": type(error).__name__},
    )


def of_close(base: Path, lost: list[LayerId]) -> list[Record]:
    """Tell that a manager was closed; as a warning, which layers were not on disk."""
    found: list[Record] = []
    if lost:
        found.append(
            partial(
                logger.warning,
                "closed with %d layers that were not crystallized",
                len(lost),
                extra={"event": "layers_lost", "layers": [str(layer) for layer in lost]},
            )
        )
    facts = {"event": "closed", "base_path": str(base)}
    return [*found, partial(logger.info, "closed", extra=facts)]


def log_learning(event: str, layer_id: LayerId, n_bytes: int) -> None:
    """Record, at debug, what happened to a layer in memory."""
    if logger.isEnabledFor(DEBUG):
        logger.debug(
            "%s %s: %d bytes",
            event,
            layer_id,
            n_bytes,
            extra={"event": event, "layer": str(layer_id), "n_bytes": n_bytes},
        )
