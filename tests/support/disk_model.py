"""A model of a disk that loses power: what may be found on it afterwards, whatever was written.

What is written to a file is on the medium once the file was synced; that a name leads to a file, or
no longer does, once the name's directory was. Before, each single piece may have got there or not:
the data wholly, in part, as zeros of the right length or not at all, every subset of the names. A
rename within a directory is one step.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jessymem.system_calls import CALLS

#: A folder's content: what each file holds by its path, None for a directory.
Tree = dict[str, bytes | None]

#: A tree as far as it matters to those who open it: files by path, sorted.
State = tuple[tuple[str, bytes | None], ...]

CHANGES = {"make directory", "create", "write", "sync", "rename", "sync directory", "remove"}
SYNCS = {"sync", "sync directory"}
#: What leaves the disk as it is. Locks die with their holders and are nothing that must last.
OTHERS = CALLS.keys() - CHANGES


class Call(NamedTuple):
    """A system call that changes the disk, or waits until it has changed."""

    operation: str
    path: str
    data: bytes = b""  # of a write
    source: str = ""  # of a rename


class Recorder:
    """Keeps the system calls that concern the disk below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[Call] = []

    def __call__(self, operation: str, path: str, *details: Any) -> None:
        if operation not in CHANGES:
            assert operation in OTHERS, f"the model does not know {operation!r}"
            return
        name = self._relative(path)
        if name.startswith(".."):
            assert operation == "sync directory"
        elif operation == "write":
            self.calls.append(Call(operation, name, data=b"".join(details[0])))
        elif operation == "rename":
            self.calls.append(Call(operation, name, source=self._relative(details[0])))
        else:
            self.calls.append(Call(operation, name))

    def _relative(self, path: str) -> str:
        name = os.path.relpath(path, self.folder)
        return "" if name == "." else name


@dataclass(eq=False)
class File:
    durable: bytes = b""
    unsynced: bytes = b""  # what was appended since

    def after(self, fate: str) -> bytes:
        """Return what a crash leaves of it."""
        n_bytes = len(self.unsynced)
        return (
            self.durable
            + {
                "lost": b"",
                "kept": self.unsynced,
                "torn": self.unsynced[: n_bytes // 2],
                "zeros": bytes(n_bytes),
            }[fate]
        )


#: What one step makes of a directory's names; None: the name is gone.
Step = dict[str, "File | Directory | None"]


@dataclass(eq=False)
class Directory:
    durable: dict[str, File | Directory] = field(default_factory=dict)
    unsynced: list[Step] = field(default_factory=list)

    def after(self, steps: list[Step]) -> dict[str, File | Directory]:
        """Return the names, if so many of the unsynced steps have reached the medium."""
        names: dict[str, Any] = dict(self.durable)
        for step in steps:
            names |= step
        return {name: node for name, node in names.items() if node is not None}

    def now(self) -> dict[str, File | Directory]:
        return self.after(self.unsynced)


class Disk:
    """What is on a disk, which is `tree` in the beginning, and what is on its way there."""

    def __init__(self, tree: Tree) -> None:
        self.root = Directory()
        for path in sorted(tree):
            content = tree[path]
            node = Directory() if content is None else File(content)
            self._directory(_parent(path)).durable[_name(path)] = node

    def apply(self, call: Call) -> None:
        """Do what a system call does."""
        directory, name = self._directory(_parent(call.path)), _name(call.path)
        match call.operation:
            case "make directory":
                assert name not in directory.now()
                directory.unsynced.append({name: Directory()})
            case "create":
                assert name not in directory.now()
                directory.unsynced.append({name: File()})
            case "write":
                self._file(call.path).unsynced += call.data
            case "sync":
                file = self._file(call.path)
                file.durable, file.unsynced = file.durable + file.unsynced, b""
            case "rename":
                assert _parent(call.source) == _parent(call.path), "not one step"
                step: Step = {_name(call.source): None, name: self._file(call.source)}
                directory.unsynced.append(step)
            case "sync directory":
                synced = self._directory(call.path)
                synced.durable, synced.unsynced = synced.now(), []
            case "remove":
                if name in directory.now():
                    directory.unsynced.append({name: None})
            case _:
                raise AssertionError(call.operation)

    def now(self) -> Tree:
        """Return what there is to be seen while the power lasts."""
        return self._tree({id(one): one.unsynced for one in self._directories()}, "kept")

    def crash_states(self) -> Iterator[Tree]:
        """Yield what may be there if the power fails now."""
        directories = list(self._directories())
        for chosen in itertools.product(*(_subsets(one.unsynced) for one in directories)):
            steps = {id(one): some for one, some in zip(directories, chosen, strict=True)}
            for fate in ("lost", "kept", "torn", "zeros"):
                yield self._tree(steps, fate)

    def _tree(self, steps: dict[int, list[Step]], fate: str) -> Tree:
        tree: Tree = {}
        waiting: list[tuple[str, Directory]] = [("", self.root)]
        while waiting:
            parent, directory = waiting.pop()
            for name, node in directory.after(steps[id(directory)]).items():
                path = f"{parent}/{name}".lstrip("/")
                if isinstance(node, Directory):
                    tree[path] = None
                    waiting.append((path, node))
                else:
                    tree[path] = node.after(fate)
        return tree

    def _directories(self) -> Iterator[Directory]:
        waiting = [self.root]
        while waiting:
            directory = waiting.pop()
            yield directory
            waiting += (node for node in directory.now().values() if isinstance(node, Directory))

    def _directory(self, path: str) -> Directory:
        directory = self.root
        for name in path.split("/") if path else ():
            found = directory.now()[name]
            assert isinstance(found, Directory)
            directory = found
        return directory

    def _file(self, path: str) -> File:
        found = self._directory(_parent(path)).now()[_name(path)]
        assert isinstance(found, File)
        return found


def tree_of(folder: Path) -> Tree:
    """Return what a real folder holds."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def as_state(tree: Tree) -> State:
    """Return a tree whose temporary files have lost what is random in their names."""
    named = ((re.sub(r"\.\d+-[0-9a-f]{8}\.tmp$", ".tmp", path), tree[path]) for path in tree)
    return tuple(sorted(named, key=lambda item: (item[0], item[1] or b"")))


def materialize(tree: Tree, folder: Path) -> None:
    """Make a real folder of what a crash has left."""
    folder.mkdir()
    for path in sorted(tree):
        content = tree[path]
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def _subsets(steps: list[Step]) -> list[list[Step]]:
    return [
        list(some)
        for n_steps in range(len(steps) + 1)
        for some in itertools.combinations(steps, n_steps)
    ]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
