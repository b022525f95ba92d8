"""`typing.get_type_hints` reads every public signature; the names that it needs cost nothing."""

from __future__ import annotations

import collections.abc
import inspect
import os
import subprocess
import sys
import typing
import warnings
from importlib import import_module
from importlib.util import find_spec

import pytest

import jessymem
from jessymem import hints, kernels


def others():
    """Yield the other modules of the reference, of those whose libraries are installed."""
    libraries = {"distributed": "dask", "metrics": "prometheus_client", "plot": "matplotlib"}
    for name in ("distributed", "metrics", "plot", "status"):
        if name not in libraries or find_spec(libraries[name]):
            yield import_module(f"jessymem.{name}")
    if find_spec("matplotlib"):
        with warnings.catch_warnings(action="ignore"):  # an older one has some, of its parser
            import_module("matplotlib.axes")


def signatures():
    """Yield every exported class and function, and the public methods and properties of each."""
    for module in (jessymem, kernels, *others()):
        for name in module.__all__:
            value = getattr(module, name)
            value = getattr(value, "py_func", value)  # of what numba has compiled
            full_name = f"{module.__name__}.{name}"
            if inspect.isclass(value):
                yield full_name, value
                for each, member in members(value):
                    yield f"{full_name}.{each}", member
            elif callable(value):
                yield full_name, value


def members(cls):
    """Yield the public methods of a class, also those that it inherits from this package."""
    for base in cls.__mro__:
        if not base.__module__.startswith("jessymem"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") and not name.startswith("__"):
                continue
            if isinstance(member, classmethod | staticmethod):
                member = member.__func__
            elif isinstance(member, property):
                member = member.fget
            else:
                member = getattr(member, "_compute", member)  # of `computed_once`
            if inspect.isfunction(member):
                yield name, member


SIGNATURES = sorted(dict(signatures()).items())


@pytest.mark.parametrize("name", [name for name, _ in SIGNATURES])
def test_types_of_every_public_name_can_be_asked_for(name):
    found = typing.get_type_hints(dict(SIGNATURES)[name], include_extras=True)
    assert not any(isinstance(hint, str | typing.ForwardRef) for hint in found.values())


def test_overloads_too():
    for name, function in SIGNATURES:
        for overload in typing.get_overloads(function) if inspect.isfunction(function) else ():
            assert typing.get_type_hints(overload), name


def test_what_is_found_is_what_it_is_called():
    load_all = typing.get_type_hints(jessymem.MmapManager.load_all)
    assert load_all == {"return": jessymem.LoadReport}
    info = typing.get_type_hints(jessymem.MmapRegion.get_layer_info)
    assert info["return"] is jessymem.LayerInfo
    find = typing.get_type_hints(jessymem.MmapManager.find)
    assert find["return"] is jessymem.Hits
    buffer = getattr(collections.abc, "Buffer", None)
    assert buffer is None or buffer in typing.get_args(find["needle"])


def test_every_name_is_there_and_there_is_no_other():
    assert dir(hints) == hints.__all__ == sorted(hints._HOME_OF)
    assert not set(hints.__all__) & set(jessymem.__all__)
    for name, home in hints._HOME_OF.items():
        if name == "Axes" and not find_spec("matplotlib"):
            continue
        value = getattr(hints, name)
        if name != "Buffer":
            assert value is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        hints.Nothing  # noqa: B018 - which is what is asked


def test_the_names_are_imported_when_they_are_asked_for():
    code = (
        "import sys, typing; from jessymem import MmapManager as manager\n"
        "late = 'numpy.typing jessymem.hints jessymem.stats jessymem.regions.drafts'.split()\n"
        "print(*[name in sys.modules for name in late])\n"
        "for verb in manager.get_stats, manager.array, manager.overlay_layer:\n"
        "    typing.get_type_hints(verb)\n"
        "print(*[name in sys.modules for name in late])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COVERAGE_PROCESS_CONFIG": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = result.stdout.splitlines()
    assert before == "False False False False"
    assert after == "True True True True"
