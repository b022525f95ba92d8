"""Numbers with units, as people read them."""

from __future__ import annotations


def show_bytes(n_bytes: float) -> str:
    """Write a number of bytes: ``17 B``, ``1.5 KB``, ``11.0 MB``, each 1,024 of the one before."""
    if n_bytes < 1024:
        return f"{n_bytes:.0f} B"
    n_units, unit = n_bytes / 1024, "KB"
    for larger in ("MB", "GB"):
        if n_units >= 1000:
            n_units, unit = n_units / 1024, larger
    return f"{n_units:,.1f} {unit}"


def count(number: int, noun: str) -> str:
    """Write a number of things: ``1 layer``, ``2,000 layers``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
