"""`resize`: another budget for a manager at work.

A smaller one is put into force in one step, with what is charged then: as long as that does not
fit, nothing has changed but for regions that were evicted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from jessymem.budget import Bounds
from jessymem.config import MemoryConfig
from jessymem.core_dimensions import slots_of
from jessymem.engine.engine import Engine
from jessymem.errors import InvalidAccess, LimitExceeded
from jessymem.kernels import schema as s
from jessymem.logger import logger
from jessymem.units import show_bytes

#: So often room is made anew, where others take it meanwhile.
_N_TRIES: Final = 8


def resize(engine: Engine, total_memory_mb: int) -> int:
    """Change the budget; return what it was. See `MmapManager.resize`."""
    config = replace(engine.config, total_memory_mb=total_memory_mb)
    return engine.write(_resize, engine, config.total_memory_mb)


def _resize(engine: Engine, total_mb: int) -> int:
    """Do it under the writer lock."""
    former = engine.config
    config = replace(former, total_memory_mb=total_mb)
    bounds = Bounds(config.limit_bytes, slots_of(config))
    if config.limit_bytes < former.limit_bytes:
        _check_possible(engine, bounds)
    n_left = _N_TRIES
    while (refusal := _try(engine, config, bounds)) is not None:
        missing = refusal.current - refusal.limit
        is_of_budget, n_left = refusal.bound == "budget", n_left - 1
        if not (n_left and is_of_budget and engine.make_room(missing, all_or_none=True)):
            raise refusal
    if config != former:
        engine.record(partial(_tell, former, config))
    return former.total_memory_mb


def _check_possible(engine: Engine, bounds: Bounds) -> None:
    """Raise LimitExceeded where something is loaded that could never come back once evicted."""
    for loaded in engine.snapshot.loaded:
        if loaded.state in (s.REGION_MAPPED, s.REGION_COPIED, s.REGION_EVICTED):
            table = loaded.resident
            n_bytes = loaded.edition.n_bytes if table is None else table.n_charged
            engine.budget.check_possible(loaded.dimension_id, n_bytes, bounds)


def _try(engine: Engine, config: MemoryConfig, bounds: Bounds) -> LimitExceeded | None:
    """Put a budget into force, and return pages for it; return what is in the way."""
    budget = engine.budget
    with budget.changing() as is_nested:
        if is_nested:
            raise InvalidAccess("this call interrupts another one that changes the budget")
        try:
            budget.resize(bounds)
            engine.adopt(config)
        except LimitExceeded as error:
            return error.with_traceback(None)
        except BaseException:
            if budget.limit_bytes == config.limit_bytes:  # struck when it was done there
                engine.adopt(config)
            raise
    return None


def _tell(former: MemoryConfig, config: MemoryConfig) -> None:
    logger.info(
        "the budget is %s, and was %s",
        show_bytes(config.limit_bytes),
        show_bytes(former.limit_bytes),
        extra={
            "event": "resized",
            "limit_bytes": config.limit_bytes,
            "former_limit_bytes": former.limit_bytes,
        },
    )
