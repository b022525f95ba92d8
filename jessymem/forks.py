"""What a forked child must renew: objects with locks tell of themselves here; imports are freed.

No hook runs before a fork: it would have to wait for locks that others hold across imports, whose
locks whoever forks may hold.
"""

from __future__ import annotations

import _thread
import importlib
import os
import sys
import weakref
from importlib.machinery import ExtensionFileLoader
from typing import Any, Protocol


class Renewable(Protocol):
    """What holds locks."""

    def after_fork(self) -> None:
        """Make new locks, and good what other threads of the parent had begun."""


_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_forked_children(owner: Renewable) -> None:
    """Call ``owner.after_fork()`` in every child that is forked while it lives."""
    _renewables.add(owner)


def _renew() -> None:
    _free_imports()
    for owner in _renewables:
        owner.after_fork()


def _free_imports() -> None:
    """Let a child import what a thread of the parent was in the middle of importing.

    Python's lock for a module stays with the thread that imports it, which no child has. The module
    is half-made, so it is forgotten, and made anew by who wants it; with all that is written in
    Python below it, which otherwise would not become its attributes again. Of numba that cannot be
    done: there `jessymem.kernels` goes on without. Nor of what is compiled: a library of such, as
    pyarrow, has to be imported before a fork, or after it.
    """
    bootstrap: Any = getattr(importlib, "_bootstrap", None)
    locks = getattr(bootstrap, "_module_locks", {})
    me = _thread.get_ident()
    for name, find in list(locks.items()):
        lock = find()
        owner = getattr(lock, "owner", None)
        if owner is None or owner == me or name.partition(".")[0] in ("numba", "llvmlite"):
            continue
        locks.pop(name, None)
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            for each, module in list(sys.modules.items()):
                loader = getattr(getattr(module, "__spec__", None), "loader", None)
                is_below = each.startswith(f"{name}.")
                if each == name or (is_below and not isinstance(loader, ExtensionFileLoader)):
                    del sys.modules[each]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
