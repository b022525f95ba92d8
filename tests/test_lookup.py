"""`lookup`: compiled and plain Python against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from support.internals import marked_kernels, snapshot_of

from jessymem import LayerId, MmapManager, RegionBuilder
from jessymem.kernels import _jit, lookup
from jessymem.kernels import schema as s


def locations_of(manager, packed):
    """Look `packed` ids up in one call; return how many were missing and the locations."""
    snapshot = snapshot_of(manager)
    locations = np.zeros(len(packed), s.LOCATION)
    touched = np.zeros(snapshot.n_slots, np.uint8)
    ids = np.array(packed, np.int64)
    n_missing = lookup.locate_many(snapshot.directory, ids, locations, touched)
    return n_missing, locations


@pytest.fixture(params=["plain", "compiled"])
def tier(request, monkeypatch):
    """Run with the plain functions, or with the compiled ones."""
    if request.param == "compiled":
        if not _jit.promote():
            pytest.skip("compilation is disabled")
        return
    for function in marked_kernels():
        if function.__module__ == lookup.__name__:
            monkeypatch.setattr(lookup, function.__name__, function)


@pytest.mark.usefixtures("tier")
def test_every_layer_is_found_where_its_region_says(manager):
    layers = manager.list_layers()
    n_missing, locations = locations_of(manager, layers)
    assert n_missing == 0
    for layer, location in zip(layers, locations, strict=True):
        info = manager.get_layer_info(layer)
        assert location["status"] == s.OK
        assert (location["offset"], location["size"]) == (info.offset, info.size)
        region = snapshot_of(manager).table_at(location["slot"])
        assert region.dimension_id == layer.dimension
        assert location["region"] == snapshot_of(manager).region_id_of(layer.dimension)
        assert region.layout.rows[location["row"]]["layer_num"] == layer.layer


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize(
    ("packed", "code"),
    [
        (int(LayerId(1, 4)), s.NO_SUCH_LAYER),  # dense, one past the last
        (int(LayerId(1, 65_535)), s.NO_SUCH_LAYER),
        (int(LayerId(20, 1)), s.NO_SUCH_LAYER),  # a gap
        (int(LayerId(20, 65_534)), s.NO_SUCH_LAYER),
        (int(LayerId(2, 0)), s.NO_DIMENSION),
        (int(LayerId(65_535, 0)), s.NO_DIMENSION),
        (0, s.NO_DIMENSION),
        (-1, s.NO_DIMENSION),
        (2**62, s.NO_DIMENSION),
        (-(2**63), s.NO_DIMENSION),
    ],
)
def test_what_is_not_there_gets_a_code(manager, packed, code):
    n_missing, locations = locations_of(manager, [packed, int(LayerId(1, 0))])
    assert n_missing == 1
    assert locations["status"].tolist() == [code, s.OK]
    assert locations[0]["slot"] == locations[0]["row"] == locations[0]["region"] == s.ABSENT


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize(
    ("start", "end"), [(0, 10**9), (10**9, 10**9), (100, 99), (2**63, 2**63 + 1), (0, 2**64 - 1)]
)
def test_a_row_that_changed_since_it_was_checked_is_refused(tmp_path, start, end):
    builder = RegionBuilder("D30", "Changing")
    builder.add_layer(0, b"content")
    path = tmp_path / "D30" / "region.mmap"
    region = builder.build_to_file(path)
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D30")
        row_offset = region.layout.rows.ctypes.data - region.data.ctypes.data
        with path.open("r+b") as file:
            file.seek(row_offset)
            file.write(np.array([start, end], "<u8").tobytes())
        n_missing, locations = locations_of(manager, [int(LayerId(30, 0))])
        assert (n_missing, locations[0]["status"]) == (1, s.OUT_OF_BOUNDS)


def test_the_arrays_keep_what_they_point_at_alive(tmp_path):
    builder = RegionBuilder("D30", "Kept")
    builder.add_layer(0, b"content")
    builder.build_to_file(tmp_path / "D30" / "region.mmap")
    manager = MmapManager(base_path=tmp_path)
    manager.load_dimension("D30")
    directory = snapshot_of(manager).directory[:]
    manager.close()
    del manager
    locations = np.zeros(1, s.LOCATION)
    ids = np.array([LayerId(30, 0)], np.int64)
    touched = np.zeros(64 * len(directory), np.uint8)
    assert lookup.locate_many(directory, ids, locations, touched) == 0


def test_published_arrays_cannot_be_written(manager):
    array = snapshot_of(manager).directory
    with pytest.raises(ValueError, match="read-only"):
        array[0] = array[0]
