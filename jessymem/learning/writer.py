"""Proto layers changed, layers overlaid, both undone; and how a changed dimension is published.

Contents are stored before the writer lock is taken; under it the next state is built and published.
Blocks of what was replaced are freed afterwards: those that are still viewed wait. A block that was
stored and not published goes with its last reference.
"""

from __future__ import annotations

from functools import partial

from jessymem.engine.engine import Engine
from jessymem.engine.records import log_learning
from jessymem.errors import InvalidAccess
from jessymem.ids import DimensionId, LayerId
from jessymem.learning import overlays
from jessymem.learning.checks import check_changeable, check_writable, proto_layer
from jessymem.learning.creation import content_draft, prepare_crystallizing, store
from jessymem.learning.layers import LearnedLayer
from jessymem.learning.region import with_learned
from jessymem.regions.drafts import Content, ContentOrArray
from jessymem.regions.table import LayerTable


def update(engine: Engine, layer_id: LayerId, content: ContentOrArray) -> None:
    """Give a proto layer another content; see `MmapManager.update_proto_dimension`."""
    check_writable(engine, layer_id.dimension, layer_id)
    proto_layer(engine, layer_id)
    draft = content_draft(layer_id, content)
    (block,) = store(engine.allocator, [draft], layer_id)
    with engine.writing():
        old = proto_layer(engine, layer_id)
        fresh = LearnedLayer.keeping(
            old.draft, block, encoding=draft.encoding, array_header=draft.array_header
        )
        publish_layer(engine, layer_id.dimension, fresh)
    engine.free([old.block])
    log_learning("proto_updated", layer_id, len(draft.content))


def discard(engine: Engine, layer_id: LayerId) -> None:
    """Take a proto layer away; see `MmapManager.discard_proto_dimension`."""
    check_writable(engine, layer_id.dimension, layer_id)
    engine.afterwards(partial(_discard, engine, layer_id))


def _discard(engine: Engine, layer_id: LayerId) -> None:
    with engine.writing():
        old = proto_layer(engine, layer_id)
        publish_without(engine, layer_id)
    engine.free([old.block])
    log_learning("proto_discarded", layer_id, len(old.content))


def overlay(engine: Engine, layer_id: LayerId, content: Content, separator: str | bytes) -> None:
    """Lay content over a loaded layer; see `MmapManager.overlay_layer`."""
    check_writable(engine, layer_id.dimension, layer_id)
    addition = overlays.as_addition(layer_id, content, separator)
    prepare_crystallizing(engine, layer_id.dimension)
    # The block for it may evict others, but not what it is laid over. It is filled without the
    # writer lock; where the dimension was changed meanwhile, again.
    with engine.keeping([layer_id.dimension]):
        while True:
            table, old = engine.write(_overlaid, engine, layer_id)
            fresh = overlays.lay_over(engine.allocator, table, layer_id, old, addition)
            with engine.writing():
                if not _is_unchanged(engine, table, layer_id):
                    del fresh  # its block is free for the next attempt
                    continue
                if old is not None:
                    check_changeable(engine, layer_id, old)
                publish_layer(engine, layer_id.dimension, fresh)
            break
    engine.free([None if old is None else old.block])
    log_learning("overlaid", layer_id, len(fresh.content))


def _overlaid(engine: Engine, layer_id: LayerId) -> tuple[LayerTable, LearnedLayer | None]:
    """Return a layer's table, and what lies over the layer now; under the writer lock."""
    table = _table_of(engine, layer_id)
    return table, _overlay_of(engine, table, layer_id)


def _is_unchanged(engine: Engine, table: LayerTable, layer_id: LayerId) -> bool:
    """Tell whether what lies under an overlay, and over it, is still what it was in `table`."""
    now = engine.snapshot.find(layer_id.dimension)
    number = layer_id.layer
    return (
        now is not None
        and now.base is table.base
        and now.has_layer(number)
        and now.learned_layer(number) is table.learned_layer(number)
    )


def drop(engine: Engine, layer_id: LayerId) -> None:
    """Take away what was laid over a layer; see `MmapManager.drop_overlay`."""
    check_writable(engine, layer_id.dimension, layer_id)
    engine.afterwards(partial(_drop, engine, layer_id))


def _drop(engine: Engine, layer_id: LayerId) -> None:
    old = engine.write(_publish_dropped, engine, layer_id)
    engine.free([old.block])
    log_learning("overlay_dropped", layer_id, len(old.content))


def _publish_dropped(engine: Engine, layer_id: LayerId) -> LearnedLayer:
    old = _overlay_of(engine, _table_of(engine, layer_id), layer_id, is_wanted=True)
    if old is None:
        raise InvalidAccess(f"nothing lies over {layer_id}", layer=layer_id)
    publish_without(engine, layer_id)
    return old


def _table_of(engine: Engine, layer_id: LayerId) -> LayerTable:
    """Return the table of a layer's dimension, mapped again if it was evicted."""
    engine.snapshot.get_for(layer_id).check_has(layer_id)
    table = engine.bring_back(layer_id.dimension)
    table.check_has(layer_id)
    return table


def _overlay_of(
    engine: Engine, table: LayerTable, layer_id: LayerId, *, is_wanted: bool = False
) -> LearnedLayer | None:
    """Return what lies over a layer, if it may be changed; None where nothing does.

    Raises InvalidAccess for a proto layer, unless something laid over it `is_wanted` anyway.
    """
    old: LearnedLayer | None = table.learned_layer(layer_id.layer)
    if old is None:
        return None
    if not old.is_overlay:
        if is_wanted:
            return None
        raise InvalidAccess(f"{layer_id} is a proto layer: update it instead", layer=layer_id)
    check_changeable(engine, layer_id, old)
    return old


def publish_layer(engine: Engine, dimension: DimensionId, layer: LearnedLayer) -> None:
    """Publish a learned layer that is new or takes another's place; under the writer lock."""
    loaded = engine.snapshot.get(dimension)
    region_id = engine.snapshot.region_id_of(dimension)
    engine.publish((with_learned(dimension, loaded.resident, [layer]), region_id))


def publish_without(engine: Engine, layer_id: LayerId) -> None:
    """Publish a dimension without a learned layer, or nothing of it where none is left."""
    dimension = layer_id.dimension
    loaded, region_id = engine.snapshot.get(dimension), engine.snapshot.region_id_of(dimension)
    left = with_learned(dimension, loaded.resident, []).without_layers([layer_id.layer])
    if left.learned:
        engine.publish((left, region_id))
    elif left.base is not None:
        engine.publish((left.base, region_id))
    else:
        engine.withdraw(dimension)
