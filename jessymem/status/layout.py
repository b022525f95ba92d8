"""The status file: one record of fixed size, little-endian, written whole.

::

    STATUS  begin_sequence   = end_sequence, or it was read in the middle of a write
            checksum         XXH3-64 of all that lies between it and end_sequence
            magic, version, n_bytes
            process          pid, when it started, what it is
            manager          store, thresholds, times
            counters         the numbers of MemoryStats
            classes[5]       of the budget
            dimensions[256]  the largest in memory; n_dimensions says how many are loaded
            pools[127]
            placement        pages and nodes, where they were asked for
            latencies[9]     a histogram each
            end_sequence
"""

from __future__ import annotations

from typing import Final

import numpy as np

from jessymem.histograms import N_BUCKETS
from jessymem.latencies import KINDS

MAGIC: Final = b"JESSY_STATUS\0\0\0\1"
VERSION: Final = 1

MAX_DIMENSIONS: Final = 256
MAX_POOLS: Final = 127
MAX_NODES: Final = 64
N_CLASSES: Final = 5
STORE_BYTES: Final = 1024
COMMAND_BYTES: Final = 256
NAME_BYTES: Final = 64

#: The numbers of `MemoryStats` that are one number each, in its order.
COUNTERS: Final = np.dtype(
    [
        ("total_allocated_bytes", "<i8"),
        ("total_used_bytes", "<i8"),
        ("total_limit_bytes", "<i8"),
        ("utilization", "<f8"),
        ("peak_usage_bytes", "<i8"),
        ("waiting_bytes", "<i8"),
        ("retained_bytes", "<i8"),
        ("inflated_layers", "<i8"),
        ("inflated_bytes", "<i8"),
        ("fragmentation_ratio", "<f8"),
        ("largest_free_run_bytes", "<i8"),
        ("total_allocations", "<i8"),
        ("total_deallocations", "<i8"),
        ("allocation_failures", "<i8"),
        ("evictions", "<i8"),
        ("reloads", "<i8"),
        ("dimensions_loaded", "<i8"),
        ("layers_loaded", "<i8"),
        ("active_regions", "<i8"),
        ("avg_access_latency_us", "<f8"),
        ("peak_concurrent_readers", "<i8"),
        ("simulation_mode", "<i8"),
    ]
)

CLASS: Final = np.dtype([("name", "S16"), ("allocated_bytes", "<i8"), ("limit_bytes", "<i8")])

DIMENSION: Final = np.dtype(
    [
        ("number", "<i4"),
        ("state", "<i4"),  # REGION_* of the schema
        ("n_layers", "<i8"),
        ("n_learned", "<i8"),
        ("n_charged", "<i8"),
        ("generation", "<i8"),
        ("is_pinned", "<i8"),
        ("name", f"S{NAME_BYTES}"),  # UTF-8
    ]
)

POOL: Final = np.dtype(
    [
        ("pool_id", "<i4"),
        ("kind", "<i4"),  # POOL_* of the schema
        ("block_size", "<i8"),
        ("total_blocks", "<i8"),
        ("used_blocks", "<i8"),
        ("failures", "<i8"),
        ("pages", "<i4"),  # position in PAGES
        ("node", "<i4"),  # its number plus one; 0: any
    ]
)

#: What the pages of a pool may be asked to be.
PAGES: Final = ("small", "thp", "2MB", "1GB")

#: What `PlacementStats` says; nothing was asked for where `huge_pages` is empty.
PLACEMENT: Final = np.dtype(
    [
        ("huge_pages", "S8"),
        ("numa", "S16"),
        ("policy", "S16"),
        ("note", f"S{NAME_BYTES}"),
        ("n_nodes", "<i8"),
        ("huge_bytes", "<i8", (len(PAGES),)),  # as PAGES
        ("n_listed", "<i8"),
        ("node_bytes", [("node", "<i8"), ("n_bytes", "<i8")], (MAX_NODES,)),
    ]
)

LATENCY: Final = np.dtype(
    [("kind", "S32"), ("total_ns", "<i8"), ("max_ns", "<i8"), ("counts", "<i8", (N_BUCKETS,))]
)

#: Shares of the limit, as `MemoryConfig.thresholds` has them.
THRESHOLDS: Final = np.dtype([("warning", "<f8"), ("eviction", "<f8"), ("critical", "<f8")])

STATUS: Final = np.dtype(
    [
        ("begin_sequence", "<i8"),
        ("checksum", "<u8"),
        ("magic", "V16"),
        ("version", "<i4"),
        ("n_bytes", "<i4"),
        ("pid", "<i8"),
        ("process_started", "<i8"),  # as `processes.start_of` tells it; 0: it cannot tell
        ("namespace", "<i8"),  # in which the pid is one, as `processes.namespace` tells it
        ("command", f"S{COMMAND_BYTES}"),
        ("release", "S32"),  # of jessymem
        ("store", f"S{STORE_BYTES}"),
        ("thresholds", THRESHOLDS),
        ("made_at_ns", "<i8"),  # since 1970, as all times
        ("written_at_ns", "<i8"),
        ("interval_ns", "<i8"),
        ("n_dimensions", "<i4"),
        ("n_listed", "<i4"),
        ("n_pools", "<i4"),
        ("padding", "<i4"),
        ("counters", COUNTERS),
        ("classes", CLASS, (N_CLASSES,)),
        ("dimensions", DIMENSION, (MAX_DIMENSIONS,)),
        ("pools", POOL, (MAX_POOLS,)),
        ("placement", PLACEMENT),
        ("latencies", LATENCY, (len(KINDS),)),
        ("end_sequence", "<i8"),
    ]
)

N_BYTES: Final = STATUS.itemsize

#: What the checksum is made of.
SUMMED: Final = slice(16, N_BYTES - 8)
