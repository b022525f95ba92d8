"""`Group`: the files of one task, as they travel."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Sequence
from typing import Any

import xxhash

from jessymem.remote.files import RemoteFile


class Group:
    """The files of one task, packed: who passes it on unpacks nothing, nor who knows them already.

    Attributes
    ----------
    first : int
        The place of its first file among all that are asked.
    n_files, n_bytes : int
    token : str
        Which files, of which editions; another one each time where a store tells no edition.
    """

    __slots__ = ("_files", "_options", "_packed", "first", "n_bytes", "n_files", "token")

    def __init__(
        self,
        first: int,
        n_files: int,
        n_bytes: int,
        token: str,
        packed: bytes,
        options: tuple[tuple[str, Any], ...],
    ) -> None:
        self.first = first
        self.n_files = n_files
        self.n_bytes = n_bytes
        self.token = token
        self._packed = packed
        self._options = options
        self._files: list[RemoteFile] | None = None

    @classmethod
    def of(cls, first: int, files: Sequence[RemoteFile]) -> Group:
        """Pack files that have one file system's options."""
        packed = pickle.dumps([tuple(file[:-1]) for file in files], protocol=5)
        n_bytes = sum([file.n_bytes for file in files])
        is_known = None not in [file.edition for file in files]
        text = "\0".join([f"{file.url}\0{file.edition}" for file in files])
        digest = xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))
        token = digest if is_known else uuid.uuid4().hex
        return cls(first, len(files), n_bytes, token, packed, files[0].options)

    @classmethod
    def several(cls, files: Sequence[RemoteFile], task_bytes: int) -> list[Group]:
        """Put small files together into groups of about so many bytes; a longer one is alone."""
        groups: list[Group] = []
        first, n_bytes = 0, 0
        for at, file in enumerate(files):
            if at > first and n_bytes + file.n_bytes > task_bytes:
                groups.append(cls.of(first, files[first:at]))
                first, n_bytes = at, 0
            n_bytes += file.n_bytes
        return [*groups, cls.of(first, files[first:])]

    @property
    def files(self) -> list[RemoteFile]:
        """The files, in order."""
        if self._files is None:
            found: list[Any] = pickle.loads(self._packed)
            self._files = [RemoteFile._make((*each, self._options)) for each in found]
        return self._files

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as what it was made of."""
        made = self.first, self.n_files, self.n_bytes, self.token, self._packed, self._options
        return Group, made

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what tells it from other ones."""
        return "jessymem-group", self.first, self.token, self._options
