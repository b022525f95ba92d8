"""The table: what is measured, beside which peer, and what is aimed at. Every row, run or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Target:
    """What a row's value is to be.

    Attributes
    ----------
    sense : {"<=", ">="}
    value : float
    is_absolute : bool
        Whether it is no ratio to something measured in the same run: then it tells of the machine
        as much as of jessymem, and a miss is no failure.
    """

    sense: str
    value: float
    is_absolute: bool = False

    def is_met_by(self, value: float) -> bool:
        """Tell whether a value is on the right side."""
        return value <= self.value if self.sense == "<=" else value >= self.value


@dataclass(frozen=True)
class Line:
    """One row of the table before it is measured.

    Attributes
    ----------
    key : str
        A short name for programs; its first part is the family.
    what, peer : str
        What jessymem does, and the peer beside it; no peer where only jessymem is measured.
    unit : {"seconds", "bytes", "per second", "bytes per second"}
        Of what jessymem and its peer took.
    target : Target or None
        Of the value: a ratio, or what jessymem took where the target is absolute. None: a peer that
        is there for scale.
    of : {"ratio", "ours"}
        What the value is.
    """

    key: str
    what: str
    peer: str
    target: Target | None = None
    unit: str = "seconds"
    of: str = "ratio"


@dataclass(frozen=True)
class Outcome:
    """What a measurement came to.

    Attributes
    ----------
    ours, theirs : float
        In the line's unit; `theirs` is nan where there is no peer.
    value : float
        What is compared with the target.
    """

    ours: float
    theirs: float
    value: float


@dataclass(frozen=True)
class NotRun:
    """Why a line was not measured: a peer is not installed, or the system cannot tell."""

    reason: str


@dataclass(frozen=True)
class Row:
    """A line and what became of it."""

    line: Line
    outcome: Outcome | NotRun

    @property
    def value(self) -> float:
        """What is compared with the target; nan where nothing was measured."""
        return math.nan if isinstance(self.outcome, NotRun) else self.outcome.value

    @property
    def verdict(self) -> str:
        """One of "met", "missed", "met (abs)", "missed (abs)", "for scale" and "not run"."""
        if isinstance(self.outcome, NotRun):
            return "not run"
        if self.line.target is None:
            return "for scale"
        verdict = "met" if self.line.target.is_met_by(self.value) else "missed"
        return f"{verdict} (abs)" if self.line.target.is_absolute else verdict


def _at_most(value: float) -> Target:
    return Target("<=", value)


def _at_least(value: float) -> Target:
    return Target(">=", value)


def _seconds(value: float) -> Target:
    return Target("<=", value, is_absolute=True)


_MIB: Final = 2**20
_READ: Final = "One read, 8 KiB layers in random order"
_LOOKUP: Final = "Look-up of 10,000 ids in one call"
_CROWD: Final = "100 threads reading, all together"
_COLD: Final = "The same, no kernel cached, to its "
_FIND: Final = "Find in 288 MB of text, no hit: "
_ALL: Final = "`load_all` of 3,000 dimensions"
_SPEED: Final = "bytes per second"

LINES: Final = (
    Line("read.one", _READ, "lmdb get with buffers", _at_most(0.8)),
    Line("read.one.dict", _READ, "dict of spans + memoryview slice"),
    Line("read.one.shared_memory", _READ, "dict of spans + shared_memory slice"),
    Line("read.one.memmap", _READ, "dict of spans + np.memmap slice"),
    Line("read.one.pyarrow", _READ, "pyarrow, mapped file"),
    Line("read.one.safetensors", _READ, "safetensors (copies)"),
    Line("read.one.sqlite", _READ, "sqlite (copies)"),
    Line(
        "read.one.status",
        "One read, shown to other processes (`status`)",
        "not shown",
        _at_most(1.02),
    ),
    Line("read.batch", _LOOKUP, "NumPy table[ids], 64-byte rows", _at_most(1)),
    Line("read.batch.take", _LOOKUP, "NumPy table.take(ids)"),
    Line("read.batch.lmdb", _LOOKUP, "lmdb get, one by one", _at_least(40), "per second"),
    Line(
        "read.million",
        "Look-up of 1,048,576 layers in random order, each",
        "",
        _seconds(25e-9),
        of="ours",
    ),
    Line("read.threads", _CROWD, "one thread", _at_least(0.85), "per second"),
    Line("read.threads.lmdb", _CROWD, "lmdb's 100 threads", _at_least(10), "per second"),
    Line(
        "read.cores",
        "Batch look-ups on two cores, two threads together",
        "one thread",
        _at_least(1.85),
        "per second",
    ),
    Line(
        "allocate.compiled",
        "4 KiB block allocated and freed, compiled",
        "np.empty, compiled",
        _at_most(0.8),
    ),
    Line(
        "allocate.threads",
        "The same, two threads on one pool, per step",
        "",
        _seconds(150e-9),
        of="ours",
    ),
    Line("allocate.python", "The same from Python", "np.empty", _at_most(5)),
    Line("allocate.many", "The same, 1,000 in one call, each", "np.empty, each", _at_most(0.5)),
    Line("start.manager", "MmapManager()", "lmdb open", _seconds(2e-3), of="ours"),
    Line("start.load", "Load of 4 layers", "lmdb open", _seconds(0.3e-3), of="ours"),
    Line("start.load.full", "Load of 65,536 layers", "", _seconds(5e-3), of="ours"),
    Line("start.load.plain", "Load of 65,536 layers, plain V1, compiled", "", None, of="ours"),
    Line("start.core", "Load of the 14 core dimensions", "", _seconds(5e-3), of="ours"),
    Line("start.nth", "Load beside 3,000 dimensions", "beside none", _at_most(1.2)),
    Line("start.all", _ALL, "one by one", _at_most(0.7)),
    Line("start.all.cold", _ALL + ", none in the cache", "one by one", _at_most(0.7)),
    Line("start.cold", "Cold process to its first read", "import numpy", _at_most(1.3)),
    Line("start.learn", _COLD + "first learned layer", "import numpy", _at_most(2)),
    Line("start.block", _COLD + "first block", "import numpy", _at_most(2)),
    Line("scan.rare", _FIND + "a rare byte in the needle", "bytes.find", _at_least(5), _SPEED),
    Line("scan.long", _FIND + "a long needle", "bytes.find", None, _SPEED),
    Line("scan.common", _FIND + "common bytes, the worst", "bytes.find", _at_least(1.2), _SPEED),
    Line("scan.cores", _FIND + "on two cores", "on one", _at_least(1.8), _SPEED),
    Line("scan.sum", "A user's sum over 288 MB", "NumPy's sum", _at_least(0.8), _SPEED),
    Line("scan.sum.cores", "The same on two cores", "on one", _at_least(1.8), _SPEED),
    Line("write.1", "Crystallize 1 MB, durably", "write, fsync, rename", _at_most(1.3)),
    Line("write.10", "Crystallize 10 MB, durably", "write, fsync, rename", _at_most(1.3)),
    Line("write.100", "Crystallize 100 MB, durably", "write, fsync, rename", _at_most(1.3)),
    Line(
        "write.beside",
        "Crystallize 1 KB while 30 threads read",
        "write, fsync, rename, meanwhile too",
        _at_most(0.5),
    ),
    Line(
        "write.first",
        "The same, the first time in a process",
        "write, fsync, rename, meanwhile too",
        _at_most(1),
    ),
    Line(
        "write.first.new",
        "The same, into a new dimension",
        "make a folder, write, fsync, rename, meanwhile too",
        _at_most(1),
    ),
    Line(
        "learn.plain",
        "One durable layer of 1 KB into a dimension of 131 MB",
        "a plain durable write of 1 KB",
        _at_most(2),
    ),
    Line("learn.lmdb", "The same", "an LMDB commit beside as much", _at_most(3)),
    Line("learn.hundredth", "The hundredth such layer", "the first ones", _at_most(1.2)),
    Line("learn.read", "One read through 16 deltas", "one file", _at_most(1.05)),
    Line("learn.batch", "A batch through 16 deltas, a layer", "one file", _at_most(1.05)),
    Line(
        "hold.open",
        "Resident after opening 288 MB, beyond imports",
        "",
        _at_most(4 * _MIB),
        "bytes",
        of="ours",
    ),
    Line(
        "hold.shared",
        "Eight processes that read all of it, together",
        "one copy",
        _at_most(1.15),
        "bytes",
    ),
)
