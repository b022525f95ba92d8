"""Whether addresses that nothing uses yet cost anything."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

resource: Any
try:
    import resource
except ImportError:  # Windows, where whoever maps memory commits it
    resource = None

_LIMITS = ("RLIMIT_AS", "RLIMIT_DATA")


def is_scarce() -> bool:
    """Tell whether there are few, or whether a limit counts those that are mapped and not used."""
    if resource is None or sys.maxsize < 2**32 or _is_strict():
        return True
    known = (getattr(resource, name, None) for name in _LIMITS)
    limits = (resource.getrlimit(each)[0] for each in known if each is not None)
    return any(limit != resource.RLIM_INFINITY for limit in limits)


@cache
def _is_strict() -> bool:
    """Tell whether the system lets nobody map more than it has, used or not."""
    try:
        with open("/proc/sys/vm/overcommit_memory", "rb") as file:
            return file.read().strip() == b"2"
    except OSError:
        return False
