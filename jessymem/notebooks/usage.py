"""What is in use, as HTML: the budget's bar, the pools, the counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from jessymem.notebooks.markup import (
    N_ROWS,
    NOTHING,
    Column,
    Html,
    escape,
    facts,
    joined,
    more,
    section,
    span,
    table,
)
from jessymem.notebooks.style import KINDS
from jessymem.units import count, show_bytes

if TYPE_CHECKING:
    from jessymem.pools.survey import PoolStats
    from jessymem.stats import ClassUsage, MemoryStats

#: The class of what no class of regions counts; an allocator's budget has no other.
BLOCKS: Final = "blocks"

_POOL_COLUMNS: Final = (
    Column("Pool"),
    Column("Block", is_number=True),
    Column("Used", is_number=True),
    Column("of", is_number=True),
    Column(""),
    Column("In use", is_number=True),
    Column("Passed on", is_number=True),
    Column("Kind"),
)


class Part(NamedTuple):
    """A part of the budget that is in use.

    Attributes
    ----------
    kind : str
        One of `style.KINDS`.
    label : str
    n_bytes : int
    """

    kind: str
    label: str
    n_bytes: int


def parts_of(total: int, per_class: Mapping[str, ClassUsage]) -> list[Part]:
    """Divide what is in use by class; where no class counts blocks, they are what is left."""
    sizes = {name: usage.allocated_bytes for name, usage in per_class.items()}
    sizes.setdefault(BLOCKS, max(total - sum(sizes.values()), 0))
    return [_part(name, n_bytes) for name, n_bytes in sizes.items()]


def _part(name: str, n_bytes: int) -> Part:
    return Part(name if name in KINDS else "other", name.replace("_", " "), n_bytes)


def share(n_bytes: float, limit: float) -> float:
    """Return a share of a limit, 0 to 1."""
    return min(max(n_bytes / limit, 0.0), 1.0) if limit > 0 else 0.0


def show_usage(n_bytes: int, limit_bytes: int) -> str:
    """Write what is in use of a limit: ``1.0 MB of 4.0 MB (25.0 %)``."""
    percent = 100 * n_bytes / limit_bytes if limit_bytes > 0 else 0.0
    return f"{show_bytes(n_bytes)} of {show_bytes(limit_bytes)} ({percent:.1f} %)"


def bar(parts: Iterable[Part], limit: int, about: str, marks: Sequence[float] = ()) -> Html:
    """Draw parts of a limit side by side, and marks at shares of it."""
    pieces = "".join(
        f'<i class="jm-{part.kind}" style="width:{100 * share(part.n_bytes, limit):.2f}%"'
        f' title="{escape(f"{part.label}: {show_bytes(part.n_bytes)}")}"></i>'
        for part in parts
        if part.n_bytes > 0
    )
    lines = "".join(
        f'<b style="left:{100 * mark:.2f}%" title="{100 * mark:g} %"></b>' for mark in marks
    )
    label = f'role="img" aria-label="{escape(about)}"'
    return Html(f'<div class="jm-bar" {label}>{pieces}{lines}</div>')


def small_bar(used: float, about: str, kind: str = BLOCKS) -> Html:
    """Draw one share in a table's cell."""
    return Html(
        f'<div class="jm-bar jm-small" role="img" aria-label="{escape(about)}">'
        f'<i class="jm-{kind}" style="width:{100 * share(used, 1):.1f}%"></i></div>'
    )


def legend(parts: Iterable[Part]) -> Html:
    """Say what the colours of a bar are, and how much each is."""
    keys = "".join(
        f'<span><span class="jm-key jm-{part.kind}"></span>'
        f"{escape(f'{part.label} {show_bytes(part.n_bytes)}')}</span>"
        for part in parts
    )
    return Html(f'<div class="jm-legend">{keys}</div>')


def budget_of(stats: MemoryStats, marks: Sequence[float] = ()) -> Html:
    """Show a budget by class, with what waits and what is retained."""
    parts = parts_of(stats.total_allocated_bytes, stats.per_class)
    used = show_usage(stats.total_allocated_bytes, stats.total_limit_bytes)
    in_use = [part for part in parts if part.n_bytes > 0]
    held = [("in use", used), ("peak", show_bytes(stats.peak_usage_bytes))]
    if stats.waiting_bytes:
        held.append(("waiting for views", show_bytes(stats.waiting_bytes)))
    if stats.retained_bytes:
        held.append(("retained", show_bytes(stats.retained_bytes)))
    if marks:
        held.append(("thresholds", ", ".join(f"{100 * mark:g} %" for mark in marks)))
    drawn = bar(in_use, stats.total_limit_bytes, f"budget: {used}", marks)
    listed = facts((name, escape(text)) for name, text in held)
    return joined([_alarm_of(stats), drawn, legend(in_use), listed])


def _alarm_of(stats: MemoryStats) -> Html:
    """Name the highest threshold that is passed; nothing below all of them."""
    passed = {
        "Above the critical threshold: allocations are refused": stats.should_reject_allocations,
        "Above the eviction threshold": stats.should_trigger_eviction,
        "Above the warning threshold": stats.is_at_warning_threshold,
    }
    alarm = next((text for text, is_passed in passed.items() if is_passed), None)
    return NOTHING if alarm is None else span("jm-bad", escape(alarm))


def classes_of(stats: MemoryStats) -> Html:
    """List the classes of the budget."""
    columns = (
        Column("Class"),
        Column("In use", is_number=True),
        Column("of", is_number=True),
        Column(""),
    )
    rows = (
        (
            escape(part.label),
            escape(show_bytes(part.n_bytes)),
            escape(show_bytes(usage.limit_bytes)),
            small_bar(share(part.n_bytes, usage.limit_bytes), f"{part.label} in use", part.kind),
        )
        for name, usage in stats.per_class.items()
        if (part := _part(name, usage.allocated_bytes))
    )
    return section("Classes", f"{len(stats.per_class):,}", table(columns, rows))


def pools_of(per_pool: Mapping[int, PoolStats], *, is_open: bool = False) -> Html:
    """List the pools."""
    n_used = sum(pool.used_blocks * pool.block_size for pool in per_pool.values())
    n_all = sum(pool.total_blocks * pool.block_size for pool in per_pool.values())
    if not per_pool:
        return section("Pools", "none", NOTHING)
    listing = table(_POOL_COLUMNS, map(_pool_row, islice(per_pool.values(), N_ROWS)))
    about = f"{len(per_pool):,}; {show_usage(n_used, n_all)} in blocks"
    rest = more(len(per_pool), N_ROWS, "pools")
    return section("Pools", about, joined([listing, rest]), is_open=is_open)


def _pool_row(pool: PoolStats) -> tuple[Html, ...]:
    return (
        escape(str(pool.pool_id)),
        escape(show_bytes(pool.block_size)),
        escape(f"{pool.used_blocks:,}"),
        escape(f"{pool.total_blocks:,}"),
        small_bar(pool.utilization, f"pool {pool.pool_id}: {pool.utilization:.1%} in use"),
        escape(f"{100 * pool.utilization:.1f} %"),
        escape(f"{pool.failures:,}"),
        escape(pool.kind),
    )


def counters_of(stats: MemoryStats) -> Html:
    """List what was counted."""
    latency = stats.avg_access_latency_us
    counted = {
        "reads": f"{latency:.2f} us on average" if latency else "none measured yet",
        "readers at once": f"{stats.peak_concurrent_readers:,} at most",
        "allocations": f"{stats.total_allocations:,}",
        "deallocations": f"{stats.total_deallocations:,}",
        "refused": f"{stats.allocation_failures:,}",
        "not asked for in blocks": f"{100 * stats.fragmentation_ratio:.1f} %",
        "longest free run": show_bytes(stats.largest_free_run_bytes),
        "evictions": f"{stats.evictions:,}",
        "brought back": f"{stats.reloads:,}",
    }
    about = f"{count(stats.total_allocations, 'allocation')}, {count(stats.evictions, 'eviction')}"
    return section("Counters", about, facts((name, escape(text)) for name, text in counted.items()))
