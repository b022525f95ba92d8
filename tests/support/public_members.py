"""What is public: every class, function, method and property that users reach by its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jessymem
from jessymem.computed_once import computed_once

#: In a class's source: what stands below, the manager calls, and users have no need of.
FOR_THE_MANAGER = "# -- for the manager"

#: The bases of `MmapRegion` serve the manager as well, but for these.
OF_A_REGION = {"get_layer_info", "has_layer", "list_layers", "n_layers"}
BASES_OF_A_REGION = {"LayerTable", "LoadedDimension"}

#: Members of values that travel, and of the package, that have docstrings of their own.
PROPERTIES = (property, computed_once)


def public_members() -> Iterator[tuple[str, Any]]:
    """Yield names such as ``MmapManager.find`` and what has the docstring of each.

    Those of `jessymem.distributed` where Dask is installed.
    """
    names = ["jessymem", "jessymem.kernels"]
    if find_spec("dask") and find_spec("pandas"):
        names.append("jessymem.distributed")
    for module in map(import_module, names):
        prefix = "" if module is jessymem else module.__name__.rpartition(".")[2] + "."
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                yield prefix + name, thing
                yield from ((f"{prefix}{name}.{each}", it) for each, it in members_of(thing))
            elif inspect.isfunction(thing):
                yield prefix + name, thing


def members_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class has of this package."""
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("jessymem."):
            members.update((name, vars(base)[name]) for name in _for_users(base))
    for name, member in members.items():
        member = getattr(member, "__func__", member)
        if inspect.isroutine(member) or isinstance(member, PROPERTIES):
            yield name, member


def _for_users(cls: type) -> Iterable[str]:
    public = [name for name in vars(cls) if not name.startswith("_")]
    if cls.__name__ in BASES_OF_A_REGION:
        return [name for name in public if name in OF_A_REGION]
    lines, start = inspect.getsourcelines(cls)
    for at, line in enumerate(lines, start):
        if line.strip().startswith(FOR_THE_MANAGER):
            return [name for name in public if _line_of(vars(cls)[name]) < at]
    return public


def _line_of(member: Any) -> int:
    """Return the line at which a method or a property begins; 0: it is neither."""
    for attribute in ("fget", "_compute", "__func__"):
        member = getattr(member, attribute, member)
    code = getattr(inspect.unwrap(member), "__code__", None)
    return code.co_firstlineno if code is not None else 0
