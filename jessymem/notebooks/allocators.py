"""An allocator as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jessymem.notebooks.markup import NOTHING, Html, escape, facts, heading, joined, section
from jessymem.notebooks.usage import bar, legend, parts_of, pools_of, show_usage
from jessymem.units import count, show_bytes

if TYPE_CHECKING:
    from jessymem.pools.allocator import PoolAllocator


def view(allocator: PoolAllocator) -> Html:
    """Show an allocator, open or closed."""
    blocks, usage = allocator.look()
    limit = allocator.usage[1]
    in_use = [part for part in parts_of(usage.total, usage.per_class) if part.n_bytes > 0]
    used = show_usage(usage.total, limit)
    pools = count(len(blocks.per_pool), "pool")
    held = {
        "in use": used,
        "peak": show_bytes(usage.peak),
        "asked for": show_bytes(blocks.n_requested),
        "waiting for views": show_bytes(blocks.n_waiting),
        "retained": show_bytes(blocks.n_retained),
    }
    counted = {
        "allocations": f"{blocks.n_allocations:,}",
        "deallocations": f"{blocks.n_deallocations:,}",
        "refused": f"{allocator.n_failures:,}",
        "not asked for in blocks": f"{100 * blocks.fragmentation_ratio:.1f} %",
        "longest free run": show_bytes(blocks.largest_free_run),
    }
    return joined(
        [
            heading("PoolAllocator", NOTHING, f"{used}, {pools}"),
            bar(in_use, limit, f"budget: {used}"),
            legend(in_use),
            facts((name, escape(text)) for name, text in held.items()),
            pools_of(blocks.per_pool, is_open=True),
            section(
                "Counters",
                count(blocks.n_allocations, "allocation"),
                facts((name, escape(text)) for name, text in counted.items()),
            ),
        ]
    )
