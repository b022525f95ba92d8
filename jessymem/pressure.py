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


class PressureLog:
    """Remembers which thresholds have spoken; everything but `record` under the budget's lock."""

    def __init__(self, config: MemoryConfig) -> None:
        self._limit = config.limit_bytes
        self.warning = self._level("warning", config.warning_threshold, INFO)
        self.eviction = self._level("eviction", config.eviction_threshold, WARNING)
        self.critical = self._level("critical", config.critical_threshold, ERROR)
        # Always these three: a call that interrupts another under the lock may change it too.
        self._has_spoken = dict.fromkeys((self.warning, self.eviction, self.critical), False)
        self._last_used = 0
        self._words: NDArray[Any] | None = None
        self._evicts = False

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
            if used > level.above_bytes and not self._has_spoken[level]
        ]
        for level in risen:
            self._has_spoken[level] = True
        self._tell_kernels()
        return risen

    def is_quiet(self, used: int) -> bool:
        """Tell, under no lock, whether `observe` would find nothing new at this use."""
        return not any(
            used < level.rearm_bytes if has_spoken else used > level.above_bytes
            for level, has_spoken in self._has_spoken.items()
            if level is not self.critical or has_spoken
        )

    def refuse(self) -> list[Level]:
        """Note that an allocation would pass the critical level; return that, if it is news."""
        risen = [] if self._has_spoken[self.critical] else [self.critical]
        self._has_spoken[self.critical] = True
        self._tell_kernels()
        return risen

    def rearm(self, used: int) -> None:
        """Let levels speak again that use has fallen well below."""
        self._last_used = used
        for level in self._has_spoken:
            if used < level.rearm_bytes:
                self._has_spoken[level] = False
        self._tell_kernels()

    def record(self, levels: Sequence[Level], used: int, **facts: Any) -> None:
        """Write the records; no lock may be held, since a handler may do what it likes."""
        for level in levels:
            logger.log(
                level.severity,
                "memory use %s the %s threshold: %d of %d bytes (%.0f %%)%s",
                "is above" if used > level.above_bytes else "would pass",
                level.name,
                used,
                self._limit,
                100 * used / self._limit,
                "" if used > level.above_bytes else f", and {facts.get('requested_bytes', 0)} more",
                extra={
                    "event": "memory_pressure",
                    "threshold_name": level.name,
                    "threshold": level.share,
                    "used_bytes": used,
                    "limit_bytes": self._limit,
                    **facts,
                },
            )

    def _level(self, name: str, share: float, severity: int) -> Level:
        rearm = max(share - HYSTERESIS, 0) * self._limit
        return Level(name, share, severity, int(share * self._limit), int(rearm))

    def _tell_kernels(self) -> None:
        words = self._words
        if words is None:
            return
        quiet = self.critical.above_bytes
        if self._evicts:
            quiet = min(quiet, self.eviction.above_bytes)
        for level in (self.eviction, self.warning):
            if not self._has_spoken[level]:
                quiet = min(quiet, level.above_bytes)
        words[s.QUIET_LIMIT] = quiet
        words[s.REARM_BELOW] = max(
            level.rearm_bytes if has_spoken else -1
            for level, has_spoken in self._has_spoken.items()
        )
