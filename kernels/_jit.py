"""How kernels are compiled: options all here, and not before somebody needs speed.

A kernel is an ordinary Python function marked with `kernel`. `promote` imports numba, tells it of
the functions that are instructions (see `instructions`), compiles copies of a group's modules by
calling what is marked with `on_promotion`, and, once all is compiled, binds the modules' names to
that: the *switch*. Until then, and with ``NUMBA_DISABLE_JIT=1`` for good, the same functions run as
plain Python. `promote_for` does so when there is enough work; `beside` does it in a thread.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar, overload

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

#: What kernels count and address with: 64 bits compiled, either kind as plain Python.
Int: TypeAlias = int | np.signedinteger[Any]

#: What `promote` tells apart, so that nobody waits for kernels that he does not call: those that
#: read, those that parse plain entries, those that search, those of the allocator, those that keep
#: leased mappings whole.
READING: Final = "reading"
PARSING: Final = "parsing"
SEARCHING: Final = "searching"
MEMORY: Final = "memory"
GUARDING: Final = "guarding"

#: The modules whose kernels are compiled, by group, callees first; none calls those of another.
MODULES: Final = {
    READING: ("lookup", "gather", "store"),
    PARSING: ("parse",),
    SEARCHING: ("search",),
    MEMORY: ("bitmap", "budget", "blocks", "release", "allocation", "near", "pages", "tally"),
}
if sys.platform == "linux":  # others have no leases, and not all of those calls
    MODULES[GUARDING] = ("leases",)

#: After so many items, compiled code earns back numba's import and a cached kernel's start.
WORTH_COMPILING: Final = 16_384

#: And after so many a compilation that nothing is cached for, or that others are busy with.
WORTH_WAITING: Final = 16 * WORTH_COMPILING

_kernels: dict[Callable[..., Any], dict[str, bool]] = {}  # and how each is compiled
_registrations: list[Callable[[], None]] = []  # not yet made
_first_calls: dict[str, list[Callable[[], None]]] = {}
_before_switch: dict[str, Callable[[], None]] = {}
_compilers: dict[str, _Compiler] = {}  # by group, from the beginning of its first promotion
_forms: dict[str, dict[Callable[..., Any], Any]] = {}  # by group, once all of it is compiled
_ready: set[str] = set()  # groups that are switched
_lock = threading.RLock()
_promoting: set[int] = set()  # threads that import numba, or compile
_is_left_plain = False  # a forked child, whose parent was in the middle of that
_n_items: dict[str, int] = {}  # that plain Python has worked on, by group
_leaving: set[int] = set()  # threads whose compilation nobody needs any more
_NO_FORMS: Final[dict[Callable[..., Any], Any]] = {}
_PACKAGE: Final = __name__.rpartition(".")[0]


@overload
def kernel(function: Callable[P, R]) -> Callable[P, R]: ...
@overload
def kernel(
    *, nogil: bool = True, inline: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def kernel(function: Any = None, *, nogil: bool = True, inline: bool = False) -> Any:
    """Mark `function` for compilation; it stays as it is until `promote`.

    Called from Python, a kernel releases the GIL, which pays for many items; one that does a
    single item's work says ``nogil=False``. With ``inline=True`` its code is copied into whatever
    compiled code calls it, for where a call would cost as much as the work.
    """
    if function is None:
        return functools.partial(kernel, nogil=nogil, inline=inline)
    _kernels[function] = {"nogil": nogil, "forceinline": inline}
    return function


def on_promotion(
    group: str,
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Mark a function that calls each kernel which Python calls, on arrays as small as may be.

    Its arguments must have the types of every later call, so that none of them compiles anything: a
    child that is forked while another thread compiles has to do without, for good.
    """

    def mark(first_calls: Callable[[], None]) -> Callable[[], None]:
        _first_calls.setdefault(group, []).append(first_calls)
        return first_calls

    return mark


def on_switch(group: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Mark what is called when a group is compiled, before any name is bound to that.

    It may be called again, also in a child that was forked in the middle of a switch.
    """

    def mark(function: Callable[[], None]) -> Callable[[], None]:
        _before_switch[group] = function
        return function

    return mark


def at_registration(register: Callable[[], None]) -> None:
    """Have `register` called once, when numba is there and before anything is compiled."""
    _registrations.append(register)


def is_disabled() -> bool:
    """Tell whether kernels that are not compiled by now stay plain Python in this process."""
    return _is_left_plain or os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


def is_promoted(group: str = READING) -> bool:
    """Tell whether the kernels of a group are compiled by now."""
    return group in _ready


def is_started() -> bool:
    """Tell whether any group is compiled, so that numba is there and the next one comes quickly."""
    return bool(_ready)


def entry_of(function: Any, *arguments: Any) -> Callable[..., Any]:
    """Return what a kernel that was compiled for such arguments runs, to be called with no others.

    Called so, it need not tell types apart first, which costs a short kernel twice its own time.
    Where compilation is disabled that is the function itself.
    """
    if isinstance(function, FunctionType):
        return function
    types = tuple(map(import_module("numba").typeof, arguments))
    return function.overloads[types].entry_point


def plain_forms(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return a module's kernels as plain Python that calls plain Python, also after promotion.

    For a kernel that takes other arguments as plain Python than compiled: another thread may rebind
    it, and what it calls, at any moment.
    """
    group = next(each for each, names in MODULES.items() if _name_in_package(module) in names)
    forms = copies_of(group)
    return {each.__name__: forms[each] for each in forms if each.__module__ == module.__name__}


def copies_of(group: str) -> dict[Callable[..., Any], FunctionType]:
    """Copy a group's modules; return their kernels with what these are in the copies.

    A copy of a kernel calls copies of kernels, whatever the modules' names are bound to.
    """
    for name in MODULES[group]:
        import_module(f"{_PACKAGE}.{name}")
    kernels = _kernels_of(group)
    modules = {name: ModuleType(name) for name in {each.__module__ for each in kernels}}
    for name, module in modules.items():
        for key, value in list(vars(sys.modules[name]).items()):
            if isinstance(value, ModuleType):
                value = modules.get(value.__name__, value)
            setattr(module, key, value)
    copies = {each: _copy(each, modules[each.__module__]) for each in kernels}
    for each, copied in copies.items():
        setattr(modules[each.__module__], each.__name__, copied)
    return copies


def _copy(function: Callable[..., Any], module: ModuleType) -> FunctionType:
    """Return a function that looks its names up in another module."""
    made: Any = function
    copied = FunctionType(made.__code__, vars(module), made.__name__, made.__defaults__)
    copied.__qualname__, copied.__module__ = made.__qualname__, made.__module__
    copied.__doc__ = made.__doc__
    return copied


def _name_in_package(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def count_items(n_items: int, group: str) -> int:
    """Count what plain Python works on in place of a group's kernels; return how much it was.

    What threads count at once may be lost.
    """
    _n_items[group] = _n_items.get(group, 0) + n_items
    return _n_items[group]


def promote_for(n_items: int, group: str = READING) -> None:
    """Compile if `n_items`, with those before them, are worth it and it has not been done.

    Where another thread is compiling, plain Python goes on meanwhile, unless there is a great deal.
    """
    if group in _ready or (n_counted := count_items(n_items, group)) < WORTH_COMPILING:
        return
    if n_counted >= WORTH_WAITING or not _promoting - {threading.get_ident()}:
        promote(group)


class Left(BaseException):
    """A compilation that nobody needs any more was left half-way."""


def leave_compilation(thread: int) -> None:
    """Let a thread leave what it compiles, at its next look."""
    _leaving.add(thread)


def look_up() -> None:
    """Leave a compilation if this thread is to; called now and then in the middle of one."""
    if _leaving and threading.get_ident() in _leaving:
        raise Left


def promote(group: str = READING) -> bool:
    """Compile the kernels of a group and bind their names to that; return whether it is done.

    Safe to call from many threads; the second call costs nothing. Compiled code is cached on disk
    unless ``JESSYMEM_KERNEL_CACHE=0``.
    """
    if group in _ready or is_disabled():
        return group in _ready
    is_outermost = (me := threading.get_ident()) not in _promoting
    try:
        _promoting.add(me)
        import_modules(group)
        with compiling():
            register_overloads()
            compiler = _compilers.setdefault(group, _Compiler(group))
        # Of several threads each compiles what none has yet; numba's lock is free in between.
        for first_calls in compiler.first_calls:
            look_up()
            first_calls()
        _switch(group, compiler.forms)
        problems = _cache_module().take_problems()
    except BaseException:
        _compilers.pop(group, None)
        raise
    finally:
        if is_outermost:
            _promoting.discard(me)
    for problem in problems:
        _warn_of(problem)
    return True


@functools.cache
def is_cached(group: str) -> bool:
    """Tell whether the cache had kernels of a group when it was first asked; imports numba."""
    if is_disabled() or not _uses_cache():
        return False
    cache = _cache_module().KernelCache
    names = {f"{_PACKAGE}.{name}" for name in MODULES[group]}
    return any(cache(each).is_there() for each in _kernels if each.__module__ in names)


def _uses_cache() -> bool:
    return os.environ.get("JESSYMEM_KERNEL_CACHE", "1") != "0"


def _cache_module() -> Any:
    return import_module(f"{_PACKAGE}._cache")


def _warn_of(problem: Any) -> None:
    """Record what was wrong with the cache."""
    warn(
        "kernels were compiled without their cache: %s %s: %s",
        problem.path,
        "was damaged and is written anew" if problem.is_mended else "cannot be used",
        problem.error,
        extra={
            "event": "kernel_cache_failed",
            "path": problem.path,
            "is_mended": problem.is_mended,
            "error": type(problem.error).__name__,
        },
    )


def warn(text: str, *values: object, extra: dict[str, Any]) -> None:
    """Record what has gone wrong with kernels."""
    logging = import_module("logging")  # which numba has imported, and this package had not
    logger = logging.getLogger("jessymem")
    logger.addHandler(logging.NullHandler())  # as everywhere: no word where nobody listens
    logger.warning(text, *values, extra=extra)


def import_modules(group: str) -> None:
    """Import numba and a group's modules; who does that waits for no compilation."""
    with _lock:
        import_module("numba")
        for name in MODULES[group]:
            import_module(f"{_PACKAGE}.{name}")


def register_overloads() -> None:
    """Tell numba of every function that has a compiled form of its own."""
    with compiling():
        while _registrations:
            _registrations[-1]()
            _registrations.pop()


@contextmanager
def compiling() -> Iterator[None]:
    """Hold the lock under which numba compiles, and ours.

    In this order: a user's function that is being compiled may lead here.
    """
    with import_module("numba.core.compiler_lock").global_compiler_lock, _lock:
        yield


class _Compiler:
    """A group's kernels as they are compiled: in copies of its modules.

    Attributes
    ----------
    forms : dict
        By kernel, what compiles when it is called.
    first_calls : list of callable
        What calls them.
    """

    def __init__(self, group: str) -> None:
        copies = copies_of(group)
        self.forms = {each: _wrap(each, copied) for each, copied in copies.items()}
        # All before any is called: what a kernel calls would be compiled as plain Python else.
        for each, dispatcher in self.forms.items():
            copies[each].__globals__[each.__name__] = dispatcher
        names = {each.__module__: copied.__globals__ for each, copied in copies.items()}
        self.first_calls: list[Callable[[], None]] = []
        for first_calls in _first_calls.get(group, ()):
            made: Any = first_calls
            if made.__module__ in names:
                made = FunctionType(made.__code__, names[made.__module__], made.__name__)
            self.first_calls.append(made)


def _switch(group: str, forms: dict[Callable[..., Any], Any]) -> None:
    """Let compiled kernels take the place of plain ones; may be done twice, and by two threads."""
    _forms[group] = forms
    if group in _before_switch:
        _before_switch[group]()
    for function, dispatcher in forms.items():
        _rebind(function, dispatcher)
    _ready.add(group)


def forms_of(group: str) -> dict[Callable[..., Any], Any]:
    """Return the compiled forms of a group's kernels; none until all are there."""
    return _forms.get(group, _NO_FORMS)


def _kernels_of(group: str) -> list[Callable[..., Any]]:
    others = {
        f"{_PACKAGE}.{name}" for other, names in MODULES.items() if other != group for name in names
    }
    return [function for function in _kernels if function.__module__ not in others]


def _rebind(function: Callable[..., Any], form: Callable[..., Any]) -> None:
    setattr(sys.modules[function.__module__], function.__name__, form)


@functools.cache
def digest_of_sources() -> str:
    """Return what tells these sources, and the flag for bounds checks, from any others.

    Sources are read as they were installed: as files, as byte code without them, in an archive.
    Where none can be read, as in a program that was frozen, version and tables are used.

    Raises
    ------
    RuntimeError
        If nothing is known of them: compiled code of other tables would be taken for theirs.
    """
    sha256 = import_module("hashlib").sha256  # not before: it loads OpenSSL
    digest = sha256(str(import_module("numba").config.BOUNDSCHECK).encode())
    pieces = _read_sources() or _describe_release()
    for name, content in pieces:
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _read_sources() -> list[tuple[str, bytes]]:
    """Return name and content of every module beside this one; none where they cannot be read."""
    files = import_module("importlib.resources").files
    with suppress(OSError, ImportError, TypeError, ValueError):
        found = files(_PACKAGE).iterdir()
        names = {each.name: each for each in found if each.name.endswith((".py", ".pyc"))}
        return [(name, names[name].read_bytes()) for name in sorted(names)]
    return []


def _describe_release() -> list[tuple[str, bytes]]:
    """Return the release, and every table and number that is compiled into code."""
    metadata = import_module("importlib.metadata")
    schema = import_module(f"{_PACKAGE}.schema")
    try:
        version = metadata.version("jessymem")
    except metadata.PackageNotFoundError:
        raise RuntimeError(
            "neither the sources nor the version of jessymem can be read, so compiled code of "
            "another release could not be told from this one's: ship *.py, *.pyc or the metadata"
        ) from None
    told = [("version", version.encode())]
    for name, value in sorted(vars(schema).items()):
        if isinstance(value, (int, bytes, np.dtype)):
            shown = value.descr if isinstance(value, np.dtype) else value
            told.append((name, repr(shown).encode()))
    return told


def _wrap(function: Callable[..., Any], copied: Callable[..., Any]) -> Any:
    """Make the form of `function`, of which `copied` is a copy, that compiles when called."""
    options = {"no_cfunc_wrapper": True, "error_model": "numpy"}
    dispatcher = import_module("numba").njit(**options, **_kernels[function])(copied)
    find_template, widen = dispatcher.get_call_template, import_module("numba").types.unliteral

    def find_template_of_any(arguments: Any, keywords: Any) -> Any:
        return find_template(tuple(map(widen, arguments)), keywords)

    # Else it would be compiled for each number that is written where it is called. What LLVM copies
    # into its caller it knows the number of all the same.
    dispatcher.get_call_template = find_template_of_any
    if _uses_cache():
        dispatcher._cache = _cache_module().KernelCache(function)
    return dispatcher


# -- forks -----------------------------------------------------------------------------------------
#
# A fork waits for nothing: another thread may hold numba's lock, or ours, across an import that
# wants a lock of whoever forks. A child that was forked in the middle of that can do without: there
# every group that was not compiled by then stays plain Python.


def _after_fork_in_child() -> None:
    global _lock, _is_left_plain
    me = threading.get_ident()
    compiler = _loaded_compiler()
    is_half_done = bool(_promoting - {me}) or _is_importing("numba")
    if compiler is not None and not is_half_done:
        if compiler.acquire(blocking=False) is False:  # by a user's thread
            is_half_done = True
        else:
            compiler.release()
    _promoting.intersection_update({me})
    for group in _forms.keys() - _ready:  # a thread was in the middle of the switch
        _switch(group, _forms[group])
    if is_half_done:
        _lock = threading.RLock()
        _is_left_plain = True


def _is_importing(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _loaded_compiler() -> Any:
    """Return the lock under which numba compiles; None before it is imported."""
    lock = getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None)
    return getattr(lock, "_lock", None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
