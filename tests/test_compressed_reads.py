"""Compressed layers through every way of reading, the cache of inflated ones, and the budget."""

from __future__ import annotations

import gc
import os
import pickle
import re
import threading
from contextlib import closing, contextmanager

import numpy as np
import pytest
from support.compressed import COMPRESSED, CONTENTS, build, damage, ids_of, noise_of, text_of
from support.kernels import TIERS
from support.regions import region_file
from support.shown import check_shown

from jessymem import (
    LayerId,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    OutOfBounds,
    RegionFormatError,
)
from jessymem.kernels import _jit, layer_bytes, locate
from jessymem.kernels import schema as s

IDS = ids_of()
CONTENT_OF = {LayerId(20, number): content for number, content in CONTENTS.items()}


def open_store(base, n_mb=64, **settings):
    settings = {"simulation": "never", **settings}
    manager = MmapManager(MemoryConfig(n_mb, base, pool_configs=[(1, 4096)], **settings))
    manager.load_all()
    return manager


@pytest.fixture
def store(tmp_path):
    build(tmp_path)
    with closing(open_store(tmp_path)) as manager:
        yield manager


@pytest.fixture(params=TIERS)
def tier(request, monkeypatch):
    """Return a context in which batches and scans are compiled, or plain."""

    @contextmanager
    def running():
        _jit.promote(_jit.READING)
        with monkeypatch.context() as patched:
            if request.param == "plain":
                patched.setattr(_jit, "is_promoted", lambda group=_jit.READING: False)
                patched.setattr(_jit, "promote_for", lambda *wanted: None)
            yield

    return running


def n_kept(manager):
    return len(manager._engine.inflated)


def drop_all(manager):
    manager._engine.inflated.drop(2**62)
    gc.collect()


# -- ways of reading -------------------------------------------------------------------------------


def test_single_reads_inflate_once_and_share(store):
    for _ in range(2):
        for layer_id, content in CONTENT_OF.items():
            view = store.access_layer(layer_id)
            assert view == content and view.readonly and view.format == "B"
    assert n_kept(store) == len(COMPRESSED)
    one, two = store.access_layer(IDS[0]), store.access_layer(IDS[0])
    assert np.frombuffer(one, np.uint8).ctypes.data == np.frombuffer(two, np.uint8).ctypes.data
    assert store.get_stats().latencies["inflation"].n_samples == len(COMPRESSED)


def test_arrays_and_contexts(store):
    array = store.array(LayerId(20, 6))
    assert array.tobytes() == CONTENTS[6] and array.shape == (500, 8)
    assert array.ctypes.data % 64 == 0 and not array.flags.writeable
    assert store.load_layer_context(IDS[0]).content == CONTENTS[0]
    assert store["layer 1"] == CONTENTS[1]
    contexts = store.load_contexts([*IDS, "L20-99"], missing="skip")
    assert [bytes(context.content) for context in contexts] == list(CONTENT_OF.values())


def test_batches_are_the_same_in_both_tiers(tier, store):
    with tier():
        found = store.locate_many([*IDS, 5], missing="mark")
        assert found["status"].tolist() == [
            s.COMPRESSED if each.layer in COMPRESSED else s.OK for each in IDS
        ] + [s.NO_DIMENSION]
        assert found["size"].tolist() == [*map(len, CONTENT_OF.values()), 0]
        assert store.locate_many(IDS)["slot"].tolist() == [20] * len(IDS)
        data, offsets = store.gather(IDS)
        assert data.tobytes() == b"".join(CONTENT_OF.values())
        assert offsets.tolist() == np.cumsum([0, *map(len, CONTENT_OF.values())]).tolist()
        assert n_kept(store) == 0  # neither of these keeps anything
        views = store.access_many([*IDS, 5], missing="mark")
        assert [None if view is None else bytes(view) for view in views] == [
            *CONTENT_OF.values(),
            None,
        ]
        assert n_kept(store) == len(COMPRESSED)
        assert store.gather(IDS)[0].tobytes() == data.tobytes()


def test_scans_inflate_for_themselves(tier, store, tmp_path):
    build(tmp_path / "plain", compress=None)
    with tier(), closing(open_store(tmp_path / "plain")) as plain:
        for needle, options in (
            ("river", {}),
            (b"a" * 50, {}),
            ("RIVER", {"ignore_case": True}),
            ("stones", {"word": True}),
            (re.compile(rb"riv\w+ stone"), {}),
        ):
            wanted = list(plain.find(needle, **options))
            assert list(store.find(needle, **options)) == wanted
            assert store.count(needle, **options) == len(wanted) > 0
            assert list(store.find(needle, limit=3, workers=1, **options)) == wanted[:3]
        assert list(store.find("rain", layers=IDS[:2])) == list(plain.find("rain", layers=IDS[:2]))
        assert n_kept(store) == 0
        for batch in store.find_batches("river"):
            for hit in batch[:20]:
                there = bytes(batch.content(int(hit.layer_id))[hit.offset :][:5])
                assert there == b"river"
            windows = batch.windows(3, 11)
            for row, hit in zip(windows.bytes, batch, strict=True):
                content = CONTENT_OF[hit.layer_id]
                start = max(0, min(hit.offset - 3, len(content) - 11))
                assert row.tobytes() == content[start : start + 11]


def count_bytes(content, row):
    return len(content) * 1_000 + np.int64(row["layer_num"])


@pytest.mark.compiled_only
def test_kernels_of_users_see_contents(store):
    ids, values = store.scan(count_bytes, np.int64, return_ids=True)
    assert list(ids) == IDS
    assert values.tolist() == [len(CONTENT_OF[each]) * 1_000 + each.layer for each in IDS]
    assert n_kept(store) == 0


def test_code_of_users_has_the_code_until_a_layer_is_inflated(store):
    place = locate(store.store(), int(IDS[0]))
    assert (place.status, place.size) == (s.COMPRESSED, len(CONTENTS[0]))
    assert layer_bytes(store.store(), int(IDS[0])).size == 0
    held = store.inflate([IDS[0], IDS[4], "L20-06"])
    for number in (0, 4, 6):
        assert layer_bytes(held, int(LayerId(20, number))).tobytes() == CONTENTS[number]
    assert locate(held, int(IDS[1])).status == s.COMPRESSED
    drop_all(store)  # what a store has is viewed
    other = pickle.loads(pickle.dumps(held))
    store.close()
    assert layer_bytes(held, int(IDS[0])).tobytes() == CONTENTS[0]
    assert layer_bytes(other, int(IDS[0])).tobytes() == CONTENTS[0]


def test_a_store_with_inflated_layers_counts_for_as_long_as_it_is_held(store):
    before = store.get_stats().total_used_bytes
    held = store.inflate([LayerId(20, 9)])
    drop_all(store)
    assert store.get_stats().total_used_bytes >= before + len(CONTENTS[9])
    del held
    drop_all(store)
    assert store.get_stats().total_used_bytes == before


def test_references_and_regions_without_a_manager(store, tmp_path):
    ref = store.ref(IDS[0])
    sent = pickle.dumps(ref)
    assert ref.get() == CONTENTS[0]
    store.close()
    assert ref.get() == CONTENTS[0]
    again = pickle.loads(sent)
    assert again.get() == CONTENTS[0]
    assert pickle.loads(pickle.dumps(store.__class__)) is MmapManager
    region = MmapRegion.from_file(20, region_file(tmp_path, "D20"))
    view = region.content_of(0)
    assert view == region.content_of(0) == CONTENTS[0]


def test_copied_files_hold_their_layers_compressed_too(tmp_path):
    build(tmp_path)
    with closing(open_store(tmp_path, load_mode="copy")) as manager:
        assert all(manager.access_layer(each) == content for each, content in CONTENT_OF.items())


# -- what is learned over it -----------------------------------------------------------------------


def test_learned_layers_lie_beside_compressed_ones_and_over_them(store):
    store.access_layer(IDS[0])
    store.overlay_layer(IDS[1], "more", separator="|")
    fresh = store.create_proto_dimension(20, "fresh")
    expected = {**CONTENT_OF, IDS[1]: CONTENTS[1] + b"|more", fresh: b"fresh"}
    for _ in range(2):
        for layer_id, content in expected.items():
            assert store.access_layer(layer_id) == content
    data, _ = store.gather(list(expected))
    assert data.tobytes() == b"".join(expected.values())
    assert store.count("river") > 0
    below = store.create_proto_dimension(20, "in a gap", layer=7)  # the table is made anew
    for layer_id, content in {**expected, below: b"in a gap"}.items():
        assert store.access_layer(layer_id) == content
    drop_all(store)
    store.drop_overlay(IDS[1])
    assert store.access_layer(IDS[1]) == CONTENTS[1]


def test_chains_lead_to_each_file(tier, store):
    texts = {}
    for at in range(3):
        layer_id = store.create_proto_dimension(20, text_of(100 + at, 5_000))
        texts[layer_id] = text_of(100 + at, 5_000)
        store.crystallize_dimension(20, compress="zstd")
    store.overlay_layer(IDS[0], "x" * 3_000, separator="")
    store.crystallize_dimension(20)
    with tier():
        expected = {**CONTENT_OF, **texts, IDS[0]: CONTENTS[0] + b"x" * 3_000}
        assert len(store._engine.snapshot.find(IDS[0].dimension).members) == 5
        for layer_id, content in expected.items():
            assert store.access_layer(layer_id) == content
        drop_all(store)
        data, _ = store.gather(list(expected))
        assert data.tobytes() == b"".join(expected.values())
        assert [bytes(view) for view in store.access_many(list(expected))] == [*expected.values()]
        held = store.inflate(list(expected))
        for layer_id, content in expected.items():
            assert layer_bytes(held, int(layer_id)).tobytes() == content
        assert store.count("rain", layers=list(texts)) == sum(
            content.count(b"rain") for content in texts.values()
        )
        for info in map(store.get_layer_info, texts):
            assert info.compression == "zstd" and info.size == 5_000


# -- memory ----------------------------------------------------------------------------------------


def test_what_is_inflated_counts_and_goes_first(tmp_path):
    texts = {number: text_of(number, 2**20) for number in range(12)}
    build(tmp_path, 20, contents=texts)
    build(tmp_path, 21, compress=None, contents={0: noise_of(0, 2**20)})
    with closing(open_store(tmp_path, 8)) as manager:
        resident = manager.get_stats().active_regions
        held = manager.access_layer(LayerId(20, 0))
        for number, content in texts.items():
            assert manager.access_layer(LayerId(20, number)) == content
            stats = manager.get_stats()
            assert stats.total_used_bytes <= stats.total_limit_bytes
            check_shown(manager)
        assert manager.get_stats().active_regions == resident  # no region went
        assert manager.get_stats().evictions == 0
        assert n_kept(manager) < len(texts)
        assert held == texts[0]
        # What is viewed stays, and the rest goes for a region.
        assert manager.access_layer(LayerId(20, 0)) == texts[0]
        build(tmp_path, 22, compress=None, contents={0: noise_of(1, 4 * 2**20)})
        manager.load_dimension(22)
        assert manager.get_stats().evictions == 0
        assert held == texts[0]


def test_a_layer_for_which_there_is_no_room_is_named(tmp_path):
    build(tmp_path, contents={0: b"a" * (8 * 2**20), 1: b"b" * 5_000})
    with closing(open_store(tmp_path, 4)) as manager:
        with pytest.raises(LimitExceeded, match="L20-00"):
            manager.access_layer("L20-00")
        assert manager.access_layer("L20-01") == b"b" * 5_000
        assert manager.gather(["L20-00"])[0].tobytes() == b"a" * (8 * 2**20)  # the caller's memory
        with pytest.raises(LimitExceeded, match="L20-00"):
            manager.count("a")
        assert manager.get_stats().total_used_bytes < 2**20


def test_inflated_layers_go_with_their_region(store):
    before = store.get_stats().total_used_bytes
    for layer_id in IDS:
        store.access_layer(layer_id)
    view = store.access_layer(IDS[0])
    store.unload_dimension(20)
    assert n_kept(store) == 0
    assert view == CONTENTS[0]
    del view
    store.trim()
    assert store.get_stats().total_used_bytes < before


def test_eviction_takes_inflated_layers_along_and_reads_bring_them_back(tmp_path):
    build(tmp_path, 20)
    with closing(open_store(tmp_path)) as manager:
        manager.access_layer(IDS[0])
        manager._engine.write(manager._engine.evict, IDS[0].dimension)
        assert n_kept(manager) == 0
        assert manager.access_layer(IDS[0]) == CONTENTS[0]
        assert manager.access_many(IDS)[1] == CONTENTS[1]


def test_damage_is_told_and_nothing_of_it_is_kept(tmp_path):
    build(tmp_path)
    damage(tmp_path, 9, 1_000)
    with closing(open_store(tmp_path)) as manager:
        before = manager.get_stats().total_used_bytes
        for read in (
            manager.access_layer,
            lambda layer: manager.gather([layer]),
            lambda layer: manager.access_many([layer]),
            lambda layer: manager.find("rain", layers=[layer]),
            lambda layer: manager.inflate([layer]),
        ):
            with pytest.raises(RegionFormatError, match="layer 9 "):
                read("L20-09")
        manager.trim()
        assert manager.get_stats().total_used_bytes == before
        assert manager.access_layer(IDS[0]) == CONTENTS[0]


def test_what_cannot_fit_together_is_refused_before_anything_goes(tmp_path):
    build(tmp_path, 20, contents={number: text_of(number, 2**20) for number in range(12)})
    build(tmp_path, 21, compress=None, contents={0: noise_of(0, 2**20)})
    ids = [LayerId(20, number) for number in range(12)]
    with closing(open_store(tmp_path, 8)) as manager:
        for read in (manager.access_many, manager.load_contexts, manager.inflate):
            with pytest.raises(LimitExceeded, match="L20-00: 12,582,912 bytes"):
                read(ids)
        assert manager.get_stats().evictions == 0
        assert n_kept(manager) == 0


def test_reads_go_on_where_all_that_is_inflated_was_viewed(tmp_path):
    """A refusal while everything is viewed says nothing of later, when nothing is."""
    texts = {number: text_of(number, 400_000) for number in range(40)}
    build(tmp_path, contents=texts)
    with closing(open_store(tmp_path, 8)) as manager:
        held = []
        with pytest.raises(LimitExceeded):
            for number in texts:
                held.append(manager.access_layer(LayerId(20, number)))
        del held
        for number, content in texts.items():
            assert manager.access_layer(LayerId(20, number)) == content


@pytest.mark.parametrize("workers", [1, 2])
def test_a_scan_needs_no_more_room_than_a_few_layers(workers, tmp_path):
    texts = {number: text_of(number, 100_000) for number in range(200)}
    region = build(tmp_path, contents=texts)
    n_mb = region.size // 2**20 + 4
    del region
    with closing(open_store(tmp_path, n_mb)) as manager:
        wanted = sum(content.count(b"river") for content in texts.values())
        assert manager.count("river", workers=workers) == wanted
        assert len(manager.find("river", workers=workers)) == wanted
        assert len(manager.find("river", workers=workers, limit=1_000)) == 1_000
        assert sum(map(len, manager.find_batches("river", workers=workers))) == wanted


def test_stored_bytes_are_never_read_as_content(store, tmp_path):
    region = MmapRegion.from_file(20, region_file(tmp_path, "D20"))
    for info in region.metadata.layers:
        if info.compression is None:
            found = bytes(region.read_content(info.offset, info.size))
            assert found == CONTENTS[info.layer_id.layer]
        else:
            assert info.offset == -1
            with pytest.raises(OutOfBounds):
                region.read_content(info.offset, info.size)
    assert region.read_array("L20-06").ctypes.data % 64 == 0


# -- threads and processes -------------------------------------------------------------------------


def test_threads_that_want_one_layer_inflate_it_once(store):
    wanted, n_threads = LayerId(20, 9), 8
    barrier, found = threading.Barrier(n_threads), []

    def read():
        barrier.wait()
        found.append(store.access_layer(wanted))

    threads = [threading.Thread(target=read) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(view == CONTENTS[9] for view in found)
    addresses = {np.frombuffer(view, np.uint8).ctypes.data for view in found}
    assert len(addresses) == 1
    assert store.get_stats().latencies["inflation"].n_samples == 1


def test_a_handler_of_records_may_read_what_another_thread_inflates(store, monkeypatch):
    """Who inflates may have to write a record, for which it waits for the handler that reads."""
    inflated = store._engine.inflated
    monkeypatch.setattr("jessymem.engine.inflated._PATIENCE_SECONDS", 0.1)
    handler_lock, begun = threading.Lock(), threading.Event()
    keep = inflated._keep

    def keep_and_record(*arguments):
        if threading.current_thread() is thread:
            begun.set()
            with handler_lock:
                return keep(*arguments)
        return keep(*arguments)

    inflated._keep = keep_and_record
    thread = threading.Thread(target=store.access_layer, args=(IDS[0],))
    with handler_lock:
        thread.start()
        begun.wait(60)
        assert store.access_layer(IDS[0]) == CONTENTS[0]
    thread.join()
    assert store.access_layer(IDS[0]) == CONTENTS[0]


def test_readers_while_layers_are_dropped_and_dimensions_change(tmp_path):
    build(tmp_path)
    failed, stop = [], threading.Event()
    with closing(open_store(tmp_path, 16)) as manager:

        def read(seed):
            order = np.random.default_rng(seed)
            try:
                while not stop.is_set():
                    layer_id = IDS[int(order.integers(len(IDS)))]
                    assert manager.access_layer(layer_id) == CONTENT_OF[layer_id]
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for step in range(30):
            drop_all(manager)
            if step % 3 == 0:
                manager.create_proto_dimension(20, "learned")
                manager.crystallize_dimension(20)
            if step == 20:
                manager.fold(20)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failed
        drop_all(manager)
        check_shown(manager)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_child_reads_what_another_thread_was_inflating(store):
    inflated = store._engine.inflated
    frames = store._engine.snapshot.find(IDS[0].dimension).frames
    begun, go_on = threading.Event(), threading.Event()
    keep = inflated._keep

    def wait(*arguments):
        begun.set()
        go_on.wait(60)
        return keep(*arguments)

    inflated._keep = wait
    thread = threading.Thread(target=store.access_layer, args=(IDS[0],))
    thread.start()
    begun.wait(60)
    inflated._keep = keep
    child = os.fork()
    if child == 0:
        os._exit(0 if store.access_layer(IDS[0]) == CONTENTS[0] else 1)
    _, status = os.waitpid(child, 0)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert frames.inflated.keys() == {0}
