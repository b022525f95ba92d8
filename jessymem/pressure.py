"""Memory pressure, said once per crossing: records when use passes a threshold of the budget.

Where blocks are allocated, the shared words hold what a kernel has to know of it: up to where
nobody need be told, and below which fall a level may speak again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jessymem.config import MemoryConfig
from jessymem.kernels import schema as s
from jessymem.logger import ERROR, INFO, WARNING, logger

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
        self._spoken: set[Level] = set()
        self._last_used = 0
        self._words: NDArray[Any] | None = None
        self._evicts = False

    def attach(self, words: NDArray[Any], evicts: bool) -> None:
        """Keep an allocator's words up to date; `evicts` tells whether it has anything to evict."""
        self._words, self._evicts = words, evicts
        self._tell_kernels()

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
            if used > level.above_bytes and level not in self._spoken
        ]
        self._spoken.update(risen)
        self._tell_kernels()
        return risen

    def refuse(self) -> list[Level]:
        """Note that an allocation would pass the critical level; return that, if it is news."""
        risen = [] if self.critical in self._spoken else [self.critical]
        self._spoken.add(self.critical)
        self._tell_kernels()
        return risen

    def rearm(self, used: int) -> None:
        """Let levels speak again that use has fallen well below."""
        self._last_used = used
        self._spoken = {level for level in self._spoken if used >= level.rearm_bytes}
        self._tell_kernels()

    def record(self, levels: list[Level], used: int, **facts: Any) -> None:
        """Write the records; no lock may be held, since a handler may do what it likes."""
        for level in levels:
            logger.log(
                level.severity,
                "memory use %s the %s threshold: %d of %d bytes (%.0f %%)",
                "is above" if used > level.above_bytes else "would pass",
                level.name,
                used,
                self._limit,
                100 * used / self._limit,
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
        if self._words is None:
            return
        calm = self.critical.above_bytes
        if self._evicts:
            calm = min(calm, self.eviction.above_bytes)
        for level in (self.eviction, self.warning):
            if level not in self._spoken:
                calm = min(calm, level.above_bytes)
        self._words[s.CALM_LIMIT] = calm
        self._words[s.REARM_BELOW] = max((level.rearm_bytes for level in self._spoken), default=-1)
