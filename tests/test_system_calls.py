"""What is optional of the system: file systems that lack a call, one warning, the work goes on."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.system_calls import (
    Calls,
    intercepted,
    make_calls_plain,
    refuse_to_remove,
    refuse_to_replace,
)

from jessymem import (
    LayerRef,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionIOError,
    osmem,
)
from jessymem.regions.files import RegionFiles
from jessymem.system_calls import CALLS, is_optional

PAGE = Path(__file__).parent.parent / "docs" / "durability.md"
LACKING = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has none of these calls")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "D20" / "region.mmap"


@pytest.fixture
def skipped(caplog):
    """Return the operations that were told of as skipped."""
    caplog.set_level(logging.WARNING, "jessymem")

    def operations() -> list[str]:
        return [each.operation for each in caplog.records if each.event == "step_skipped"]

    return operations


def build(target: Path, content: bytes, dimension: str = "D20", **how) -> MmapRegion:
    builder = RegionBuilder(dimension, "Name")
    builder.add_layer(0, content)
    return builder.build_to_file(target, **how)


@contextmanager
def refused(operation: str, number: int) -> Iterator[None]:
    def refuse(now: str, path: str, *details: object) -> None:
        if now == operation:
            raise OSError(number, os.strerror(number))

    with intercepted(refuse):
        yield


# -- the table -------------------------------------------------------------------------------------


def test_what_is_vital_everywhere():
    for operation, call in CALLS.items():
        for number in (errno.EIO, errno.ENOSPC, errno.EINTR):
            assert not is_optional(operation, OSError(number, "")), operation
        assert bool(call.without) == bool(call.optional or call.is_hint)
        assert not (call.optional and call.is_hint)


def test_the_page_shows_the_table():
    rows = re.findall(r"^\| `([a-z ]+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.M)
    shown = {operation: (purpose, after, without) for operation, purpose, after, without in rows}
    wanted = {}
    for operation, call in CALLS.items():
        names = dict.fromkeys(errno.errorcode[number] for number in call.optional)
        names = ["ENOTSUP" if name == "EOPNOTSUPP" else name for name in names]
        after = "any" if call.is_hint else ", ".join(dict.fromkeys(names)) or "none: vital"
        wanted[operation] = (call.purpose, after, call.without)
    assert shown == wanted


def test_every_operation_at_the_seam_is_in_the_table(tmp_path):
    calls = Calls(hints=True)
    with intercepted(calls), MmapManager(8, base_path=tmp_path) as manager:
        build(tmp_path / "D20" / "region.mmap", b"one")
        manager.load_dimension("D20")
        manager.create_proto_dimension("D20", b"two")
        manager.crystallize_dimension("D20")
    assert set(calls.operations) <= CALLS.keys()


# -- calls that a signal interrupts ----------------------------------------------------------------


def test_an_interrupted_call_is_made_again(target):
    for operation in CALLS:
        interrupted = []

        def interrupt(now, path, *details, operation=operation, interrupted=interrupted):
            if now == operation and len(interrupted) < 3:
                interrupted.append(path)
                raise InterruptedError(errno.EINTR, "a signal")

        with intercepted(interrupt):
            assert build(target, operation.encode()).verify_integrity()


def test_a_call_that_is_interrupted_for_ever_is_an_error(target):
    with refused("rename", errno.EINTR), pytest.raises(RegionIOError) as caught:
        build(target, b"new")
    assert (caught.value.operation, caught.value.errno) == ("rename", errno.EINTR)
    assert not target.parent.exists()


# -- an optional call that is refused --------------------------------------------------------------


def refuse_real(monkeypatch, name: str, number: int) -> None:
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    make_calls_plain(monkeypatch)
    monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("number", LACKING)
def test_a_mode_that_cannot_be_kept(number, target, monkeypatch, skipped):
    build(target, b"old")
    target.chmod(0o600)
    refuse_real(monkeypatch, "fchmod", number)
    for generation in (2, 3):
        assert build(target, b"new").generation == generation
    assert skipped() == ["set mode"]
    assert sorted(os.listdir(target.parent)) == ["region.mmap"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_mode_that_the_medium_cannot_keep_is_an_error(number, target, monkeypatch, skipped):
    build(target, b"old")
    target.chmod(0o600)
    refuse_real(monkeypatch, "fchmod", number)
    with pytest.raises(RegionIOError):
        build(target, b"new")
    assert not skipped() and os.listdir(target.parent) == ["region.mmap"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_directories_that_cannot_be_synced(number, target, monkeypatch, skipped):
    real = os.fsync

    def sync(file):
        if isinstance(file, int) and stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(os, "fsync", sync)
    for generation in (1, 2):
        assert build(target, b"new").generation == generation
    with MmapManager(8, base_path=target.parent.parent) as manager:
        manager.load_dimension("D20")
        manager.create_proto_dimension("D20", b"learned")
        assert manager.crystallize_dimension("D20")
    assert skipped() == ["sync directory"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_sync_of_a_directory_that_fails_is_named(number, target):
    with refused("sync directory", number), pytest.raises(RegionIOError) as caught:
        build(target, b"new")
    assert caught.value.operation == "sync the directories above"
    assert not target.parent.exists()


def test_a_file_that_can_only_be_mapped_privately(target, skipped):
    with refused("map", errno.ENODEV):
        for generation in (1, 2):
            region = build(target, b"new")
            assert region.generation == generation and region.read_content(0, 4).readonly
    assert skipped() == ["map"]
    assert not region.data.flags.writeable
    with pytest.raises(ValueError):
        region.data.flags.writeable = True
    assert osmem.mapped_file_bytes(region.data) == target.stat().st_size


def test_a_private_mapping_is_asked_for(target, monkeypatch):
    build(target, b"content")
    real = osmem.FileMapping

    def make(descriptor, n_bytes, flags=mmap.MAP_SHARED, *rest, **how):
        if flags & mmap.MAP_SHARED:
            raise OSError(errno.ENODEV, "no shared mappings")
        return real(descriptor, n_bytes, flags, *rest, **how)

    monkeypatch.setattr(osmem, "FileMapping", make)
    data = osmem.map_file(target).data
    assert data.tobytes() == target.read_bytes()
    assert not data.flags.writeable


def test_a_file_that_cannot_be_mapped_at_all_is_read(target, skipped):
    with refused("map", errno.ENODEV), refused("map unshared", errno.ENODEV):
        assert build(target, b"one").generation == 1
        assert build(target, b"two").generation == 2
        with MmapManager(8, base_path=target.parent.parent) as manager:
            manager.load_dimension("D20")
            used = manager.get_stats().total_allocated_bytes
            assert used == osmem.round_to_pages(target.stat().st_size)
            assert bytes(manager.access_layer("L20-00")) == b"two"
            assert manager.get_layer_info("L20-00").location.name == "HEAP"
            manager.create_proto_dimension("D20", b"three")
            manager.crystallize_dimension("D20")
    assert skipped() == ["map unshared"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EACCES])
def test_a_mapping_that_fails_for_another_reason_is_an_error(number, target, skipped):
    build(target, b"one")
    with refused("map", number), pytest.raises(RegionIOError) as caught:
        MmapRegion.from_file("D20", target)
    assert caught.value.errno == number and not skipped()


# -- the setting goes along ------------------------------------------------------------------------


def test_what_is_to_be_copied_is_mapped_nowhere(target):
    calls = Calls()
    with intercepted(calls):
        for _ in range(2):
            region = build(target, b"one", load_mode="copy")
        files = RegionFiles(region.dimension_id, target, "copy")
        assert files.open_edition(region.edition).edition == region.edition
        with files.writing():
            assert files.open(files.newest_path(tidy=False)).generation == 2
            n_reads = calls.operations.count("read")
            assert files.next_generation() == 3
            assert calls.operations.count("read") == n_reads  # a copy is not made twice
    assert "map" not in calls.operations
    with pytest.raises(ValueError, match="load_mode"):
        build(target, b"one", load_mode="")


def test_a_write_that_is_done_is_no_error_for_want_of_memory_to_tidy_up(target):
    build(target, b"old")
    with intercepted(refuse_to_replace, refuse_to_remove):
        build(target, b"beside")
        build(target, b"beside")
    renamed = []

    def refuse(operation: str, path: str, *details: object) -> None:
        if operation == "rename" and path.endswith("region.g4.mmap"):
            renamed.append(path)
        elif operation == "map private" and len(renamed) == 1:
            renamed.append("")
            raise OSError(errno.ENOMEM, "no memory")

    with intercepted(refuse, refuse_to_replace):
        assert build(target, b"new", load_mode="copy").generation == 4
    assert "" in renamed


def test_one_warning_for_each_directory(tmp_path, skipped):
    with refused("map", errno.ENODEV):
        for dimension in ("D20", "D21", "D20"):
            build(tmp_path / dimension / "region.mmap", b"x", dimension)
    assert skipped() == ["map", "map"]


def test_nobody_who_listens_is_told_later(target, skipped, caplog):
    caplog.set_level(logging.ERROR, "jessymem")
    with refused("map", errno.ENODEV):
        build(target, b"x")
        assert skipped() == []
        caplog.set_level(logging.WARNING, "jessymem")
        build(target, b"x")
    assert skipped() == ["map"]


def test_a_reference_reads_what_cannot_be_shared(target):
    edition = build(target, b"layer").edition
    with refused("map", errno.ENODEV):
        assert bytes(LayerRef(target, edition, "L20-00").get()) == b"layer"


@pytest.mark.parametrize("mode", ["map", "copy"])
def test_a_store_where_nothing_is_shared(mode, target):
    build(target, b"one")
    config = MemoryConfig(8, base_path=target.parent.parent, load_mode=mode)
    with refused("map", errno.ENODEV), MmapManager(config) as manager:
        manager.load_dimension("D20")
        layer = manager.create_proto_dimension("D20", b"learned")
        manager.crystallize_dimension("D20")
        build(target, b"two")
        assert manager.refresh("D20")
        assert layer not in manager
        assert bytes(manager.access_layer("L20-00")) == b"two"
