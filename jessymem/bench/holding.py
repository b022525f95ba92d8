"""What is held in memory: by one process that has opened, by eight that have read."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from typing import Final

from jessymem.bench import footprint
from jessymem.bench.setting import Setting
from jessymem.bench.table import NotRun, Outcome
from jessymem.config import MIB

N_PROCESSES: Final = 8


def measure(setting: Setting) -> Iterator[tuple[str, Outcome | NotRun]]:
    """Measure the family `hold`."""
    base, dimensions = setting.text
    opened = footprint.resident_after_opening(base, dimensions)
    yield "hold.open", Outcome(opened, nan, opened)
    copy = setting.text_mb * MIB
    shared = footprint.shared_by_processes(base, dimensions, N_PROCESSES)
    yield "hold.shared", Outcome(shared, copy, shared / copy)
