"""A memory map as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

import jessymem
from jessymem.notebooks.usage import parts_of, share, show_usage
from jessymem.units import count, show_bytes
from jessymem.visible_text import padded, visible

if TYPE_CHECKING:
    from jessymem.notebooks.dimensions import MappedDimension
    from jessymem.pools.occupancy import Occupancy

#: Characters of a bar, and of what stands before it.
_WIDTH: Final = 40
_LABEL: Final = 24

_USED: Final = "#"
_WAITING: Final = "~"
_FREE: Final = "."


def text_of(memory: jessymem.MemoryMap) -> str:
    """Write a memory map, a line for the budget, each dimension and each pool."""
    return "\n".join(_lines(memory))


def about_dimension(dimension: MappedDimension) -> str:
    """Say in words what a dimension's bar shows."""
    parts = [
        f"{show_bytes(dimension.n_bytes)} {dimension.state}",
        count(dimension.n_layers, "layer"),
    ]
    n_deltas = len(dimension.lengths) - 1
    if n_deltas > 0:
        parts.append(count(n_deltas, "delta"))
    if dimension.n_learned:
        parts.append(f"{dimension.n_learned:,} learned")
    if dimension.is_pinned:
        parts.append("pinned")
    return ", ".join(parts)


def about_pool(memory: jessymem.MemoryMap, pool: Occupancy) -> str:
    """Say in words what a pool's bar shows."""
    stats = memory.stats.per_pool.get(pool.pool_id)
    if stats is None:  # it was made, or is gone, between the two looks
        return "changed meanwhile"
    runs = count(pool.n_free_runs, "free run")
    return f"{stats.used_blocks:,} of {stats.total_blocks:,} blocks used, {runs}"


def name_of_pool(memory: jessymem.MemoryMap, pool: Occupancy) -> str:
    """Name a pool by its number and its blocks."""
    stats = memory.stats.per_pool.get(pool.pool_id)
    size = "" if stats is None else f", {show_bytes(stats.block_size)}"
    return f"pool {pool.pool_id}{size}"


def _lines(memory: jessymem.MemoryMap) -> Iterator[str]:
    stats = memory.stats
    limit = stats.total_limit_bytes
    yield f"Memory of {visible(memory.place)}{', closed' if memory.is_closed else ''}"
    used = show_usage(stats.total_allocated_bytes, limit)
    yield _line("budget", _budget_bar(memory), f"{used}, peak {show_bytes(stats.peak_usage_bytes)}")
    parts = parts_of(stats.total_allocated_bytes, stats.per_class)
    held = [f"{part.label} {show_bytes(part.n_bytes)}" for part in parts if part.n_bytes]
    held.append(f"waiting {show_bytes(stats.waiting_bytes)}")
    held.append(f"retained {show_bytes(stats.retained_bytes)}")
    yield f"{'':{_LABEL}} {', '.join(held)}"
    longest = max((dimension.n_bytes for dimension in memory.dimensions), default=0)
    for dimension in memory.dimensions:
        label = f"{dimension.dimension_id} {dimension.name}"
        yield _line(label, _dimension_bar(dimension, longest), about_dimension(dimension))
    if memory.n_others:
        yield f"and {memory.n_others:,} more dimensions, {show_bytes(memory.n_other_bytes)}"
    for pool in memory.pools:
        yield _line(name_of_pool(memory, pool), _pool_bar(pool), about_pool(memory, pool))


def _line(label: str, bar: str, about: str) -> str:
    return f"{padded(label, _LABEL)} [{bar}] {about}"


def _budget_bar(memory: jessymem.MemoryMap) -> str:
    used = share(memory.stats.total_allocated_bytes, memory.stats.total_limit_bytes)
    cells = [_USED] * round(used * _WIDTH)
    cells += [_FREE] * (_WIDTH - len(cells))
    for mark in memory.thresholds:
        cells[min(int(mark * _WIDTH), _WIDTH - 1)] = "|"
    return "".join(cells)


def _dimension_bar(dimension: MappedDimension, longest: int) -> str:
    mark = "e" if dimension.state == "evicted" else _USED
    n_cells = [_n_cells(n_bytes, longest) for n_bytes in dimension.lengths]
    n_learned = _n_cells(dimension.n_learned_bytes, longest)
    files = "".join((mark if i == 0 else "+") * n for i, n in enumerate(n_cells))
    return f"{(files + 'o' * n_learned)[:_WIDTH]:{_FREE}<{_WIDTH}}"


def _n_cells(n_bytes: int, longest: int) -> int:
    return max(round(share(n_bytes, longest) * _WIDTH), 1) if n_bytes else 0


def _pool_bar(pool: Occupancy) -> str:
    """Write each part of a pool as what most of its blocks are; used, if any is."""
    cells = []
    for used, waiting in zip(
        np.array_split(pool.used, _WIDTH), np.array_split(pool.waiting, _WIDTH), strict=True
    ):
        if len(used):
            n_used, n_waiting = float(used.sum()), float(waiting.sum())
            mark = _USED if n_used >= n_waiting else _WAITING
            cells.append(mark if n_used + n_waiting > 0 else _FREE)
    return f"{''.join(cells):{_FREE}<{_WIDTH}}" if len(cells) == _WIDTH else "".join(cells)
