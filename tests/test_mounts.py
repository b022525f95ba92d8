"""The whole way of a layer on file systems as they are mounted, and under users and masks.

Mounts are made in a namespace of their own, where the system lets this user do so.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import checked_in_child, needs_fork, with_support
from support.regions import build_one_layer

from jessymem import (
    DimensionNotFound,
    JessyMemoryError,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionIOError,
)

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root becomes another user"
)
SOMEBODY = 12345

PROGRAM = """
import json, os, sys
from pathlib import Path
from jessymem import *

def walk(base):
    found = {}
    with MmapManager(8, base_path=base) as manager:
        found["discover"] = [str(each) for each in manager.discover()]
        for name in found["discover"]:
            manager.load_dimension(name)
            found[name] = bytes(manager.access_layer(f"L{name[1:]}-00")).decode()
        held = manager.access_layer("L20-00") if "D20" in found else None
        for dimension in ("D20", "D30"):
            try:
                manager.create_proto_dimension(dimension, b"learned", layer=5)
                manager.crystallize_dimension(dimension)
                found["written " + dimension] = bytes(
                    MmapRegion.from_file(dimension, base / dimension / "region.mmap")
                    .read_content(*at(manager, f"L{dimension[1:]}-05"))).decode()
            except RegionIOError as error:
                found["written " + dimension] = [error.operation, error.errno]
        assert held is None or bytes(held) == b"from before"
    found["left"] = sorted(
        str(each.relative_to(base)) for each in base.rglob("*")
        if each.is_file() and each.name not in ("region.mmap", "filling"))
    return found

def at(manager, layer):
    info = manager.get_layer_info(layer)
    return info.offset, info.size

print(json.dumps({path: walk(Path(path)) for path in sys.argv[1:]}))
"""

#: What mounts at `$1`, by name; `$2` is a directory with a region file in it.
MOUNTS = {
    "tmpfs": "mount -t tmpfs -o size=8m,mode=700 none $1 && cp -r $2/D20 $1",
    "overlay": (
        "mkdir -p $1.rw && mount -t tmpfs none $1.rw && mkdir $1.rw/upper $1.rw/work && mount -t "
        "overlay -o lowerdir=$2,upperdir=$1.rw/upper,workdir=$1.rw/work none $1"
    ),
    "bind": "cp -r $2/D20 $1 && mount --bind $1 $1",
    "nothing may run": "mount -t tmpfs -o noexec,nosuid,nodev none $1 && cp -r $2/D20 $1",
    "read-only": "mount --bind $2 $1 && mount -o remount,ro,bind $1",
    "full": (
        "mount -t tmpfs -o size=64k none $1 && cp -r $2/D20 $1; "
        "cat /dev/zero > $1/filling 2> /dev/null; true"
    ),
    "no more names": "mount -t tmpfs -o nr_inodes=4 none $1 && cp -r $2/D20 $1",
}


def namespace() -> list[str] | None:
    """Return how a program gets mounts of its own; None where it cannot."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        if shutil.which("unshare") is None:
            return None
        tried = [*command, "sh", "-c", "mount -t tmpfs none /mnt"]
        if subprocess.run(tried, capture_output=True, check=False).returncode == 0:
            return command
    return None


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> dict[str, dict]:
    """What a manager finds and does on each mount, all in one process."""
    own = namespace()
    if own is None:
        pytest.skip("the system lets this user mount nothing")
    folder = tmp_path_factory.mktemp("mounts")
    below = folder / "below"
    build_one_layer(below / "D20" / "region.mmap", b"from before")
    script, paths = "set -e\n", {}
    for name, mount in MOUNTS.items():
        paths[name] = path = folder / name.replace(" ", "-")
        path.mkdir()
        script += f"mount_one() {{ {mount}; }}\nmount_one {path} {below} || rm -r {path}\n"
    script += f"for path in {' '.join(map(str, paths.values()))}; do\n"
    script += '[ -d "$path" ] && set -- "$@" "$path"; done\n'
    script += f'exec {sys.executable} -c "$PROGRAM" "$@"'
    result = subprocess.run(
        [*own, "sh", "-c", script, "sh"],
        env=with_support({"PROGRAM": PROGRAM}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    return {name: found[str(path)] for name, path in paths.items() if str(path) in found}


def on(walked: dict[str, dict], name: str) -> dict:
    if name not in walked:
        pytest.skip(f"the system does not mount {name}")
    found = walked[name]
    assert found["discover"] == ["D20"] and found["D20"] == "from before"
    assert found["left"] == []
    return found


@pytest.mark.parametrize("name", ["tmpfs", "overlay", "bind", "nothing may run"])
def test_a_layer_is_read_learned_and_written(walked, name):
    found = on(walked, name)
    assert found["written D20"] == found["written D30"] == "learned"


@pytest.mark.parametrize(
    ("name", "number"),
    [("read-only", errno.EROFS), ("full", errno.ENOSPC), ("no more names", errno.ENOSPC)],
)
def test_where_nothing_can_be_written_all_is_as_it_was(walked, name, number):
    found = on(walked, name)
    for dimension in ("D20", "D30"):
        assert found[f"written {dimension}"][1] == number


# -- masks, names, users ---------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="there are no masks")
@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_files_and_directories_have_the_modes_that_the_mask_leaves(mask, tmp_path):
    before = os.umask(mask)
    try:
        for _ in range(2):  # new, and replaced
            build_one_layer(tmp_path / "above" / "D20" / "region.mmap", b"content")
    finally:
        os.umask(before)
    file = tmp_path / "above" / "D20" / "region.mmap"
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask
    for directory in (file.parent, file.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) & 0o777 == 0o777 & ~mask
    assert [each.name for each in file.parent.iterdir()] == ["region.mmap"]


def test_the_longest_names_are_written_and_longer_ones_are_refused(tmp_path):
    path = tmp_path / ("d" * 255) / ("r" * 250 + ".mmap")
    build_one_layer(path, b"first")
    build_one_layer(path, b"second")
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    deep = tmp_path / Path(*["e" * 255] * 17) / "region.mmap"
    for longer in (tmp_path / ("d" * 256) / "region.mmap", tmp_path / ("r" * 256), deep):
        with pytest.raises(RegionIOError) as caught:
            build_one_layer(longer, b"content")
        assert caught.value.errno == errno.ENAMETOOLONG
        with pytest.raises((RegionIOError, DimensionNotFound)):
            MmapRegion.from_file("D20", longer)
    assert [each.name for each in tmp_path.iterdir()] == ["d" * 255]


def as_somebody() -> None:
    os.setgroups([])
    os.setgid(SOMEBODY)
    os.setuid(SOMEBODY)


@needs_root
@needs_fork
def test_another_user_reads_what_he_may_and_writes_nothing(tmp_path_factory):
    base = Path("/tmp") / f"jessymem-{os.getpid()}"  # others may not enter pytest's
    base.mkdir(mode=0o755)
    try:
        for dimension in ("D20", "D21", "D22"):
            builder = RegionBuilder(dimension, "Name")
            builder.add_layer(0, b"content")
            builder.build_to_file(base / dimension / "region.mmap")
        (base / "D21" / "region.mmap").chmod(0o600)
        (base / "D22").chmod(0o700)

        def read_and_write() -> None:
            as_somebody()
            with MmapManager(MemoryConfig(base_path=base)) as manager:
                assert manager.discover() == [20, 21, 22]  # of D22 he cannot tell
                manager.load_dimension("D20")
                assert bytes(manager.access_layer("L20-00")) == b"content"
                for number in (21, 22):
                    with pytest.raises(RegionIOError) as caught:
                        manager.load_dimension(number)
                    assert caught.value.errno == errno.EACCES
            for number in (20, 21, 22, 23):
                builder = RegionBuilder(number, "Name")
                builder.add_layer(0, b"other")
                with pytest.raises(JessyMemoryError) as caught:
                    builder.build_to_file(base / f"D{number}" / "region.mmap")
                assert caught.value.errno == errno.EACCES

        checked_in_child(read_and_write)
        names = sorted(str(each.relative_to(base)) for each in base.rglob("*") if each.is_file())
        assert names == [f"D{number}/region.mmap" for number in (20, 21, 22)]
    finally:
        shutil.rmtree(base)
