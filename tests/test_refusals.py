"""Each system call of each verb refused in every way: vital, optional or a hint, as the table says.

The default run refuses the first call of each operation, the slow one every call, once and from
then on for good.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.system import open_files, opened_since
from support.system_calls import Calls, Failing, intercepted

from jessymem import (
    AllocationFailed,
    JessyMemoryError,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionIOError,
)
from jessymem.system_calls import CALLS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows answers otherwise")

NUMBERS = [
    errno.EPERM,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EINVAL,
    errno.ENODEV,
    errno.ENOLCK,
    errno.EIO,
    errno.ENOSPC,
    errno.EINTR,
]
STALE = ".region.mmap.123-0123abcd.tmp"

#: What `RegionIOError.operation` is to say; where an operation is not listed, its own name.
TOLD_AS = {
    "open": {"map", "read", "read back"},
    "stat": {"map", "read", "open"},
    "read": {"read back", "read"},
    "list": {"list the directory of", "list"},
    "map": {"map"},
    "make directory": {"make the directory of"},
    "sync directory": {"sync the directory of", "sync the directories above"},
}


def build(base: Path, content: bytes, **how: object) -> MmapRegion:
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, content)
    return builder.build_to_file(base / "D20" / "region.mmap", **how)


def content_in(base: Path) -> bytes | None:
    """Return what the file holds for whoever opens it now, None where there is none."""
    path = base / "D20" / "region.mmap"
    if not path.exists():
        return None
    region = MmapRegion.from_file("D20", path)
    assert region.verify_integrity()
    return bytes(region.content_of(0))


@dataclass(frozen=True)
class Verb:
    """Something that makes system calls.

    Attributes
    ----------
    prepare : callable
        Makes what it needs below a base path; what it returns, `act` gets.
    act : callable
        Makes the calls.
    result : bytes
        What layer 0 is afterwards.
    tidies : bool
        Whether it takes away what others left, as far as that goes.
    """

    prepare: Callable[[Path], MmapManager]
    act: Callable[[MmapManager, Path], None]
    result: bytes
    tidies: bool = False


def managing(base: Path) -> MmapManager:
    return MmapManager(8, base_path=base / "base")


def after_build(base: Path) -> MmapManager:
    build(base / "base", b"old")
    return managing(base)


def loaded(base: Path) -> MmapManager:
    manager = after_build(base)
    manager.load_dimension("D20")
    return manager


def learned(base: Path) -> MmapManager:
    manager = loaded(base)
    manager.create_proto_dimension("D20", b"learned", layer=1)
    return manager


def with_a_leftover(base: Path) -> MmapManager:
    manager = after_build(base)
    (base / "base" / "D20" / STALE).write_bytes(b"half")
    return manager


def published(base: Path) -> MmapManager:
    manager = loaded(base)
    build(base / "base", b"new")
    return manager


def load(manager: MmapManager, base: Path) -> None:
    manager.load_dimension("D20")
    assert bytes(manager.access_layer("L20-00")) == b"old"


def refresh(manager: MmapManager, base: Path) -> None:
    assert manager.refresh("D20")
    assert bytes(manager.access_layer("L20-00")) == b"new"


def crystallize(manager: MmapManager, base: Path) -> None:
    manager.crystallize_dimension("D20")


def discover(manager: MmapManager, base: Path) -> None:
    assert manager.discover() == [20]


def verify(manager: MmapManager, base: Path) -> None:
    path = base / "base" / "D20" / "region.mmap"
    assert MmapRegion.from_file("D20", path).verify_integrity("full")


def build_new(manager: MmapManager, base: Path) -> None:
    assert bytes(build(base / "base", b"new").content_of(0)) == b"new"


VERBS = {
    "build": Verb(managing, build_new, b"new"),
    "build over": Verb(after_build, build_new, b"new"),
    "crystallize": Verb(learned, crystallize, b"old"),
    "load": Verb(with_a_leftover, load, b"old", tidies=True),
    "refresh": Verb(published, refresh, b"new", tidies=True),
    "discover": Verb(after_build, discover, b"old"),
    "verify": Verb(after_build, verify, b"old"),
}


def goes_on(operation: str, number: int, name: str, made: list[str]) -> bool | None:
    """Tell whether a verb is to go on after a refusal; None: it may."""
    call = CALLS[operation]
    if call.is_hint or number == errno.EINTR or number in call.optional:
        return True
    if VERBS[name].tidies and "lock" in made and operation in ("lock", "list"):
        return True if operation == "lock" else None  # what is left is left for the next time
    if operation == "rename" and number in (errno.EPERM, errno.EINVAL):
        return name != "build"  # it is taken for mapped, where a file is there
    if operation == "stat" and name == "discover":
        return True  # if in doubt there is a file
    if operation == "sync directory" and number == errno.EPERM:
        return None  # the name of a directory of others
    return False


def tree_of(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*")}


def calls_of(name: str, folder: Path) -> list[str]:
    """Return the operations of a verb that nothing refuses."""
    folder.mkdir()
    calls = Calls(hints=True)
    with VERBS[name].prepare(folder) as manager, intercepted(calls):
        VERBS[name].act(manager, folder)
    return calls.operations


def check(name: str, folder: Path, n_calls: int, number: int, for_good: bool, caplog) -> None:
    """Refuse one call of a verb, or all from that one on, and look at what comes of it."""
    verb = VERBS[name]
    folder.mkdir()
    with verb.prepare(folder) as manager:
        before, descriptors, old = tree_of(folder), open_files(), content_in(folder / "base")
        caplog.clear()
        failing = Failing(n_calls, number, for_good)
        error: JessyMemoryError | None = None
        with intercepted(failing):
            try:
                verb.act(manager, folder)
            except JessyMemoryError as caught:
                error = caught
        operation = failing.failed[0]
        told = [each for each in caplog.records if getattr(each, "event", "") == "step_skipped"]
        if not for_good:
            wanted = goes_on(operation, number, name, failing.made)
            assert wanted is None or (error is None) == wanted, (operation, number, error)
            if number in CALLS[operation].optional:
                assert [each.operation for each in told] == [operation]
            else:
                assert not told
        if error is not None:
            # What the manager has loaded may have been replaced meanwhile.
            left = opened_since(descriptors)
            assert not {path.removesuffix(" (deleted)") for path in left} - set(descriptors)
            check_error(error, operation, number, for_good)
        if error is not None and "rename" not in failing.made[:n_calls]:
            assert content_in(folder / "base") == old
            if "remove" not in failing.failed:
                assert tree_of(folder) - {f"base/D20/{STALE}"} == before - {f"base/D20/{STALE}"}
        if error is not None and name != "crystallize":
            verb.act(manager, folder)
        elif error is not None and "rename" not in failing.made[:n_calls]:
            verb.act(manager, folder)
    with managing(folder) as manager:
        manager.load_dimension("D20")
        assert bytes(manager.access_layer("L20-00")) == verb.result
        if name == "crystallize":
            assert bytes(manager.access_layer("L20-01")) == b"learned"
    assert tree_of(folder / "base") == {"D20", "D20/region.mmap"}


def check_error(error: JessyMemoryError, operation: str, number: int, for_good: bool) -> None:
    if operation == "map private":
        assert isinstance(error, AllocationFailed)
        return
    assert isinstance(error, RegionIOError)
    assert error.errno == number
    assert "D20" in str(error) or operation == "list"
    if not for_good:
        assert error.operation in TOLD_AS.get(operation, {operation}), (operation, error)


@pytest.mark.parametrize("name", VERBS)
def test_the_first_call_of_each_operation_refused(name, memory_path, caplog):
    caplog.set_level(logging.WARNING, "jessymem")
    operations = calls_of(name, memory_path / "rehearsal")
    for operation in sorted(set(operations)):
        for number in NUMBERS:
            folder = memory_path / f"{operation} {number}"
            check(name, folder, operations.index(operation), number, False, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", VERBS)
def test_every_call_refused(name, number, for_good, memory_path, caplog):
    if number == errno.EINTR and for_good:
        pytest.skip("nothing interrupts for ever")
    caplog.set_level(logging.WARNING, "jessymem")
    for n_calls in range(len(calls_of(name, memory_path / "rehearsal"))):
        check(name, memory_path / str(n_calls), n_calls, number, for_good, caplog)
