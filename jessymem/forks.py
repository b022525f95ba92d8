"""What a forked child must renew: its objects with locks tell of themselves here."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewable(Protocol):
    """What holds locks."""

    def after_fork(self) -> None:
        """Make new locks, and good what other threads of the parent had begun."""


_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_forked_children(owner: Renewable) -> None:
    """Call ``owner.after_fork()`` in every child that is forked while it lives."""
    _renewables.add(owner)


def _renew() -> None:
    for owner in _renewables:
        owner.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
