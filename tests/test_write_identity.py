"""A write has succeeded when the name leads to the file that was written, and not before."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.regions import build_one_layer as build

from jessymem import LayerId, MmapManager, MmapRegion, RegionIOError, osmem


@contextmanager
def at_the_rename(act) -> Iterator[None]:
    """Do something to the temporary file right before it is to get its name."""

    def watch(operation: str, path: str, *details: object) -> None:
        if operation == "rename":
            act(Path(str(details[0])))

    osmem.intercept = watch
    try:
        yield
    finally:
        osmem.intercept = None


def remove(temporary: Path) -> None:
    temporary.unlink(missing_ok=True)


def put_another(temporary: Path) -> None:
    temporary.unlink(missing_ok=True)
    temporary.write_bytes(b"of somebody else")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "D20" / "region.mmap"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_temporary_file_that_is_gone_is_no_success_of_a_build(is_there, target):
    if is_there:
        build(target, b"old")
    with at_the_rename(remove), pytest.raises(RegionIOError) as caught:
        build(target, b"new")
    assert (caught.value.operation, caught.value.errno) == ("rename", errno.ENOENT)
    assert target.exists() == is_there
    if is_there:
        assert os.listdir(target.parent) == ["region.mmap"]
        assert MmapRegion.from_file("D20", target).generation == 1
    assert build(target, b"new").generation == (2 if is_there else 1)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_temporary_file_that_is_gone_keeps_the_proto_layer(is_there, target, tmp_path):
    if is_there:
        build(target, b"old")
    with MmapManager(64, base_path=tmp_path) as manager:
        if is_there:
            manager.load_dimension("D20")
        layer = manager.create_proto_dimension("D20", b"learned")
        used = manager.get_stats().total_allocated_bytes
        with at_the_rename(remove), pytest.raises(RegionIOError):
            manager.crystallize_dimension("D20")
        assert bytes(manager.access_layer(layer)) == b"learned"
        assert manager.get_layer_info(layer).state.name == "ACTIVE"
        assert manager.get_stats().total_allocated_bytes == used
        assert manager.crystallize_dimension("D20") == [layer]
        assert manager.get_layer_info(layer).state.name == "PERMANENT"
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        assert bytes(manager.access_layer(layer)) == b"learned"


def test_another_file_under_the_temporary_name_is_no_success(target):
    build(target, b"old")
    with at_the_rename(put_another), pytest.raises(RegionIOError) as caught:
        build(target, b"new")
    assert (caught.value.operation, caught.value.errno) == ("rename", errno.EIO)
    assert target.read_bytes() == b"of somebody else"


def test_a_rename_that_was_done_and_told_of_as_failed_is_one(target):
    def rename_and_fail(temporary: Path) -> None:
        os.replace(temporary, target)
        raise FileNotFoundError(errno.ENOENT, "tried again")

    build(target, b"old")
    with at_the_rename(rename_and_fail):
        assert build(target, b"new").generation == 2
    assert os.listdir(target.parent) == ["region.mmap"]


def test_where_inode_numbers_change_the_bytes_tell(target, monkeypatch):
    found_at = osmem.identity_named
    monkeypatch.setattr(osmem, "identity_named", lambda path: found_at(path)._replace(inode=-1))
    assert build(target, b"new").generation == 1


def put_a_link(temporary: Path) -> None:
    moved = temporary.with_name("moved")
    os.rename(temporary, moved)
    temporary.symlink_to(moved)


def test_a_link_to_the_file_that_was_written_is_no_success(target, tmp_path):
    build(target, bytes(50_000))
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        layer = manager.create_proto_dimension("D20", b"learned")
        with at_the_rename(put_a_link), pytest.raises(RegionIOError, match="another file"):
            manager.crystallize_dimension("D20")
        assert manager.get_layer_info(layer).state.name == "ACTIVE"
        assert manager.crystallize_dimension("D20") == [layer]
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        assert bytes(manager.access_layer(layer)) == b"learned"


@pytest.mark.parametrize("kind", ["proto", "overlay"])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_was_damaged_on_its_way_is_written_again(kind, is_there, target, tmp_path):
    if is_there or kind == "overlay":
        build(target, b"old")

    def damage(temporary: Path) -> None:
        if temporary.exists() and not damaged:
            damaged.append(temporary)
            with temporary.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 0x5A]))

    damaged: list[Path] = []
    with MmapManager(64, base_path=tmp_path) as manager:
        if target.exists():
            manager.load_dimension("D20")
        if kind == "overlay":
            manager.overlay_layer("L20-00", b"x" * 63)
            layer = LayerId("L20-00")
        else:
            layer = manager.create_proto_dimension("D20", b"x" * 64, layer=7)
        learned = bytes(manager.access_layer(layer))
        with at_the_rename(damage), pytest.raises(RegionIOError):
            manager.crystallize_dimension("D20")
        assert damaged
        assert manager.crystallize_dimension("D20") == [layer]
        assert bytes(manager.access_layer(layer)) == learned
    with MmapManager(64, base_path=tmp_path) as again:
        again.load_dimension("D20")
        assert bytes(again.access_layer(layer)) == learned
