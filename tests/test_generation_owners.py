"""A generation beside a region file counts only where its owner could have replaced the file."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.regions import build_one_layer as build

from jessymem import DimensionId, MmapManager, MmapRegion, RegionIOError, osmem
from jessymem.regions.files import RegionFiles

SOMEBODY = 54_321

#: Another user's attempt: the directory lets everybody make names and change his own.
BUILD_AS_SOMEBODY = f"""
import encodings.ascii, os, sys  # what lies where only root may look
import numpy, xxhash, filelock
import jessymem.regions.builder, jessymem.regions.drafts, jessymem.regions.encoding
import jessymem.regions.files
from jessymem import RegionBuilder, RegionIOError
os.setgroups([]); os.setgid({SOMEBODY}); os.setuid({SOMEBODY})
builder = RegionBuilder("D20", "Name")
builder.add_layer(0, b"theirs")
try:
    print(builder.build_to_file(sys.argv[1]).path)
except RegionIOError as error:
    print(error.operation, error.errno)
"""

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "D20" / "region.mmap"


@pytest.fixture
def beside(target: Path) -> Path:
    """A newer generation beside the region file."""
    build(target, b"ours")
    newer = target.with_name("region.g2.mmap")
    build(newer, b"theirs")
    build(newer, b"theirs")
    assert MmapRegion.from_file("D20", newer).generation == 2
    return newer


def load(target: Path) -> bytes:
    with MmapManager(64, base_path=target.parent.parent) as manager:
        manager.load_dimension("D20")
        return bytes(manager.access_layer("L20-00"))


@needs_root
def test_a_generation_of_another_user_is_neither_read_nor_folded_back(target, beside, caplog):
    os.chown(beside, SOMEBODY, SOMEBODY)
    with caplog.at_level(logging.WARNING, "jessymem"):
        assert load(target) == b"ours"
    records = [each for each in caplog.records if each.event == "generation_ignored"]
    assert len(records) == 1 and str(beside) in records[0].getMessage()
    assert sorted(os.listdir(target.parent)) == ["region.g2.mmap", "region.mmap"]
    assert build(target, b"ours again").generation == 2
    assert load(target) == b"ours again"


@needs_root
def test_a_generation_of_the_files_owner_counts_for_everybody(target, beside):
    os.chown(target, SOMEBODY, SOMEBODY)
    os.chown(beside, SOMEBODY, SOMEBODY)
    assert load(target) == b"theirs"


def test_a_generation_of_ones_own_counts(target, beside):
    assert load(target) == b"theirs"
    assert os.listdir(target.parent) == ["region.mmap"]


@needs_root
def test_who_may_not_replace_a_file_writes_none_beside_it(target):
    build(target, b"ours")
    target.parent.chmod(0o1777)
    for folder in target.parents:
        if not os.stat(folder).st_mode & 0o001:
            folder.chmod(os.stat(folder).st_mode | 0o001)
    found = subprocess.run(
        [sys.executable, "-c", BUILD_AS_SOMEBODY, str(target)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not found.returncode, found.stderr
    assert found.stdout.split()[0] == "rename", found.stdout
    assert int(found.stdout.split()[1]) in (errno.EPERM, errno.EACCES)
    assert os.listdir(target.parent) == ["region.mmap"]
    assert load(target) == b"ours"


def test_a_file_of_another_user_is_not_written_beside(target, monkeypatch):
    build(target, b"old")
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)

    def refuse(operation: str, path: str, *details: object) -> None:
        if operation == "rename" and path == str(target):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    osmem.intercept = refuse
    try:
        with pytest.raises(RegionIOError) as caught:
            build(target, b"new")
    finally:
        osmem.intercept = None
    assert (caught.value.operation, caught.value.errno) == ("rename", errno.EPERM)
    assert os.listdir(target.parent) == ["region.mmap"]


@pytest.mark.parametrize("kind", ["directory", "pipe", "loop", "link"])
def test_what_is_no_regular_file_is_no_generation(kind, target, caplog):
    build(target, b"ours")
    odd = target.with_name("region.g2.mmap")
    if kind == "directory":
        odd.mkdir()
    elif kind == "pipe":
        os.mkfifo(odd)
    elif kind == "loop":
        odd.symlink_to(odd)
    else:
        other = target.with_name("other.mmap")
        build(other, b"theirs")
        build(other, b"theirs")
        odd.symlink_to(other)
    with caplog.at_level(logging.WARNING, "jessymem"):
        assert load(target) == b"ours"
    assert any(each.event == "generation_ignored" for each in caplog.records)
    assert build(target, b"new").generation == 2
    assert os.path.lexists(odd)
    assert RegionFiles(DimensionId(20), target).newest_path(tidy=True) == target
