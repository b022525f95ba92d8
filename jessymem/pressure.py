"""Memory pressure, said once per crossing: records when use passes a threshold of the budget."""

from __future__ import annotations

import logging
from typing import Final

from jessymem.budget import Usage
from jessymem.config import MemoryConfig

logger = logging.getLogger("jessymem")

#: A level speaks again after use has fallen so far below it, as a share of the budget.
HYSTERESIS: Final = 0.05


class PressureLog:
    """Remembers which thresholds have spoken; called under the manager's writer lock."""

    def __init__(self, config: MemoryConfig) -> None:
        self._limit = config.limit_bytes
        self._levels = (
            (config.warning_threshold, logging.INFO, "warning"),
            (config.eviction_threshold, logging.WARNING, "eviction"),
        )
        self._spoken: set[str] = set()

    def observe(self, usage: Usage) -> None:
        """Record each threshold that use is above and was not before."""
        share = usage.total / self._limit
        for threshold, level, name in self._levels:
            if share > threshold and name not in self._spoken:
                self._spoken.add(name)
                self._record(level, name, threshold, usage)
            elif share < threshold - HYSTERESIS:
                self._spoken.discard(name)

    def _record(self, level: int, name: str, threshold: float, usage: Usage) -> None:
        logger.log(
            level,
            "memory use is above the %s threshold: %d of %d bytes (%.0f %%)",
            name,
            usage.total,
            self._limit,
            100 * usage.total / self._limit,
            extra={
                "event": "memory_pressure",
                "threshold_name": name,
                "threshold": threshold,
                "used_bytes": usage.total,
                "limit_bytes": self._limit,
                "waiting_bytes": sum(usage.waiting.values()),
            },
        )
