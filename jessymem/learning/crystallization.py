"""How what is learned becomes permanent: from blocks of memory into the dimension's file.

`crystallize` reads like the promise in docs/durability.md. The dimension's file lock is taken
first and the writer lock only where the published state is read or changed, so other dimensions'
writers go on while a file is written.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from weakref import ref

import xxhash

from jessymem.engine.crystallizing import Crystallizing
from jessymem.engine.engine import Engine
from jessymem.engine.records import Record
from jessymem.errors import (
    AllocationFailed,
    DimensionNotFound,
    DuplicateLayer,
    InvalidAccess,
    LimitExceeded,
    empty_frames,
)
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.learning.checks import check_writable
from jessymem.learning.layers import LearnedLayer
from jessymem.learning.overlays import is_same
from jessymem.learning.region import name_of_new
from jessymem.logger import logger
from jessymem.regions.drafts import LayerDraft
from jessymem.regions.encoding import write_layout
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.files import RegionFiles
from jessymem.regions.region import MmapRegion


def crystallize(
    engine: Engine, dimension: DimensionId, wanted: LayerId | None = None
) -> list[LayerId]:
    """Write one learned layer of a dimension, or all, into its file; return which.

    Raises
    ------
    JessyMemoryError
        As `MmapManager.crystallize_proto_dimension`.
    """
    start = perf_counter()
    check_writable(engine, dimension)
    if engine.interrupts():
        raise InvalidAccess(f"{dimension}: a call that interrupts another one cannot write a file")
    # Known to others by a reference that ends with this call, whatever ends it.
    running = Crystallizing(dimension)
    chosen: list[LearnedLayer] = []
    files: RegionFiles | None = None
    try:
        with engine.writing():
            files = engine.loader.files_of(dimension)
            chosen = _choose(engine, dimension, wanted)
            running.layers = set(map(id, chosen))
            engine.note_crystallizing(running)
            for layer in chosen:
                layer.writer = ref(running)
        if not chosen:
            return []
        with files.writing():
            path = _write(engine, files, chosen)
            for layer in chosen:
                layer.note_written(files.written_generation)
            engine.write(_publish, engine, dimension, path, running.layers)
    except BaseException:
        for layer in chosen:
            if files is not None:
                layer.note_written(files.written_generation)
        raise
    finally:
        running.is_over = True
    ids = LayerId.in_order(dimension, sorted(layer.number for layer in chosen))
    _log(dimension, path, ids, sum(len(layer.content) for layer in chosen), start)
    return ids


def _choose(engine: Engine, dimension: DimensionId, wanted: LayerId | None) -> list[LearnedLayer]:
    """Return what is to be written, if nobody else is about it; under the writer lock."""
    layers: list[LearnedLayer]
    if wanted is None:
        layers = list(engine.snapshot.get(dimension).learned.values())
    else:
        loaded = engine.snapshot.get_for(wanted)
        loaded.check_has(wanted)
        layers = [found] if (found := loaded.learned_layer(wanted.layer)) else []
        if not layers:
            raise InvalidAccess(
                f"{wanted} has nothing to crystallize: it is not being learned", layer=wanted
            )
    for layer in layers:
        engine.check_not_crystallizing(dimension, layer)
        if layer.is_over_simulation:
            layer_id = LayerId(dimension, layer.number)
            raise InvalidAccess(
                f"{layer_id} lies over a simulated layer, which is never written", layer=layer_id
            )
    return layers


def _write(engine: Engine, files: RegionFiles, layers: list[LearnedLayer]) -> Path:
    """Merge what is learned into the dimension's present file; under its lock."""
    current = _open_current(files, engine.config.load_mode)
    above = 0
    if current is None and (mapped := _base_of(engine, files.dimension)) is not None:
        # Others have removed the file: what is mapped of it would be lost with the next state.
        current, above = mapped, mapped.generation
    name = name_of_new(files.dimension) if current is None else current.name
    drafts = merge(files.dimension, current, layers)
    generation = files.next_generation(above)
    created_at = time.time_ns()
    n_bytes, pieces = write_layout(files.dimension, name.encode(), drafts, generation, created_at)
    engine.budget.check_possible(files.dimension, n_bytes)
    for layer in layers:
        # Should the file get its name and then an error come, the next attempt knows its own.
        layer.attempt = (generation, created_at)
    return files.put(pieces, generation)


def _open_current(files: RegionFiles, load_mode: str) -> MmapRegion | None:
    try:
        return files.open(files.newest_path(tidy=False), load_mode)
    except DimensionNotFound:
        return None


def _base_of(engine: Engine, dimension: DimensionId) -> MmapRegion | None:
    """Return what is mapped of a dimension's file, if anything."""
    loaded = engine.snapshot.find(dimension)
    base: MmapRegion | None = None if loaded is None else loaded.base
    return None if base is None or base.path is None else base


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
    """Return a learned layer as it is to be written, in place of the same layer of `current`."""
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


def _publish(engine: Engine, dimension: DimensionId, path: Path, written: set[int]) -> None:
    """Switch readers over to the new file; where there is no room for it, to its names.

    `written` has the `id` of each layer that is in the file now; under the writer lock.
    """
    old_id = engine.snapshot.region_id_of(dimension)
    try:
        region, region_id = engine.map_file(dimension, path)
        engine.publish_over(engine.snapshot.get(dimension), region, region_id)
    except (LimitExceeded, AllocationFailed) as error:
        empty_frames(error)
        loaded = engine.snapshot.get(dimension)
        is_more_learned = any(id(layer) not in written for layer in loaded.learned.values())
        if is_more_learned or dimension in engine.pinned:
            # What is to stay in memory would have no file under it.
            engine.record(_record_of_kept(dimension, path))
            return
        evicted = EvictedRegion(
            MmapRegion.from_file(dimension, path, load_mode=engine.config.load_mode)
        )
        engine.publish((evicted, engine.loader.new_region_id()))
        engine.policy.forget(int(dimension))
        engine.free(layer.block for layer in loaded.learned.values())
    engine.budget.retire(old_id)


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


def _record_of_kept(dimension: DimensionId, path: Path) -> Record:
    return partial(
        logger.warning,
        "%s is written to %s, and read from memory on: there is no room to map it",
        dimension,
        path,
        extra={"event": "not_switched", "dimension": str(dimension), "path": str(path)},
    )
