"""One layer, a batch, compiled code and plain Python: the same answer, whatever happens beside."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from itertools import pairwise
from time import monotonic

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck
from support.kernels import compiled
from support.regions import region_file, write_packed
from support.stores import mixed_store

from jessymem import (
    LayerId,
    LayerNotFound,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    kernels,
)
from jessymem.kernels import _jit
from jessymem.kernels import schema as s

POOLS = [(1, 4096), (4, 65_536)]
NUMBERS = st.sampled_from([0, 1, 2, 3, 255, 256, 65_534, 65_535])
CONTENTS = st.binary(max_size=200) | st.integers(1, 999).map(lambda n: bytes([n % 251]) * n * 9)
LAYERS = st.dictionaries(NUMBERS, CONTENTS, max_size=6)
HOW = st.sampled_from(["file", "plain file", "memory", "both", "overlaid"])
STORES = st.dictionaries(st.sampled_from([15, 16, 300, 65_535]), st.tuples(HOW, LAYERS), max_size=4)


def user_read(store, ids, sizes, sums):
    """Write size and sum of each layer, the size -1 where there is none."""
    for i in range(len(ids)):
        if kernels.locate(store, ids[i]).status == s.OK:
            data = kernels.layer_bytes(store, ids[i])
            sizes[i] = len(data)
            for byte in data:
                sums[i] += int(byte)
        else:
            sizes[i] = -1


read_compiled = compiled(user_read)


def fill(manager, base, stores):
    """Make dimensions; return what their layers hold."""
    contents = {}
    for number, (how, layers) in stores.items():
        ids = {LayerId(number, layer): content for layer, content in layers.items()}
        in_file = dict(list(layers.items())[: None if how != "both" else len(layers) // 2])
        path = region_file(base, f"D{number:02d}")
        if how == "plain file":
            write_packed(path, number, in_file)
        elif how != "memory":
            builder = RegionBuilder(number, how)
            for layer, content in in_file.items():
                builder.add_layer(layer, content)
            builder.build_to_file(path)
        if how != "memory":
            manager.load_dimension(number)
        for layer, content in layers.items():
            if how == "memory" or layer not in in_file:
                manager.create_proto_dimension(number, content, layer=layer)
            elif how == "overlaid":
                manager.overlay_layer(LayerId(number, layer), b"over", separator=b"")
                ids[LayerId(number, layer)] = content + b"over"
        contents.update(ids)
    return contents


def answers(manager, ids, contents):
    """Ask for layers in every way; return what each says of them, None for what is missing."""
    packed = np.array(ids, np.int64)
    found = {}

    def single(layer_id):
        try:
            return bytes(manager.access_layer(layer_id))
        except (LayerNotFound, ValueError):
            return None

    found["single"] = [single(each) for each in ids]
    for is_plain in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if is_plain:
                patch.setattr(_jit, "is_promoted", lambda group=_jit.READING: False)
            else:
                _jit.promote()
            tier = "plain" if is_plain else "compiled"
            views = manager.access_many(packed, missing="mark")
            found[f"views, {tier}"] = [None if view is None else bytes(view) for view in views]
            data, offsets = manager.gather(packed, missing="mark")
            pieces = [data[a:b].tobytes() for a, b in pairwise(offsets)]
            # A buffer does not tell what is missing from what is empty.
            found[f"buffer, {tier}"] = [
                piece or (None if contents.get(each, b"-") else b"")
                for each, piece in zip(ids, pieces, strict=True)
            ]
    store = manager.store()
    found["store, plain"] = [
        kernels.layer_bytes(store, each).tobytes()
        if kernels.locate(store, each).status == s.OK
        else None
        for each in packed.tolist()
    ]
    return found, store


@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@hypothesis.given(stores=STORES, others=st.lists(st.integers(-5, 2**33), max_size=5))
def test_all_ways_agree_on_random_stores(tmp_path_factory, stores, others):
    base = tmp_path_factory.mktemp("random")
    config = MemoryConfig(64, base, pool_configs=POOLS, simulation="never")
    with MmapManager(config) as manager:
        contents = fill(manager, base, stores)
        ids = [*contents, *(each for each in others if each not in contents), *contents]
        found, store = answers(manager, ids, contents)
        expected = [contents.get(each) for each in ids]
        for way, got in found.items():
            assert got == expected, way
        sizes, sums = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
        read_compiled(store, np.array(ids, np.int64), sizes, sums)
        assert sizes.tolist() == [-1 if each is None else len(each) for each in expected]
        assert sums.tolist() == [sum(each or b"") for each in expected]
        assert store.layer_ids().tolist() == sorted(contents) == manager.list_layers()


@contextmanager
def changing(manager, base):
    """Load, replace, unload, overlay, learn and discard in another thread; count its rounds."""
    stop, rounds, errors = threading.Event(), [], []

    def change():
        try:
            while not stop.is_set():
                edition = len(rounds) % 2
                builder = RegionBuilder(30, "changing")
                for layer in range(4):
                    builder.add_layer(layer, changing_content(layer, edition))
                builder.build_to_file(region_file(base, "D30"))
                is_known = manager.is_loaded("D30")
                (manager.refresh if is_known else manager.load_dimension)("D30")
                content = changing_content(9, edition)
                learned = manager.create_proto_dimension("D30", content, layer=9)
                manager.update_proto_dimension(learned, changing_content(9, 1 - edition))
                manager.discard_proto_dimension(learned)
                manager.unload_dimension("D15")
                manager.load_dimension("D15")
                if edition:
                    manager.unload_dimension("D30")
                rounds.append(edition)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        thread.join()
    assert not errors, errors


def changing_content(layer, edition):
    return bytes([layer * 2 + edition]) * (1000 * layer + 3)


def is_one_of(layer_id, got, contents):
    """Tell whether a layer was read as it was at some instant."""
    if layer_id.dimension == 30:
        return got is None or got in [changing_content(layer_id.layer, each) for each in (0, 1)]
    return got == contents[layer_id] or (got is None and layer_id.dimension == 15)


def test_all_ways_agree_while_another_thread_changes_the_store(tmp_path):
    manager, contents = mixed_store(tmp_path)
    ids = [*contents, *(LayerId(30, layer) for layer in (0, 1, 2, 3, 9))]
    packed = np.array(ids, np.int64)
    seen = set()
    with manager, changing(manager, tmp_path) as rounds:
        n_asked = 0
        while n_asked < 30 or len(rounds) < 10:
            found, store = answers(manager, ids, contents)
            for way, got in found.items():
                for layer_id, each in zip(ids, got, strict=True):
                    assert is_one_of(layer_id, each, contents), (way, layer_id)
                    seen.add((int(layer_id.dimension) in (15, 30), each is None))
            # A store is one state: it says the same for as long as it is held.
            before = [kernels.layer_bytes(store, each).tobytes() for each in packed.tolist()]
            sizes, sums = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
            read_compiled(store, packed, sizes, sums)
            assert sums.tolist() == [sum(each) for each in before]
            assert np.maximum(sizes, 0).tolist() == [len(each) for each in before]
            n_asked += 1
    assert seen == {(False, False), (True, False), (True, True)}


def test_a_batch_is_of_one_state(tmp_path):
    with MmapManager(base_path=tmp_path) as manager:

        def publish(edition):
            builder = RegionBuilder(30, "changing")
            for layer in range(4):
                builder.add_layer(layer, changing_content(layer, edition))
            builder.build_to_file(region_file(tmp_path, "D30"))

        publish(0)
        manager.load_dimension("D30")
        stop = threading.Event()

        def replace():
            edition = 0
            while not stop.is_set():
                edition = 1 - edition
                publish(edition)
                manager.refresh("D30")

        thread = threading.Thread(target=replace)
        thread.start()
        ids = np.array([LayerId(30, layer) for layer in range(4)] * 50, np.int64)
        seen = set()
        turns = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)  # the writer asks for the GIL at every step
        try:
            deadline = monotonic() + 60
            while seen != {0, 1} and monotonic() < deadline:
                data, offsets = manager.gather(ids)
                editions = {
                    (int(data[at]) - 2 * (i % 4)) for i, at in enumerate(offsets[:-1].tolist())
                }
                assert len(editions) == 1
                seen |= editions
        finally:
            sys.setswitchinterval(turns)
            stop.set()
            thread.join()
        assert seen == {0, 1}
