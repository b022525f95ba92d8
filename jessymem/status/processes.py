"""Which processes show themselves: where their files are, and whether they live."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

SUFFIX: Final = ".status"

_START_FIELD: Final = 19  # of /proc/PID/stat behind the command, which may hold spaces: see proc(5)


def start_of(pid: int) -> int:
    """Return a number that tells a process from others that have its id at other times.

    Linux tells the ticks from the system's start to the process'. 0: the system does not tell, or
    there is no such process.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        return int(text.rpartition(b")")[2].split()[_START_FIELD])
    except (OSError, ValueError, IndexError):
        return 0


def namespace() -> int:
    """Return a number that tells this container's process ids from those of others; 0: unknown."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def is_alive(pid: int, started: int) -> bool:
    """Tell whether a process lives that has this id and started then.

    Where the system does not tell when, its id has to do; and where it does not tell of ids, it
    counts as living.
    """
    now = start_of(pid)
    if now or sys.platform.startswith("linux"):
        return now == started and now != 0
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    return True


def directory() -> Path:
    """Return where processes of this user put their files, unless they are told another place.

    ``$XDG_RUNTIME_DIR/jessymem`` where that is a folder of this user's, or else a folder of the
    user's own among temporary files.
    """
    root = os.environ.get("XDG_RUNTIME_DIR")
    if root and os.path.isabs(root) and fault_of_directory(Path(root)) is None:
        return Path(root, "jessymem")
    user = os.getuid() if os.name != "nt" else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir(), f"jessymem-{user}")


def fault_of_directory(path: Path) -> str | None:
    """Say why a folder is no place to trust; None: others cannot write in it."""
    try:
        found = os.lstat(path)
    except OSError as error:
        return str(error)
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is no folder"
    if os.name != "nt":
        if found.st_uid != os.geteuid():
            return f"{path} is another user's"
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"others may write into {path}"
    return None


def id_in(path: Path) -> int | None:
    """Return the id of the process that made a file, by its name; None: the name tells none."""
    pid, _, number = path.stem.partition("-")
    return int(pid) if pid.isdecimal() and number.isdecimal() else None


def files_in(folder: Path) -> Iterator[Path]:
    """Yield what may be status files in a folder; none where it cannot be trusted or listed."""
    if fault_of_directory(folder) is not None:
        return
    with suppress(OSError):
        yield from sorted(each for each in folder.iterdir() if each.suffix == SUFFIX)
