"""Every way to write region files, to be recorded, replayed, killed and made to fail.

Tests find a case by its name in `WRITE_CASES`. Here are those that build files and tidy them up.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from jessymem import RegionIOError
from jessymem.regions.files import RegionFiles
from support.crystallizations import CRYSTALLIZE_CASES
from support.system_calls import (
    WRITE_CHUNK_BYTES,
    intercepted,
    refuse_to_remove,
    refuse_to_replace,
    refuse_to_sync_directories,
)
from support.writes import (
    DIMENSION,
    Layer,
    Layers,
    WriteCase,
    build,
    layers_in,
    make_empty,
    target_in,
)

#: The states differ in length and in every byte; the new one takes more than one write(2).
STATES: dict[str, Layers] = {
    "older": {0: Layer(b"<" * 100, "older")},
    "old": {0: Layer(b"o" * 1_000, "old")},
    "new": {0: Layer(b"n" * (2 * WRITE_CHUNK_BYTES + 5), "new")},
}


def build_state(state: str, folder: Path) -> None:
    """Write D07 in one of its states."""
    build(STATES[state], folder)


def build_beside(state: str, folder: Path) -> None:
    with intercepted(refuse_to_replace):
        build_state(state, folder)


def make_alternates(folder: Path) -> None:
    """Leave an older generation under the name, and two newer ones beside it."""
    build_state("older", folder)
    with intercepted(refuse_to_replace, refuse_to_remove):
        build_state("old", folder)
        build_state("new", folder)


def make_one_alternate(folder: Path) -> None:
    build_state("older", folder)
    build_beside("old", folder)


def tidy(folder: Path) -> None:
    RegionFiles(DIMENSION, target_in(folder)).newest_path(tidy=True)


def tidy_after_a_write_that_was_not_synced(folder: Path) -> None:
    """Replace the file under its name, not durably, while a durable generation lies beside it."""
    refused = []

    def refuse_once(operation: str, path: str, *details: Any) -> None:
        if operation == "rename" and not refused:
            refused.append(path)
            refuse_to_replace(operation, path)

    with intercepted(refuse_once, refuse_to_sync_directories), suppress(RegionIOError):
        build_state("new", folder)
    tidy(folder)


def check(folder: Path, old: str | None) -> str:
    """Return "new", or "old" where D07 is in the state `old`; None: where there is no D07."""
    found = layers_in(folder)
    if found == STATES["new"]:
        return "new"
    assert found == (None if old is None else STATES[old]), f"neither {old} nor new"
    return "old"


WRITE_CASES: dict[str, WriteCase] = {
    "build": WriteCase(
        prepare=make_empty,
        act=partial(build_state, "new"),
        check=partial(check, old=None),
    ),
    "build over": WriteCase(
        prepare=partial(build_state, "old"),
        act=partial(build_state, "new"),
        check=partial(check, old="old"),
    ),
    "build beside": WriteCase(
        prepare=partial(build_state, "old"),
        act=partial(build_state, "new"),
        check=partial(check, old="old"),
        refuse=refuse_to_replace,
    ),
    "build beside another": WriteCase(
        prepare=make_one_alternate,
        act=partial(build_state, "new"),
        check=partial(check, old="old"),
        refuse=refuse_to_replace,
    ),
    "fold back": WriteCase(
        prepare=make_alternates,
        act=tidy,
        check=partial(check, old="new"),
    ),
    "tidy after a failed sync": WriteCase(
        prepare=make_one_alternate,
        act=tidy_after_a_write_that_was_not_synced,
        check=partial(check, old="old"),
        is_promised=False,
    ),
    **CRYSTALLIZE_CASES,
}
