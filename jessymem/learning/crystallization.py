"""How what is learned becomes permanent: from blocks of memory into the dimension's file.

`crystallize` reads like the promise in docs/durability.md. The dimension's file lock is taken
first and the writer lock only where the published state is read or changed, so other dimensions'
writers go on while a file is written.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING
from weakref import ref

import xxhash

from jessymem.errors import (
    AllocationFailed,
    DimensionNotFound,
    DuplicateLayer,
    InvalidAccess,
    LayerNotFound,
    LimitExceeded,
    empty_frames,
)
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.learning.finding import learned_layer, learned_of
from jessymem.learning.layers import LearnedLayer
from jessymem.learning.overlays import is_same
from jessymem.learning.region import name_of_new
from jessymem.logger import logger
from jessymem.regions.drafts import LayerDraft
from jessymem.regions.encoding import write_layout
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.files import RegionFiles
from jessymem.regions.metadata import LayerState
from jessymem.regions.region import MmapRegion

if TYPE_CHECKING:
    from jessymem.learning.verbs import LearningVerbs


class Running:
    """One crystallization that has begun.

    Attributes
    ----------
    dimension : DimensionId
    layers : dict of LearnedLayer to LayerState
        What it writes, and how far that had come before.
    """

    def __init__(self, dimension: DimensionId) -> None:
        self.dimension = dimension
        self.layers: dict[LearnedLayer, LayerState] = {}


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
    running = Running(dimension)
    try:
        with manager._writing():
            files = manager._loader.files_of(dimension)
            chosen = _choose(manager, dimension, wanted)
            running.layers = {layer: layer.state for layer in chosen}
            # Known by a reference that ends with this call, whatever ends it.
            manager._crystallizing = [*manager._crystallizing, ref(running)]
            for layer in running.layers:
                layer.state = LayerState.CRYSTALLIZING
        if not running.layers:
            return []
        with files.writing():
            path = _write(manager, files, chosen)
            for layer in chosen:
                layer.note_placed(files.placed)
            _publish(manager, dimension, path, chosen)
    except BaseException:
        for layer, state in running.layers.items():
            layer.state = state
            layer.note_placed(files.placed)
        raise
    finally:
        with manager._lock.hold():
            manager._crystallizing = [ref(each) for each in manager._running() if each != running]
        for layer in running.layers:
            layer_id = LayerId(dimension, layer.number)
            manager._give_back_unless_standing(layer_id, [layer.block])
    ids = LayerId.in_order(dimension, sorted(layer.number for layer in running.layers))
    _log(dimension, path, ids, sum(len(layer.content) for layer in running.layers), start)
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
        found = learned_layer(standing, wanted)
        if found is None:
            if not standing.has_layer(wanted.layer):
                where = standing.path or "memory"
                raise LayerNotFound(f"{wanted} is not in {where}", layer=wanted)
            raise InvalidAccess(
                f"{wanted} has nothing to crystallize: it is not being learned", layer=wanted
            )
        layers = [found]
    for layer in layers:
        layer_id = LayerId(dimension, layer.number)
        manager._check_not_being_written(layer_id, layer)
        if layer.is_over_simulation:
            raise InvalidAccess(
                f"{layer_id} lies over a simulated layer, which is never written", layer=layer_id
            )
    return layers


def _write(manager: LearningVerbs, files: RegionFiles, layers: list[LearnedLayer]) -> Path:
    """Merge what is learned into the dimension's present file; under its lock."""
    current = _open_current(files, manager._config.load_mode)
    name = name_of_new(files.dimension) if current is None else current.name
    drafts = merge(files.dimension, current, layers)
    generation = files.next_generation()
    created_at = time.time_ns()
    n_bytes, pieces = write_layout(files.dimension, name.encode(), drafts, generation, created_at)
    manager._budget.check_possible(files.dimension, n_bytes)
    for layer in layers:
        # Should the file get its name and then an error come, the next attempt knows its own.
        layer.attempt = (generation, created_at)
    return files.put(pieces, generation)


def _open_current(files: RegionFiles, load_mode: str) -> MmapRegion | None:
    try:
        return files.open(files.newest_path(tidy=False), load_mode)
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
    replaced = {layer.number for layer in layers}
    kept = [] if current is None else current.drafts(without=replaced)
    return kept + [_merged(LayerId(dimension, layer.number), current, layer) for layer in layers]


def _merged(layer_id: LayerId, current: MmapRegion | None, layer: LearnedLayer) -> LayerDraft:
    """Return a learned layer as it is to be written into the place that it has in `current`."""
    mine = replace(layer.draft, content_xxh3=layer.checksum())
    if current is None or not current.has_layer(layer.number):
        return mine
    under = current.draft_of(current.find_row(layer_id))
    if layer.is_in(current):  # from an attempt that failed afterwards
        return under
    if not layer.is_overlay:
        raise DuplicateLayer(
            f"{layer_id}: another writer has taken the number on disk", layer=layer_id
        )
    if is_same(under.content, layer.content[: layer.n_base]):
        content, checksum = layer.content, mine.content_xxh3
    else:  # another writer has changed what this lies over: both changes count
        content = memoryview(bytes(under.content) + bytes(layer.tail))
        checksum = xxhash.xxh3_64_intdigest(content)
    is_text = under.encoding == mine.encoding == s.ENCODING_TEXT
    encoding = s.ENCODING_TEXT if is_text else s.ENCODING_BYTES
    return replace(
        under, content=content, content_xxh3=checksum, encoding=encoding, array_header=b""
    )


def _publish(
    manager: LearningVerbs, dimension: DimensionId, path: Path, layers: list[LearnedLayer]
) -> None:
    """Switch readers over to the new file; where there is no room for it, to its names."""
    with manager._writing():
        written = set(map(id, layers))
        try:
            region, region_id = manager._map(dimension, path)
            # Read after the mapping, whose records a handler may have answered with a new layer.
            left = _others(manager, dimension, written)
            old_id = manager._snapshot.region_id_of(dimension)
            with manager._laid_over(region, left) as standing:
                manager._place((standing, region_id))
        except (LimitExceeded, AllocationFailed) as error:
            empty_frames(error)
            if _others(manager, dimension, written) or dimension in manager._pinned:
                _log_kept(dimension, path)  # what is to stay in memory would have no file under it
                return
            old_id = manager._snapshot.region_id_of(dimension)
            evicted = EvictedRegion(MmapRegion.from_file(dimension, path))
            manager._place((evicted, manager._loader.new_region_id()))
            manager._policy.forget(int(dimension))
        manager._budget.retire(old_id)


def _others(
    manager: LearningVerbs, dimension: DimensionId, written: set[int]
) -> dict[int, LearnedLayer]:
    """Return the learned layers of a dimension but for those whose `id` is in `written`."""
    found = learned_of(manager._standing_for(dimension))
    return {number: layer for number, layer in found.items() if id(layer) not in written}


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
