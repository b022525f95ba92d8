"""What must hold of any bytes that are taken for a region file, or for a part of one.

They are refused with an error of ours that says why and where, or all that can be asked is answered
within them: read one by one and in batches, described, verified, and written again.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from jessymem import DimensionId, LayerId, MmapRegion, OutOfBounds, RegionFormatError, osmem
from jessymem.kernels import gather, lookup
from jessymem.kernels import schema as s
from jessymem.regions import layout
from jessymem.regions.encoding import write_layout
from jessymem.regions.table import address_of
from support import naive

#: What one file may make the package allocate, in bytes per byte of the file and at least.
PER_BYTE, AT_LEAST = 64, 2**18


def ask(question: Any, *arguments: Any) -> Any:
    """Return the answer, or the error where the file breaks the format."""
    try:
        return question(*arguments)
    except RegionFormatError as error:
        return error


def is_refused(answer: Any, raw: bytes) -> bool:
    """Tell whether an answer is a refusal, and check that it says why and where."""
    if not isinstance(answer, RegionFormatError):
        return False
    assert answer.field and isinstance(answer.field, str)
    assert 0 <= answer.offset <= len(raw)
    assert answer.path and str(answer.offset) in str(answer)
    return True


def load(raw: bytes) -> MmapRegion:
    data = np.frombuffer(raw, np.uint8)
    return MmapRegion(DimensionId(1), None, data, s.REGION_COPIED, None)


def check(raw: bytes) -> str:
    """Try a file in every way; return "refused", "plain" or "extended"."""
    region = ask(load, raw)
    if is_refused(region, raw):
        return "refused"
    if region.frames is not None:
        check_compressed(region, raw)
        return "extended"
    check_layers(region, raw)
    verified = not is_refused(ask(region.verify_integrity, "full"), raw)
    if region.generation == 0 or verified:
        check_against_naive(region, raw)
    check_written_again(region, raw)
    check_batches(region, raw)
    return "extended" if region.generation else "plain"


def check_layers(region: MmapRegion, raw: bytes) -> None:
    """Check that every layer lies in the file, apart from the others, and can be asked for."""
    ids = region.list_layers()
    assert ids == sorted(set(ids))
    end_of_last = region.layout.content_start
    extents = []
    for row, layer_id in enumerate(ids):
        assert region.find_row(layer_id) == row
        info = ask(region.get_layer_info, layer_id)
        start, end = (int(region.layout.rows[row][f"content_{at}"]) for at in ("offset", "end"))
        assert 0 <= start <= end <= len(raw)
        assert region.content_of(row) == raw[start:end]
        if end > start:
            extents.append((start, end))
        array = ask(is_array_of, region, layer_id, raw[start:end])
        assert is_refused(array, raw) <= is_refused(info, raw)
        if not is_refused(info, raw):
            assert (info.dtype is not None) == (array is True)
            assert (info.layer_id, info.offset, info.size) == (layer_id, start, end - start)
            assert np.isfinite(info.frequency) and 0 <= info.depth <= 255
            assert all(isinstance(text, str) for text in (info.name, *info.keywords))
    for start, end in sorted(extents):
        assert start >= end_of_last
        end_of_last = end
    for question in (lambda: region.metadata, lambda: region.keyword_index):
        is_refused(ask(question), raw)
    region.describe_into(np.zeros(1, s.REGION)[0])


def check_compressed(region: MmapRegion, raw: bytes) -> None:
    """Check that each layer of a file with compressed ones is read as it says, or refused."""
    ids = region.list_layers()
    assert ids == sorted(set(ids))
    verified = ask(region.verify_integrity, "full")
    for row, layer_id in enumerate(ids):
        content = ask(region.content_of, row)
        info = ask(region.get_layer_info, layer_id)
        if not is_refused(info, raw):
            assert info.stored_size <= len(raw)
            assert info.size <= s.MAX_EXPANSION * info.stored_size
            assert info.compression or info.stored_size == info.size
        if is_refused(content, raw):
            assert is_refused(verified, raw)
            continue
        array = ask(is_array_of, region, layer_id, bytes(content))
        if not (is_refused(info, raw) or is_refused(array, raw)):
            assert len(content) == info.size
        if region.frames.has(row):
            checksum = int(region.rows[row]["content_xxh3"])
            assert xxhash.xxh3_64_intdigest(content) == checksum
    for question in (lambda: region.metadata, lambda: region.keyword_index, region.drafts):
        is_refused(ask(question), raw)
    asked = [*map(int, ids), (1 << s.LAYER_BITS) + 7, -1, 5]
    found = batch(region, np.array(asked, np.int64))
    assert np.all(found["size"] <= s.MAX_CONTENT_BYTES)
    told = np.where(region.frames.is_stored, s.COMPRESSED, s.OK)
    assert found["status"][: len(ids)].tolist() == told.tolist()


def is_array_of(region: MmapRegion, layer_id: LayerId, content: bytes) -> bool:
    """Tell whether a layer is an array; check that one has just the bytes of its content."""
    try:
        array = region.read_array(layer_id)
    except TypeError as error:
        assert "is no array" in str(error)
        return False
    assert not array.flags.writeable and not array.dtype.hasobject
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    assert array.tobytes(order) == content
    return True


def check_against_naive(region: MmapRegion, raw: bytes) -> None:
    """Check that the plain reader sees the same layers."""
    told = {layer.layer: layer for layer in naive.read_plain(raw).layers}
    assert [layer_id.layer for layer_id in region.list_layers()] == sorted(told)
    for row, (_, layer) in enumerate(sorted(told.items())):
        assert region.content_of(row) == layer.content
        assert region.layout.rows[row]["depth"] == layer.depth
        assert struct.pack("<f", region.layout.rows[row]["frequency"]) == struct.pack(
            "<f", layer.frequency
        )
        keywords = tuple(keyword.decode(errors="replace") for keyword in layer.keywords)
        assert region.keywords_of(row) == keywords


def check_written_again(region: MmapRegion, raw: bytes) -> None:
    """Check that what is written again, as crystallizing does, is the same layers."""
    drafts = ask(region.drafts)
    if is_refused(drafts, raw):
        return
    total, pieces = write_layout(region.dimension_id, region.name.encode(), drafts, 2, 3)
    again = load(b"".join(pieces))
    assert again.size == total <= 2 * len(raw) + 256 * (len(drafts) + 2)
    assert (again.name, again.generation) == (region.name, 2)
    assert again.list_layers() == region.list_layers()
    for row in range(len(drafts)):
        assert again.content_of(row) == region.content_of(row)
        for told_by in (MmapRegion.name_of, MmapRegion.keywords_of, MmapRegion.parent_of):
            told = ask(told_by, region, row)
            assert is_refused(told, raw) or told_by(again, row) == told


def check_batches(region: MmapRegion, raw: bytes) -> None:
    """Check that kernels find just the layers, and copy their bytes; after a rewriting, no others.

    Kernels go by addresses: what they must not read is what lies around the region.
    """
    numbers = region.numbers.tolist()
    asked = sorted({n + step for n in (*numbers, 0, 65_535) for step in (-1, 0, 1)})
    packed = np.array([(1 << s.LAYER_BITS) + n for n in asked] + [-1, 5, 2**62], np.int64)
    found = batch(region, packed)
    assert {int(packed[i]) & 65_535 for i in np.flatnonzero(found["status"] == s.OK)} == set(
        numbers
    )
    data = np.frombuffer(bytearray(raw), np.uint8)
    rewritten = MmapRegion(DimensionId(1), None, data, s.REGION_COPIED, None)
    rng = random.Random(len(raw) + sum(raw[:300]))
    if rewritten.layout.is_extended:
        at = int(rewritten.layout.table_offset or 0)
        table = data[at : at + rewritten.rows.nbytes]
        for _ in range(8 * len(numbers)):
            number = rng.choice([0, 2**63, 2**64 - 1, len(raw) + 1, rng.randrange(2 * len(raw))])
            place = 8 * rng.randrange(len(table) // 8)
            table[place : place + 8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        batch(rewritten, packed)
        for row in range(len(numbers)):
            try:
                assert len(rewritten.content_of(row)) <= len(raw)
            except OutOfBounds:
                pass


def batch(region: MmapRegion, packed: Any) -> Any:
    """Look ids up and gather what is found, as a batch does; check that all is inside."""
    regions = np.zeros(s.CHUNK_ROWS, s.REGION)
    region.describe_into(regions[1])
    directory = np.array([address_of(regions)], s.DIRECTORY)
    directory.flags.writeable = regions.flags.writeable = False
    touched, found = np.zeros(s.CHUNK_ROWS, bool), np.zeros(len(packed), s.LOCATION)
    n_missing = lookup.locate_many(directory, packed, found, touched)
    is_found = found["status"] == s.OK
    assert n_missing == len(packed) - np.count_nonzero(is_found)
    assert np.all(found["offset"] >= 0) and np.all(found["size"] >= 0)
    assert np.all((found["offset"] + found["size"])[is_found] <= region.size)
    offsets = np.zeros(len(found) + 1, np.int64)
    n_bytes = int(gather.sum_sizes(found, offsets))
    if np.any(found["status"] == s.COMPRESSED):
        return found
    if n_bytes <= 4 * region.size:  # of a rewritten table every row may be the whole file
        out = np.zeros(n_bytes, np.uint8)
        gather.copy_layers(directory, found, offsets, out)
        at = 0
        for where in found[is_found]:
            piece = region.data[where["offset"] : where["offset"] + where["size"]]
            assert np.array_equal(out[at : at + len(piece)], piece)
            at += len(piece)
    return found


def check_as_file(raw: bytes, outcome: str, path: Path) -> None:
    """Check that a file on disk is judged as its bytes are, mapped and copied."""
    path.write_bytes(raw)
    for mode in ("map", "copy"):
        region = ask(lambda mode=mode: MmapRegion.from_file(1, path, load_mode=mode))
        assert is_refused(region, raw) == (outcome == "refused")
        if outcome != "refused":
            assert region.read_content(0, region.size) == raw
            verified = ask(region.verify_integrity, "full")
            assert is_refused(verified, raw) == is_refused(
                ask(load(raw).verify_integrity, "full"), raw
            )


def check_memory(raw: bytes) -> None:
    """Check that a file makes nobody allocate more than its length explains.

    The interpreter's own tables grow now and then, so a peak counts if it comes each time.
    """
    peaks = (measure_peak(raw) for _ in range(3))
    assert any(peak < PER_BYTE * len(raw) + AT_LEAST for peak in peaks)


def measure_peak(raw: bytes) -> int:
    tracemalloc.start()
    try:
        check(raw)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Guarded:
    """Memory that ends where reading on is a crash, where the system has such."""

    def __init__(self, n_bytes: int) -> None:
        page = mmap.PAGESIZE
        self.memory = mmap.mmap(-1, osmem.round_to_pages(n_bytes) + page)
        self.end = len(self.memory) - page
        if sys.platform == "linux":
            address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + self.end
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def parse(self, raw: bytes) -> None:
        """Read the plain entries of a file that ends where the memory does."""
        start = self.end - len(raw)
        self.memory[start : self.end] = raw
        data = np.frombuffer(self.memory, np.uint8, len(raw), start)
        source = layout.Source(DimensionId(1), "memory")
        header = ask(layout.read_header, data, source)
        if not is_refused(header, raw):
            is_refused(ask(layout.read_plain, data, header, source), raw)
