"""How what is learned becomes permanent: from blocks of memory into the dimension's file.

`crystallize` reads like the promise in docs/durability.md. The dimension's file lock is taken
first and the writer lock only where the published state is read or changed, so other dimensions'
writers go on while a file is written.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple
from weakref import ref

import xxhash

from jessymem import osmem
from jessymem.core_dimensions import CORE_DIMENSIONS
from jessymem.engine.crystallizing import Crystallizing
from jessymem.engine.engine import Engine
from jessymem.engine.records import Record
from jessymem.errors import (
    AllocationFailed,
    DimensionNotFound,
    DuplicateLayer,
    InvalidAccess,
    LayerNotFound,
    LimitExceeded,
    RegionFormatError,
    RegionIOError,
    empty_frames,
)
from jessymem.histograms import NS
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.latencies import STEP_PREFIX
from jessymem.learning import deltas
from jessymem.learning.checks import check_writable, is_in_memory_alone
from jessymem.learning.layers import LearnedLayer
from jessymem.learning.overlays import is_same
from jessymem.learning.region import Base, name_of_new
from jessymem.logger import INFO, logger
from jessymem.regions.chain import RegionChain
from jessymem.regions.compression import Settled, settle
from jessymem.regions.drafts import LayerDraft
from jessymem.regions.encoding import write_layout
from jessymem.regions.evicted import EvictedRegion
from jessymem.regions.files import RegionFiles
from jessymem.regions.region import MmapRegion
from jessymem.regions.spool import Spool, SpooledPieces
from jessymem.regions.table import LoadedDimension
from jessymem.zstd import Compression, as_compression

# So often what is learned is written where others change meanwhile what it follows.
_N_WRITES: Final = 4


def crystallize(
    engine: Engine,
    dimension: DimensionId,
    wanted: LayerId | None = None,
    compress: str | None = None,
) -> list[LayerId]:
    """Write one learned layer of a dimension, or all, into its file; return which.

    What is new is compressed as `compress` says; what is there stays as it is.

    Raises
    ------
    JessyMemoryError
        As `MmapManager.crystallize_proto_dimension`.
    """
    start = perf_counter()
    compression = as_compression(compress)
    _check_can_write(engine, dimension)
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
        waits = perf_counter()
        with files.writing(adds=True):
            writes = perf_counter()
            written = _write_after(engine, files, chosen, compression=compression)
            chosen = written.layers
            for layer in chosen:
                layer.note_written(files.written_generation)
            publishes = perf_counter()
            engine.write(_publish, engine, dimension, written, running.layers)
            published = perf_counter()
            files.remove_deltas({region.edition for region in written.before})
        steps = {"lock": writes - waits, "write": publishes - writes}
        steps["publish"] = published - publishes
        for step, seconds in steps.items():
            engine.latencies.add(f"{STEP_PREFIX}{step}", int(seconds * NS))
        engine.latencies.add("crystallization", int((perf_counter() - start) * NS))
    except BaseException:
        for layer in chosen:
            if files is not None:
                layer.note_written(files.written_generation)
        raise
    finally:
        running.is_over = True
    ids = LayerId.in_order(dimension, sorted(layer.number for layer in chosen))
    n_bytes = sum(len(layer.content) for layer in chosen)
    _log("crystallized", dimension, written.path, ids, n_bytes, start)
    return ids


def _check_can_write(engine: Engine, dimension: DimensionId) -> None:
    """Raise the error for a file that must not be written, or not by this call."""
    check_writable(engine, dimension)
    if engine.interrupts():
        raise InvalidAccess(f"{dimension}: a call that interrupts another one cannot write a file")


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


def _not_deleted(present: Present, layers: list[LearnedLayer]) -> list[LearnedLayer]:
    """Leave out what came to disk before, was read from memory on, and was deleted since."""
    files = present.files
    if files is None or present.is_lost:
        return layers
    return [layer for layer in layers if not layer.is_gone_from(files)]


class Written(NamedTuple):
    """What a write has come to.

    Attributes
    ----------
    path : pathlib.Path
        Of the file that was written.
    before : tuple of MmapRegion
        Those that it follows, the region file first; none where it is the region file.
    layers : list of LearnedLayer
        What was learned and is in there now.
    identity : FileIdentity or None
        Which file it is.
    """

    path: Path
    before: tuple[MmapRegion, ...]
    layers: list[LearnedLayer]
    identity: osmem.FileIdentity | None


class Present(NamedTuple):
    """What there is of a dimension when it is written.

    Attributes
    ----------
    files : MmapRegion, RegionChain or None
        What is on disk; or what is mapped, where that is all that is left of a part of it: it would
        be lost with the next state.
    is_lost : bool
        Whether others have removed or damaged a part of it, or all.
    generation : int
        The highest that is known.
    """

    files: Base | None
    is_lost: bool
    generation: int


def _look(engine: Engine, files: RegionFiles) -> Present:
    """Open what there is, whatever the budget says; under the files' lock.

    Raises
    ------
    RegionFormatError
        If a part of it is damaged, and not mapped.
    InvalidAccess
        If the region file is a delta.
    RegionIOError
        If others have removed a part that is mapped, and written something else.
    """
    files.check_base()
    loaded = _base_of(engine, files.dimension)
    held = () if loaded is None else loaded.members
    known = 0 if loaded is None else loaded.generation
    try:
        take = partial(engine.loader.open_file, files.dimension)
        found = files.open_newest(held, take, loaded)
    except DimensionNotFound:
        return Present(loaded, True, known)
    known = max(known, found.generation)
    if loaded is not None and deltas.is_missing(loaded, found):
        here = {member.edition for member in loaded.members}
        if not all(member.edition in here for member in found.members):
            error = OSError(errno.ESTALE, "deltas that are loaded were removed, and others written")
            raise RegionIOError.from_os_error(error, "add to", files.target, files.dimension)
        return Present(loaded, True, known)
    if found.members[0].layout.follows is not None:
        raise InvalidAccess(
            f"{files.dimension}: {files.target} is a delta, whatever its name: what it follows is "
            "not there, and nothing is added to it",
            dimension=files.dimension,
        )
    files.check_whole()
    return Present(found, False, known)


def _write_after(
    engine: Engine,
    files: RegionFiles,
    layers: list[LearnedLayer],
    deleted: LayerId | None = None,
    compression: Compression | None = None,
) -> Written:
    """Write what is learned after what there is, under the files' lock; again if that changes.

    A `deleted` layer is not there afterwards.

    Others, who ask for no lock, may replace or remove the files that a delta follows while it is
    written. Then it leads nowhere: it is taken back, and what is there by then is looked at. So it
    is where another writer, after the lock file was removed, has got the name first.

    Raises
    ------
    RegionIOError
        If they do so again and again. Or as `_look`.
    """
    gone = () if deleted is None else (deleted.layer,)
    for _ in range(_N_WRITES):
        present = _look(engine, files)
        if deleted is not None:
            _check_there(engine, present.files, deleted)
        try:
            written = _write(engine, files, present, layers, deleted=gone, compression=compression)
        except RegionIOError as error:
            if error.errno != errno.EEXIST:
                raise
            empty_frames(error)
            continue
        if files.still_has(written.before):
            return written
        files.take_back(written.path)
    reason = OSError(errno.ESTALE, "others replace it whenever something is added")
    raise RegionIOError.from_os_error(reason, "add to", files.target, files.dimension)


def _write(
    engine: Engine,
    files: RegionFiles,
    present: Present,
    layers: list[LearnedLayer],
    *,
    whole: Settled | None = None,
    deleted: Collection[int] = (),
    compression: Compression | None = None,
) -> Written:
    """Write what is learned, under the files' lock: beside what there is, or together with it.

    What is there is `whole`, if that is to be written with nothing else. Of `deleted` layers
    nothing is there any more.
    """
    dimension, current = files.dimension, present.files
    layers = _not_deleted(present, layers)
    name = name_of_new(dimension) if current is None else current.name
    new = [_merged(LayerId(dimension, layer.number), current, layer) for layer in layers]
    on_disk = None if current is None or present.is_lost else current.generation
    generation = files.next_generation(present.generation, on_disk)
    created_at = max(time.time_ns(), 0)  # a clock may be set before 1970
    lay_out = partial(
        _lay_out,
        dimension,
        name.encode(),
        generation=generation,
        created_at=created_at,
        flags=_flags_for(engine, dimension, current),
    )
    if compression is not None:
        new = settle(new, compression, dimension, trains=current is None).drafts
    may_follow = whole is None and not present.is_lost and files.is_owned()
    planned = deltas.plan(current, new, lay_out, deleted) if may_follow else None
    if planned is None:
        replaced = {layer.number for layer in layers}
        kept: Sequence[LayerDraft] = ()
        if whole is not None:
            kept = whole.drafts
        elif current is not None:
            kept = current.drafts(without=replaced.union(deleted))
        older = () if current is None else current.members[1:]
        replaces = min((each.generation for each in older), default=0)
        planned = deltas.Plan((), *lay_out([*kept, *new], replaces=replaces))
    engine.budget.check_possible(dimension, planned.n_chain_bytes)
    for layer in layers:
        # Should the file get its name and then an error come, the next attempt knows its own.
        layer.attempt = (generation, created_at)
    put = files.put_delta if planned.before else partial(files.put, replaces=current is not None)
    is_spooled = whole is not None and whole.n_changed
    pieces = SpooledPieces(planned.pieces) if is_spooled else planned.pieces
    path = put(pieces, generation)
    return Written(path, planned.before, layers, files.written_identity)


def _lay_out(
    dimension: DimensionId, name: bytes, drafts: Sequence[LayerDraft], **options: Any
) -> tuple[int, list[Any]]:
    """Lay out a file; frames that need another dictionary than the first are made anew."""
    generation, created_at = options.pop("generation"), options.pop("created_at")
    dictionary = b""
    if any(draft.frame is not None for draft in drafts):
        drafts, dictionary, _ = settle(drafts, None, dimension)
    return write_layout(
        dimension, name, drafts, generation, created_at, dictionary=dictionary, **options
    )


def _flags_for(engine: Engine, dimension: DimensionId, current: Base | None) -> int:
    """Return what a file is to say of itself: as the one before it, or whether simulation is on."""
    if current is not None:
        return current.members[-1].flags
    if dimension not in CORE_DIMENSIONS:
        return 0
    return s.FLAG_SIMULATION if engine.snapshot.totals.n_simulated else 0


def _base_of(engine: Engine, dimension: DimensionId) -> Base | None:
    """Return what is mapped of a dimension's files, if anything."""
    loaded = engine.snapshot.find(dimension)
    base: Base | None = None if loaded is None else loaded.base
    return None if base is None or base.path is None else base


def _merged(layer_id: LayerId, current: Base | None, layer: LearnedLayer) -> LayerDraft:
    """Return a learned layer as it is to be written, in place of the same layer of `current`."""
    mine = replace(layer.draft, content_xxh3=layer.checksum())
    if current is None or not current.has_layer(layer.number):
        return mine
    if current.is_simulated(layer.number):  # what is loaded stands for files that are gone
        return mine
    try:
        under = current.draft_of(current.find_row(layer_id))
    except RegionFormatError:  # it is compressed, and damaged
        if layer.is_in(current):
            return mine
        raise
    if layer.is_in(current):  # from an attempt that failed afterwards, maybe since it was damaged
        return under if _is_whole(under) else mine
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


def _is_whole(draft: LayerDraft) -> bool:
    """Tell whether a layer's content is what its checksum was made of."""
    return draft.content_xxh3 == xxhash.xxh3_64_intdigest(draft.content)


def _publish(engine: Engine, dimension: DimensionId, written: Written, done: set[int]) -> None:
    """Switch readers over to what was written; where there is no room for it, to its names.

    `done` has the `id` of each layer that is in the files now; under the writer lock.
    """
    path, before, identity = written.path, written.before, written.identity
    loaded = engine.snapshot.get(dimension)
    try:
        load = partial(engine.loader.follow, dimension, path, before, loaded.base, identity)
        engine.publish_base(*engine.making_room(dimension, load))
    except (LimitExceeded, AllocationFailed) as error:
        is_headroom = isinstance(error, LimitExceeded) and error.bound == "core_headroom"
        empty_frames(error)
        opened = engine.loader.open_uncharged(dimension, path, before)
        is_more_learned = any(id(layer) not in done for layer in loaded.learned.values())
        # What is to stay in memory would have no file under it; what would not come back is read
        # on as it is.
        must_stay = is_more_learned or is_headroom or dimension in engine.pinned
        if must_stay or not _would_fit(engine, loaded, opened):
            engine.record(_record_of_kept(dimension, path))
            return
        charge_ids = () if loaded.base is None else loaded.base.charge_ids
        engine.publish_evicted(opened, engine.loader.new_region_id())
        engine.free(layer.block for layer in loaded.learned.values())
        del loaded, opened
        engine.budget.retire(charge_ids)


def _would_fit(engine: Engine, loaded: LoadedDimension, opened: MmapRegion | RegionChain) -> bool:
    """Tell whether a dimension could be mapped anew once what is loaded of it has gone."""
    table = loaded.resident
    # A block that is shared may go on holding others' contents.
    blocks = [layer.block for layer in loaded.learned.values() if layer.block is not None]
    n_freed = sum(len(block.view) for block in blocks if block.start is None)
    if table is not None and loaded.base is not None and not loaded.base.is_viewed:
        n_freed += table.n_charged
    return engine.used() - n_freed + opened.n_charged <= engine.budget.limit_bytes


def fold(engine: Engine, dimension: DimensionId, compress: str | None = None) -> bool:
    """Write a dimension's region file and its deltas into one; see `MmapManager.fold`."""
    start = perf_counter()
    compression = as_compression(compress)
    _check_can_write(engine, dimension)
    if compress is None and engine.is_cold(dimension):
        compression = as_compression(engine.config.compress_cold, "compress_cold")
    running = Crystallizing(dimension)
    try:
        with engine.writing():
            files = engine.loader.files_of(dimension)
            engine.note_crystallizing(running)
        with files.writing(adds=True):
            present = _look(engine, files)
            if present.files is None:
                raise DimensionNotFound(
                    f"{dimension}: no region file at {files.target}",
                    dimension=dimension,
                    path=str(files.target),
                )
            is_one = len(present.files.members) == 1 and not present.is_lost
            if is_one and compression is None:
                return False
            spool = Spool(files.target.parent)
            whole = settle(present.files.drafts(), compression, dimension, spool)
            if is_one and not whole.n_changed:
                return False
            written = _write(engine, files, present, [], whole=whole)
            engine.write(_publish_folded, engine, dimension, written)
            files.remove_deltas()
    finally:
        running.is_over = True
    _log("folded", dimension, written.path, [], 0, start)
    return True


def _publish_folded(engine: Engine, dimension: DimensionId, written: Written) -> None:
    """Switch readers over to the file that was folded, if the dimension is in memory."""
    loaded = engine.snapshot.find(dimension)
    if loaded is not None and loaded.resident is not None:
        del loaded
        _publish(engine, dimension, written, set())


def delete(engine: Engine, layer_id: LayerId) -> None:
    """Take a layer out of its dimension's files, and away from readers."""
    start = perf_counter()
    dimension = layer_id.dimension
    _check_can_write(engine, dimension)
    running = Crystallizing(dimension)
    try:
        with engine.writing():
            files = engine.loader.files_of(dimension)
            if is_in_memory_alone(engine, layer_id):  # since a moment ago
                raise LayerNotFound(f"{layer_id} is not on disk", layer=layer_id)
            engine.note_crystallizing(running)
        with files.writing(adds=True):
            written = _write_after(engine, files, [], layer_id)
            engine.write(_publish_deleted, engine, dimension, written)
            files.remove_deltas({region.edition for region in written.before})
    finally:
        running.is_over = True
    _log("deleted", dimension, written.path, [layer_id], 0, start)


def _check_there(engine: Engine, files: Base | None, layer_id: LayerId) -> None:
    """Raise where there is no such layer to delete.

    One that is loaded and on disk no longer is deleted once more: the first attempt may have failed
    after the renaming, and what is written now is durable.
    """
    dimension, number = layer_id.dimension, layer_id.layer
    if files is not None and files.has_layer(number) and not files.is_simulated(number):
        return
    loaded = engine.snapshot.find(dimension)
    if loaded is not None and loaded.has_layer(number):
        if loaded.edition_of(number) is None:
            raise InvalidAccess(f"{layer_id} is simulated: it is in no file", layer=layer_id)
        if files is not None:
            return
    raise LayerNotFound(f"{layer_id} is not in {engine.loader.home_of(dimension)}", layer=layer_id)


def _publish_deleted(engine: Engine, dimension: DimensionId, written: Written) -> None:
    """Switch readers over to the state without a layer; of what is evicted, to its names."""
    loaded = engine.snapshot.find(dimension)
    if loaded is None:
        return
    if loaded.resident is not None:
        del loaded
        _publish(engine, dimension, written, set())
        return
    opened = engine.loader.open_uncharged(dimension, written.path, written.before)
    engine.publish((EvictedRegion(opened), engine.snapshot.region_id_of(dimension)))


def _log(
    event: str, dimension: DimensionId, path: Path, ids: list[LayerId], n_bytes: int, start: float
) -> None:
    if not logger.isEnabledFor(INFO):
        return
    logger.info(
        "%s %s: %d layers, %d bytes, %s",
        event,
        dimension,
        len(ids),
        n_bytes,
        path,
        extra={
            "event": event,
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
