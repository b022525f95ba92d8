"""`RegionBuilder`: what it refuses, the order of its system calls, and each of them failing."""

import errno
import os
import struct
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from support import naive
from support.naive import write_plain
from support.system import open_files, opened_since
from support.system_calls import Calls

from jessymem import (
    DimensionId,
    DuplicateLayer,
    LayerId,
    MmapRegion,
    RegionBuilder,
    RegionFormatError,
    RegionIOError,
    osmem,
)
from jessymem.kernels import schema as s

POSIX = os.name == "posix"
ERRNOS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE]


@pytest.fixture
def builder():
    return RegionBuilder("D07", "Technical")


def small_builder(content=b"new", dimension=7):
    builder = RegionBuilder(dimension, "Name")
    builder.add_layer(0, content)
    return builder


def content_of(region, layer=0):
    info = region.get_layer_info(LayerId(region.dimension_id, layer))
    return bytes(region.read_content(info.offset, info.size))


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", ["D07", "d7", 7, DimensionId(7), np.uint16(7)])
def test_every_way_to_name_a_dimension(dimension):
    assert RegionBuilder(dimension, "").dimension_id == DimensionId(7)


@pytest.mark.parametrize(
    ("dimension", "name", "error", "match"),
    [
        (0, "", ValueError, "1 to 65535"),
        (65_536, "", ValueError, "1 to 65535"),
        (-1, "", ValueError, "1 to 65535"),
        ("L01-00", "", ValueError, "not a dimension"),
        ("", "", ValueError, "not a dimension"),
        (True, "", TypeError, "integer"),
        (1.0, "", TypeError, "integer"),
        (None, "", TypeError, "integer"),
        (1, b"bytes", TypeError, "D01: the dimension's name is a string, not bytes"),
        (1, None, TypeError, "not NoneType"),
        (1, "x" * 65, ValueError, "D01: .* 65 bytes .* allows 64"),
        (1, "\u5730" * 22, ValueError, "66 bytes"),
        (1, "a\0b", ValueError, "null character"),
        (1, "\ud800", ValueError, "D01: .* cannot be written as UTF-8"),
    ],
)
def test_a_builder_that_cannot_be(dimension, name, error, match):
    with pytest.raises(error, match=match):
        RegionBuilder(dimension, name)


@pytest.mark.parametrize("name", ["", "x" * 64, "\u5730" * 21 + "x", "\U0001f30d" * 16])
def test_names_up_to_64_bytes(name):
    region = RegionBuilder(1, name).build_to_memory()
    assert region.metadata.dimension_name == name


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ({"layer": -1}, ValueError, "0 to 65535, not -1"),
        ({"layer": 65_536}, ValueError, "0 to 65535"),
        ({"layer": 2**70}, ValueError, "0 to 65535"),
        ({"layer": 1.0}, TypeError, "integer, not float"),
        ({"layer": "1"}, TypeError, "integer, not str"),
        ({"layer": True}, TypeError, "integer, not bool"),
        ({"layer": None}, TypeError, "integer, not NoneType"),
        ({"content": None}, TypeError, "L07-09: content is text or bytes, not NoneType"),
        ({"content": 5}, TypeError, "not int"),
        ({"content": [1, 2]}, TypeError, "not list"),
        ({"content": np.zeros(3, "O")}, TypeError, "L07-09: dtype object refers to objects"),
        ({"content": np.float64(1.5)}, TypeError, "not float64"),
        ({"content": "\udfff"}, ValueError, "L07-09: the content cannot be written as UTF-8"),
        ({"name": b"name"}, TypeError, "L07-09: the name is a string, not bytes"),
        ({"name": None}, TypeError, "NoneType"),
        ({"name": "\ud800"}, ValueError, "L07-09: the name cannot be written as UTF-8"),
        ({"frequency": float("nan")}, ValueError, "L07-09: the frequency"),
        ({"frequency": float("inf")}, ValueError, "finite"),
        ({"frequency": float("-inf")}, ValueError, "finite"),
        ({"frequency": 3.5e38}, ValueError, "32-bit float"),
        ({"frequency": -3.5e38}, ValueError, "32-bit float"),
        ({"frequency": np.float64("nan")}, ValueError, "finite"),
        ({"frequency": "1"}, TypeError, "L07-09: the frequency is a number, not str"),
        ({"frequency": None}, TypeError, "NoneType"),
        ({"frequency": True}, TypeError, "not bool"),
        ({"frequency": 1j}, TypeError, "not complex"),
        ({"frequency": Fraction(1, 2)}, TypeError, "not Fraction"),
        ({"depth": -1}, ValueError, "L07-09: the depth is 0 to 255, not -1"),
        ({"depth": 256}, ValueError, "0 to 255, not 256"),
        ({"depth": 1.0}, TypeError, "L07-09: the depth is an integer, not float"),
        ({"depth": None}, TypeError, "NoneType"),
        ({"depth": True}, (TypeError, ValueError), "L07-09: the depth is"),
        ({"keywords": "word"}, TypeError, "L07-09: keywords are a sequence of strings"),
        ({"keywords": b"word"}, TypeError, "sequence of strings"),
        ({"keywords": None}, TypeError, "sequence of strings"),
        ({"keywords": 5}, TypeError, "sequence of strings"),
        ({"keywords": ["fine", 5]}, TypeError, "L07-09: a keyword is a string, not int"),
        ({"keywords": [b"word"]}, TypeError, "a keyword is a string, not bytes"),
        ({"keywords": ["\ud800"]}, ValueError, "L07-09: a keyword cannot be written"),
        ({"keywords": ["k"] * 4_097}, ValueError, "L07-09: 4,097 keywords"),
        ({"parent": "L07-09"}, ValueError, "L07-09: a layer is not its own parent"),
        ({"parent": 7 << 16 | 9}, ValueError, "not its own parent"),
        ({"parent": "D07"}, ValueError, "not a layer"),
        ({"parent": 65_535}, ValueError, "1 to 65535"),
        ({"parent": 2**32}, ValueError, "1 to 65535"),
        ({"parent": -1}, ValueError, "1 to 65535"),
        ({"parent": 1.5}, TypeError, "integer"),
    ],
    ids=lambda value: "" if isinstance(value, str | type | tuple) else str(value)[:40],
)
def test_a_layer_that_cannot_be_adds_nothing(builder, wrong, error, match):
    builder.add_layer(0, b"")
    with pytest.raises(error, match=match):
        builder.add_layer(**({"layer": 9, "content": b""} | wrong))
    assert len(builder) == 1
    builder.add_layer(9, b"")


def test_a_number_twice(builder):
    builder.add_layer(3, b"first")
    with pytest.raises(DuplicateLayer, match="L07-03 was added before") as caught:
        builder.add_layer(3, b"second")
    assert caught.value.layer == LayerId(7, 3)
    assert content_of(builder.build_to_memory(), 3) == b"first"


def test_every_kind_of_content(builder):
    two_dimensional = memoryview(bytes(range(6))).cast("B", (2, 3))
    wanted = {
        0: ("t\u00e9xt", "t\u00e9xt".encode()),
        1: (b"bytes", b"bytes"),
        2: (bytearray(b"array"), b"array"),
        3: (memoryview(b"view"), b"view"),
        4: (memoryview(b"a-b-c")[::2], b"abc"),
        5: (memoryview(np.arange(3, dtype="<u2")), b"\0\0\1\0\2\0"),
        6: (two_dimensional, bytes(range(6))),
        7: ("", b""),
        8: (memoryview(b""), b""),
    }
    for number, (content, _) in wanted.items():
        assert builder.add_layer(number, content) == LayerId(7, number)
    region = builder.build_to_memory()
    for number, (_, stored) in wanted.items():
        assert content_of(region, number) == stored
    encodings = region.layout.rows["encoding"].tolist()
    assert encodings == [s.ENCODING_TEXT] + [s.ENCODING_BYTES] * 6 + [1, 0]


def test_mutable_content_is_copied_at_once(builder):
    content = bytearray(b"before")
    builder.add_layer(0, content)
    content[:] = b"after!"
    assert content_of(builder.build_to_memory()) == b"before"


def test_content_beyond_the_limit_is_refused(builder, monkeypatch):
    monkeypatch.setattr(s, "MAX_CONTENT_BYTES", 5)
    builder.add_layer(0, b"12345")
    with pytest.raises(ValueError, match="L07-01: content of 6 bytes; the format allows 5"):
        builder.add_layer(1, b"123456")
    assert len(builder) == 1


@pytest.mark.parametrize(
    ("frequency", "stored"),
    [
        (1, 1.0),
        (0.1, struct.unpack("<f", struct.pack("<f", 0.1))[0]),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int8(-3), -3.0),
        (3.4028234663852886e38, 3.4028234663852886e38),
        (1e-300, 0.0),
        (-0.0, -0.0),
    ],
)
def test_frequencies_are_stored_as_32_bit_floats(builder, frequency, stored):
    builder.add_layer(0, b"", frequency=frequency)
    region = builder.build_to_memory()
    got = region.get_layer_info("L07-00").frequency
    assert struct.pack("<d", got) == struct.pack("<d", stored)
    assert region.verify_integrity()


def test_a_frequency_that_no_float_holds(builder):
    with pytest.raises(ValueError, match="L07-00: the frequency"):
        builder.add_layer(0, b"", frequency=10**400)
    assert len(builder) == 0


def test_keywords_keep_order_and_repetition(builder):
    builder.add_layer(0, b"", keywords=(word for word in ("b", "a", "b", "")))
    assert builder.build_to_memory().get_layer_info("L07-00").keywords == ("b", "a", "b", "")


def test_children_are_derived_from_parents(builder):
    builder.add_layer(5, b"", parent="L07-01")
    builder.add_layer(1, b"", parent="L99-00")
    builder.add_layer(2, b"", parent=LayerId(7, 1))
    info = builder.build_to_memory().get_layer_info("L07-01")
    assert (info.parent, info.children) == (LayerId(99, 0), (LayerId(7, 2), LayerId(7, 5)))


def test_a_builder_may_go_on_after_it_has_built(builder, tmp_path):
    builder.add_layer(0, b"zero")
    for n_layers in (1, 2):
        region = builder.build_to_file(tmp_path / "region.mmap")
        assert region.generation == len(region.list_layers()) == n_layers
        assert content_of(region) == b"zero"
        builder.add_layer(n_layers, b"one")
        del region


@pytest.mark.skipif(not POSIX, reason="a mapped file cannot be replaced elsewhere")
def test_threads_that_build_the_same_file_leave_one_whole_file(tmp_path):
    path = tmp_path / "region.mmap"
    builders = [small_builder(bytes([i]) * 100_000) for i in range(6)]
    threads = [threading.Thread(target=one.build_to_file, args=(path,)) for one in builders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    region = MmapRegion.from_file(7, path)
    assert region.verify_integrity()
    assert len(set(content_of(region))) == 1
    assert os.listdir(tmp_path) == ["region.mmap"]


# -- where it writes -------------------------------------------------------------------------------


def test_what_comes_back_is_the_file_on_disk(tmp_path):
    path = tmp_path / "D07" / "region.mmap"
    region = small_builder().build_to_file(path)
    assert (region.path, region.generation) == (path, 1)
    assert region.size == path.stat().st_size
    assert bytes(region.read_content(0, region.size)) == path.read_bytes()
    assert region.metadata.created_at >= 10**18
    if POSIX:
        assert path.stat().st_mode & 0o777 == 0o644 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path], ids=["str", "fspath", "Path"])
def test_paths_of_every_kind(kind, tmp_path):
    assert content_of(small_builder().build_to_file(kind(tmp_path / "a"))) == b"new"


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert content_of(small_builder().build_to_file("region.mmap")) == b"new"
    small_builder().build_to_file(os.path.join("a", "b", "region.mmap"))
    assert sorted(os.listdir(tmp_path)) == ["a", "region.mmap"]


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_that_names_no_file(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, RegionIOError)):
        small_builder().build_to_file(path)
    assert os.listdir(tmp_path) == []


def test_a_directory_in_its_place(tmp_path):
    (tmp_path / "region.mmap").mkdir()
    (tmp_path / "region.mmap" / "kept").touch()
    with pytest.raises(RegionIOError) as caught:
        small_builder().build_to_file(tmp_path / "region.mmap")
    assert caught.value.path == str(tmp_path / "region.mmap")
    assert os.listdir(tmp_path) == ["region.mmap"]
    assert os.listdir(tmp_path / "region.mmap") == ["kept"]


def test_a_file_where_a_directory_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    for path in (tmp_path / "file" / "region.mmap", tmp_path / "file" / "a" / "region.mmap"):
        with pytest.raises(RegionIOError) as caught:
            small_builder().build_to_file(path)
        assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.skipif(not POSIX, reason="links need a privilege elsewhere")
def test_what_a_link_leads_to_is_replaced_and_the_link_is_not(tmp_path):
    other = tmp_path / "other"
    small_builder(b"old").build_to_file(other)
    link = tmp_path / "region.mmap"
    link.symlink_to(other)
    region = small_builder().build_to_file(link)
    assert (region.path, region.generation) == (link, 2)
    assert link.is_symlink()
    assert content_of(region) == content_of(MmapRegion.from_file(7, other)) == b"new"


@pytest.mark.skipif(not POSIX, reason="a mapped file cannot be replaced elsewhere")
def test_readers_of_the_replaced_file_keep_it(tmp_path):
    path = tmp_path / "region.mmap"
    old = small_builder(b"old").build_to_file(path)
    view = old.read_content(0, old.size)
    before = bytes(view)
    new = small_builder(b"new").build_to_file(path)
    assert bytes(view) == before
    assert old.verify_integrity() and new.verify_integrity()
    assert (content_of(old), content_of(new)) == (b"old", b"new")


# -- generations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "generation"),
    [
        (None, 1),
        (b"", 1),
        (b"no region file", 1),
        (write_plain(dimension=7), 1),
        (write_plain(dimension=8), 1),
    ],
    ids=["nothing", "empty", "garbage", "plain V1", "another dimension"],
)
def test_the_generation_over_what_has_none(there, generation, tmp_path):
    path = tmp_path / "region.mmap"
    if there is not None:
        path.write_bytes(there)
    assert small_builder().build_to_file(path).generation == generation


def test_the_generation_over_an_older_file_is_higher_by_one(tmp_path):
    path = tmp_path / "region.mmap"
    for generation in (1, 2, 3):
        before = time.time_ns()
        region = small_builder().build_to_file(path)
        assert region.generation == generation
        assert before <= region.metadata.created_at <= time.time_ns()
        del region
    assert small_builder(dimension=8).build_to_file(path).generation == 1


def test_a_generation_that_cannot_be_followed_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "region.mmap"
    small_builder(b"old").build_to_file(path)
    last = naive.resign(naive.set_field(path.read_bytes(), "generation", 2**63 - 1))
    path.write_bytes(last)
    with pytest.raises(RegionFormatError, match="generation"):
        small_builder().build_to_file(path)
    assert path.read_bytes() == last
    assert content_of(MmapRegion.from_file(7, path)) == b"old"


# -- system calls ----------------------------------------------------------------------------------

LARGE = b"x" * (2 * 2**20 + 5)

#: What the calls do, from the first that changes anything on disk.
WRITING = ["create", "write", "sync", "open", "read", "rename"]


def install(monkeypatch, **how):
    calls = Calls(**how)
    monkeypatch.setattr(osmem, "intercept", calls)
    return calls


def test_the_order_of_the_calls_for_a_new_file(tmp_path, monkeypatch):
    calls = install(monkeypatch)
    path = tmp_path / "a" / "b" / "region.mmap"
    small_builder(LARGE).build_to_file(path)
    sync = ["sync directory"] if POSIX else []
    assert calls.operations == [
        *sync,
        "make directory",
        *sync,
        "make directory",
        "lock",
        "list",
        *sync,
        "open",
        *WRITING,
        *sync,
        "open",
        "stat",
        "map",
    ]
    paths = dict(calls.made)
    temporary = paths["create"]
    assert paths["write"] == paths["sync"] == temporary
    assert paths["rename"] == paths["map"] == str(path)
    name = os.path.basename(temporary)
    assert os.path.dirname(temporary) == str(path.parent)
    assert name.startswith(f".region.mmap.{os.getpid()}-") and name.endswith(".tmp")
    synced = [each for operation, each in calls.made if operation == "sync directory"]
    # Each directory's name before anything is made in it, and last the file's.
    paths = [tmp_path.parent, tmp_path, tmp_path / "a", path.parent]
    assert synced == ([str(each) for each in paths] if POSIX else [])


def test_the_order_of_the_calls_for_a_file_that_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "region.mmap"
    small_builder().build_to_file(path)
    calls = install(monkeypatch)
    small_builder(LARGE).build_to_file(path)
    assert calls.operations == [
        "lock",
        "list",
        "open",
        "stat",
        "map",
        *WRITING,
        *(["sync directory"] if POSIX else []),
        "open",
        "stat",
        "map",
    ]


def test_no_two_temporary_files_share_a_name(tmp_path, monkeypatch):
    calls = install(monkeypatch)
    for _ in range(20):
        small_builder().build_to_file(tmp_path / "region.mmap")
    names = [each for operation, each in calls.made if operation == "create"]
    assert len(set(names)) == 20


def state_of(folder):
    """Return every path below a folder with what a file holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def calls_of(tmp_path, replacing, monkeypatch):
    """Return the calls that a build makes, from a rehearsal."""
    folder = tmp_path / "rehearsal"
    path = folder / "D07" / "region.mmap"
    if replacing:
        small_builder(b"old").build_to_file(path)
    else:
        folder.mkdir()
    calls = install(monkeypatch)
    small_builder(LARGE).build_to_file(path)
    monkeypatch.setattr(osmem, "intercept", None)
    return calls.operations


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
def test_every_call_failed_in_turn(replacing, number, tmp_path, monkeypatch):
    operations = calls_of(tmp_path, replacing, monkeypatch)
    builder = small_builder(LARGE)
    for index, operation in enumerate(operations):
        folder = tmp_path / f"{index}"
        folder.mkdir()
        path = folder / "D07" / "region.mmap"
        if replacing:
            small_builder(b"old").build_to_file(path)
        before, descriptors = state_of(folder), open_files()
        calls = install(monkeypatch, fail_at=index, number=number)
        if number == errno.EACCES and (
            operation == "list"
            or (operation == "sync directory" and index == 0)
            or (operation == "rename" and replacing)
        ):
            # A directory that cannot be listed is used all the same, so is one whose own name may
            # not be synced; a file that cannot be replaced is followed by one beside it.
            region = builder.build_to_file(path)
            assert region.verify_integrity() and content_of(region) == LARGE
            beside = operation == "rename"
            assert region.path.name == ("region.g2.mmap" if beside else "region.mmap")
            continue
        with pytest.raises(RegionIOError) as caught:
            builder.build_to_file(path)
        monkeypatch.setattr(osmem, "intercept", None)
        error = caught.value
        assert calls.operations[index] == operation
        assert (error.errno, error.path) == (number, str(path))
        assert error.filename == str(path)
        assert error.dimension == DimensionId(7)
        assert error.operation and error.operation in str(error)
        assert str(path) in str(error) and f"errno {number}" in str(error)
        assert isinstance(error, OSError)
        assert not opened_since(descriptors)
        if "rename" in calls.operations[:index]:
            # The new file has its name: whole, though it may not outlive a power failure.
            assert os.listdir(path.parent) == ["region.mmap"]
            region = MmapRegion.from_file(7, path)
            assert region.verify_integrity() and content_of(region) == LARGE
            del region
        else:
            assert state_of(folder) == before
        builder.build_to_file(path)
        assert os.listdir(path.parent) == ["region.mmap"]


@pytest.mark.parametrize("operation", ["lock", "list", "open", "stat", "map"])
def test_an_old_file_that_cannot_be_read_is_not_taken_for_none(operation, tmp_path, monkeypatch):
    path = tmp_path / "region.mmap"
    for _ in range(3):
        small_builder(b"old").build_to_file(path)
    before = path.read_bytes()
    order = ["lock", "list", "open", "stat", "map"]
    install(monkeypatch, fail_at=order.index(operation), number=errno.EMFILE)
    with pytest.raises(RegionIOError) as caught:
        small_builder().build_to_file(path)
    assert (caught.value.errno, caught.value.path) == (errno.EMFILE, str(path))
    assert path.read_bytes() == before


def test_what_is_no_error_of_the_system_leaves_nothing_either(tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    def stop_at(wanted):
        def intercept(operation, path, *details):
            if operation == wanted:
                raise Stop

        return intercept

    for operation in ("create", "write", "sync", "rename"):
        descriptors = open_files()
        monkeypatch.setattr(osmem, "intercept", stop_at(operation))
        with pytest.raises(Stop):
            small_builder().build_to_file(tmp_path / "new" / "region.mmap")
        monkeypatch.setattr(osmem, "intercept", None)
        assert list(tmp_path.iterdir()) == []
        assert not opened_since(descriptors)


def test_a_temporary_file_that_cannot_be_removed_does_not_hide_the_error(tmp_path, monkeypatch):
    def intercept(operation, path, *details):
        if operation in ("sync", "remove"):
            raise OSError(errno.EIO if operation == "sync" else errno.EACCES, "refused")

    monkeypatch.setattr(osmem, "intercept", intercept)
    with pytest.raises(RegionIOError) as caught:
        small_builder().build_to_file(tmp_path / "region.mmap")
    assert (caught.value.errno, caught.value.operation) == (errno.EIO, "sync")


def test_a_directory_that_others_use_meanwhile_is_kept(tmp_path, monkeypatch):
    def intercept(operation, path, *details):
        if operation == "create":
            (tmp_path / "new" / "other").touch()
        if operation == "sync":
            raise OSError(errno.EIO, "refused")

    monkeypatch.setattr(osmem, "intercept", intercept)
    with pytest.raises(RegionIOError):
        small_builder().build_to_file(tmp_path / "new" / "region.mmap")
    assert os.listdir(tmp_path / "new") == ["other"]


@pytest.mark.skipif(not POSIX, reason="needs limits on file size")
def test_a_write_that_the_system_cuts_short(tmp_path):
    import resource

    path = tmp_path / "new" / "region.mmap"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 + 100, hard))
    try:
        with pytest.raises(RegionIOError) as caught:
            small_builder(LARGE).build_to_file(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.operation) == (errno.EFBIG, "write")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "writev"), reason="one buffer is written at a time")
def test_a_write_that_takes_less_than_it_was_given_goes_on(tmp_path, monkeypatch):
    def write(descriptor, buffers):
        return os.write(descriptor, buffers[0][:100_003])

    monkeypatch.setattr(os, "writev", write)
    region = small_builder(LARGE).build_to_file(tmp_path / "region.mmap")
    monkeypatch.undo()
    assert region.verify_integrity() and content_of(region) == LARGE


def test_many_pieces_arrive_in_order(tmp_path):
    # Small pieces are gathered, large ones go alone: mixtures of both, around the border.
    border = 2**20
    builder = RegionBuilder(7, "")
    contents = [bytes([i]) * n for i, n in enumerate([1, border, 0, border - 1, 9, border + 1, 5])]
    for number, content in enumerate(contents):
        builder.add_layer(number, content)
    region = builder.build_to_file(tmp_path / "region.mmap")
    assert region.verify_integrity()
    assert [content_of(region, i) for i in range(len(contents))] == contents


def test_memory_that_is_refused(monkeypatch):
    install(monkeypatch, fail_at=0, number=errno.ENOMEM)
    with pytest.raises(MemoryError) as caught:
        small_builder().build_to_memory()
    assert caught.value.reason == "os_refused"
    assert caught.value.requested == osmem.page_size()


def test_the_same_bytes_in_memory_as_in_a_file(tmp_path):
    builder = small_builder(b"same")
    file, memory = builder.build_to_file(tmp_path / "region.mmap"), builder.build_to_memory()
    raw = bytes(memory.read_content(0, memory.size))
    again = naive.set_field(bytes(file.read_content(0, file.size)), "created_at", 0)
    assert naive.resign(again) == raw
    assert memory.path is None and memory.generation == 1
    with pytest.raises(KeyError, match="L07-09 is not in memory"):
        memory.get_layer_info("L07-09")


def test_an_error_names_the_step(tmp_path, monkeypatch):
    steps = {}
    for operation in (
        "make directory",
        "lock",
        "create",
        "write",
        "sync",
        "read",
        "rename",
        "sync directory",
    ):
        target = tmp_path / operation / "region.mmap"

        def intercept(now, path, *details, operation=operation, folder=str(target.parent)):
            if now == operation and (now != "sync directory" or path == folder):
                raise OSError(errno.EIO, "refused")

        monkeypatch.setattr(osmem, "intercept", intercept)
        if operation == "sync directory" and not POSIX:
            continue
        with pytest.raises(RegionIOError) as caught:
            small_builder().build_to_file(target)
        steps[operation] = caught.value.operation
    steps.setdefault("sync directory", "sync the directory of")
    assert steps == {
        "make directory": "make the directory of",
        "lock": "lock",
        "create": "create",
        "write": "write",
        "sync": "sync",
        "read": "read back",
        "rename": "rename",
        "sync directory": "sync the directory of",
    }
    if sys.platform != "win32":
        assert os.listdir(tmp_path / "sync directory") == ["region.mmap"]
