"""Errors: what they also are, what they say, and that they travel whole."""

from __future__ import annotations

import errno
import os
import pickle
import re
import struct
import time
import traceback
import weakref
from pathlib import Path

import numpy as np
import pytest
from support.internals import snapshot_of
from support.processes import run_python

import jessymem
from jessymem import (
    AllocationFailed,
    AmbiguousName,
    ConfigError,
    DimensionId,
    DimensionNotFound,
    DuplicateDimension,
    DuplicateLayer,
    ImmutableDimension,
    InvalidAccess,
    JessyMemoryError,
    JessyWarning,
    LayerId,
    LayerNotFound,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    NavigationPath,
    OutOfBounds,
    PoolConfig,
    RegionBuilder,
    RegionFormatError,
    RegionIOError,
    RegionNotFound,
    RemoteError,
)
from jessymem.errors import clears_frames, shown

# Each class, the Python error that it also is, and the details that it carries.
ERRORS = [
    (AllocationFailed, MemoryError, {"reason": "pool_full", "requested": 4096}),
    (
        LimitExceeded,
        MemoryError,
        {
            "bound": "core_headroom",
            "current": 50,
            "limit": 10,
            "requested": 6,
            "waiting": 1,
            "in_headroom": 5,
        },
    ),
    (LayerNotFound, KeyError, {"layer": LayerId(1, 5), "layers": (LayerId(1, 5),)}),
    (AmbiguousName, KeyError, {"name": "a", "layers": (LayerId(1, 5), LayerId(2, 0))}),
    (DimensionNotFound, KeyError, {"dimension": DimensionId(7), "path": "x/D07/region.mmap"}),
    (RegionNotFound, KeyError, {"dimension": DimensionId(7), "generation": 3}),
    (OutOfBounds, IndexError, {"offset": 5, "size": 6, "region_size": 7}),
    (DuplicateDimension, ValueError, {"dimension": DimensionId(7)}),
    (DuplicateLayer, ValueError, {"layer": LayerId(1, 5)}),
    (ImmutableDimension, PermissionError, {"dimension": DimensionId(9)}),
    (InvalidAccess, RuntimeError, {}),
    (
        RegionFormatError,
        ValueError,
        {
            "field": "magic",
            "offset": 84,
            "expected": b"JESSY",
            "got": b"\xff",
            "dimension": DimensionId(7),
            "path": "x",
        },
    ),
    (
        RegionIOError,
        OSError,
        {
            "operation": "open",
            "path": "x",
            "errno": errno.EACCES,
            "strerror": "Permission denied",
            "filename": "x",
            "dimension": None,
        },
    ),
    (ConfigError, ValueError, {"field": "advice", "value": "loud"}),
]
each_error = pytest.mark.parametrize(
    ("cls", "python_base", "details"), ERRORS, ids=[cls.__name__ for cls, _, _ in ERRORS]
)


def test_the_table_lists_every_error():
    public = {getattr(jessymem, name) for name in jessymem.__all__}
    errors = {item for item in public if isinstance(item, type) and issubclass(item, Exception)}
    assert errors == {cls for cls, _, _ in ERRORS} | {JessyMemoryError, JessyWarning, RemoteError}
    assert RemoteError.__bases__ == (RegionIOError,)
    assert JessyWarning.__bases__ == (UserWarning,)


@each_error
def test_errors_are_ours_and_pythons(cls, python_base, details):
    assert cls.__bases__ == (JessyMemoryError, python_base)
    with pytest.raises(python_base):
        raise cls("what went wrong", **details)
    with pytest.raises(JessyMemoryError):
        raise cls("what went wrong", **details)


@each_error
def test_errors_carry_their_details(cls, python_base, details):
    error = cls("what went wrong", **details)
    assert {name: getattr(error, name) for name in details} == details
    assert error.details == details
    assert error.message == "what went wrong"
    assert error.args == ("what went wrong",)


@each_error
def test_errors_print_their_message_as_it_is(cls, python_base, details):
    error = cls("D07: 'not' there\nat all", **details)
    assert str(error) == "D07: 'not' there\nat all"
    assert f"{error}" == str(error)
    (last,) = traceback.format_exception_only(error)
    assert last == f"jessymem.errors.{cls.__name__}: {error}\n"


@each_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_pickle_whole(cls, python_base, details, protocol):
    error = pickle.loads(pickle.dumps(cls("what went wrong", **details), protocol))
    assert type(error) is cls
    assert str(error) == "what went wrong"
    assert error.details == details
    for name, value in details.items():
        assert getattr(error, name) == value
        assert type(getattr(error, name)) is type(value)


@each_error
def test_documented_attributes_are_those_given(cls, python_base, details):
    annotated = set(vars(cls).get("__annotations__", ()))
    assert annotated <= set(details)


# -- from the operating system ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["some/file", Path("some/file")])
def test_an_os_error_is_wrapped_with_its_facts(path):
    source = OSError(errno.ENOSPC, "No space left on device", "other name")
    error = RegionIOError.from_os_error(source, "write", path, DimensionId(7))
    assert (error.errno, error.strerror) == (errno.ENOSPC, "No space left on device")
    assert error.path == error.filename == str(Path("some/file"))
    assert (error.operation, error.dimension) == ("write", 7)
    assert str(error) == (
        f"D07: cannot write {Path('some/file')}: No space left on device (errno {errno.ENOSPC})"
    )


def test_an_os_error_without_number_or_dimension_is_wrapped_too():
    error = RegionIOError.from_os_error(OSError("it broke"), "sync", "file")
    assert (error.errno, error.dimension) == (0, None)
    assert str(error) == "cannot sync file: it broke (errno 0)"


# -- as they are raised ----------------------------------------------------------------------------


def load_broken(store):
    target = store / "D30" / "region.mmap"
    target.parent.mkdir()
    target.write_bytes(b"\xff" * 300)
    MmapManager(base_path=store).load_dimension("D30")


def load_too_much(store):
    target = store / "D30" / "region.mmap"
    target.parent.mkdir()
    header = struct.pack("<II64sQI16s156x", 30, 0, b"", 2**21, 0, b"JESSY_MMAP_V1")
    with target.open("wb") as file:
        file.write(header)
        file.truncate(2**21)
    MmapManager(1, base_path=store).load_dimension("D30")


def load_twice(store):
    manager = MmapManager(base_path=store)
    manager.load_dimension("D01")
    manager.load_dimension("D01")


def add_twice(store):
    builder = RegionBuilder("D30", "x")
    builder.add_layer(7, b"")
    builder.add_layer(7, b"")


def read_outside(store):
    MmapRegion.from_file("D01", store / "D01" / "region.mmap").read_content(2**30, 5)


def read_loaded(layer):
    def read(store):
        with MmapManager(base_path=store) as manager:
            manager.load_dimension("D01")
            manager.access_layer(layer)

    return read


def use_closed(store):
    manager = MmapManager(base_path=store)
    manager.close()
    manager.access_layer("L01-00")


RAISED = {
    "no layer": (read_loaded("L01-99"), LayerNotFound, ["L01-99", "{store}"]),
    "no dimension": (read_loaded("L44-07"), LayerNotFound, ["L44-07", "D44"]),
    "no file": (
        lambda store: MmapManager(base_path=store).load_dimension("D44"),
        DimensionNotFound,
        ["D44", "{store}", f"errno {errno.ENOENT}"],
    ),
    "not loaded": (
        lambda store: MmapManager(base_path=store).unload_dimension("D44"),
        DimensionNotFound,
        ["D44"],
    ),
    "broken": (load_broken, RegionFormatError, ["D30", "{store}", "magic", "84"]),
    "too much": (load_too_much, LimitExceeded, ["D30", "2,097,152", " 0 of 1,048,576", "waiting"]),
    "twice": (load_twice, DuplicateDimension, ["D01", "{store}"]),
    "layer twice": (add_twice, DuplicateLayer, ["L30-07"]),
    "outside": (read_outside, OutOfBounds, ["D01", "5 bytes at 1073741824"]),
    "closed": (use_closed, InvalidAccess, ["{store}", "closed"]),
    "setting": (lambda store: MemoryConfig(advice="loud"), ConfigError, ["advice", "'loud'"]),
}


@pytest.mark.parametrize(("cause", "cls", "said"), RAISED.values(), ids=RAISED)
def test_messages_say_what_it_is_about(store, cause, cls, said):
    with pytest.raises(cls) as caught:
        cause(store)
    error = caught.value
    assert type(error) is cls
    for words in said:
        assert words.format(store=store) in str(error)
    assert pickle.loads(pickle.dumps(error)).details == error.details


TAKING_DIMENSIONS = {
    "load_dimension": lambda manager, wrong: manager.load_dimension(wrong),
    "refresh": lambda manager, wrong: manager.refresh(wrong),
    "unload_dimension": lambda manager, wrong: manager.unload_dimension(wrong),
    "is_loaded": lambda manager, wrong: manager.is_loaded(wrong),
    "list_layers": lambda manager, wrong: manager.list_layers(wrong),
    "select": lambda manager, wrong: manager.select(dimensions=[wrong]),
    "from_file": lambda manager, wrong: MmapRegion.from_file(wrong, "nowhere"),
    "RegionBuilder": lambda manager, wrong: RegionBuilder(wrong, "name"),
}

TAKING_LAYERS = {
    "access_layer": lambda manager, wrong: manager.access_layer(wrong),
    "load_layer_context": lambda manager, wrong: manager.load_layer_context(wrong),
    "load_contexts": lambda manager, wrong: manager.load_contexts([wrong]),
    "get_layer_info": lambda manager, wrong: manager.get_layer_info(wrong),
    "region": lambda manager, wrong: snapshot_of(manager).loaded[0].get_layer_info(wrong),
    "NavigationPath": lambda manager, wrong: NavigationPath([wrong]),
}

TAKING_PATHS = {
    "load_dimension": lambda manager, wrong: manager.load_dimension("D30", wrong),
    "from_file": lambda manager, wrong: MmapRegion.from_file("D30", wrong),
    "build_to_file": lambda manager, wrong: RegionBuilder("D30", "name").build_to_file(wrong),
}


@pytest.mark.parametrize("wrong", ["", "D", "D00", "D65536", "L01-00", 0, -1, 65_536])
@pytest.mark.parametrize("call", TAKING_DIMENSIONS.values(), ids=TAKING_DIMENSIONS)
def test_what_is_no_dimension_is_refused(manager, call, wrong):
    with pytest.raises(ValueError, match="dimension"):
        call(manager, wrong)


@pytest.mark.parametrize("wrong", ["", "L01", "L00-00", "L01-65536", "D01", 5, -1, 2**32])
@pytest.mark.parametrize("call", TAKING_LAYERS.values(), ids=TAKING_LAYERS)
def test_what_is_no_layer_is_refused(manager, call, wrong):
    with pytest.raises(ValueError, match=r"layer|dimension"):
        call(manager, wrong)


@pytest.mark.parametrize("wrong", [1.0, b"D01", True, ["D01"]], ids=repr)
@pytest.mark.parametrize(
    "call",
    [*TAKING_DIMENSIONS.values(), *TAKING_LAYERS.values()],
    ids=[*TAKING_DIMENSIONS, *TAKING_LAYERS],
)
def test_what_cannot_be_an_id_is_a_type_error(manager, call, wrong):
    with pytest.raises(TypeError):
        call(manager, wrong)


NO_NAMES = ["a\0b", *(["a\ud800b"] if os.name == "posix" else [])]


@pytest.mark.parametrize("wrong", NO_NAMES, ids=ascii)
@pytest.mark.parametrize("call", TAKING_PATHS.values(), ids=TAKING_PATHS)
def test_a_path_that_no_file_can_have_is_shown(manager, call, wrong):
    with pytest.raises(ValueError, match=re.escape(repr(wrong))) as caught:
        call(manager, wrong)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("wrong", [5, b"bytes", ["a"]], ids=repr)
@pytest.mark.parametrize("call", TAKING_PATHS.values(), ids=TAKING_PATHS)
def test_what_cannot_be_a_path_is_a_type_error(manager, call, wrong):
    with pytest.raises(TypeError):
        call(manager, wrong)


@pytest.mark.parametrize("operation", ["stat", "open", "map"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_refused_files_are_named_with_their_errno(store, intercept, operation, number):
    def refuse(passed, path):
        if passed == operation:
            raise OSError(number, "refused")

    intercept(refuse)
    with pytest.raises(RegionIOError) as caught:
        MmapManager(base_path=store).load_dimension("D01")
    error = caught.value
    path = str(store / "D01" / "region.mmap")
    assert (error.errno, error.path, error.filename) == (number, path, path)
    assert error.dimension == 1
    assert isinstance(error.__cause__, OSError)
    assert str(error).startswith("D01: ")
    assert path in str(error)
    assert f"errno {number}" in str(error)


def refuse_memory(operation, path, *details):
    if operation == "map private":
        raise OSError(errno.ENOMEM, "refused")


def test_memory_that_is_refused_is_an_allocation_failure(store, intercept):
    intercept(refuse_memory)
    with MmapManager(MemoryConfig(base_path=store, load_mode="copy")) as manager:
        with pytest.raises(AllocationFailed) as caught:
            manager.load_dimension("D01")
        assert caught.value.reason == "os_refused"
        assert caught.value.requested >= (store / "D01" / "region.mmap").stat().st_size
        assert manager.get_stats().total_allocated_bytes == 0


def test_memory_that_is_refused_names_the_dimension(store, intercept):
    intercept(refuse_memory)
    manager = MmapManager(MemoryConfig(base_path=store, load_mode="copy"))
    with pytest.raises(AllocationFailed, match="D01"):
        manager.load_dimension("D01")


def test_an_error_clears_the_frames_of_its_cause_too():
    def inner(owner):
        raise OSError(len(owner), "inner")

    @clears_frames
    def outer():
        owner = np.zeros(5)
        watched.append(weakref.ref(owner))
        try:
            inner(owner)
        except OSError as error:
            raise ValueError("outer") from error

    watched = []
    with pytest.raises(ValueError) as caught:
        outer()
    assert caught.value.__cause__ is not None
    assert watched[0]() is None


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [10**5000, Unshowable(), [10**5000], "x" * 100_000], ids=range(4))
def test_a_message_shows_whatever_a_caller_gives(value, tmp_path):
    text = shown(value)
    assert 0 < len(text) <= 500
    with MmapManager(8, base_path=tmp_path) as manager:
        for refuse in (
            lambda: LayerId(15, value),
            lambda: DimensionId(value),
            lambda: MemoryConfig(value),
            lambda: MemoryConfig(8, advice=value),
            lambda: PoolConfig(value, 4096),
            lambda: manager.locate_many(["L15-00"], missing=value),
            lambda: manager.create_proto_dimension(20, b"", depth=value),
            lambda: manager.create_proto_dimension(20, b"", layer=value),
            lambda: manager.select(keywords=value),
            lambda: manager.find(b"a", progress=value),
        ):
            with pytest.raises((ValueError, TypeError)) as caught:
                refuse()
            assert "digits" not in str(caught.value) and len(str(caught.value)) < 1_000


def test_where_the_working_directory_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = """
import os, sys
from jessymem import LayerRef, MmapManager, RegionIOError
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
manager = MmapManager(64, base_path="/")
for ask in (
    lambda: MmapManager(64),
    lambda: LayerRef("x", (1, 1, 1), "L20-00"),
    lambda: manager.load_dimension(20, "x"),
):
    try:
        ask()
    except RegionIOError as error:
        print(error.operation.split(",")[0], error.path)
"""
    lines = run_python(code, str(gone)).splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == ["find the working directory"] * 3


def test_what_has_two_axes_is_no_sequence(tmp_path):
    flat = memoryview(np.zeros((3, 4), np.int32))
    with MmapManager(8, base_path=tmp_path) as manager:
        for refuse in (
            lambda: manager.locate_many(flat),
            lambda: manager.load_contexts(flat),
            lambda: manager.select(keywords=flat),
            lambda: manager.find(b"a", dimensions=flat),
            lambda: manager.create_proto_layers(flat),
            lambda: manager.create_proto_dimension(20, b"", keywords=flat),
            lambda: manager.allocate_many(flat),
            lambda: manager.deallocate_many(flat),
            lambda: NavigationPath(flat),
        ):
            with pytest.raises(TypeError, match="one axis"):
                refuse()
        for folds in (False, True):
            with pytest.raises(ValueError, match="cannot be written as UTF-8"):
                manager.find("\ud800", ignore_case=folds)


def test_a_clock_before_1970(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: -5)
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, b"x" * 20_000)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    with MmapManager(8, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        layer = manager.create_proto_dimension("D20", b"learned")
        manager.crystallize_proto_dimension(layer)
        assert manager.access_layer(layer) == b"learned"


def test_the_error_of_a_lock_names_its_file(tmp_path):
    (tmp_path / ".region.mmap.lock").mkdir()
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, b"x")
    with pytest.raises(RegionIOError, match=r"cannot lock .*\.region\.mmap\.lock") as caught:
        builder.build_to_file(tmp_path / "region.mmap")
    assert caught.value.operation == "lock"


def test_where_a_library_of_numba_s_cannot_be_loaded():
    code = """
import sys
import jessymem

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "llvmlite":
            raise OSError("Could not find/load shared object file")

sys.meta_path.insert(0, Broken())
try:
    jessymem.warmup()
except jessymem.RegionIOError as error:
    print(error.operation, "shared object" in str(error))
"""
    lines = run_python(code, NUMBA_DISABLE_JIT="0").splitlines()
    assert lines == ["import True"]
