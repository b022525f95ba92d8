"""What every change of learned layers checks first."""

from __future__ import annotations

from jessymem.core_dimensions import IMMUTABLE
from jessymem.engine.engine import Engine
from jessymem.errors import ImmutableDimension, InvalidAccess
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.learning.layers import LearnedLayer


def check_writable(engine: Engine, dimension: DimensionId, layer_id: LayerId | None = None) -> None:
    """Raise ImmutableDimension where nothing may be learned; InvalidAccess once closed."""
    if engine.config.read_only:
        raise ImmutableDimension(f"{dimension}: the manager is read-only", dimension=dimension)
    if dimension in IMMUTABLE:
        raise ImmutableDimension(
            f"{dimension} is immutable: nothing may be learned in it", dimension=dimension
        )
    engine.check_open(layer_id or dimension)


def check_changeable(engine: Engine, layer_id: LayerId, layer: LearnedLayer) -> None:
    """Raise where a learned layer is on its way to disk, or there already."""
    engine.check_not_crystallizing(layer_id.dimension, layer)
    if layer.is_crystallized:
        raise ImmutableDimension(
            f"{layer_id} is on disk already, though still read from memory",
            dimension=layer_id.dimension,
            layer=layer_id,
        )


def is_in_memory_alone(engine: Engine, layer_id: LayerId) -> bool:
    """Tell whether a layer is a proto layer that is not on disk; raise what forbids deleting it.

    Raises
    ------
    InvalidAccess
        If content lies over it that would be lost, or another thread is writing it.
    """
    loaded = engine.snapshot.find(layer_id.dimension)
    layer: LearnedLayer | None = None if loaded is None else loaded.learned_layer(layer_id.layer)
    if layer is None:
        return False
    engine.check_not_crystallizing(layer_id.dimension, layer)
    if layer.is_crystallized:
        return False
    if layer.is_overlay:
        raise InvalidAccess(
            f"{layer_id}: what lies over it would be lost: crystallize or drop it first",
            layer=layer_id,
        )
    return True


def proto_layer(engine: Engine, layer_id: LayerId) -> LearnedLayer:
    """Return a proto layer that may be changed, or raise why there is none."""
    loaded = engine.snapshot.get_for(layer_id)
    loaded.check_has(layer_id)
    layer: LearnedLayer | None = loaded.learned_layer(layer_id.layer)
    if layer is None or layer.is_overlay:
        kind = "is simulated" if loaded.state == s.REGION_SIMULATED else "is crystallized"
        raise ImmutableDimension(
            f"{layer_id} {kind}: only a proto layer can be changed; others can be overlaid",
            dimension=layer_id.dimension,
            layer=layer_id,
        )
    check_changeable(engine, layer_id, layer)
    return layer
