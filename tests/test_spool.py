"""Contents of any kind, numbered by themselves, and waiting on disk until they are written."""

from __future__ import annotations

import array
import errno
import mmap
import os
import random
import weakref

import numpy as np
import pytest
from support.arrays import check_same
from support.system import open_files, opened_since

from jessymem import DuplicateLayer, LayerId, MmapRegion, RegionBuilder, RegionIOError
from jessymem.regions import spool

# -- what lends its bytes --------------------------------------------------------------------------


def content_of(region, layer):
    return bytes(region.content_of(region.find_row(LayerId.parse(layer))))


@pytest.mark.parametrize("spooled", [False, True])
def test_whatever_lends_its_bytes_is_copied_at_once(tmp_path, spooled):
    (tmp_path / "file").write_bytes(b"from a file")
    numbers = array.array("i", [1, 2, 3])
    changing = bytearray(b"before")
    builder = RegionBuilder("D15", "any", spool=tmp_path if spooled else None)
    with (
        open(tmp_path / "file", "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        builder.append_layer(mapped)
    builder.append_layer(numbers)
    builder.append_layer(changing)
    builder.append_layer(memoryview(b"abcdef")[::2])
    builder.append_layer(memoryview(numbers)[1:])
    expected = [b"from a file", numbers.tobytes(), b"before", b"ace", numbers.tobytes()[4:]]
    changing[:] = b"AFTER!"
    numbers[0] = 7
    region = builder.build_to_memory()
    expected[1] = array.array("i", [1, 2, 3]).tobytes()
    assert [content_of(region, f"L15-{i:02d}") for i in range(5)] == expected


def test_a_buffer_of_arrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    builder = RegionBuilder("D15", "arrow")
    builder.append_layer(pyarrow.py_buffer(b"arrow's"))
    assert content_of(builder.build_to_memory(), "L15-00") == b"arrow's"


def test_an_array_is_kept_as_an_array():
    grid = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    builder = RegionBuilder("D15", "arrays")
    builder.add_layer(0, grid)
    builder.append_layer(grid[:, ::2])
    grid[:] = 0
    region = builder.build_to_memory()
    check_same(region.read_array("L15-00"), np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    check_same(region.read_array("L15-01"), np.arange(6.0).reshape(2, 3)[:, ::2].copy())


def test_what_was_released_is_named():
    builder = RegionBuilder("D15", "released")
    view = memoryview(b"gone")
    view.release()
    with pytest.raises(ValueError, match=r"L15-00: .* cannot be read: .*released"):
        builder.append_layer(view)
    closed = mmap.mmap(-1, 10)
    closed.close()
    with pytest.raises(ValueError, match="L15-00: the content cannot be read"):
        builder.append_layer(closed)
    assert len(builder) == 0


# -- numbers ---------------------------------------------------------------------------------------


def test_layers_number_themselves_above_the_highest():
    builder = RegionBuilder("D15", "numbers")
    assert builder.append_layer("a") == LayerId(15, 0)
    assert builder.add_layer(7, "b", name="seven") == LayerId(15, 7)
    assert builder.append_layer("c", name="next", depth=2, keywords=["k"]) == LayerId(15, 8)
    assert builder.add_layer(3, "d") == LayerId(15, 3)
    with pytest.raises(ValueError, match="L15-09: the depth"):
        builder.append_layer("e", depth=-1)
    assert builder.append_layer("e", parent="L15-08") == LayerId(15, 9)
    infos = {info.layer_id.layer: info for info in builder.build_to_memory().metadata.layers}
    assert sorted(infos) == [0, 3, 7, 8, 9]
    assert (infos[8].name, infos[8].depth, infos[8].keywords) == ("next", 2, ("k",))
    assert infos[9].parent == LayerId(15, 8)


def test_there_is_no_number_above_the_last():
    builder = RegionBuilder("D15", "full")
    builder.add_layer(65_535, "last")
    with pytest.raises(DuplicateLayer, match="L15-65535 was added before, and there is no number"):
        builder.append_layer("one more")
    assert builder.add_layer(0, "first") == LayerId(15, 0)


# -- on disk ---------------------------------------------------------------------------------------


def build(builder_options, contents, path):
    builder = RegionBuilder("D15", "same", **builder_options)
    for number, content in contents:
        builder.add_layer(number, content, name=f"layer {number}", keywords=["k"])
    return builder.build_to_file(path)


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_spooled_or_not_it_is_the_same_file(tmp_path, monkeypatch, order):
    monkeypatch.setattr(spool, "HELD_BYTES", 5_000)
    monkeypatch.setattr(spool, "_WINDOW_BYTES", 512)
    monkeypatch.setattr(spool, "_CHUNK_BYTES", 700)
    generator = random.Random(1)
    sizes = [0, 1, 63, 64, 65, 255, 256, 257, 511, 700, 701, 4_999, 5_000, 5_001, 20_000]
    contents = [(number, generator.randbytes(sizes[number % len(sizes)])) for number in range(90)]
    if order == "shuffled":
        generator.shuffle(contents)
    contents.append((100, "text \u00e9"))
    contents.append((101, np.arange(9.0)))
    monkeypatch.setattr("jessymem.regions.builder.time.time_ns", lambda: 12345)
    plain = build({}, contents, tmp_path / "plain" / "region.mmap")
    spooled = build({"spool": tmp_path}, contents, tmp_path / "spooled" / "region.mmap")
    assert spooled.verify_integrity("full")
    assert plain.path.read_bytes() == spooled.path.read_bytes()
    check_same(spooled.read_array("L15-101"), np.arange(9.0))


def test_what_is_short_makes_no_file_and_what_is_long_one_without_a_name(tmp_path, intercept):
    created = []
    intercept(lambda call, path, *rest: created.append(path) if call == "create" else None)
    before = open_files()
    builder = RegionBuilder("D15", "spooled", spool=tmp_path)
    builder.append_layer(b"x" * 1000)
    assert created == []
    builder.append_layer(b"y" * spool.HELD_BYTES)
    builder.append_layer(b"z")
    assert [os.fspath(path) for path in created] == [os.fspath(tmp_path)]
    assert list(tmp_path.iterdir()) == []
    region = builder.build_to_memory()
    assert content_of(region, "L15-00") == b"x" * 1000
    assert content_of(region, "L15-01") == b"y" * spool.HELD_BYTES
    assert content_of(region, "L15-02") == b"z"
    gone = weakref.ref(builder)
    del builder
    assert gone() is None
    assert opened_since(before) == []


def test_a_spool_that_cannot_be_written_adds_nothing(tmp_path, intercept, monkeypatch):
    monkeypatch.setattr(spool, "HELD_BYTES", 100)
    builder = RegionBuilder("D15", "full disk", spool=tmp_path)
    builder.append_layer(b"a" * 99)

    def refuse(call, path, *rest):
        if call == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    intercept(refuse)
    with pytest.raises(RegionIOError, match=r"cannot spool contents in .*No space left"):
        builder.append_layer(b"b" * 1000)
    intercept(None)
    assert len(builder) == 1
    builder.append_layer(b"c" * 1000)
    region = builder.build_to_file(tmp_path / "region.mmap")
    assert content_of(region, "L15-00") == b"a" * 99
    assert content_of(region, "L15-01") == b"c" * 1000
    assert MmapRegion.from_file("D15", region.path).verify_integrity("full")


def test_a_spool_in_no_folder(tmp_path):
    builder = RegionBuilder("D15", "nowhere", spool=tmp_path / "missing")
    with pytest.raises(RegionIOError, match=r"cannot spool contents in .*missing"):
        builder.append_layer(b"x" * spool.HELD_BYTES)
    with pytest.raises(TypeError):
        RegionBuilder("D15", "no path", spool=7)
