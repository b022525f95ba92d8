"""How what is learned becomes permanent: from blocks of memory into the dimension's file.

`crystallize` reads like the promise in docs/durability.md. The dimension's file lock is taken
first and the writer lock only where the published state is read or changed, so other dimensions'
writers go on while a file is written.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import xxhash

from jessymem.errors import (
    DimensionNotFound,
    DuplicateLayer,
    InvalidAccess,
    LayerNotFound,
    LimitExceeded,
    empty_frames,
)
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.learning.layers import LearnedLayer
from jessymem.learning.overlays import is_same
from jessymem.learning.region import LearnedRegion, name_of_new
from jessymem.learning.verbs import learned_of
from jessymem.regions.drafts import LayerDraft
from jessymem.regions.encoding import write_layout
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.files import RegionFiles
from jessymem.regions.metadata import LayerState
from jessymem.regions.region import MmapRegion

if TYPE_CHECKING:
    from jessymem.learning.verbs import LearningVerbs

logger = logging.getLogger("jessymem")


def crystallize(
    manager: LearningVerbs, dimension: DimensionId, wanted: LayerId | None = None
) -> list[LayerId]:
    """Write one learned layer of a dimension, or all, into its file; return which.

    Raises
    ------
    JessyMemoryError
        As `MmapManager.crystallize_proto_dimension`.
    """
    start = perf_counter()
    with manager._writing():
        layers = _choose(manager, dimension, wanted)
        before = [layer.state for layer in layers]
        for layer in layers:
            layer.state = LayerState.CRYSTALLIZING
        manager._crystallizing[dimension] += 1
        files = manager._loader.files_of(dimension)
    try:
        if not layers:
            return []
        with files.writing():
            path = _write(files, layers)
            for layer in layers:
                layer.state = LayerState.CRYSTALLIZED
            _publish(manager, dimension, path, layers)
    except BaseException:
        for layer, state in zip(layers, before, strict=True):
            layer.state = state if files.placed is None else LayerState.CRYSTALLIZED
        raise
    finally:
        with manager._lock:
            manager._crystallizing[dimension] -= 1
            manager._give_back(
                layer.block for layer in layers if not _is_standing(manager, dimension, layer)
            )
    ids = LayerId.in_order(dimension, sorted(layer.number for layer in layers))
    _log(dimension, path, ids, sum(len(layer.content) for layer in layers), start)
    return ids


def _choose(
    manager: LearningVerbs, dimension: DimensionId, wanted: LayerId | None
) -> list[LearnedLayer]:
    """Return what is to be written, if nobody else is about it; under the writer lock."""
    if wanted is None:
        standing = manager._standing_for(dimension)
        layers = list(learned_of(standing).values())
    else:
        standing = manager._snapshot.standing_for(wanted)
        found = learned_of(standing).get(wanted.layer)
        if found is None:
            if not standing.has_layer(wanted.layer):
                where = standing.path or "memory"
                raise LayerNotFound(f"{wanted} is not in {where}", layer=wanted)
            raise InvalidAccess(f"{wanted} has nothing to crystallize: it is not being learned")
        layers = [found]
    is_simulated = standing.state == s.REGION_SIMULATED
    for layer in layers:
        layer_id = LayerId(dimension, layer.number)
        if layer.state is LayerState.CRYSTALLIZING:
            raise InvalidAccess(f"{layer_id} is being crystallized by another thread")
        if layer.is_overlay and is_simulated:
            raise InvalidAccess(f"{layer_id} lies over a simulated layer, which is never written")
    return layers


def _write(files: RegionFiles, layers: list[LearnedLayer]) -> Path:
    """Merge what is learned into the dimension's present file; under its lock."""
    current = _open_current(files)
    name = name_of_new(files.dimension) if current is None else current.name
    drafts = merge(files.dimension, current, layers)
    generation = files.next_generation()
    _, pieces = write_layout(files.dimension, name.encode(), drafts, generation, time.time_ns())
    for layer, draft in zip(layers, drafts[len(drafts) - len(layers) :], strict=True):
        # Should the file get its name and then an error come, the next attempt knows its own.
        layer.written_xxh3 = draft.content_xxh3
    return files.put(pieces, generation)


def _open_current(files: RegionFiles) -> MmapRegion | None:
    try:
        return MmapRegion.from_file(files.dimension, files.newest_path(tidy=False))
    except DimensionNotFound:
        return None


def merge(
    dimension: DimensionId, current: MmapRegion | None, layers: list[LearnedLayer]
) -> list[LayerDraft]:
    """Return what the file is to hold: the present layers first, then those that are learned.

    Raises
    ------
    DuplicateLayer
        If a proto layer's number was taken by another writer.
    """
    learned = []
    for layer in layers:
        under = None
        if current is not None and current.has_layer(layer.number):
            under = current.draft_of(current.find_row(LayerId(dimension, layer.number)))
        learned.append(_merged(LayerId(dimension, layer.number), under, layer))
    replaced = {layer.number for layer in layers}
    kept = [] if current is None else current.drafts(without=replaced)
    return kept + learned


def _merged(layer_id: LayerId, under: LayerDraft | None, layer: LearnedLayer) -> LayerDraft:
    """Return a learned layer as it is to be written in the place of `under`."""
    mine = replace(layer.draft, content_xxh3=layer.checksum())
    if under is None:
        return mine
    is_written = layer.written_xxh3 is not None and layer.written_xxh3 == (
        xxhash.xxh3_64_intdigest(under.content)
    )
    if not layer.is_overlay:
        if not is_written:
            raise DuplicateLayer(
                f"{layer_id}: another writer has taken the number on disk", layer=layer_id
            )
        return mine
    if is_written:
        return under
    if is_same(under.content, layer.content[: layer.n_base]):
        content, checksum = layer.content, mine.content_xxh3
    else:  # another writer has changed what this lies over: both changes count
        content = memoryview(bytes(under.content) + bytes(layer.tail))
        checksum = xxhash.xxh3_64_intdigest(content)
    is_text = under.encoding == mine.encoding == s.ENCODING_TEXT
    encoding = s.ENCODING_TEXT if is_text else s.ENCODING_BYTES
    return replace(under, content=content, content_xxh3=checksum, encoding=encoding)


def _publish(
    manager: LearningVerbs, dimension: DimensionId, path: Path, layers: list[LearnedLayer]
) -> None:
    """Switch readers over to the new file; where there is no room for it, to its names."""
    with manager._writing():
        old = manager._standing_for(dimension)
        old_id = manager._snapshot.region_id_of(dimension)
        written = set(map(id, layers))
        left = {number: each for number, each in learned_of(old).items() if id(each) not in written}
        try:
            region, region_id = manager._map(dimension, path)
        except LimitExceeded as error:
            empty_frames(error)
            if left:
                _log_kept(dimension, path)  # they would have no file under them
                return
            evicted = EvictedRegion(MmapRegion.from_file(dimension, path))
            manager._place((evicted, manager._loader.new_region_id()))
            manager._policy.forget(int(dimension))
        else:
            standing = LearnedRegion.over(dimension, region, left.values()) if left else region
            manager._place((standing, region_id))
        manager._budget.retire(old_id)


def _is_standing(manager: LearningVerbs, dimension: DimensionId, layer: LearnedLayer) -> bool:
    """Tell whether readers are still led to a layer's block."""
    return learned_of(manager._snapshot.region_of(dimension)).get(layer.number) is layer


def _log(
    dimension: DimensionId, path: Path, ids: list[LayerId], n_bytes: int, start: float
) -> None:
    logger.info(
        "crystallized %s: %d layers, %d bytes, %s",
        dimension,
        len(ids),
        n_bytes,
        path,
        extra={
            "event": "crystallized",
            "dimension": str(dimension),
            "path": str(path),
            "n_layers": len(ids),
            "n_bytes": n_bytes,
            "seconds": perf_counter() - start,
        },
    )


def _log_kept(dimension: DimensionId, path: Path) -> None:
    logger.warning(
        "%s is written to %s, and read from memory on: there is no room to map it",
        dimension,
        path,
        extra={"event": "not_switched", "dimension": str(dimension), "path": str(path)},
    )
