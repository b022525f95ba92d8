"""What writes region files, as scenarios that can be recorded, replayed, killed and made to fail.

A scenario works in a folder of its own. Tests and subprocesses find it by name in `SCENARIOS`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jessymem import (
    DimensionId,
    DimensionNotFound,
    LayerId,
    MmapManager,
    RegionBuilder,
    RegionIOError,
    osmem,
)
from jessymem.regions.files import RegionFiles

Intercept = Callable[..., None]

DIMENSION = DimensionId(7)
#: The base path of a scenario's manager, in its folder.
BASE = "base"
#: More than one write(2); the states differ in length and in every byte.
CONTENTS = {"older": b"<" * 100, "old": b"o" * 5_000, "new": b"n" * (2**20 + 5)}


@dataclass(frozen=True)
class Scenario:
    """One way to write.

    Attributes
    ----------
    prepare : callable
        Makes the old state in a folder.
    act : callable
        Writes, once. It may be repeated after it has failed.
    check : callable
        Opens the folder as a user would, which tidies it, and returns "old" or "new". Raises on
        anything else, and where a file remains that should not.
    refuse : callable, optional
        Stands at the seam all the while and raises what the system is to refuse.
    is_promised : bool
        Whether only "new" will do once `act` has returned.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    check: Callable[[Path], str]
    refuse: Intercept | None = None
    is_promised: bool = True


@contextmanager
def standing_at_the_seam(*intercepts: Intercept | None) -> Iterator[None]:
    """Let each of `intercepts` see every system call, in this order, until one of them raises."""
    before = osmem.intercept

    def intercept(operation: str, path: str, *details: Any) -> None:
        for one in (*intercepts, before):
            if one is not None:
                one(operation, path, *details)

    osmem.intercept = intercept
    try:
        yield
    finally:
        osmem.intercept = before


def act(scenario: Scenario, folder: Path, watch: Intercept | None = None) -> None:
    """Run a scenario's write; `watch` sees each call that the system does not refuse."""
    with standing_at_the_seam(scenario.refuse, watch):
        scenario.act(folder)


# -- pieces ----------------------------------------------------------------------------------------


def target_in(folder: Path) -> Path:
    return folder / BASE / str(DIMENSION) / "region.mmap"


def build(state: str, folder: Path) -> None:
    """Write D07 in one of its states."""
    builder = RegionBuilder(DIMENSION, "Technical")
    builder.add_layer(0, CONTENTS[state], name=state)
    builder.build_to_file(target_in(folder))


def build_beside(state: str, folder: Path) -> None:
    with standing_at_the_seam(refuse_to_replace):
        build(state, folder)


def make_empty(folder: Path) -> None:
    """Leave a folder as it is: nothing is there yet."""


def make_alternates(folder: Path) -> None:
    """Leave an older generation under the name, and two newer ones beside it."""
    build("older", folder)
    with standing_at_the_seam(refuse_to_replace, refuse_to_remove):
        build("old", folder)
        build("new", folder)


def make_one_alternate(folder: Path) -> None:
    build("older", folder)
    build_beside("old", folder)


def refuse_to_replace(operation: str, path: str, *details: Any) -> None:
    """Refuse what Windows refuses while a file is mapped."""
    if operation == "rename" and os.path.basename(path) == "region.mmap":
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def refuse_to_remove(operation: str, path: str, *details: Any) -> None:
    if operation == "remove":
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def refuse_to_sync_directories(operation: str, path: str, *details: Any) -> None:
    if operation == "sync directory":
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def tidy(folder: Path) -> None:
    RegionFiles(DIMENSION, target_in(folder)).newest_path(tidy=True)


def tidy_after_a_write_that_was_not_synced(folder: Path) -> None:
    """Replace the file under its name, not durably, while a durable generation lies beside it."""
    refused = []

    def refuse_once(operation: str, path: str, *details: Any) -> None:
        if operation == "rename" and not refused:
            refused.append(path)
            refuse_to_replace(operation, path)

    with standing_at_the_seam(refuse_once, refuse_to_sync_directories), suppress(RegionIOError):
        build("new", folder)
    tidy(folder)


def check(folder: Path, old: str | None) -> str:
    """Return "new", or "old" where D07 is in the state `old`; None: where there is no D07."""
    target = target_in(folder)
    newest = RegionFiles(DIMENSION, target).newest_path(tidy=True)
    found = None
    with MmapManager(base_path=folder / BASE) as manager:
        try:
            manager.load_dimension(DIMENSION, newest)
        except DimensionNotFound:
            pass
        else:
            assert manager.list_layers(DIMENSION) == [LayerId(DIMENSION, 0)]
            content = bytes(manager.access_layer("L07-00"))
            found = next(state for state in CONTENTS if CONTENTS[state] == content)
    assert found in (old, "new"), f"neither {old} nor new, but {found}"
    left = files_in(folder) - {target}
    # Only a writer removes the lock of one that was killed.
    assert left <= {target.with_name(".region.mmap.lock")}, f"left over: {left}"
    return "new" if found == "new" else "old"


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


# -- scenarios -------------------------------------------------------------------------------------

SCENARIOS: dict[str, Scenario] = {
    "build": Scenario(
        prepare=make_empty,
        act=partial(build, "new"),
        check=partial(check, old=None),
    ),
    "build over": Scenario(
        prepare=partial(build, "old"),
        act=partial(build, "new"),
        check=partial(check, old="old"),
    ),
    "build beside": Scenario(
        prepare=partial(build, "old"),
        act=partial(build, "new"),
        check=partial(check, old="old"),
        refuse=refuse_to_replace,
    ),
    "build beside another": Scenario(
        prepare=make_one_alternate,
        act=partial(build, "new"),
        check=partial(check, old="old"),
        refuse=refuse_to_replace,
    ),
    "fold back": Scenario(
        prepare=make_alternates,
        act=tidy,
        check=partial(check, old="new"),
    ),
    "tidy after a failed sync": Scenario(
        prepare=make_one_alternate,
        act=tidy_after_a_write_that_was_not_synced,
        check=partial(check, old="old"),
        is_promised=False,
    ),
}
