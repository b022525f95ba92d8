"""How proto layers are made: what is asked for, its blocks, its numbers, its publication."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from jessymem import osmem
from jessymem.engine.engine import Engine
from jessymem.engine.naming import naming
from jessymem.engine.records import log_learning
from jessymem.errors import DuplicateLayer, shown
from jessymem.ids import DimensionId, LayerId, as_dimension_id, items_of
from jessymem.kernels import schema as s
from jessymem.learning.checks import check_writable
from jessymem.learning.layers import LearnedLayer
from jessymem.learning.region import with_learned
from jessymem.pools import stored
from jessymem.pools.stored import StoredBlock
from jessymem.regions.drafts import (
    ContentOrArray,
    LayerDraft,
    as_content_or_array,
    make_draft,
)
from jessymem.regions.table import LoadedDimension

if TYPE_CHECKING:
    from jessymem.pools.allocator import PoolAllocator

_OPTIONS: Final = frozenset({"layer", "name", "frequency", "depth", "keywords", "parent"})


class Request(NamedTuple):
    """One layer that is asked for."""

    dimension: DimensionId
    layer: int | None
    draft: LayerDraft


def create(engine: Engine, items: Iterable[Mapping[str, Any] | Sequence[Any]]) -> list[LayerId]:
    """Make layers in memory, all of them or none; see `MmapManager.create_proto_layers`."""
    requests = read_items(items)
    for request in requests:
        check_writable(engine, request.dimension)
    if not requests:
        engine.check_open()
        return []
    for dimension in {request.dimension for request in requests}:
        prepare_crystallizing(engine, dimension)
    drafts = [request.draft for request in requests]
    blocks = store(engine.allocator, drafts, requests[0].dimension)
    ids = engine.write(publish, engine, requests, blocks)
    for layer_id, request in zip(ids, requests, strict=True):
        log_learning("proto_created", layer_id, len(request.draft.content))
    return ids


def prepare_crystallizing(engine: Engine, dimension: DimensionId) -> None:
    """Import and find out, when something is learned, what crystallizing it will need.

    Then there are no readers yet which the first crystallization would let run at each import.
    """
    import jessymem.learning.crystallization  # noqa: F401  (so that it is imported)

    osmem.prepare_writing(engine.loader.home_of(dimension).parent)


def read_items(items: Iterable[Mapping[str, Any] | Sequence[Any]]) -> list[Request]:
    """Check what `create_proto_layers` was given."""
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise TypeError(f"items are a sequence of mappings or pairs, not {shown(items)}")
    return [_read_item(item) for item in items_of(items, "items")]


def _read_item(item: Mapping[str, Any] | Sequence[Any]) -> Request:
    if isinstance(item, Mapping):
        options = dict(item)
        missing = {"dimension_id", "content"} - options.keys()
        if missing:
            raise TypeError(f"an item needs {' and '.join(sorted(missing))}")
        dimension = as_dimension_id(options.pop("dimension_id"))
        content = options.pop("content")
        unknown = options.keys() - _OPTIONS
        if unknown:
            raise TypeError(f"{dimension}: an item has no {', '.join(sorted(map(str, unknown)))}")
    elif isinstance(item, tuple | list) and len(item) == 2:
        dimension, content, options = as_dimension_id(item[0]), item[1], {}
    else:
        raise TypeError(f"an item is a mapping or (dimension_id, content), not {shown(item)}")
    number = options.pop("layer", None)
    who = dimension if number is None else LayerId(dimension, number)
    draft = make_draft(who, as_content_or_array(content, who, is_copied=False), **options)
    return Request(dimension, None if number is None else draft.layer, draft)


def content_draft(layer_id: LayerId, content: ContentOrArray) -> LayerDraft:
    """Check a content on its own."""
    data, encoding, header = as_content_or_array(content, layer_id, is_copied=False)
    return LayerDraft(layer_id.layer, data, encoding=encoding, array_header=header)


def store(
    blocks: Callable[[], PoolAllocator], drafts: list[LayerDraft], who: DimensionId | LayerId
) -> list[StoredBlock | None]:
    """Copy contents into blocks, one each where there is any content; all of them or none.

    `blocks` returns the allocator, for which there may be no memory either.
    """
    filled = [[draft.content] for draft in drafts if len(draft.content)]
    with naming(who):
        fresh = iter(stored.store(blocks(), filled) if filled else ())
    return [next(fresh) if len(draft.content) else None for draft in drafts]


def publish(
    engine: Engine, requests: list[Request], blocks: list[StoredBlock | None]
) -> list[LayerId]:
    """Give numbers to stored layers and publish all of them at once; under the writer lock."""
    by_dimension: dict[DimensionId, list[int]] = defaultdict(list)
    for at, request in enumerate(requests):
        by_dimension[request.dimension].append(at)
    with engine.keeping(by_dimension):  # before anything is built: mapping one evicts others
        for dimension in by_dimension:
            if dimension in engine.snapshot:
                engine.bring_back(dimension)
    ids: dict[int, LayerId] = {}
    changed: list[tuple[LoadedDimension, int]] = []
    try:
        for dimension, chosen in by_dimension.items():
            loaded = engine.snapshot.find(dimension)
            base = None if loaded is None else loaded.base
            on_disk = engine.loader.numbers_on_disk(dimension, base)
            wanted = [requests[at].layer for at in chosen]
            numbers = choose_numbers(dimension, loaded, on_disk, wanted)
            ids.update(zip(chosen, LayerId.in_order(dimension, numbers), strict=True))
            fresh = [_layer(ids[at], requests[at].draft, blocks[at]) for at in chosen]
            if loaded is None:
                table, region_id = None, engine.loader.new_region_id()
            else:
                table, region_id = loaded.resident, engine.snapshot.region_id_of(dimension)
            changed.append((with_learned(dimension, table, fresh), region_id))
        engine.publish(*changed)
    except BaseException:
        for dimension in by_dimension:
            loaded = engine.snapshot.find(dimension)
            if loaded is not None:
                loaded.drop_unpublished()
        raise
    return [ids[at] for at in range(len(requests))]


def _layer(layer_id: LayerId, draft: LayerDraft, block: StoredBlock | None) -> LearnedLayer:
    if draft.parent == layer_id:
        raise ValueError(f"{layer_id}: a layer is not its own parent")
    return LearnedLayer.keeping(draft, block, layer=layer_id.layer)


def choose_numbers(
    dimension: DimensionId,
    loaded: LoadedDimension | None,
    on_disk: np.ndarray[Any, np.dtype[np.uint16]],
    wanted: list[int | None],
) -> list[int]:
    """Return a number for each of `wanted`: that one, or the next above all that are taken.

    Raises
    ------
    DuplicateLayer
        If a number is taken, or none is left.
    """
    given = [number for number in wanted if number is not None]
    seen: set[int] = set()
    for number in given:
        at = int(np.searchsorted(on_disk, number))
        is_on_disk = at < len(on_disk) and int(on_disk[at]) == number
        if number in seen or is_on_disk or (loaded is not None and loaded.has_layer(number)):
            layer_id = LayerId(dimension, number)
            where = "twice in one call" if number in seen else "on disk" if is_on_disk else "loaded"
            raise DuplicateLayer(f"{layer_id} is there already: {where}", layer=layer_id)
        seen.add(number)
    in_memory = loaded.numbers if loaded is not None else on_disk[:0]
    n_free = wanted.count(None)
    tops = [int(each[-1]) for each in (on_disk, in_memory) if len(each)]
    start = max([*tops, *given], default=-1) + 1
    if start + n_free <= s.MAX_LAYERS:
        free = iter(range(start, start + n_free))
    else:  # nothing above the highest: gaps, from the lowest
        is_taken = np.zeros(s.MAX_LAYERS, bool)
        is_taken[on_disk] = is_taken[in_memory] = is_taken[given] = True
        gaps = np.flatnonzero(~is_taken)[:n_free].tolist()
        if len(gaps) < n_free:
            raise DuplicateLayer(
                f"{dimension}: fewer than {n_free:,} of {s.MAX_LAYERS:,} layer numbers are free",
                layer=None,
                dimension=dimension,
            )
        free = iter(gaps)
    return [next(free) if number is None else number for number in wanted]
