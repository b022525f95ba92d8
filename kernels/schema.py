"""Every dtype, offset, limit and code of the engine, field by field; imports no numba.

Words used throughout: a *dimension* is one region file, a *layer* a block of bytes in it; a *row*
is a position in a table of layers or regions; an *offset* counts bytes from the start of a region;
an *address* is a position in this process's memory. Called by everything; calls nothing.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np


def word_of(dtype: np.dtype[Any], field: str) -> int:
    """Return which 64-bit word of a row a field is."""
    return int(dtype.fields[field][1]) // 8  # type: ignore[index]


# -- numbers and ids -------------------------------------------------------------------------------

MAX_DIMENSION: Final = 65_535
MAX_LAYER: Final = 65_535
LAYER_BITS: Final = 16  # a packed layer id is dimension << LAYER_BITS | layer
N_CORE_DIMENSIONS: Final = 14
FIRST_USER_DIMENSION: Final = 32_768  # D15 .. D32767 are grown, D32768 and above belong to the user

# -- the region file, versions 1 and 2 (docs/format.md) --------------------------------------------
#
#   0  HEADER                 256 bytes; its reserved part may hold an EXTENSION
# 256  layer_count x entry    LAYER_ENTRY, keywords, LAYER_EXTENT: variable length, any order
#      table                  layer_count x LAYER, sorted by layer_num   (extension only)
#      heap                   names, keywords, arrays' descriptions       (extension only)
#      frames, dictionary     of compressed layers                        (version 2 only)
#      content blocks         on 64-byte boundaries when written here

MAGIC: Final = b"JESSY_MMAP_V1\0\0\0"
COMPRESSED_MAGIC: Final = b"JESSY_MMAP_V2\0\0\0"  # of a file in which layers are compressed
VERSIONS: Final = {MAGIC: 1, COMPRESSED_MAGIC: 2}
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
        ("follows_generation", "<u8"),  # of a delta: what it follows; else 0
        ("follows_created_at", "<u8"),
        ("follows_size", "<u8"),
        ("flags", "<u8"),  # FLAG_*
        ("replaces", "<u8"),  # the lowest generation of the deltas in whose place it is; 0: of none
        ("deleted_offset", "<u8"),  # of a delta: u16 numbers of deleted layers; 0: there are none
        ("n_deleted", "<u8"),
        ("frames_offset", "<u8"),  # of a file with compressed layers: FRAME[n_frames]; else 0
        ("n_frames", "<u8"),
        ("dictionary_offset", "<u8"),  # that its frames share; 0: there is none
        ("dictionary_size", "<u8"),
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
        ("array_offset", "<u4"),  # in the heap: what makes the content an array; 0: it is not one
        ("array_size", "<u4"),
    ]
)

FLAG_SIMULATION: Final = 1  # simulation was on when the file was written
KNOWN_FLAGS: Final = FLAG_SIMULATION

DELETED: Final = np.dtype("<u2")  # the number of a deleted layer

# Where the bytes of one compressed layer are stored. Its row says how long the content is: from
# COMPRESSED_AT, where no file has bytes, to so much behind it.
FRAME: Final = np.dtype(
    [
        ("stored_offset", "<u8"),
        ("stored_xxh3", "<u8"),  # of the stored bytes
        ("stored_size", "<u4"),
        ("layer_num", "<u2"),
        ("codec", "u1"),  # CODEC_*
        ("uses_dictionary", "u1"),  # 0 or 1
    ]
)
COMPRESSED_AT: Final = 2**62
CODEC_ZSTD: Final = 1  # one frame of RFC 8878
CODECS: Final = {CODEC_ZSTD: "zstd"}
MAX_EXPANSION: Final = 2**15  # of a stored byte: blocks of 128 KiB take four bytes at least
MAX_DICTIONARY_BYTES: Final = 2**20
FRAME_ALIGNMENT: Final = 8  # of the frames' table

ENCODING_BYTES: Final = 0
ENCODING_TEXT: Final = 1  # UTF-8
ENCODING_ARRAY: Final = 2  # with a description in the heap

ENCODINGS: Final = {ENCODING_BYTES: "bytes", ENCODING_TEXT: "text", ENCODING_ARRAY: "array"}

ALIGNMENT: Final = 64  # of the table, the first block and every block after it
HEADER_BYTES: Final = HEADER.itemsize
LAYER_BYTES: Final = LAYER.itemsize
RESERVED_OFFSET: Final[int] = HEADER.fields["reserved"][1]  # type: ignore[index]
CHECKED_HEADER_BYTES: Final[int] = RESERVED_OFFSET + EXTENSION.fields["header_xxh3"][1]  # type: ignore[index]

MAX_LAYERS: Final = MAX_LAYER + 1
MAX_KEYWORDS: Final = 4_096  # of one layer
MAX_METADATA_BYTES: Final = 64 * 2**20  # everything before the content blocks
MAX_GENERATION: Final = 2**63 - 1
MAX_ARRAY_HEADER_BYTES: Final = 10_000  # of one array's description; NumPy reads no longer ones
MAX_CONTENT_BYTES: Final = 2**32 - 1  # of one layer: content_size is a u32
MAX_DELTAS: Final = 16  # of one chain
DELTA_SHARE: Final = 4  # deltas written here are together at most such a part of the region file

# -- the published state ---------------------------------------------------------------------------

# A dimension's slot is its number. Slots lie in chunks of 64, of which a writer copies one to
# publish one dimension, whatever else is loaded; the directory leads from chunk to chunk.
CHUNK_BITS: Final = 6
CHUNK_ROWS: Final = 1 << CHUNK_BITS
DIRECTORY: Final = np.dtype("i8")  # dimension >> CHUNK_BITS -> address of REGION[CHUNK_ROWS]
DIRECTORY_BYTES: Final = DIRECTORY.itemsize
ABSENT: Final = -1
LAYER_INDEX: Final = np.dtype("u2")  # layer_num -> row of the layer table, where numbers have gaps
NO_LAYER: Final = 0xFFFF  # in a LAYER_INDEX: a table with gaps has at most 65,535 rows

# One dimension's slot. Addresses point into memory that the directory's base keeps alive.
REGION: Final = np.dtype(
    [
        ("table_address", "i8"),  # LAYER[n_layers]
        ("n_layers", "i8"),
        ("index_address", "i8"),  # LAYER_INDEX[n_index], 0: row = layer_num
        ("n_index", "i8"),
        ("content_address", "i8"),  # of the region's first byte
        ("n_bytes", "i8"),  # the region's length
        ("leads_outside", "i8"),  # whether contents may lie elsewhere in memory
        ("region_id", "i4"),
        ("dimension", "i4"),
        # What a look-up does not need.
        ("state", "i4"),  # REGION_*
        ("padding", "i4"),
        ("n_charged", "i8"),  # what the budget counts: n_bytes in whole pages
        ("capacity", "i8"),  # of a core slot, 0: none
        ("generation", "i8"),
        ("spare", "u1", (32,)),
    ]
)

REGION_BYTES: Final = REGION.itemsize

REGION_EMPTY: Final = 0
REGION_MAPPED: Final = 1  # a file's pages
REGION_COPIED: Final = 2  # a file's bytes in private memory
REGION_SIMULATED: Final = 3
REGION_LEARNED: Final = 4  # nothing but what is being learned
REGION_EVICTED: Final = 5  # known by its names only, until it is mapped again

REGION_STATES: Final = {
    REGION_EMPTY: "empty",
    REGION_MAPPED: "mapped",
    REGION_COPIED: "copied",
    REGION_SIMULATED: "simulated",
    REGION_LEARNED: "learned",
    REGION_EVICTED: "evicted",
}

# Where a layer was found: what a batch hands out. `slot` and `row` are rows of REGION and LAYER;
# the slot is the number of the dimension.
LOCATION: Final = np.dtype(
    [
        ("offset", "i8"),  # of the content, from the region's first byte
        ("size", "i8"),  # of the content
        ("region", "i4"),  # region id
        ("status", "i4"),  # OK, NO_*, OUT_OF_BOUNDS, EVICTED or COMPRESSED
        ("slot", "i4"),
        ("row", "i4"),
    ]
)

# -- scans -----------------------------------------------------------------------------------------

# A layer to be scanned. Whoever made the row vouches that the bytes are there.
SPAN: Final = np.dtype(
    [
        ("address", "i8"),  # of the content
        ("n_bytes", "i8"),
        ("layer", "i8"),  # packed layer id
        ("row_address", "i8"),  # of its LAYER row
    ]
)

N_PROBES: Final = 3  # bytes of a needle that are compared first
CASE_BIT: Final = 0x20  # set in the small letters of ASCII, and not in the capitals

# What is searched for, and how.
NEEDLE: Final = np.dtype(
    [
        ("address", "i8"),
        ("n_bytes", "i8"),
        ("offsets", "i8", (N_PROBES,)),  # in the needle, of the bytes that are compared first
        ("values", "i8", (N_PROBES,)),  # those bytes
        ("folds", "i8", (N_PROBES,)),  # what is set in a byte before it is compared with one
        ("critical", "i8"),  # of its critical factorization: where the right part begins
        ("period", "i8"),  # how far a full match lets the needle be moved
        ("is_periodic", "i8"),  # whether that period is the whole needle's
        ("is_folded", "i8"),  # whether its ASCII letters, all small, stand for capitals too
    ]
)

# A search at work: a piece of a list of SPANs, how far it has come, and where its finds go.
SEARCH: Final = np.dtype(
    [
        ("span", "i8"),  # row of the span that is searched next
        ("at", "i8"),  # in it: the first position where a find may begin
        ("last_span", "i8"),
        ("last_end", "i8"),  # in the last span: from here on no find may begin; 0: it is left out
        ("matched", "i8"),  # bytes of the needle that are known to be at `at`
        ("hits", "i8"),  # address of HIT[capacity]
        ("capacity", "i8"),
        ("n_hits", "i8"),
        ("address", "i8"),  # of the span at work
        ("layer", "i8"),  # its packed layer id
    ]
)

HIT: Final = np.dtype([("layer", "i8"), ("offset", "i8")])  # packed layer id, in its content

# -- pools and the budget --------------------------------------------------------------------------
#
# The state of an allocator is one array of 64-bit words, so that a kernel takes one argument, any
# word can be changed atomically, and a forked child owns a copy of all of it:
#
#   0            USED, then the free count of each pool: what every allocation changes lies together
#   PEAK .. END  COUNTERS on cache lines of their own, read often and written rarely
#   POOLS_AT     POOL[N_POOL_IDS]
#   SEGMENTS_AT  per pool: its bitmap, the summary of it, BLOCK[n_blocks]
#
# A *block* is the unit of one pool, a *run* a number of neighbouring blocks handed out as one. A
# *handle* is what the caller gets: pool, offset and generation in one integer.

WORD_BYTES: Final = 8
WORD_BITS: Final = 64
LINE_WORDS: Final = 8  # of a cache line

N_POOL_IDS: Final = 127

USED: Final = 0  # bytes charged: regions, blocks handed out, and what is waiting
FREE_COUNTS: Final = 1  # + pool id: blocks that may be claimed; CLOSED_POOL where there is no pool
CLOSED_POOL: Final = -(2**62)
PEAK: Final = 1 + N_POOL_IDS  # the highest USED
NODES_AT: Final = PEAK + 1  # of each processor what its node's pools have as `node`
N_PROCESSORS: Final = PEAK + 2  # in that table; 0: pools are not made node by node
PAGES_AT: Final = PEAK + 3  # by pool, how many of its blocks share a huge page; 0: none do
RESIDENT: Final = PEAK + LINE_WORDS  # bytes that may be in memory: used, and freed but retained
OF_REGIONS: Final = RESIDENT + 1  # of USED, what regions are charged
PLAIN_VERSION: Final = RESIDENT + 2  # changes with each step of plain kernels; see `transactions`
# Limits never fall: a thread that has read a higher one would pass the new one. Of a budget that
# was made smaller, the difference is held back: it is charged, so that nobody gets it.
HELD_BACK: Final = RESIDENT + 3  # of USED, OF_REGIONS, RESIDENT and all limits
LIMIT: Final = RESIDENT + LINE_WORDS  # what a region may fill
CRITICAL_LIMIT: Final = LIMIT + 1  # what blocks may fill
QUIET_LIMIT: Final = LIMIT + 2  # up to here no threshold, record or eviction is involved
RESIDENT_LIMIT: Final = LIMIT + 3
REARM_BELOW: Final = LIMIT + 4  # a fall of USED below is worth a note
FIRST_POOL: Final = LIMIT + 5  # the pool of the smallest blocks, NO_POOL_ID: there is none
INLINE_LIMIT: Final = LIMIT + 6  # larger requests take the way for large ones
ZERO_ON_REUSE: Final = LIMIT + 7
POOLS_AT: Final = LIMIT + LINE_WORDS

NO_POOL_ID: Final = -1

# One pool. The second line is written where something is full or rare.
POOL: Final = np.dtype(
    [
        ("address", "i8"),  # of its first byte
        ("block_bytes", "i8"),  # a power of two
        ("block_shift", "i8"),
        ("n_blocks", "i8"),
        ("bitmap_at", "i8"),  # first word of the bitmap: bit set = block free
        ("n_words", "i8"),  # also for blocks that it may grow by
        ("summary_at", "i8"),  # one bit a word of the bitmap: a hint where free blocks are
        ("blocks_at", "i8"),  # BLOCK[n_blocks]
        ("next_pool", "i8"),  # the pool with the next larger blocks
        ("kind", "i8"),  # POOL_*
        ("failures", "i8"),  # requests that it was chosen for and could not take
        ("rollbacks", "i8"),  # runs that lost a word to another thread and were undone
        ("first_generation", "i8"),  # of blocks never handed out since the pool was made
        ("past_allocations", "i8"),  # of earlier pools under this id
        ("max_blocks", "i8"),  # for which there are words
        ("node", "i8"),  # whose memory it is: number of the node, plus one; 0: of none
    ]
)
POOL_ABSENT: Final = 0
POOL_FIXED: Final = 1  # there for as long as its allocator
POOL_GROWN: Final = 2  # made where nothing fitted, unmapped once it is empty

POOL_KINDS: Final = {POOL_ABSENT: "absent", POOL_FIXED: "fixed", POOL_GROWN: "grown"}

# One block: what it is, in one word that threads exchange, and what was asked for.
BLOCK: Final = np.dtype([("status", "i8"), ("n_requested", "i8")])

#   status:  generation | views | dirty | state
STATE_MASK: Final = 7
BLOCK_FREE: Final = 0
BLOCK_ALLOCATED: Final = 1  # the first block of what was handed out
BLOCK_WAITING: Final = 2  # retired: freed, and still viewed
BLOCK_CONTINUED: Final = 3  # a further block of a run
BLOCK_RELEASING: Final = 4  # being freed together with others
BLOCK_DIRTY: Final = 8  # handed out since its pages were last returned
ONE_VIEW: Final = 16
VIEWS_MASK: Final = (2**20 - 1) * ONE_VIEW
GENERATION_SHIFT: Final = 24

# What the blocks of one pool add up to.
TALLY: Final = np.dtype(
    [
        ("n_free", "i8"),  # blocks
        ("n_dirty", "i8"),  # of the free ones, those whose pages were not returned
        ("n_longest_free", "i8"),  # of the runs of free blocks
        ("n_heads", "i8"),  # allocations that are live
        ("n_live", "i8"),  # their blocks
        ("n_waiting", "i8"),  # blocks that are retired and still viewed
        ("n_requested", "i8"),  # bytes, of what is live
        ("n_generations", "i8"),  # of all blocks, added up
    ]
)

#   handle:  pool | granule | generation
GRANULE_BYTES: Final = 64  # no block is smaller
GRANULE_SHIFT: Final = 6
HANDLE_GENERATION_BITS: Final = 28  # the low bits of the block's own
HANDLE_GENERATION_MASK: Final = 2**HANDLE_GENERATION_BITS - 1
HANDLE_GRANULE_BITS: Final = 28
HANDLE_GRANULE_MASK: Final = 2**HANDLE_GRANULE_BITS - 1
HANDLE_POOL_SHIFT: Final = HANDLE_GENERATION_BITS + HANDLE_GRANULE_BITS
POOL_BYTES_LIMIT: Final = GRANULE_BYTES << HANDLE_GRANULE_BITS
ANY_SIZE: Final = -1
N_TRIMMED_TOGETHER: Final = 256  # blocks whose pages are returned in one call
REQUEST_BYTES_LIMIT: Final = 2**62  # what is larger still is no more than that

# -- what kernels return ---------------------------------------------------------------------------

OK: Final = 0
NO_DIMENSION: Final = -1
NO_SUCH_LAYER: Final = -2
OUT_OF_BOUNDS: Final = -3
EVICTED: Final = -4  # the dimension has to be mapped again first
COMPRESSED: Final = -5  # the layer has to be inflated first

# `parse_entries` ran into: the end of the file, a forbidden count, number or offset.
BAD_ENTRY: Final = -10
BAD_KEYWORD_COUNT: Final = -11
BAD_KEYWORD_LENGTH: Final = -12
BAD_EXTENT: Final = -13
BAD_FREQUENCY: Final = -14
BAD_METADATA_SIZE: Final = -15

# Why nothing was allocated.
POOL_FULL: Final = -20
FRAGMENTED: Final = -21  # enough free blocks, but no run of them
NO_POOL: Final = -22  # no pool has such large blocks
OVER_LIMIT: Final = -23
RETAINED: Final = -24  # freed pages have to be returned first
BAD_SIZE: Final = -25
TOO_LARGE: Final = -26  # for the short way; the long one takes it
ROLLED_BACK: Final = -27  # another thread was quicker; what was claimed is released
IS_CLOSED: Final = -28
NOT_STARTED: Final = -29  # nothing is compiled yet; the allocator starts first

# Why nothing was freed or viewed.
NOT_A_POOL: Final = -40
NOT_A_BLOCK: Final = -41  # inside a block, or inside a run
PAST_END: Final = -42
FREED_TWICE: Final = -43
STALE: Final = -44  # the block has another owner by now
NEVER_ALLOCATED: Final = -45
WRONG_SIZE: Final = -46
TOO_MANY_VIEWS: Final = -47

# What a search may report beside OK: that it is to be called again.
HITS_FULL: Final = 1

# What freeing may report, added up.
IS_WAITING: Final = 1  # the block goes when its last view goes
IS_REARMED: Final = 2  # use has fallen below REARM_BELOW
IS_EMPTY: Final = 4  # a grown pool has no block left in use

# What `parse_entries` reports beside its code.
FAULT: Final = np.dtype([("entry", "i8"), ("offset", "i8"), ("expected", "i8"), ("got", "i8")])

# -- what must hold --------------------------------------------------------------------------------

CACHE_LINE_BYTES: Final = 64
POOL_WORDS: Final = POOL.itemsize // WORD_BYTES
BLOCK_WORDS: Final = BLOCK.itemsize // WORD_BYTES
SEGMENTS_AT: Final = POOLS_AT + N_POOL_IDS * POOL_WORDS

if sys.byteorder != "little":
    raise ImportError("jessymem maps little-endian files and needs a little-endian machine")
if HEADER_BYTES != 256 or RESERVED_OFFSET != 100:
    raise AssertionError("the header is 256 bytes, its reserved part begins at 100")
if EXTENSION.itemsize != HEADER_BYTES - RESERVED_OFFSET:
    raise AssertionError("an extension fills the reserved bytes exactly")
if CHECKED_HEADER_BYTES != HEADER_BYTES - 8:
    raise AssertionError("the header's checksum is its last eight bytes")
if LAYER_BYTES != CACHE_LINE_BYTES or REGION_BYTES != 2 * CACHE_LINE_BYTES:
    raise AssertionError("rows fill whole cache lines")
if POOL.itemsize != 2 * CACHE_LINE_BYTES or BLOCK.itemsize * 4 != CACHE_LINE_BYTES:
    raise AssertionError("pools fill two cache lines, blocks share one between four")
if any(at % LINE_WORDS for at in (USED, PEAK, RESIDENT, LIMIT, POOLS_AT)):
    raise AssertionError("counters begin cache lines")
if HANDLE_POOL_SHIFT + 7 != 63 or N_POOL_IDS >= 2**7:
    raise AssertionError("a handle is a positive 64-bit integer")
if FRAME.itemsize % FRAME_ALIGNMENT:
    raise AssertionError("frames are aligned where the first is")
if MIN_ENTRY_BYTES != 23:
    raise AssertionError("a plain entry without keywords is 23 bytes")
