"""A file that replaces another keeps its owner, group, mode and attributes, as far as it may."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from pathlib import Path

import pytest
from support.system_calls import make_calls_plain

from jessymem import MmapManager, MmapRegion, RegionBuilder, RegionIOError

SOMEBODY, GROUP = 54_321, 54_320
ACCESS_LIST, DEFAULT_LIST = "system.posix_acl_access", "system.posix_acl_default"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows keeps none of these")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away"
)


def access_list(*entries: tuple[int, int, int]) -> bytes:
    """Lay out a POSIX access list: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


#: Owner rw-, `SOMEBODY` rw-, group r--, mask rw-, others ---.
LIST = access_list(
    (0x01, 6, 2**32 - 1),
    (0x02, 6, SOMEBODY),
    (0x04, 4, 2**32 - 1),
    (0x10, 6, 2**32 - 1),
    (0x20, 0, 2**32 - 1),
)


def build(target: Path, content: bytes) -> MmapRegion:
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, content)
    return builder.build_to_file(target)


def crystallize(target: Path) -> None:
    with MmapManager(8, base_path=target.parent.parent) as manager:
        manager.load_dimension("D20")
        manager.create_proto_dimension("D20", b"learned")
        manager.crystallize_dimension("D20")


WAYS = {"build": lambda target: build(target, b"new"), "crystallize": crystallize}
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "D20" / "region.mmap"
    build(path, b"old")
    return path


def rights(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def set_or_skip(path: Path, name: str, value: bytes) -> None:
    if not hasattr(os, "setxattr"):
        pytest.skip("the system has no extended attributes")
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"the file system has no such attributes: {error}")


@pytest.fixture
def skipped(caplog):
    caplog.set_level(logging.WARNING, "jessymem")
    return lambda: [each.operation for each in caplog.records if each.event == "step_skipped"]


@pytest.mark.parametrize(
    ("mask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600), (0, 0o666)]
)
def test_the_user_s_mask_decides_of_a_new_file(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        build(tmp_path / "D21" / "region.mmap", b"new")
    finally:
        os.umask(before)
    assert rights(tmp_path / "D21" / "region.mmap")[2] == mode


@each_way
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(mode, way, target):
    target.chmod(mode)
    WAYS[way](target)
    assert rights(target)[2] == mode


@needs_root
@each_way
def test_a_file_that_is_replaced_keeps_its_owner(way, target, skipped):
    os.chown(target, SOMEBODY, GROUP)
    target.chmod(0o600)
    WAYS[way](target)
    assert rights(target) == (SOMEBODY, GROUP, 0o600)
    assert not skipped()


@each_way
def test_a_file_that_is_replaced_keeps_its_attributes(way, target, skipped):
    set_or_skip(target, "user.origin", b"a value")
    set_or_skip(target, "user.empty", b"")
    WAYS[way](target)
    assert sorted(os.listxattr(target)) == ["user.empty", "user.origin"]
    assert os.getxattr(target, "user.origin") == b"a value"
    assert not skipped()


@each_way
def test_a_file_that_is_replaced_keeps_its_access_list(way, target):
    set_or_skip(target, ACCESS_LIST, LIST)
    before = rights(target)
    WAYS[way](target)
    assert os.getxattr(target, ACCESS_LIST) == LIST
    assert rights(target) == before


def test_an_access_list_of_the_directory_gives_nobody_more_than_the_old_file_did(target):
    target.chmod(0o640)
    set_or_skip(target.parent, DEFAULT_LIST, LIST)
    build(target, b"new")
    assert ACCESS_LIST not in os.listxattr(target)
    assert rights(target)[2] == 0o640


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOTSUP])
def test_an_owner_that_cannot_be_kept(number, target, monkeypatch, skipped):
    real = os.stat
    old = list(real(target))

    def look(path, **how):
        found = list(real(path, **how))
        if path == target:
            found[0], found[4], found[5] = old[0] & ~0o777 | 0o4664, SOMEBODY, GROUP
            return os.stat_result(found)
        return real(path, **how)

    asked = []

    def refuse(descriptor, owner, group):
        asked.append((owner, group))
        raise OSError(number, os.strerror(number))

    make_calls_plain(monkeypatch)
    monkeypatch.setattr("jessymem.attributes.os.stat", look)
    monkeypatch.setattr("jessymem.attributes.os.fchown", refuse)
    build(target, b"new")
    monkeypatch.undo()
    assert asked == [(SOMEBODY, GROUP), (-1, GROUP)]
    # Neither its owner's special right, nor what its group had, goes to somebody else.
    assert rights(target)[2] == 0o644
    assert skipped() == ["set owner"]


def test_a_group_that_can_be_kept_keeps_its_rights(target, monkeypatch, skipped):
    real, changed = os.stat, []

    def look(path, **how):
        found = list(real(path, **how))
        if path == target:
            found[0], found[4], found[5] = found[0] & ~0o777 | 0o660, SOMEBODY, GROUP
            return os.stat_result(found)
        return real(path, **how)

    def change(descriptor, owner, group):
        if owner != -1:
            raise PermissionError(errno.EPERM, "only the superuser")
        changed.append(group)

    make_calls_plain(monkeypatch)
    monkeypatch.setattr("jessymem.attributes.os.stat", look)
    monkeypatch.setattr("jessymem.attributes.os.fchown", change)
    build(target, b"new")
    monkeypatch.undo()
    assert changed == [GROUP] and rights(target)[2] == 0o660
    assert skipped() == ["set owner"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EACCES, errno.E2BIG])
def test_an_attribute_that_cannot_be_kept(number, target, monkeypatch, skipped):
    set_or_skip(target, "user.origin", b"a value")

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "setxattr", refuse)
    assert build(target, b"new").generation == 2
    assert os.listxattr(target) == []
    assert skipped() == ["set attribute"]


def test_an_access_list_that_cannot_be_kept_leaves_the_group_no_more_than_others(
    target, monkeypatch, skipped
):
    set_or_skip(target, ACCESS_LIST, LIST)

    def refuse(*arguments):
        raise OSError(errno.EPERM, "refused")

    monkeypatch.setattr(os, "setxattr", refuse)
    build(target, b"new")
    assert rights(target)[2] == 0o600
    assert skipped() == ["set attribute"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_attribute_that_the_medium_cannot_keep_is_an_error(number, target, monkeypatch):
    set_or_skip(target, "user.origin", b"a value")

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(RegionIOError) as caught:
        build(target, b"new")
    assert caught.value.errno == number
    assert os.listdir(target.parent) == ["region.mmap"]
    assert os.getxattr(target, "user.origin") == b"a value"


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_attributes(number, target, monkeypatch, skipped):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    make_calls_plain(monkeypatch)
    monkeypatch.setattr(os, "listxattr", refuse)
    assert build(target, b"new").generation == 2
    assert not skipped()
