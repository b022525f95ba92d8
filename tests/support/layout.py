"""Bytes of region files, laid out, loaded, and refused where they break a rule."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from jessymem import DimensionId, MmapRegion, RegionBuilder, RegionFormatError
from jessymem.kernels import schema as s
from support import naive


def load(raw, dimension=1):
    """Load bytes as a region, without a file."""
    data = np.frombuffer(raw, np.uint8)
    return MmapRegion(DimensionId(dimension), None, data, s.REGION_COPIED, None)


def bytes_of(region):
    return bytes(region.read_content(0, region.size))


def contents_of(region):
    return {
        info.layer_id.layer: bytes(region.read_content(info.offset, info.size))
        for info in region.metadata.layers
    }


def lay_out(*layers, dimension=1, name="Name"):
    """Lay out a region with an extension; a layer is (number, content) or has keywords beside."""
    builder = RegionBuilder(dimension, name)
    for number, content, *more in layers:
        builder.add_layer(number, content, **(more[0] if more else {}))
    return bytes_of(builder.build_to_memory())


def ignored_fields(caplog):
    """Return which checksum each "extension ignored" record names, and check the records."""
    records = [record for record in caplog.records if record.name == "jessymem"]
    for record in records:
        assert record.levelno == logging.WARNING
        assert record.event == "extension_ignored"
        assert record.dimension == "D01"
        assert record.path and record.path in record.getMessage()
        assert record.field in record.getMessage()
    return [record.field for record in records]


RICH = lay_out(
    (0, "first", {"name": "one", "keywords": ["a", "b"]}),
    (2, b"", {"name": "two"}),
    (5, b"third" * 30, {"keywords": ["c"], "parent": "L01-00", "depth": 2}),
)


START = naive.get_field(RICH, "content_start")


def check_refused(raw, field, offset, expected, got, tmp_path):
    """Check that a file is refused, by which rule, and that the error tells all of it."""
    path = tmp_path / "region.mmap"
    path.write_bytes(raw)
    with pytest.raises(RegionFormatError) as caught:
        MmapRegion.from_file(1, path)
    error = caught.value
    assert (error.field, error.offset) == (field, offset)
    assert (error.expected, error.got) == (expected, got)
    assert (error.path, error.dimension) == (str(path), DimensionId(1))
    told = f"D01: {path}: {field} at byte {offset}: expected {expected}, got "
    assert str(error).startswith(told + (got if isinstance(got, str) else repr(got))[:100])
    assert isinstance(error, ValueError)
