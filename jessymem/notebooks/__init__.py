"""What a notebook's cell shows: HTML of objects, and a picture of a manager's memory.

Each function below is what one class calls to show itself (`_repr_html_`), and imports what it
needs then. It looks, and no more: nothing is loaded, mapped or counted as read, no counter changes.
Where anything fails it shows the object's plain text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jessymem.contexts import ContextCollection
    from jessymem.engine.engine import Engine
    from jessymem.notebooks.markup import Html
    from jessymem.notebooks.memory_map import MemoryMap
    from jessymem.pools.allocator import PoolAllocator
    from jessymem.regions.metadata import LayerInfo
    from jessymem.regions.region import MmapRegion
    from jessymem.stats import LoadReport, MemoryStats


def show_manager(manager: object, engine: Engine) -> str:
    """Show a manager, open or closed: its budget, dimensions, pools, counters and settings."""

    def view() -> Html:
        from jessymem.notebooks import managers

        return managers.view(engine)

    return _shown(manager, view)


def show_allocator(allocator: PoolAllocator) -> str:
    """Show an allocator: its budget, its pools and its counters."""

    def view() -> Html:
        from jessymem.notebooks import allocators

        return allocators.view(allocator)

    return _shown(allocator, view)


def show_region(region: MmapRegion) -> str:
    """Show a region: what it says of itself, what its bytes are for, its first layers."""

    def view() -> Html:
        from jessymem.notebooks import regions

        return regions.view(region)

    return _shown(region, view)


def show_layer(layer: LayerInfo) -> str:
    """Show what is known of a layer."""

    def view() -> Html:
        from jessymem.notebooks import layers

        return layers.view(layer)

    return _shown(layer, view)


def show_contexts(contexts: ContextCollection) -> str:
    """Show contexts: of the first ones what describes them, and how their text begins."""

    def view() -> Html:
        from jessymem.notebooks import contexts as module

        return module.view(contexts)

    def text() -> str:
        from jessymem.notebooks import contexts as module

        return module.text_of(contexts)

    return _shown(contexts, view, text)


def show_stats(stats: MemoryStats) -> str:
    """Show a manager's numbers."""

    def view() -> Html:
        from jessymem.notebooks import managers

        return managers.view_of_stats(stats)

    return _shown(stats, view)


def show_report(report: LoadReport) -> str:
    """Show what a load of several dimensions came to."""

    def view() -> Html:
        from jessymem.notebooks import reports

        return reports.view(report)

    return _shown(report, view)


def show_map(memory_map: MemoryMap) -> str:
    """Show a picture of a manager's memory."""

    def view() -> Html:
        from jessymem.notebooks import map_drawing

        return map_drawing.view(memory_map)

    return _shown(memory_map, view)


def map_memory(engine: Engine) -> MemoryMap:
    """Return a picture of what is in a manager's memory now."""
    from jessymem.notebooks.memory_map import map_of

    return map_of(engine)


def _shown(thing: object, view: Callable[[], Html], text: Callable[[], str] | None = None) -> str:
    """Return a view with its plain text; where it cannot be made, the text alone."""
    from jessymem.notebooks.markup import page, text_alone

    try:
        return page(view(), repr(thing) if text is None else text())
    except Exception:  # whatever it is: a cell that shows an object must not fail for that
        return text_alone(thing)
