"""`naming`: errors about memory say for what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jessymem.errors import AllocationFailed, LimitExceeded
from jessymem.ids import DimensionId, LayerId


@contextmanager
def naming(who: DimensionId | LayerId) -> Iterator[None]:
    """Let errors about memory say for which dimension or layer it was."""
    try:
        yield
    except (LimitExceeded, AllocationFailed) as error:
        kind = "layer" if isinstance(who, LayerId) else "dimension"
        named = type(error)(f"{who}: {error}", **error.details, **{kind: who})
        named.is_recorded = error.is_recorded
        raise named from error
