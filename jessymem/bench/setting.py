"""Where a run measures, and how long it takes over it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from jessymem.bench import data
from jessymem.config import MIB
from jessymem.ids import DimensionId

#: All text that is searched, opened and shared: the default budget, in whole dimensions.
TEXT_MB: Final = 288


class NotThere(RuntimeError):
    """What is to be measured is not there: too few CPUs, or a verb that this version has not."""


@dataclass(frozen=True)
class Setting:
    """One run.

    Parameters
    ----------
    folder : pathlib.Path
        For files; empty at first.
    is_quick : bool
        Whether to be content with fewer rounds: on the same stores, but the ratios tremble more.
    text_mb, n_contents, n_full, n_threads, n_many, mb : int
        What the table's lines say; other values are for tests, which need no figures.
    """

    folder: Path
    is_quick: bool = False
    text_mb: int = TEXT_MB
    n_contents: int = 10_000
    n_full: int = 16
    n_threads: int = 100
    n_many: int = 3_000
    mb: int = MIB

    @property
    def window_seconds(self) -> float:
        """How long a round of readers in threads takes at least."""
        return 0.1 if self.is_quick else 0.3

    def n_rounds(self, full: int) -> int:
        """Return how many rounds to make where a full run makes so many."""
        return max(3, full // 3) if self.is_quick else full

    @cached_property
    def text(self) -> tuple[Path, list[DimensionId]]:
        """Where the text is, and its dimensions; built when it is first wanted."""
        base = self.folder / "text"
        return base, data.build_text(base, self.text_mb)

    def home(self, name: str) -> Path:
        """Make a folder."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def require_cpus(n_cpus: int) -> None:
    """Raise NotThere where the process may use fewer."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if (usable or 1) < n_cpus:
        raise NotThere(f"{n_cpus} CPUs are needed, this process may use {usable}")
