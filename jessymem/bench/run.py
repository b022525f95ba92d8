"""One run through the table, or through some of its families."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Final

from jessymem.bench.footprint import NotMeasurable
from jessymem.bench.loops import NotCompiled
from jessymem.bench.peers import NotInstalled
from jessymem.bench.setting import NotThere, Setting
from jessymem.bench.table import LINES, NotRun, Outcome, Row
from jessymem.bundled import read_bundled

#: Families of the table, in its order, and the modules that measure them.
FAMILIES: Final = {
    "read": "reading",
    "allocate": "allocating",
    "start": "starting",
    "scan": "scanning",
    "write": "writing",
    "learn": "learning",
    "hold": "holding",
}

_VERSIONS: Final = ("jessymem", "numpy", "numba", "lmdb", "pyarrow", "safetensors")


@dataclass(frozen=True)
class BenchReport:
    """What a run found.

    Attributes
    ----------
    rows : tuple of Row
        Every line of the families that were asked for, measured or not.
    seconds : float
        How long it took.
    is_quick : bool
    surroundings : dict of str to str
        The machine, and the versions of what was measured.
    """

    rows: tuple[Row, ...]
    seconds: float
    is_quick: bool
    surroundings: dict[str, str]

    @property
    def missed(self) -> tuple[Row, ...]:
        """Rows whose ratio misses its target, without those that are known to."""
        known = accepted_misses()
        return tuple(
            row for row in self.rows if row.verdict == "missed" and row.line.key not in known
        )


@cache
def accepted_misses() -> dict[str, str]:
    """Return the evidence for each target that is known to be missed, by the key of its line."""
    text = read_bundled("accepted_misses.json")
    found: dict[str, str] = json.loads(text)
    return found


def run_bench(
    families: Iterable[str] = FAMILIES,
    *,
    is_quick: bool = False,
    folder: str | os.PathLike[str] | None = None,
    announce: Callable[[str], object] = lambda family: None,
) -> BenchReport:
    """Measure jessymem beside its peers.

    Parameters
    ----------
    families : iterable of str
        Some of `FAMILIES`.
    is_quick : bool
        Whether to be content with fewer rounds.
    folder : path-like, optional
        On the disk that is to be measured, about 1 GB; by default the system's for temporary files.
        Nothing stays.
    announce : callable, optional
        Called with the name of each family as it begins.

    Returns
    -------
    BenchReport
    """
    begin = perf_counter()
    rows: list[Row] = []
    for family in FAMILIES:
        if family in set(families):
            announce(family)
            with tempfile.TemporaryDirectory(
                prefix="jessymem-bench-", dir=folder, ignore_cleanup_errors=True
            ) as scratch:
                rows += measure_family(family, Setting(Path(scratch), is_quick))
    return BenchReport(tuple(rows), perf_counter() - begin, is_quick, surroundings())


def measure_family(family: str, setting: Setting) -> Iterator[Row]:
    """Yield all rows of a family; what could not be measured says why."""
    found: dict[str, Outcome | NotRun] = {}
    reason = "not measured"
    try:
        for key, outcome in import_module(f"jessymem.bench.{FAMILIES[family]}").measure(setting):
            found[key] = outcome
    except (NotCompiled, NotInstalled, NotMeasurable, NotThere) as error:
        reason = str(error)
    for line in LINES:
        if line.key.partition(".")[0] == family:
            yield Row(line, found.get(line.key, NotRun(reason)))


def surroundings() -> dict[str, str]:
    """Say on what it ran."""
    found = {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
    }
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
