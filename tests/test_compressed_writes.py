"""What is compressed when files are built, folded and added to, and what becomes of it."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing

import numpy as np
import pytest
from support.command_line import run
from support.compressed import (
    COMPRESSED,
    CONTENTS,
    build,
    damage,
    ids_of,
    noise_of,
    small_texts,
    text_of,
)
from support.regions import region_file

import jessymem
from jessymem import (
    ConfigError,
    LayerId,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionFormatError,
)
from jessymem.engine.policies import make_policy

CONTENT_OF = {LayerId(20, number): content for number, content in CONTENTS.items()}


def open_store(base, **settings):
    manager = MmapManager(MemoryConfig(64, base, simulation="never", **settings))
    manager.load_all()
    return manager


@pytest.fixture
def store(tmp_path):
    with closing(open_store(tmp_path)) as manager:
        yield manager


def file_of(base, dimension=20):
    region = MmapRegion.from_file(dimension, region_file(base, f"D{dimension}"))
    assert region.verify_integrity()
    return region


def compressed_in(region):
    return {info.layer_id.layer for info in region.metadata.layers if info.compression}


def check_reads(manager, expected):
    for layer_id, content in expected.items():
        assert manager.access_layer(layer_id) == content


# -- folding ---------------------------------------------------------------------------------------


def test_folding_compresses_and_inflates(tmp_path):
    plain = build(tmp_path, compress=None)
    with closing(open_store(tmp_path)) as manager:
        assert manager.fold(20, compress="zstd")
        assert compressed_in(file_of(tmp_path)) == COMPRESSED
        assert file_of(tmp_path).size < plain.size / 3
        check_reads(manager, CONTENT_OF)
        assert not manager.fold(20, compress="zstd")  # nothing is left to do
        assert not manager.fold(20)
        assert manager.fold(20, compress="none")
        assert not compressed_in(file_of(tmp_path))
        assert file_of(tmp_path).metadata.version == 1
        assert not manager.fold(20, compress="none")
        check_reads(manager, CONTENT_OF)
        assert manager.array(LayerId(20, 6)).shape == (500, 8)


def test_folding_passes_frames_on_as_they_are(tmp_path, monkeypatch):
    build(tmp_path)
    with closing(open_store(tmp_path)) as manager:
        for number in range(3):
            manager.create_proto_dimension(20, f"layer {number}")
            manager.crystallize_dimension(20)
        before = {
            number: bytes(region.frames.stored_bytes(region.find_row(LayerId(20, number))))
            for region in [file_of(tmp_path)]
            for number in COMPRESSED
        }
        monkeypatch.setattr(jessymem.zstd, "inflate", None)
        monkeypatch.setattr(jessymem.zstd, "Deflater", None)
        assert manager.fold(20)
        monkeypatch.undo()
        region = file_of(tmp_path)
        assert compressed_in(region) == COMPRESSED
        for number, stored in before.items():
            assert region.frames.stored_bytes(region.find_row(LayerId(20, number))) == stored
        check_reads(manager, CONTENT_OF)


def test_damage_is_passed_on_as_damage(tmp_path):
    build(tmp_path)
    damage(tmp_path, 1, 500)
    with closing(open_store(tmp_path)) as manager:
        manager.create_proto_dimension(20, "more")
        manager.crystallize_dimension(20)
        assert manager.fold(20)
        with pytest.raises(RegionFormatError, match="layer 1 stored_xxh3"):
            file_of(tmp_path)
        with pytest.raises(RegionFormatError, match="layer 1 stored_xxh3"):
            manager.fold(20, compress="none")
        assert region_file(tmp_path, "D20").exists()


def test_a_dictionary_is_kept_by_a_fold_and_another_one_made_anew(tmp_path):
    texts = small_texts()
    build(tmp_path, contents=texts)
    first = file_of(tmp_path)
    assert first.frames.dictionary
    with closing(open_store(tmp_path)) as manager:
        for number in range(300, 310):
            manager.create_proto_dimension(20, texts[number - 300] + b" and more")
        manager.crystallize_dimension(20, compress="zstd")
        assert manager.fold(20)
        folded = file_of(tmp_path)
        assert folded.frames.dictionary == first.frames.dictionary
        assert folded.n_layers == 310
        expected = {LayerId(20, number): text for number, text in texts.items()}
        check_reads(manager, expected)
    # A delta by another writer, with a dictionary of its own.
    other = tmp_path / "other"
    build(other, contents={number: text[::-1] for number, text in texts.items()})
    one, two = file_of(tmp_path), file_of(other)
    from jessymem.regions.compression import settle

    mixed = [*one.drafts()[:5], *two.drafts()[5:10]]
    settled = settle(mixed, None, one.dimension_id)
    assert settled.dictionary == one.frames.dictionary
    assert settled.n_changed == 5
    assert [draft.frame is not None for draft in settled.drafts[:5]] == [True] * 5
    assert all(not draft.frame or not draft.frame.dictionary for draft in settled.drafts[5:])


# -- learning --------------------------------------------------------------------------------------


def test_what_is_learned_is_compressed_where_that_is_asked_for(store, tmp_path):
    texts = {}
    for number in range(3):
        layer_id = store.create_proto_dimension(20, text_of(number, 20_000))
        texts[layer_id] = text_of(number, 20_000)
    store.crystallize_dimension(20, compress="zstd:9")
    assert compressed_in(file_of(tmp_path)) == {0, 1, 2}
    check_reads(store, texts)
    plain = store.create_proto_dimension(20, text_of(7, 300))
    store.crystallize_dimension(20)  # a delta, which is plain
    assert store.get_layer_info(plain).compression is None
    more = store.create_proto_dimension(20, text_of(8, 600))
    store.crystallize_dimension(20, compress="zstd")
    assert len(list(region_file(tmp_path, "D20").parent.glob("region.d*.mmap"))) == 2
    check_reads(store, {**texts, plain: text_of(7, 300), more: text_of(8, 600)})
    store.delete_layer(more)
    assert store.fold(20)
    assert compressed_in(file_of(tmp_path)) == {0, 1, 2}


def test_beside_a_file_of_version_1_there_is_no_delta_of_version_2(tmp_path):
    build(tmp_path, compress=None)
    with closing(open_store(tmp_path)) as manager:
        manager.create_proto_dimension(20, text_of(50, 2_000))
        manager.crystallize_dimension(20, compress="zstd")
        assert [path.name for path in region_file(tmp_path, "D20").parent.glob("region.*")] == [
            "region.mmap"
        ]
        region = file_of(tmp_path)
        assert compressed_in(region) == {10}  # what was plain stays so
        check_reads(manager, CONTENT_OF)


@pytest.mark.parametrize("wrong", ["gzip", "zstd:99", 5, b"zstd"])
def test_wrong_settings_are_refused_and_nothing_is_written(wrong, tmp_path, store):
    layer_id = store.create_proto_dimension(20, "text")
    for call in (
        lambda: store.crystallize_dimension(20, compress=wrong),
        lambda: store.fold(20, compress=wrong),
        lambda: RegionBuilder("D21", "x").build_to_file(tmp_path / "x.mmap", compress=wrong),
        lambda: jessymem.build(tmp_path, tmp_path / "out", compress=wrong),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.field == "compress"
    assert not list(tmp_path.rglob("*.mmap"))
    assert store.access_layer(layer_id) == b"text"


# -- what is cold ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["sieve", "lru", "lfu"])
def test_marks_call_cold_what_would_go_first(policy):
    known = make_policy(policy)
    marks = {number: known.admit(number) for number in (15, 16, 17, 18)}
    gate = known.gate(100)
    for mark in marks.values():
        mark[0] = next(gate)
    if policy == "sieve":
        assert not any(map(known.is_cold, marks))  # nobody has looked for what may go yet
        assert known.choose(lambda dimension: True) == 15  # the hand goes round once
    for _ in range(5):
        for number in (17, 18):
            marks[number][0] = next(gate)
    assert [number for number in marks if known.is_cold(number)] == [15, 16]
    assert not known.is_cold(99)


def test_folding_compresses_what_is_cold(tmp_path):
    for dimension in (20, 21, 22):
        build(tmp_path, dimension, compress=None)
    with closing(open_store(tmp_path, compress_cold="zstd", eviction_policy="lru")) as manager:
        manager.access_layer(LayerId(20, 0))
        manager.pin(22)
        assert [manager.fold(number) for number in (20, 21, 22)] == [False, True, False]
        assert compressed_in(file_of(tmp_path, 21)) == COMPRESSED
        manager.unpin(22)
        manager._engine.write(manager._engine.evict, LayerId(20, 0).dimension)
        assert manager.fold(20) and manager.fold(22)
        check_reads(manager, CONTENT_OF)
    with closing(open_store(tmp_path)) as manager:
        assert not manager.fold(20)  # as it is


@pytest.mark.parametrize("policy", ["sieve", "lru", "lfu"])
def test_what_was_just_crystallized_is_not_cold(policy, tmp_path):
    for dimension in (20, 21, 22):
        build(tmp_path, dimension, compress=None)
    with closing(open_store(tmp_path, compress_cold="zstd", eviction_policy=policy)) as manager:
        for _ in range(5):
            manager.access_many(ids_of())
        manager.overlay_layer(LayerId(20, 0), "more")
        manager.access_many(ids_of())
        manager.crystallize_dimension(20)
        assert manager.fold(20)
        assert not compressed_in(file_of(tmp_path))


# -- building --------------------------------------------------------------------------------------


def make_tree(tmp_path):
    folder = tmp_path / "source" / "texts"
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"{number:02d}-text.md").write_bytes(text_of(number, 10_000))
    (folder / "20-noise.bin").write_bytes(noise_of(1, 3_000))
    np.save(folder / "21-array.npy", np.arange(5_000))
    return folder.parent


def test_building_again_in_another_way_writes_again(tmp_path):
    source, out = make_tree(tmp_path), tmp_path / "out"

    def built(**options):
        report = jessymem.build(source, out, **options)
        return len(report.written), len(compressed_in(file_of(out, 15)))

    assert built() == (1, 0)
    assert built(compress="zstd") == (1, 21)
    assert built(compress="zstd") == (0, 21)
    assert built() == (0, 21)  # as it is
    assert built(compress="zstd:1") == (1, 21)
    with closing(open_store(out)) as manager:
        manager.fold(15, compress="none")
    assert built(compress="zstd:1") == (1, 21)  # whatever the receipt says of an older file
    assert built(compress="none") == (1, 0)
    shutil.rmtree(source)
    make_tree(tmp_path)  # other times, so contents are compared
    assert built() == (0, 0)


def test_the_commands(tmp_path):
    source, out = make_tree(tmp_path), tmp_path / "out"
    run("build", source, "-o", out, "--compress", "zstd:5")
    path = region_file(out, "D15")
    layers = json.loads(run("inspect", path, "--json").stdout)
    assert layers["version"] == 2
    assert sum(layers["bytes"].values()) == layers["n_bytes"] == os.path.getsize(path)
    assert {layer["compression"] for layer in layers["layers"]} == {"zstd", None}
    assert "zstd" in run("inspect", path).stdout
    assert run("cat", "L15-03", "--data", out).stdout == text_of(3, 10_000).decode()
    n_found = sum(text_of(number, 10_000).count(b"river") for number in range(20))
    assert run("find", "river", "-c", "--data", out).stdout.strip() == str(n_found)
    assert "1 of 1 region file intact" in run("verify", "--data", out).stdout
    assert run("fold", "--compress", "none", "--data", out).stdout == "1 of 1 dimension folded\n"
    assert not compressed_in(file_of(out, 15))
    assert run("fold", "--compress", "zstd", "--data", out).stdout == "1 of 1 dimension folded\n"
    run("export", "--data", out, "-o", tmp_path / "back")
    back = next((tmp_path / "back").rglob("*text.md"))
    assert back.read_bytes() in {text_of(number, 10_000) for number in range(20)}
    failed = run("build", source, "-o", tmp_path / "no", "--compress", "gzip", exit_code=1)
    assert "compress must be 'zstd'" in failed.stderr


def test_a_large_build_waits_on_disk(tmp_path):
    builder = RegionBuilder("D20", "spooled", spool=tmp_path)
    contents = {number: text_of(number, 600_000) for number in range(20)}
    for number, content in contents.items():
        builder.add_layer(number, content)
    region = builder.build_to_file(tmp_path / "region.mmap", compress="zstd")
    assert {number: bytes(region.content_of(number)) for number in contents} == contents
    assert [path.name for path in tmp_path.iterdir()] == ["region.mmap"]


def test_every_kind_of_layer_can_be_told_apart(tmp_path):
    build(tmp_path)
    with closing(open_store(tmp_path)) as manager:
        info = manager.get_layer_info(LayerId(20, 1))
        assert info.size == 90_000 and info.compression == "zstd"
        assert "zstd" in repr(info)
        for layer_id in ids_of():
            assert manager.get_layer_info(layer_id).size == len(CONTENTS[layer_id.layer])
        dumped = manager.dump_state()["layers"]
        found = [(layer["offset"], layer["size"]) for layer in dumped]
        infos = [manager.get_layer_info(layer_id) for layer_id in ids_of()]
        assert found == [(info.offset, info.size) for info in infos]
