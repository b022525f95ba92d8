"""What is learned in whatever stands for a dimension; asked where nothing may be, too.

Imports no part of learning: a manager that learns nothing does not load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jessymem.ids import LayerId
from jessymem.logger import DEBUG, logger
from jessymem.regions.region import MmapRegion
from jessymem.snapshot import Standing

if TYPE_CHECKING:
    from jessymem.learning.layers import LearnedLayer


def learned_of(standing: Standing | None) -> dict[int, LearnedLayer]:
    """Return a dimension's learned layers by number."""
    found: dict[int, LearnedLayer] = getattr(standing, "learned", {})
    return found


def learned_layer(standing: Standing | None, layer_id: LayerId) -> LearnedLayer | None:
    """Return a learned layer of a dimension; None where there is none of this number."""
    find = getattr(standing, "learned_layer", None)
    found: LearnedLayer | None = None if find is None else find(layer_id.layer)
    return found


def unwritten_in(standing: Standing) -> list[LayerId]:
    """Return the ids of a dimension's layers that are in memory alone, ascending."""
    learned = learned_of(standing)
    found = [number for number, layer in learned.items() if not layer.is_crystallized]
    return LayerId.in_order(standing.dimension_id, sorted(found))


def base_of(standing: Standing | None) -> MmapRegion | None:
    """Return what lies under a dimension's learned layers: its file as loaded, or its simulation.

    None: nothing does, or it is not in memory.
    """
    if isinstance(standing, MmapRegion):
        return standing
    base: MmapRegion | None = getattr(standing, "base", None)
    return base


def log_lost(layers: list[LayerId]) -> None:
    """Record, as a warning, that a closed manager had layers that were not on disk."""
    if layers:
        logger.warning(
            "closed with %d layers that were not crystallized",
            len(layers),
            extra={"event": "layers_lost", "layers": [str(layer) for layer in layers]},
        )


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
