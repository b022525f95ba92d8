"""Every dtype, offset, limit and code of the engine, field by field; imports no numba.

Words used throughout: a *dimension* is one region file, a *layer* a block of bytes in it; a *row*
is a position in a table of layers or regions; an *offset* counts bytes from the start of a region;
an *address* is a place in this process's memory. Called by everything; calls nothing.
"""

from __future__ import annotations

import sys
from typing import Final

import numpy as np

# -- numbers and ids -------------------------------------------------------------------------------

MAX_DIMENSION: Final = 65_535
MAX_LAYER: Final = 65_535
LAYER_BITS: Final = 16  # a packed layer id is dimension << LAYER_BITS | layer
N_CORE_DIMENSIONS: Final = 14
FIRST_USER_DIMENSION: Final = 32_768  # D15 .. D32767 are grown, D32768 and above belong to the user

# -- the region file, version 1 (docs/format.md) ---------------------------------------------------
#
#   0  HEADER                 256 bytes; its reserved part may hold an EXTENSION
# 256  layer_count x entry    LAYER_ENTRY, keywords, LAYER_EXTENT: variable length, any order
#      table                  layer_count x LAYER, sorted by layer_num   (extension only)
#      heap                   names and keywords                          (extension only)
#      content blocks         on 64-byte boundaries when written here

MAGIC: Final = b"JESSY_MMAP_V1\0\0\0"
FORMAT_VERSION: Final = 1
MAX_NAME_BYTES: Final = 64

HEADER: Final = np.dtype(
    [
        ("dimension_id", "<u4"),
        ("dimension_name_len", "<u4"),
        ("dimension_name", f"V{MAX_NAME_BYTES}"),
        ("total_size", "<u8"),
        ("layer_count", "<u4"),
        ("magic", f"V{len(MAGIC)}"),
        ("reserved", "V156"),
    ]
)

# What precedes and what follows the keywords of one plain entry.
LAYER_ENTRY: Final = np.dtype(
    [("layer_num", "<u2"), ("depth", "u1"), ("frequency", "<f4"), ("keyword_count", "<u4")]
)
LAYER_EXTENT: Final = np.dtype([("content_offset", "<u8"), ("content_size", "<u4")])
KEYWORD_LENGTH_BYTES: Final = 4
MIN_ENTRY_BYTES: Final = LAYER_ENTRY.itemsize + LAYER_EXTENT.itemsize

EXTENSION_MAGIC: Final = b"JMX1"

# Announced in the header's reserved bytes; header_xxh3 covers every byte of the header before it.
EXTENSION: Final = np.dtype(
    [
        ("extension_magic", f"V{len(EXTENSION_MAGIC)}"),
        ("generation", "<u8"),
        ("created_at", "<u8"),  # nanoseconds since 1970-01-01 UTC
        ("table_offset", "<u8"),
        ("heap_offset", "<u8"),
        ("heap_size", "<u8"),
        ("content_start", "<u8"),  # all bytes before it are metadata
        ("metadata_xxh3", "<u8"),  # of the bytes from the header's end to content_start
        ("padding", "V88"),  # zero
        ("header_xxh3", "<u8"),
    ]
)

# One layer: the same 64 bytes in a file's table, and in a table built in memory.
LAYER: Final = np.dtype(
    [
        ("content_offset", "<u8"),
        ("content_end", "<u8"),  # offset + length, so that a reader adds nothing
        ("content_xxh3", "<u8"),
        ("parent", "<u4"),  # packed layer id, 0: none
        ("frequency", "<f4"),
        ("layer_num", "<u2"),
        ("depth", "u1"),
        ("encoding", "u1"),  # ENCODING_*
        ("keyword_count", "<u4"),
        ("name_offset", "<u4"),  # in the heap
        ("name_size", "<u4"),
        ("keywords_offset", "<u4"),  # in the heap: keyword_count x { u32 length, UTF-8 bytes }
        ("keywords_size", "<u4"),
        ("padding", "<u8"),  # zero
    ]
)

ENCODING_BYTES: Final = 0
ENCODING_TEXT: Final = 1  # UTF-8
ENCODING_ARRAY: Final = 2

ALIGNMENT: Final = 64  # of the table, the first block and every block after it
HEADER_BYTES: Final = HEADER.itemsize
LAYER_BYTES: Final = LAYER.itemsize
RESERVED_OFFSET: Final = HEADER.fields["reserved"][1]  # type: ignore[index]
CHECKED_HEADER_BYTES: Final = RESERVED_OFFSET + EXTENSION.fields["header_xxh3"][1]  # type: ignore[index]

MAX_LAYERS: Final = MAX_LAYER + 1
MAX_KEYWORDS: Final = 4_096  # of one layer
MAX_METADATA_BYTES: Final = 64 * 2**20  # everything before the content blocks
MAX_GENERATION: Final = 2**63 - 1
MAX_CONTENT_BYTES: Final = 2**32 - 1  # of one layer: content_size is a u32

# -- the published state ---------------------------------------------------------------------------

DIRECTORY: Final = np.dtype("i4")  # dimension number -> row of the region table
ABSENT: Final = -1
LAYER_INDEX: Final = np.dtype("u2")  # layer_num -> row of the layer table, where numbers have gaps
NO_LAYER: Final = 0xFFFF  # in a LAYER_INDEX: a table with gaps has at most 65,535 rows

# One dimension's slot. Addresses point into memory that the array's base keeps alive.
REGION: Final = np.dtype(
    [
        ("table_address", "i8"),  # LAYER[n_layers]
        ("n_layers", "i8"),
        ("index_address", "i8"),  # LAYER_INDEX[n_index], 0: row = layer_num
        ("n_index", "i8"),
        ("content_address", "i8"),  # of the region's first byte
        ("n_bytes", "i8"),  # the region's length
        ("n_charged", "i8"),  # what the budget counts: n_bytes in whole pages
        ("capacity", "i8"),  # of a core slot, 0: none
        ("generation", "i8"),
        ("region_id", "i4"),
        ("dimension", "i4"),
        ("state", "i4"),  # REGION_*
        ("padding", "u1", (44,)),
    ]
)

REGION_EMPTY: Final = 0
REGION_MAPPED: Final = 1  # a file's pages
REGION_COPIED: Final = 2  # a file's bytes in private memory
REGION_SIMULATED: Final = 3

REGION_STATES: Final = {
    REGION_EMPTY: "empty",
    REGION_MAPPED: "mapped",
    REGION_COPIED: "copied",
    REGION_SIMULATED: "simulated",
}

# Where a layer was found: what `locate` writes.
LOCATION: Final = np.dtype(
    [
        ("content_offset", "i8"),
        ("content_end", "i8"),
        ("region_row", "i4"),
        ("layer_row", "i4"),
        ("code", "i4"),  # OK or NO_*
        ("padding", "i4"),
    ]
)

# -- what kernels return ---------------------------------------------------------------------------

OK: Final = 0
NO_DIMENSION: Final = -1
NO_SUCH_LAYER: Final = -2
OUT_OF_BOUNDS: Final = -3

# `parse_entries` ran into: the end of the file, a count, a number, a place that the format forbids.
BAD_ENTRY: Final = -10
BAD_KEYWORD_COUNT: Final = -11
BAD_KEYWORD_LENGTH: Final = -12
BAD_EXTENT: Final = -13
BAD_FREQUENCY: Final = -14
BAD_METADATA_SIZE: Final = -15

# What `parse_entries` reports beside its code.
FAULT: Final = np.dtype([("entry", "i8"), ("offset", "i8"), ("expected", "i8"), ("got", "i8")])

# -- what must hold --------------------------------------------------------------------------------

CACHE_LINE_BYTES: Final = 64

if sys.byteorder != "little":
    raise ImportError("jessymem maps little-endian files and needs a little-endian machine")
if HEADER_BYTES != 256 or RESERVED_OFFSET != 100:
    raise AssertionError("the header is 256 bytes, its reserved part begins at 100")
if EXTENSION.itemsize != HEADER_BYTES - RESERVED_OFFSET:
    raise AssertionError("an extension fills the reserved bytes exactly")
if CHECKED_HEADER_BYTES != HEADER_BYTES - 8:
    raise AssertionError("the header's checksum is its last eight bytes")
if LAYER_BYTES != CACHE_LINE_BYTES or REGION.itemsize != 2 * CACHE_LINE_BYTES:
    raise AssertionError("rows fill whole cache lines")
if MIN_ENTRY_BYTES != 23:
    raise AssertionError("a plain entry without keywords is 23 bytes")
