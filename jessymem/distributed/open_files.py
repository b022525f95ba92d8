"""Files that are mapped for a task, and kept for the next question to the same ones.

Whatever a process has open counts against one budget: who needs room closes what is only kept, the
one that was asked longest ago first, and waits for what is at work.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from jessymem import descriptors
from jessymem.config import MemoryConfig
from jessymem.distributed.sources import local_edition
from jessymem.errors import JessyMemoryError, LimitExceeded, RemoteError
from jessymem.ids import DimensionId
from jessymem.manager import MmapManager
from jessymem.remote.files import RemoteFile

#: Which files, of which editions, with which settings.
Key: TypeAlias = "tuple[tuple[tuple[str, str | None], ...], MemoryConfig]"

#: Of the descriptors that a process may have, the part that files which are only kept take.
_KEPT_SHARE: Final = 2


@contextmanager
def naming(file: RemoteFile) -> Iterator[None]:
    """Let an error say which file was asked."""
    try:
        yield
    except (JessyMemoryError, OSError) as error:
        note = f"asked of {file.url}"
        if not any(each.startswith("asked of ") for each in getattr(error, "__notes__", ())):
            error.add_note(note)
        raise


@contextmanager
def unchanged(file: RemoteFile, path: Path) -> Iterator[None]:
    """Check before and after that a file of this machine is the edition that was planned."""
    check_edition(file, path)
    yield
    check_edition(file, path)


def check_edition(file: RemoteFile, path: Path) -> None:
    """Raise RemoteError where a file is no longer the edition that was planned."""
    try:
        now = local_edition(str(path))
    except OSError as error:
        raise RemoteError.of("read", file.url, error) from error
    if now != file.edition:
        cause = ValueError(f"it was {file.edition}, and is {now or 'gone'} by now")
        raise RemoteError.of("read", file.url, cause)


def ask(
    manager: MmapManager, loaded: Mapping[DimensionId, RemoteFile], question: Any
) -> list[dict[str, Any]]:
    """Ask all that is loaded at once; or, to say which of them fails, one by one."""
    answers: dict[DimensionId, dict[str, Any]] = {}
    with suppress(JessyMemoryError, OSError):
        answers = question.answers(manager, sorted(loaded))
    for dimension, file in loaded.items():
        if dimension not in answers:
            with naming(file):
                answers |= question.answers(manager, [dimension])
    return [answers[dimension] for dimension in loaded]


class OpenFiles:
    """Files of this machine, each of another dimension, mapped as they were planned.

    Parameters
    ----------
    files : mapping of DimensionId to (RemoteFile, Path)
    config : MemoryConfig

    Raises
    ------
    RemoteError
        If one of them is another edition by now.
    """

    def __init__(
        self, files: Mapping[DimensionId, tuple[RemoteFile, Path]], config: MemoryConfig
    ) -> None:
        self.n_bytes = sum(file.n_bytes for file, _ in files.values())
        self._files = files
        self._manager = MmapManager(config)
        try:
            for dimension, (file, path) in files.items():
                with naming(file), unchanged(file, path):
                    self._manager.load_dimension(dimension, path)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Return how many files they are."""
        return len(self._files)

    def ask(self, question: Any) -> list[dict[str, Any]]:
        """Return the answer of each file.

        What is mapped is the edition that was planned, whatever has taken its name since. Only who
        has rewritten it in its place is found out.
        """
        loaded = {dimension: file for dimension, (file, _) in self._files.items()}
        answers = ask(self._manager, loaded, question)
        for file, path in self._files.values():
            _check_in_place(file, path)
        return answers

    def close(self) -> None:
        """Unmap them."""
        self._manager.close()


def _check_in_place(file: RemoteFile, path: Path) -> None:
    """Raise RemoteError where the very file that is mapped was changed."""
    try:
        status = path.stat()
    except OSError:
        return  # it has lost its name, which says nothing of what is mapped
    edition = f" {file.edition} "
    is_same_file = f" {status.st_ino} " in edition
    if is_same_file and f"{path.name} {status.st_mtime_ns} " not in edition:
        check_edition(file, path)


class OpenBudget:
    """What the tasks of this process have open, and what is kept for later ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_taken = 0
        self._kept: OrderedDict[Key, OpenFiles] = OrderedDict()  # asked longest ago first

    @contextmanager
    def taken(self, files: Sequence[RemoteFile], limit: int) -> Iterator[None]:
        """Wait until files fit beside what is open, and count them meanwhile."""
        n_bytes = self._take(files, limit)
        try:
            yield
        finally:
            self._give_back(n_bytes)

    def take_kept(self, key: Key) -> OpenFiles | None:
        """Return files that are mapped from before, for the caller alone; None: they are not."""
        with self._changed:
            return self._kept.pop(key, None)

    @contextmanager
    def keeping(self, key: Key, files: OpenFiles) -> Iterator[None]:
        """Keep files for later questions once this one is answered."""
        try:
            yield
        except BaseException:
            self._close(files)
            raise
        with self._changed:
            other = self._kept.pop(key, None)  # of a task that was asked the same meanwhile
            self._kept[key] = files
            self._changed.notify_all()
        if other is not None:
            self._close(other)
        self._close_surplus()

    def open(
        self,
        files: Mapping[DimensionId, tuple[RemoteFile, Path]],
        config: MemoryConfig,
        limit: int,
    ) -> OpenFiles:
        """Map files, once there is room for them; closing them gives it back."""
        n_bytes = self._take([file for file, _ in files.values()], limit)
        try:
            while True:
                try:
                    return OpenFiles(files, config)
                except OSError as error:
                    is_out_of_them = error.errno in descriptors.OUT_OF_DESCRIPTORS
                    if not is_out_of_them or not self._close_one():
                        raise
        except BaseException:
            self._give_back(n_bytes)
            raise

    def _take(self, files: Sequence[RemoteFile], limit: int) -> int:
        n_bytes = sum(file.n_bytes for file in files)
        if n_bytes > limit:
            raise LimitExceeded(
                f"{files[0].url} has {n_bytes:,} bytes, more than the {limit:,} of the budget",
                bound="budget",
                current=self._n_taken,
                limit=limit,
                requested=n_bytes,
                waiting=0,
            )
        while True:
            with self._changed:
                if self._n_taken + n_bytes <= limit:
                    self._n_taken += n_bytes
                    return n_bytes
                if not self._kept:
                    self._changed.wait()
                    continue
            self._close_one()

    def _give_back(self, n_bytes: int) -> None:
        with self._changed:
            self._n_taken -= n_bytes
            self._changed.notify_all()

    def _close(self, files: OpenFiles) -> None:
        files.close()
        self._give_back(files.n_bytes)

    def _close_one(self) -> bool:
        """Close what is kept, and was asked longest ago; tell whether there was any."""
        with self._changed:
            oldest = self._kept.popitem(last=False)[1] if self._kept else None
        if oldest is None:
            return False
        self._close(oldest)
        return True

    def _close_surplus(self) -> None:
        """Leave others the descriptors that they need."""
        while sum(map(len, list(self._kept.values()))) > descriptors.limit() // _KEPT_SHARE:
            if not self._close_one():
                return


#: Of this process.
BUDGET: Final = OpenBudget()
