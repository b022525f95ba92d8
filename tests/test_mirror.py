"""Managers and commands over a store: what is fetched, what is said, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

import fsspec
from support.object_stores import serving

from jessymem import (
    DimensionNotFound,
    ImmutableDimension,
    InvalidAccess,
    LayerId,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    RegionFormatError,
    RemoteError,
)
from jessymem.cli import main
from jessymem.remote import files as remote_files

URL = "memory://stories"


def content_of(dimension: str, text: str, n_layers: int = 3) -> bytes:
    builder = RegionBuilder(dimension, "Notes")
    for number in range(n_layers):
        builder.add_layer(number, f"{number} {text}\n" * 50, name=f"note {number}")
    region = builder.build_to_memory()
    return bytes(region.read_content(0, region.size))


def put(system, dimension: str, text: str) -> None:
    system.pipe(f"/stories/{dimension}/region.mmap", content_of(dimension, text))


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A store in this process, with three dimensions."""
    monkeypatch.setenv("JESSYMEM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(remote_files, "FIRST_WAIT_SECONDS", 0.001)
    system = fsspec.filesystem("memory")
    for number in (15, 16, 20):
        put(system, f"D{number}", f"river {number}")
    yield system
    system.rm("/stories", recursive=True)


def mirrors_in(folder: Path) -> list[Path]:
    return list(folder.glob("jessymem-*"))


# -- managers --------------------------------------------------------------------------------------


def test_a_manager_reads_a_store_as_it_does_a_folder(system, tmp_path):
    with MmapManager(64, base_path=URL) as manager:
        assert manager.discover() == [15, 16, 20]
        assert manager.load_all().loaded == (15, 16, 20)
        assert bytes(manager.access_layer("L20-01")).startswith(b"1 river 20")
        assert manager.count("river 15") == 150
        assert manager["D16/note 2"] == manager.access_layer("L16-02")
        assert repr(manager) == f"<MmapManager {URL} 3 dimensions>"
        assert json.loads(json.dumps(manager.dump_state()))["config"]["base_path"] == URL
        assert mirrors_in(tmp_path)
    assert not mirrors_in(tmp_path)


def test_only_what_is_loaded_is_fetched(system, tmp_path):
    with MmapManager(64, base_path=URL) as manager:
        manager.load_dimension("D16")
        assert manager.list_layers("D16") == [LayerId(16, number) for number in range(3)]
        assert len(list((tmp_path / "cache").rglob("*.mmap"))) == 1
        with pytest.raises(DimensionNotFound, match=f"D17: no region file at {URL}/D17/region"):
            manager.load_dimension("D17")


def test_a_new_edition_is_adopted_where_it_is_asked_for(system):
    with MmapManager(64, base_path=URL) as manager:
        manager.load_dimension("D15")
        held = manager.access_layer("L15-00")
        assert not manager.refresh("D15")
        time.sleep(0.002)  # this store's editions are times
        put(system, "D15", "sea")
        assert bytes(manager.access_layer("L15-00")).startswith(b"0 river")
        assert manager.refresh("D15")
        assert bytes(manager.access_layer("L15-00")).startswith(b"0 sea")
        assert bytes(held).startswith(b"0 river")


def test_an_evicted_dimension_comes_back_as_the_same_edition(system):
    system.pipe("/stories/D21/region.mmap", content_of("D21", "x" * 10_000, 6))
    system.pipe("/stories/D22/region.mmap", content_of("D22", "y" * 10_000, 6))
    with MmapManager(5, base_path=URL) as manager:
        manager.load_all()
        time.sleep(0.002)
        system.pipe("/stories/D21/region.mmap", content_of("D21", "z" * 10_000, 6))
        for _ in range(2):
            assert bytes(manager.access_layer("L21-05")[:4]) == b"5 xx"
            assert bytes(manager.access_layer("L22-05")[:4]) == b"5 yy"
        assert manager.get_stats().reloads > 0


def test_nothing_is_written_into_a_store(system):
    assert MemoryConfig(base_path=URL).read_only
    with MmapManager(64, base_path=URL) as manager:
        with pytest.raises(ImmutableDimension):
            manager.create_proto_dimension("D15", b"more")
        manager.load_dimension("D15")
        with pytest.raises(ImmutableDimension):
            manager.delete_layer("L15-00")


def test_references_and_managers_travel_by_url(system):
    with MmapManager(64, base_path=URL) as manager:
        manager.load_dimension("D15")
        ref = manager.ref("L15-01")
        assert ref.path == f"{URL}/D15/region.mmap"
        pickled = pickle.dumps((manager, ref))
    again, ref = pickle.loads(pickled)
    with again:
        assert bytes(again.access_layer("L15-01")) == bytes(ref.get())
        assert again.ref("L15-01") == ref


def test_a_damaged_file_is_skipped_and_named_by_its_url(system):
    broken = bytearray(content_of("D16", "river"))
    broken[-10] ^= 1
    system.pipe("/stories/D16/region.mmap", bytes(broken))
    with MmapManager(64, base_path=URL) as manager:
        report = manager.load_all()
        assert report.loaded == (15, 20)
        assert f"{URL}/D16/region.mmap" in dict(report.skipped)[16]
        with pytest.raises(RegionFormatError, match=f"{URL}/D16/region.mmap"):
            manager.load_dimension("D16")


def test_deltas_in_a_store_are_refused(system):
    system.pipe("/stories/D16/region.d2.mmap", b"delta")
    with MmapManager(64, base_path=URL) as manager:
        manager.load_dimension("D15")
        with pytest.raises(RegionFormatError, match="is a delta"):
            manager.load_dimension("D16")
        with pytest.raises(RegionFormatError, match="is a delta"):
            manager.load_all()


def test_what_is_loaded_from_a_path_is_refreshed_from_it(system, tmp_path):
    path = tmp_path / "here.mmap"
    path.write_bytes(content_of("D30", "lake"))
    with MmapManager(64, base_path=URL) as manager:
        manager.load_dimension("D30", path)
        assert not manager.refresh("D30")
        fresh = path.with_name("fresh.mmap")
        fresh.write_bytes(content_of("D30", "pond and lake"))
        fresh.replace(path)
        assert manager.refresh("D30")
        assert bytes(manager.access_layer("L30-00")).startswith(b"0 pond")


def test_a_closed_manager_asks_no_store(system):
    manager = MmapManager(64, base_path=URL)
    manager.load_dimension("D15")
    manager.close()
    for call in (manager.load_all, manager.load_core_dimensions):
        with pytest.raises(InvalidAccess, match=f"the manager of {URL} is closed"):
            call()
    for call in (manager.load_dimension, manager.refresh):
        with pytest.raises(InvalidAccess, match="is closed"):
            call("D15")


def test_a_child_takes_no_folder_of_its_parent(system, tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("the system has no fork")
    with MmapManager(64, base_path=URL) as manager:
        manager.load_dimension("D15")
        from jessymem.regions import mirror

        (folder,) = mirrors_in(tmp_path)
        mirror._remove(folder, os.getpid() + 1)
        assert folder.exists()


def test_a_store_that_cannot_be_listed_gives_what_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("JESSYMEM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_files, "FIRST_WAIT_SECONDS", 0.001)
    with serving() as store, MmapManager(64, base_path=store.url) as manager:
        store.files["D15/region.mmap"] = content_of("D15", "river")
        manager.load_dimension("D15")
        assert bytes(manager.access_layer("L15-02")).startswith(b"2 river")
        with pytest.raises(DimensionNotFound):
            manager.load_dimension("D16")
        with pytest.raises(RemoteError):
            manager.discover()


def test_a_url_of_this_machine_is_its_folder(tmp_path):
    config = MemoryConfig(base_path=f"file://{tmp_path}")
    assert (config.base_path, config.read_only) == (tmp_path, False)


def test_a_protocol_that_nobody_knows_is_named():
    with pytest.raises(ValueError, match="nowhere"):
        MmapManager(64, base_path="nowhere://stories")


# -- commands --------------------------------------------------------------------------------------


def run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result.output


def test_commands_take_a_url_where_they_take_a_folder(system, tmp_path):
    assert run("cat", "L15-01", "--data", URL).startswith("1 river 15\n")
    assert run("cat", "D15/note 2", "--data", URL).startswith("2 river 15\n")
    assert run("find", "river 20", "-c", "--data", URL) == "150\n"
    assert run("find", "river 20", "D15", "-c", "--data", URL, exit_code=1) == "0\n"
    assert "3 of 3 region files intact" in run("verify", "--data", URL)
    assert run("contexts", "L16-00", "--max-chars", "40", "--data", URL)
    (found, *_) = json.loads(run("discover", "--json", "--data", URL))
    assert found["path"] == f"{URL}/D15/region.mmap"
    assert f"{URL}/D16/region.mmap" in run("inspect", "D16", "--json", "--data", URL)


def test_commands_take_the_url_of_a_file(system):
    url = f"{URL}/D16/region.mmap"
    assert json.loads(run("inspect", url, "--json"))["path"] == url
    assert "1 of 1 region file intact" in run("verify", url)


def test_what_is_wrong_with_a_url_is_said(system):
    assert "no region file at memory://stories/D17" in run(
        "cat", "L17-00", "--data", URL, exit_code=1
    )
    assert "it takes a folder" in run("fold", "--data", URL, exit_code=2)
    assert "nowhere" in run("verify", "--data", "nowhere://x", exit_code=1)
    broken = bytearray(content_of("D16", "river"))
    broken[-10] ^= 1
    system.pipe("/stories/D16/region.mmap", bytes(broken))
    said = run("verify", f"{URL}/D16/region.mmap", exit_code=1)
    assert f"{URL}/D16/region.mmap" in said and "content_xxh3" in said
