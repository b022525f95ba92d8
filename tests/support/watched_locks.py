"""Locks that are watched while verbs run: in which order they are taken, what is called under them.

Run as a program, with a directory of region files: each verb is called first in a fork of a fresh
process, so that imports and compilations are seen. Prints what should not have been.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from jessymem import JessyMemoryError, MmapManager, RegionBuilder, budget, locks, osmem
from jessymem.engine import engine
from jessymem.kernels import _jit
from support import first_uses

#: In the order in which they are taken.
ORDER = ("a region file's", "the writer's", "the budget's")

#: What should not have been.
seen: list[str] = []
_held = threading.local()


def _stack() -> dict[str, int]:
    found: dict[str, int] = _held.__dict__.setdefault("counts", dict.fromkeys(ORDER, 0))
    return found


def note(what: str) -> None:
    """Note something, if this thread holds a lock under which it may not be."""
    held = [name for name in ORDER[1:] if _stack()[name]]
    if held:
        frames = traceback.extract_stack()[:-2]
        shown = [
            f"{Path(frame.filename).name}:{frame.lineno}"
            for frame in frames
            if "jessymem" in frame.filename or "kernels" in frame.filename
        ]
        seen.append(f"{what} under {' and '.join(held)} lock, from {shown[-7:]}")


def _check_order(name: str) -> None:
    above = [other for other in ORDER[ORDER.index(name) + 1 :] if _stack()[other]]
    if above and not _stack()[name]:
        seen.append(f"waits for {name} lock, holding {above}: {traceback.format_stack()[-6:-2]}")


class _WatchedHold:
    """Counts a lock as held for as long as the hold is used."""

    def __init__(self, hold: Any, name: str) -> None:
        self._hold = hold
        self._name = name
        _stack()[name] += 1

    def __enter__(self) -> None:
        self._hold.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._hold.__exit__(*exception)
        self._end()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        name, self._name = self._name, ""
        if name:
            _stack()[name] -= 1


def _watched(name: str) -> type[locks.Lock]:
    class WatchedLock(locks.Lock):
        def hold(self) -> Any:
            _check_order(name)
            return _WatchedHold(super().hold(), name)

        def hold_if_free(self) -> Any:
            found = super().hold_if_free()
            return None if found is None else _WatchedHold(found, name)

    return WatchedLock


def watch() -> None:
    """Watch the locks of all managers that are made from here on."""
    engine.Lock = _watched(ORDER[1])  # type: ignore[misc, attr-defined]
    budget.Lock = _watched(ORDER[2])  # type: ignore[misc, attr-defined]
    locked, compiling = osmem.locked, _jit.compiling

    @contextmanager
    def watch_file(path: Path, timeout: float) -> Iterator[None]:
        if timeout:  # else it does not wait
            _check_order(ORDER[0])
        with locked(path, timeout):
            _stack()[ORDER[0]] += 1
            try:
                yield
            finally:
                _stack()[ORDER[0]] -= 1

    def watch_compiler() -> AbstractContextManager[None]:
        note("compiles")
        return compiling()

    osmem.locked = watch_file  # type: ignore[assignment]
    _jit.compiling = watch_compiler  # type: ignore[assignment]
    sys.meta_path.insert(0, _Imports)  # type: ignore[arg-type]
    logger = logging.getLogger("jessymem")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(_Records())
    warnings.showwarning = lambda message, *rest: note(f"warns of {message}")


class _Imports:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if not any(each.startswith("imports") for each in seen):  # others follow it
            note(f"imports {name}")


class _Records(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"writes a record {record.msg!r}")


class Spy:
    """Arguments of a user's, which run code of his when they are looked at."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __fspath__(self) -> str:
        note("asks a path")
        return os.fspath(self._value)

    def __index__(self) -> int:
        note("asks an integer")
        return int(self._value)

    def __iter__(self) -> Iterator[Any]:
        for each in self._value:
            note("asks a sequence")
            yield each

    def is_set(self) -> bool:
        note("asks whether to stop")
        return False


def _learn_over_plain(manager: MmapManager) -> MmapManager:
    manager.create_proto_dimension("D22", b"learned", layer=7)
    return manager


def _crowd(manager: MmapManager, base: Path) -> MmapManager:
    """Return a manager with room for one of two dimensions, the other of which was evicted."""
    small = MmapManager(1, base_path=base)
    small.load_dimension("D23")
    small.load_dimension("D24")
    return small


def _empty_overlay(manager: MmapManager, base: Path) -> MmapManager:
    manager.load_dimension("D25")
    manager.overlay_layer("L25-00", b"", separator=b"")
    builder = RegionBuilder("D25", "Name")
    builder.add_layer(0, b"grown")
    builder.build_to_file(base / "D25" / "region.mmap")
    return manager


def _make_parsing_worth_it(manager: MmapManager) -> MmapManager:
    from jessymem.regions import entries

    entries.WORTH_LOADING = entries.WORTH_STARTING = 1  # type: ignore[misc]
    return manager


Verb = tuple[Callable[..., Any], Callable[..., Any]]

#: What is called beside the verbs of `first_uses`.
MORE: dict[str, Verb] = {
    "a path": (
        lambda m, base: m,
        lambda m, base: m.load_dimension("D21", Spy(base / "D21" / "region.mmap")),
    ),
    "layers one by one": (
        lambda m, base: m,
        lambda m, base: m.create_proto_layers(
            Spy([{"dimension_id": Spy(30), "content": b"one", "keywords": Spy(["word"])}])
        ),
    ),
    "a choice": (
        lambda m, base: m,
        lambda m, base: m.select(keywords=Spy(["joy"]), dimensions=Spy([20, Spy(21)])),
    ),
    "a name among learned ones": (
        lambda m, base: m.create_proto_dimension("D20", b"x", name="x") and m,
        lambda m, base: m.id_of("x"),
    ),
    "a name among evicted ones": (
        lambda m, base: _crowd(m, base),
        lambda m, base: m.get("no such name"),
    ),
    "a search that is watched": (
        lambda m, base: _crowd(m, base),
        lambda m, base: m.find(b"a", progress=lambda *n: note("tells progress"), cancel=Spy(0)),
    ),
    "a size": (lambda m, base: m, lambda m, base: m.allocate(Spy(10))),
    "many sizes": (lambda m, base: m, lambda m, base: m.allocate_many(Spy([10, 20]))),
    "learned over plain": (lambda m, base: m, lambda m, base: _learn_over_plain(m)),
    "crystallized over plain": (
        lambda m, base: _learn_over_plain(m),
        lambda m, base: m.crystallize_dimension("D22"),
    ),
    "learned in a core dimension": (
        lambda m, base: m,
        lambda m, base: m.create_proto_dimension("D03", b"learned"),
    ),
    "a load that evicts": (
        lambda m, base: _crowd(m, base),
        lambda m, base: m.access_layer("L23-00"),
    ),
    "a batch of evicted": (
        lambda m, base: _crowd(m, base),
        lambda m, base: m.access_many(["L23-00"]),
    ),
    "a block that evicts": (
        lambda m, base: _crowd(m, base),
        lambda m, base: m.allocate(300_000),
    ),
    "a choice of evicted": (
        lambda m, base: _crowd(m, base),
        lambda m, base: m.select(depth=(0, 1), dimensions=["D23"]),
    ),
    "a pin of evicted": (lambda m, base: _crowd(m, base), lambda m, base: m.pin("D23")),
    "too much": (lambda m, base: m, lambda m, base: m.allocate(2**30)),
    "pressure": (
        lambda m, base: MmapManager(8, base_path=base),
        lambda m, base: m.allocate(7 << 20),
    ),
    "an empty overlay laid again": (
        lambda m, base: _empty_overlay(MmapManager(8, base_path=base), base),
        lambda m, base: m.refresh("D25"),
    ),
    "a file with a broken table": (lambda m, base: m, lambda m, base: m.load_dimension("D26")),
    "what is beside and may not count": (
        lambda m, base: m,
        lambda m, base: m.load_dimension("D27"),
    ),
    "numbers of what is beside": (
        lambda m, base: m,
        lambda m, base: m.create_proto_dimension("D27", b"x"),
    ),
    "plain entries that are worth it": (
        lambda m, base: _make_parsing_worth_it(m),
        lambda m, base: m.load_dimension("D22"),
    ),
}


def check(verb: str, base: Path) -> list[str]:
    """Call a verb in this process for the first time; return what should not have been."""
    prepare, call = {**first_uses.VERBS, **MORE}[verb]
    manager = MmapManager(64, base_path=base)
    manager.load_dimension("D20")
    subject = prepare(manager, base)
    try:
        call(subject, base)
    except JessyMemoryError:
        if "missing" not in verb and verb != "too much":
            raise
    return [f"{verb}: {each}" for each in dict.fromkeys(seen)]


def main() -> None:
    base = Path(sys.argv[1])
    watch()
    # That loading kernels takes no lock is seen once.
    others = [verb for verb in first_uses.VERBS if verb not in first_uses.ALIKE]
    chosen = sys.argv[2:] or [*others, *MORE]
    sys.stdout.write("\n".join(first_uses.in_forks(chosen, lambda verb: check(verb, base))))


if __name__ == "__main__":
    main()
