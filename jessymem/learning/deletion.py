"""Layers deleted: a proto layer from memory, any other from its dimension's files."""

from __future__ import annotations

from jessymem.engine.engine import Engine
from jessymem.ids import LayerId
from jessymem.learning import crystallization, writer
from jessymem.learning.checks import check_writable, is_in_memory_alone
from jessymem.learning.creation import prepare_crystallizing


def delete(engine: Engine, layer_id: LayerId) -> None:
    """Take a layer away; see `MmapManager.delete_layer`."""
    check_writable(engine, layer_id.dimension, layer_id)
    if is_in_memory_alone(engine, layer_id):
        writer.discard(engine, layer_id)
    else:
        prepare_crystallizing(engine, layer_id.dimension)
        crystallization.delete(engine, layer_id)
