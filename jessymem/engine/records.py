"""What the engine and learning tell through `logging`, with structured fields."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from jessymem.errors import JessyMemoryError
from jessymem.failure_records import of_failure
from jessymem.ids import DimensionId, LayerId
from jessymem.logger import DEBUG, INFO, logger
from jessymem.regions.table import LayerTable

#: A record that waits until no lock is held.
Record = Callable[[], None]

_N_NAMED: Final = 3


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
    facts = {"dimension": str(dimension), "path": str(where)}
    return of_failure("load_failed", "loaded", error, **facts)


def of_skipped(path: Path, error: JessyMemoryError) -> Record:
    """Alert that a region file is there, and was not loaded with the others."""
    return partial(logger.alert, "load_failed", path, f"skipped: {error}")


def of_stand_ins(base: Path | str) -> Record:
    """Alert that bundled content takes the place of files that nobody has asked for."""
    message = (
        f"core dimensions have no file under {base}: text that is bundled with jessymem stands in"
        ' for them (simulation="always" asks for that, "never" forbids it)'
    )
    return partial(logger.alert, "simulation", base, message)


def of_simulation(dimensions: list[DimensionId], base: Path | str) -> Record:
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


def of_close(base: Path | str, lost: list[LayerId]) -> list[Record]:
    """Tell that a manager was closed; as a warning and an alert, which layers were not on disk."""
    facts = {"event": "closed", "base_path": str(base)}
    closed = partial(logger.info, "closed", extra=facts)
    if not lost:
        return [closed]
    warning = partial(
        logger.warning,
        "closed with %d layers that were not crystallized",
        len(lost),
        extra={"event": "layers_lost", "layers": [str(layer) for layer in lost]},
    )
    named = ", ".join(map(str, lost[:_N_NAMED])) + (", ..." if len(lost) > _N_NAMED else "")
    layers = "1 learned layer" if len(lost) == 1 else f"{len(lost):,} learned layers"
    message = (
        f"closed without {layers} of {base} that had not been crystallized: {named};"
        " crystallize_dimension() writes what is learned to disk"
    )
    return [warning, closed, partial(logger.alert, "layers_lost", base, message)]


def log_learning(event: str, layer_id: LayerId, n_bytes: int) -> None:
    """Record, at debug, what happened to a layer in memory."""
    if logger.isEnabledFor(DEBUG):
        logger.debug(
            "%s %s: %d bytes",
            event,
            layer_id,
            n_bytes,
            extra={
                "event": event,
                "dimension": str(layer_id.dimension),
                "layer": str(layer_id),
                "n_bytes": n_bytes,
            },
        )
