"""Memory pressure, said once per crossing: records when use passes a threshold of the budget.

Where blocks are allocated, the shared words hold what a kernel has to know of it: the quiet limit,
up to which no threshold, record or eviction is involved, and below which fall a level may speak
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from jessymem.config import MemoryConfig
from jessymem.kernels import schema as s
from jessymem.logger import ERROR, INFO, WARNING, logger
from jessymem.named_tuples import NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A level speaks again after use has fallen so far below it, as a share of the budget.
HYSTERESIS: Final = 0.05


class Level(NamedTuple):
    """One threshold."""

    name: str
    share: float
    severity: int
    above_bytes: int  # it speaks where use is above
    rearm_bytes: int  # and again after use was below
    limit_bytes: int  # the budget

    @classmethod
    def of(cls, name: str, severity: int, config: MemoryConfig) -> Level:
        """Return a threshold of a configuration."""
        share, limit = config.thresholds[name], config.limit_bytes
        rearm = max(share - HYSTERESIS, 0) * limit
        return cls(name, share, severity, int(share * limit), int(rearm), limit)


class Levels(NamedTuple):
    """The thresholds of one budget, rising."""

    warning: Level
    eviction: Level
    critical: Level

    @classmethod
    def of(cls, config: MemoryConfig) -> Levels:
        """Return those of a configuration."""
        return cls(
            Level.of("warning", INFO, config),
            Level.of("eviction", WARNING, config),
            Level.of("critical", ERROR, config),
        )


class PressureLog:
    """Remembers which thresholds have spoken; everything but `record` under the budget's lock."""

    def __init__(self, config: MemoryConfig) -> None:
        self._levels = Levels.of(config)
        # Always these three: a call that interrupts another under the lock may change it too.
        self._has_spoken = dict.fromkeys(config.thresholds, False)
        self._last_used = 0
        self._words: NDArray[Any] | None = None
        self._evicts = False

    @property
    def warning(self) -> Level:
        """The lowest level."""
        return self._levels.warning

    @property
    def eviction(self) -> Level:
        """The level above which an allocation first evicts."""
        return self._levels.eviction

    @property
    def critical(self) -> Level:
        """The level that no allocation passes."""
        return self._levels.critical

    def resize(self, config: MemoryConfig, used: int) -> None:
        """Take the levels of another budget; what has spoken is silent while use is above it."""
        self._levels = Levels.of(config)
        self.rearm(used)

    def attach(self, words: NDArray[Any], evicts: bool) -> None:
        """Keep an allocator's words up to date; `evicts` tells whether it has anything to evict."""
        self._words, self._evicts = words, evicts
        self._tell_kernels()

    def detach(self) -> None:
        """Change the words no more; kernels claim nothing by them then."""
        self._words = None

    def observe(self, used: int) -> list[Level]:
        """Return the levels that use is above and was not before; what it fell below is re-armed.

        A load may fill the limit, so passing the critical level is nobody's error here.
        """
        if used < self._last_used:
            self.rearm(used)
        self._last_used = used
        risen = [
            level
            for level in (self.warning, self.eviction)
            if used > level.above_bytes and not self._has_spoken[level.name]
        ]
        for level in risen:
            self._has_spoken[level.name] = True
        self._tell_kernels()
        return risen

    def is_quiet(self, used: int) -> bool:
        """Tell, under no lock, whether `observe` would find nothing new at this use."""
        levels, spoken = self._levels, self._has_spoken
        return not any(
            used < level.rearm_bytes if spoken[level.name] else used > level.above_bytes
            for level in levels
            if level is not levels.critical or spoken[level.name]
        )

    def refuse(self) -> list[Level]:
        """Note that an allocation would pass the critical level; return that, if it is news."""
        risen = [] if self._has_spoken[self.critical.name] else [self.critical]
        self._has_spoken[self.critical.name] = True
        self._tell_kernels()
        return risen

    def rearm(self, used: int) -> None:
        """Let levels speak again that use has fallen well below."""
        self._last_used = used
        for level in self._levels:
            if used < level.rearm_bytes:
                self._has_spoken[level.name] = False
        self._tell_kernels()

    def record(self, levels: Sequence[Level], used: int, **facts: Any) -> None:
        """Write the records; no lock may be held, since a handler may do what it likes."""
        for level in levels:
            limit = level.limit_bytes
            logger.log(
                level.severity,
                "memory use %s the %s threshold: %d of %d bytes (%.0f %%)%s",
                "is above" if used > level.above_bytes else "would pass",
                level.name,
                used,
                limit,
                100 * used / limit,
                "" if used > level.above_bytes else f", and {facts.get('requested_bytes', 0)} more",
                extra={
                    "event": "memory_pressure",
                    "threshold_name": level.name,
                    "threshold": level.share,
                    "used_bytes": used,
                    "limit_bytes": limit,
                    **facts,
                },
            )

    def _tell_kernels(self) -> None:
        words = self._words
        if words is None:
            return
        quiet = self.critical.above_bytes
        if self._evicts:
            quiet = min(quiet, self.eviction.above_bytes)
        for level in (self.eviction, self.warning):
            if not self._has_spoken[level.name]:
                quiet = min(quiet, level.above_bytes)
        held = int(words[s.HELD_BACK])
        words[s.CRITICAL_LIMIT] = self.critical.above_bytes + held
        words[s.QUIET_LIMIT] = quiet + held
        words[s.REARM_BELOW] = max(
            level.rearm_bytes + held if self._has_spoken[level.name] else -1
            for level in self._levels
        )
