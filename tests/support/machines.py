"""A machine of several nodes, as Linux tells of it, and threads that run on one processor of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from jessymem import nodes


def write_machine(
    folder: Path,
    cpus: Mapping[int, str],
    *,
    with_memory: str | None = None,
    allowed: str | None = None,
    distances: Mapping[int, str] | None = None,
) -> None:
    """Write the files that tell of nodes and their processors."""
    folder.mkdir(exist_ok=True)
    online = ",".join(map(str, cpus))
    (folder / "online").write_text(online + "\n")
    if with_memory is not None:
        (folder / "has_memory").write_text(with_memory + "\n")
    for node, listed in cpus.items():
        (folder / f"node{node}").mkdir()
        (folder / f"node{node}" / "cpulist").write_text(listed + "\n")
        if distances is not None:
            (folder / f"node{node}" / "distance").write_text(distances[node] + "\n")
    shown = online if allowed is None else allowed
    (folder / "status").write_text(f"Name:\tpython\nMems_allowed_list:\t{shown}\n")


class Machine:
    """What mbind(2) was asked for, in the place of the system's own; it refuses with `error`."""

    def __init__(self) -> None:
        self.placed: list[tuple[int, int, int, tuple[int, ...]]] = []
        self.error: OSError | None = None

    def place(self, address: int, n_bytes: int, mode: int, where: tuple[int, ...]) -> None:
        if self.error is not None:
            raise self.error
        self.placed.append((address, n_bytes, mode, where))


def use_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Machine:
    """Let this process be on the machine that a folder tells of."""
    machine = Machine()
    monkeypatch.setattr(nodes, "NODES", folder)
    monkeypatch.setattr(nodes, "PROCESS_STATUS", folder / "status")
    monkeypatch.setattr(nodes, "place", machine.place)
    return machine


def two_processors() -> tuple[int, int]:
    """Return two that this process may run on; skip where there is one."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(usable) < 2:
        pytest.skip("two processors are needed")
    return usable[0], usable[1]


@contextmanager
def on_processor(number: int) -> Iterator[None]:
    """Let the calling thread run on one processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
