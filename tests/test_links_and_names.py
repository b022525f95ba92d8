"""Region files that are links, names near the limit, and what may not be replaced at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.system_calls import intercepted, refuse_to_replace

from jessymem import (
    DimensionId,
    ImmutableDimension,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionIOError,
    osmem,
)
from jessymem.regions.files import RegionFiles

posix = pytest.mark.skipif(os.name != "posix", reason="links need a privilege elsewhere")
STALE = ".123-0123abcd.tmp"


def build(target: Path, content: bytes, dimension: str = "D20", **how) -> MmapRegion:
    builder = RegionBuilder(dimension, "Name")
    builder.add_layer(0, content)
    return builder.build_to_file(target, **how)


def content_of(path: Path, dimension: str = "D20") -> bytes:
    return bytes(MmapRegion.from_file(dimension, path).content_of(0))


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# -- links -----------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "shared.mmap"
    build(path, b"old")
    return path


@pytest.fixture
def link(real: Path, tmp_path: Path) -> Path:
    path = tmp_path / "base" / "D20" / "region.mmap"
    path.parent.mkdir(parents=True)
    path.symlink_to(os.path.relpath(real, path.parent))
    return path


@posix
def test_the_file_behind_a_link_is_replaced_and_the_link_stays(link, real):
    seen = []
    with intercepted(lambda operation, path, *details: seen.append((operation, path))):
        assert build(link, b"new").path == link
    assert link.is_symlink() and content_of(real) == content_of(link) == b"new"
    # What a write makes, it makes beside the file, so that the renaming is one step.
    assert {Path(path).resolve().parent for name, path in seen if name in ("create", "lock")} == {
        real.parent
    }
    assert names_in(link.parent) == ["region.mmap"]
    assert names_in(real.parent) == ["shared.mmap"]


@posix
def test_a_link_is_followed_by_a_manager_in_both_directions(link, real):
    for n_layers in (2, 3):
        with MmapManager(8, base_path=link.parent.parent) as manager:
            manager.load_dimension("D20")
            manager.create_proto_dimension("D20", b"learned")
            manager.crystallize_dimension("D20")
            assert len(manager.list_layers("D20")) == n_layers
    assert link.is_symlink()
    assert len(MmapRegion.from_file("D20", real).list_layers()) == n_layers


@posix
def test_what_killed_writers_left_lies_beside_the_file_behind_the_link(link, real):
    (real.parent / f".shared.mmap{STALE}").touch()
    (link.parent / f".region.mmap{STALE}").touch()  # nobody writes here
    assert RegionFiles(DimensionId(20), link).newest_path(tidy=True) == link
    assert names_in(real.parent) == ["shared.mmap"]
    assert names_in(link.parent) == [f".region.mmap{STALE}", "region.mmap"]


@posix
def test_a_generation_beside_lies_beside_the_file_behind_the_link(link, real):
    def refuse(operation: str, path: str, *details: object) -> None:
        if operation == "rename" and path.endswith("shared.mmap"):
            raise OSError(errno.EACCES, "mapped")

    with intercepted(refuse):
        region = build(link, b"new")
    files = RegionFiles(DimensionId(20), link)
    assert region.path.resolve() == real.with_name("shared.g2.mmap").resolve()
    assert region.path in files and link in files
    assert files.newest_path(tidy=False) == region.path
    del region
    assert files.newest_path(tidy=True) == link
    assert content_of(real) == b"new" and link.is_symlink()


@posix
def test_links_to_links_and_to_what_is_not_there_yet(tmp_path):
    first, second = tmp_path / "first.mmap", tmp_path / "second.mmap"
    first.symlink_to(second)
    second.symlink_to(tmp_path / "new" / "third.mmap")
    assert build(first, b"one").generation == 1
    assert build(first, b"two").generation == 2
    assert first.is_symlink() and second.is_symlink()
    assert names_in(tmp_path / "new") == ["third.mmap"]


@posix
def test_links_that_lead_nowhere_are_errors(tmp_path):
    loop = tmp_path / "region.mmap"
    loop.symlink_to(loop)
    with pytest.raises(RegionIOError) as caught:
        build(loop, b"new")
    assert (caught.value.operation, caught.value.errno) == ("follow the link", errno.ELOOP)
    assert names_in(tmp_path) == ["region.mmap"]
    with pytest.raises(RegionIOError):
        MmapRegion.from_file("D20", loop)


@posix
def test_a_link_of_another_user_is_not_followed(link, real, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    owner = os.lstat(link).st_uid
    if owner == 0:
        if os.getuid() != 0:
            pytest.skip("the superuser's links count")
        os.lchown(link, 54_322, -1)
    with pytest.raises(RegionIOError) as caught:
        build(link, b"new")
    assert (caught.value.operation, caught.value.errno) == ("follow the link", errno.EPERM)
    assert content_of(real) == b"old" and link.is_symlink()
    # Of the directory's owner it counts.
    os.chown(link.parent, 54_322, -1)
    assert build(link, b"new").generation == 2


@posix
def test_a_directory_that_is_a_link_stays_one(tmp_path):
    build(tmp_path / "release-1" / "D20" / "region.mmap", b"old")
    (tmp_path / "current").symlink_to("release-1")
    assert build(tmp_path / "current" / "D20" / "region.mmap", b"new").generation == 2
    assert (tmp_path / "current").is_symlink()
    assert content_of(tmp_path / "release-1" / "D20" / "region.mmap") == b"new"


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["x" * n for n in (214, 215, 216, 230, 250, 255)] + ["\u00e4" * 127, "\u5730" * 85]
)
def test_names_up_to_the_limit_of_the_file_system(name, tmp_path):
    target = tmp_path / name
    for generation in (1, 2):
        assert build(target, b"new").generation == generation
    files = RegionFiles(DimensionId(20), target)
    with files.writing():
        left = [each for each in names_in(tmp_path) if each != name]
        assert len(left) == 1
        (tmp_path / left[0].removesuffix(".lock")).with_suffix(STALE).touch()
    assert len(names_in(tmp_path)) == 2
    assert files.newest_path(tidy=True) == target
    assert names_in(tmp_path) == [name]


def test_files_of_long_names_have_locks_of_their_own(tmp_path):
    one, other = (RegionFiles(DimensionId(20), tmp_path / (letter * 250)) for letter in "ab")
    with one.writing(), other.writing(timeout=0):
        assert len(names_in(tmp_path)) == 2
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 256, "x" * 5_000])
def test_a_name_beyond_the_limit_is_a_clear_error(name, tmp_path):
    target = tmp_path / "new" / name
    with pytest.raises(RegionIOError) as caught:
        build(target, b"new")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert caught.value.operation not in ("make the directory of", "sync the directories above")
    assert names_in(tmp_path) == []


# -- what may not be replaced ----------------------------------------------------------------------


@pytest.mark.parametrize("dimension", ["D09", "D14"])
def test_an_immutable_file_is_replaced_only_where_that_is_said(dimension, tmp_path):
    target = tmp_path / dimension / "region.mmap"
    assert build(target, b"first", dimension).generation == 1
    before = osmem.identify(target)
    with pytest.raises(ImmutableDimension) as caught:
        build(target, b"second", dimension)
    assert isinstance(caught.value, PermissionError)
    assert caught.value.dimension == DimensionId.parse(dimension)
    assert "replace_immutable=True" in str(caught.value) and str(target) in str(caught.value)
    assert osmem.identify(target) == before and names_in(target.parent) == ["region.mmap"]
    region = build(target, b"second", dimension, replace_immutable=True)
    assert region.generation == 2 and content_of(target, dimension) == b"second"


def test_an_immutable_file_counts_whatever_it_holds_and_wherever_it_lies(tmp_path):
    target = tmp_path / "region.mmap"
    target.write_bytes(b"damaged")
    with pytest.raises(ImmutableDimension):
        build(target, b"new", "D09")
    target.unlink()
    build(target, b"one", "D09")
    with intercepted(refuse_to_replace):
        build(target, b"two", "D09", replace_immutable=True)
    target.unlink()
    with pytest.raises(ImmutableDimension):
        build(target, b"three", "D09")
    assert content_of(target, "D09") == b"two"  # folded back


def test_other_dimensions_are_replaced_without_a_word(tmp_path):
    for content in (b"one", b"two"):
        build(tmp_path / "region.mmap", content, "D08")
    assert content_of(tmp_path / "region.mmap", "D08") == b"two"


# -- generations of files that are gone ------------------------------------------------------------


def test_the_next_generation_is_above_one_that_is_known(tmp_path):
    files = RegionFiles(DimensionId(20), tmp_path / "region.mmap")
    with files.writing():
        assert files.next_generation() == 1
        assert files.next_generation(above=7) == 8
    build(files.target, b"one")
    with files.writing():
        assert files.next_generation(above=0) == 2
        assert files.next_generation(above=7) == 8
