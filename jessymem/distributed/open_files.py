"""Files that are mapped for a task, and kept for the next question to the same ones.

Whatever a process has open counts against one budget: who needs room closes what is only kept, the
one that was asked longest ago first, and waits for what is at work.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from jessymem import descriptors
from jessymem.config import MemoryConfig
from jessymem.distributed import questions
from jessymem.distributed.sources import FileStatus, edition_of, look_at
from jessymem.errors import JessyMemoryError, LimitExceeded, RemoteError
from jessymem.ids import DimensionId
from jessymem.manager import MmapManager
from jessymem.remote.files import RemoteFile

#: Which files, of which editions, with which settings.
Key: TypeAlias = tuple[str, str]

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
def explained(files: Mapping[Path, RemoteFile]) -> Iterator[None]:
    """Where something fails, say first which file is no longer the edition that was planned."""
    try:
        yield
    except Exception:
        check_editions(files)
        raise


@contextmanager
def unchanged(files: Mapping[Path, RemoteFile]) -> Iterator[None]:
    """Check that files of this machine are, once they were read, the editions that were planned."""
    with explained(files):
        yield
    check_editions(files)


def check_editions(files: Mapping[Path, RemoteFile]) -> dict[str, list[FileStatus]]:
    """Raise RemoteError where a file is no longer the edition that was planned.

    Return what the system says of each, by path, which is what it said when they were planned.
    """
    names = {str(path): file for path, file in files.items()}
    try:
        found = look_at(names)
    except OSError as error:
        raise RemoteError.of("read", next(iter(names.values())).url, error) from error
    for name, file in names.items():
        now = edition_of(found[name])
        if now != file.edition:
            cause = ValueError(f"it was {file.edition}, and is {now or 'gone'} by now")
            raise RemoteError.of("read", file.url, cause)
    return found


def ask(
    manager: MmapManager, loaded: Mapping[DimensionId, RemoteFile], question: Any
) -> questions.Answer:
    """Ask all that is loaded at once; or, to say which of them fails, one by one."""
    with suppress(JessyMemoryError, OSError):
        order = np.argsort(np.argsort(np.array(list(loaded), np.int64)))
        answer: questions.Answer = question.answer(manager, sorted(loaded)).in_order(order)
        return answer
    answers = []
    for dimension, file in loaded.items():
        with naming(file):
            answers.append(question.answer(manager, [dimension]))
    return questions.Answer.joined(answers)


class _Files(MmapManager):
    """Files that are mapped from wherever they lie."""

    def load_from(self, paths: Mapping[DimensionId, Path]) -> None:
        """Load them and publish them at once; what cannot be loaded so is not loaded."""
        home = self._engine.loader.path_of
        away = {dimension: path for dimension, path in paths.items() if path != home(dimension)}
        self._load_several(list(paths), away)


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
        self.n_bytes = sum([file.n_bytes for file, _ in files.values()])
        self.names = tuple([file.url for file, _ in files.values()])
        self.urls = pa.array(self.names, pa.large_string())
        self._files = {dimension: file for dimension, (file, _) in files.items()}
        paths = {dimension: path for dimension, (_, path) in files.items()}
        base = next(iter(paths.values())).parent.parent  # of most, or all, as stores are
        self._manager = _Files(config, base_path=base)
        try:
            planned = {path: file for file, path in files.values()}
            with explained(planned):
                self._manager.load_from(paths)
                for dimension, path in paths.items():
                    if not self._manager.is_loaded(dimension):  # it tells what is wrong
                        with naming(self._files[dimension]):
                            self._manager.load_dimension(dimension, path)
            said = check_editions(planned)
            self._places = [_Place(file, path, said[str(path)]) for path, file in planned.items()]
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Return how many files they are."""
        return len(self._files)

    def ask(self, question: Any) -> questions.Answer:
        """Return the answer of the files.

        What is mapped is the edition that was planned, whatever has taken its name since. Only who
        has rewritten it in its place is found out.
        """
        answer = ask(self._manager, self._files, question)
        for place in self._places:
            place.check()
        return answer

    def close(self) -> None:
        """Unmap them."""
        self._manager.close()


class _Place:
    """Where a file was mapped from, and what the system said of it, and of deltas beside it."""

    __slots__ = ("_file", "_path", "_said")

    def __init__(self, file: RemoteFile, path: Path, said: Sequence[FileStatus]) -> None:
        self._file = file
        self._path = path
        folder = os.path.dirname(path)
        self._said = [(os.path.join(folder, each.name), each) for each in said]

    def check(self) -> None:
        """Raise RemoteError where the very file that is mapped was changed."""
        for path, said in self._said:
            try:
                now = os.stat(path)
            except OSError:
                continue  # it has lost its name, which says nothing of what is mapped
            is_it = now.st_ino == said.inode
            if is_it and (now.st_mtime_ns, now.st_size) != (said.modified_ns, said.n_bytes):
                check_editions({self._path: self._file})


class OpenBudget:
    """What the tasks of this process have open, and what is kept for later ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_taken = 0
        self._kept: OrderedDict[Key, OpenFiles] = OrderedDict()  # asked longest ago first
        self._same_urls: dict[tuple[str, ...], set[Key]] = {}  # of what is kept

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
            return self._pop(key)

    @contextmanager
    def keeping(self, key: Key, files: OpenFiles) -> Iterator[None]:
        """Keep files for later questions once this is answered, and no other edition of them."""
        try:
            yield
        except BaseException:
            self._close(files)
            raise
        with self._changed:
            others = [self._pop(key)]  # of a task that was asked the same meanwhile
            same = self._same_urls.get(files.names, ())
            others += [self._pop(each) for each in list(same) if each[0] != key[0]]
            self._kept[key] = files
            self._same_urls.setdefault(files.names, set()).add(key)
            self._changed.notify_all()
        for other in others:
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
                    if not is_out_of_them or not self.close_oldest():
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
            self.close_oldest()

    def _pop(self, key: Key) -> OpenFiles | None:
        """Keep files no longer, and return them; the lock is held."""
        files = self._kept.pop(key, None)
        if files is not None:
            same = self._same_urls[files.names]
            same.discard(key)
            if not same:
                del self._same_urls[files.names]
        return files

    def _give_back(self, n_bytes: int) -> None:
        with self._changed:
            self._n_taken -= n_bytes
            self._changed.notify_all()

    def _close(self, files: OpenFiles) -> None:
        files.close()
        self._give_back(files.n_bytes)

    def close_oldest(self) -> bool:
        """Close what is kept, and was asked longest ago; tell whether there was any."""
        with self._changed:
            oldest = self._pop(next(iter(self._kept))) if self._kept else None
        if oldest is None:
            return False
        self._close(oldest)
        return True

    def _close_surplus(self) -> None:
        """Leave others the descriptors that they need."""
        while sum(map(len, list(self._kept.values()))) > descriptors.limit() // _KEPT_SHARE:
            if not self.close_oldest():
                return


#: Of this process.
BUDGET: Final = OpenBudget()
