"""What is recorded of calls that change something and fail: one record for each failure.

Reads that fail are not recorded: whoever asks for what is not there has the error in hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Final, ParamSpec, TypeVar

from jessymem.errors import JessyMemoryError
from jessymem.ids import LayerId
from jessymem.logger import WARNING, logger

P = ParamSpec("P")
R = TypeVar("R")

_DETAILS: Final[tuple[str, ...]] = ("dimension", "layer", "path")


def of_failure(
    event: str, what: str, error: JessyMemoryError, **facts: str | None
) -> Callable[[], None]:
    """Tell, as a warning, why something was not done; what is returned writes the record.

    Where the error is on its way through a call that `records_failure`, that adds no second one.

    Parameters
    ----------
    event : str
        The record's attribute.
    what : str
        In a word or two: "not " and it begin the message.
    error : JessyMemoryError
    **facts
        Attributes of the record, beside the error's own dimension, layer and path.
    """
    error.is_recorded = True
    told = {name: str(value) for name, value in error.details.items()}
    known = {name: told[name] for name in _DETAILS if name in told}
    layer = error.details.get("layer")
    if isinstance(layer, LayerId) and "dimension" not in known:
        known["dimension"] = str(layer.dimension)
    return partial(
        logger.warning,
        f"not {what}: %s",
        str(error),  # the error would hold the frames it passed, and their views
        extra={
            "event": event,
            **known,
            **facts,
            "error": type(error).__name__,
            "details": told,
        },
    )


def records_failure(event: str, what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a public method record each error of ours that it raises, as `of_failure`."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(*args, **kwargs)
            except JessyMemoryError as error:
                if not error.is_recorded and logger.isEnabledFor(WARNING):
                    of_failure(event, what, error)()
                raise

        return call

    return decorate
