"""What readers are handed out is read-only for good: not by a flag that they could set.

An array below which lies a buffer that may be written to can be made writeable again. So every
array that is handed out has one below it that may not; only what compiled code returns has not,
since numba makes it (docs/compiled.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from support.system import HAS_PROC

from jessymem import LayerId, MemoryConfig, MmapManager, MmapRegion, RegionBuilder, osmem
from jessymem.kernels import _jit, layer_array, layer_bytes

GRID = np.arange(12.0).reshape(3, 4)


@pytest.fixture
def manager(tmp_path: Path):
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, b"rain since Monday")
    builder.add_array(1, GRID)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    with MmapManager(8, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        manager.create_proto_dimension("D21", b"learned")
        manager.create_proto_dimension("D21", GRID)
        yield manager


def handed_out(manager: MmapManager) -> dict[str, Any]:
    found: dict[str, Any] = {}
    store = manager.store()
    for name in ("L20-00", "L21-00", "L20-01", "L21-01"):
        view = manager.access_layer(name)
        found[f"view of {name}"] = np.frombuffer(view, np.uint8)
        found[f"what is behind the view of {name}"] = view.obj
        found[f"context of {name}"] = np.asarray(manager.load_layer_context(name).content)
        found[f"plain bytes of {name}"] = layer_bytes(store, LayerId.parse(name))
        (many,) = manager.access_many([name])
        found[f"one of many, {name}"] = np.asarray(many)
    for name in ("L20-01", "L21-01"):
        found[f"array of {name}"] = manager.array(name)
        found[f"a part of {name}"] = manager.array(name)[1:, ::2]
    found["reference"] = np.asarray(manager.ref("L20-01"))
    region = MmapRegion.from_file("D20", manager.config.base_path / "D20" / "region.mmap")
    found["region"] = region.read_array("L20-01")
    found["content of a region"] = np.asarray(region.read_content(0, 10))
    found["directory"] = store.directory
    return found


def test_no_flag_makes_it_writeable(manager):
    for name, array in handed_out(manager).items():
        below = array
        while isinstance(below, np.ndarray):
            with pytest.raises(ValueError, match="WRITEABLE"):
                below.flags.writeable = True
            assert memoryview(below.view(np.uint8) if below.flags.c_contiguous else below).readonly
            below = below.base
        assert not isinstance(below, memoryview) or below.readonly, name


def test_no_mapping_can_be_closed_under_a_view(manager):
    for name in ("L20-00", "L21-00"):
        view = manager.access_layer(name)
        content, owner = bytes(view), view.obj
        while not hasattr(owner, "close"):
            owner = getattr(owner, "base", None) if isinstance(owner, np.ndarray) else owner.obj
        with pytest.raises(BufferError):
            owner.close()
        assert bytes(view) == content


@numba.njit
def bytes_of(store, layer_id):
    return layer_bytes(store, layer_id)


@numba.njit
def array_of(store, layer_id):
    return layer_array(store, layer_id, np.float64)


@pytest.mark.skipif(_jit.is_disabled(), reason="as plain Python it is one of those above")
def test_what_compiled_code_returns_is_as_read_only_as_numba_lets_it_be(manager):
    store = manager.store()
    for found in (bytes_of(store, 20 << 16), array_of(store, (21 << 16) + 1)):
        assert not found.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 0
        # It is numba that answers for the memory, and it says yes to whoever wants to write. Once
        # this fails, the flag may have become good: see docs/compiled.md.
        assert type(found.base).__name__ == "_MemInfo"
        assert not memoryview(found.base).readonly
        for_good = np.frombuffer(memoryview(found).toreadonly(), found.dtype)
        with pytest.raises(ValueError, match="WRITEABLE"):
            for_good.flags.writeable = True


def owner_of(view: Any) -> Any:
    """Return what a view leads to in the end: the memory that it is cut from."""
    while not isinstance(view, osmem.Mapping):
        view = view.base if isinstance(view, np.ndarray) else view.obj
    return view


@pytest.mark.skipif(os.name == "nt", reason="what owns a copy could write to it")
@pytest.mark.parametrize("mode", ["map", "copy"])
def test_not_even_what_owns_the_bytes_of_a_file_can_write_to_them(manager, mode):
    base = manager.config.base_path
    config = MemoryConfig(8, base, load_mode=mode, simulation="always")
    with MmapManager(config) as reader:
        reader.load_core_dimensions()
        reader.load_dimension("D20")
        for layer in ("L20-00", "L20-01", "L01-00"):
            view = reader.access_layer(layer)
            before = bytes(view)
            with pytest.raises(TypeError):
                owner_of(view)[0 : len(view)] = bytes(len(view))
            with pytest.raises(BufferError):
                owner_of(view).close()
            assert reader.access_layer(layer) == before


@pytest.mark.skipif(not HAS_PROC, reason="needs /proc/self/maps")
def test_the_pages_of_a_copy_can_only_be_read(tmp_path):
    data = osmem.private_copy([b"abc", bytearray(b"def")], 6)
    assert bytes(data) == b"abcdef" and not data.flags.writeable
    address = data.ctypes.data
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[:2] for line in maps]
    for extent, rights in ranges:
        start, end = (int(each, 16) for each in extent.split("-"))
        if start <= address < end:
            assert rights == "r--p"
            return
    raise AssertionError("no such mapping")
