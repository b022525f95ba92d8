"""Names of layers and dimensions as names of files: none leads out of a folder, no two are one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

import xxhash

#: What some system takes for something else than a part of a name.
_SPECIAL: Final = frozenset('<>:"|?*\\/%')
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)

_MAX_PART_BYTES: Final = 150
_MAX_PATH_BYTES: Final = 600
_MAX_PARTS: Final = 16


def escape(name: str) -> str:
    """Return a name as that of one file: special characters as ``%2F``, long ones cut.

    The result is never empty, never begins with a dot, and no system gives it a meaning.
    """
    safe = "".join(map(_escape_character, name)) or "%"
    if safe[0] == "." or _DEVICES.fullmatch(safe):
        safe = _encode(safe[0]) + safe[1:]
    if safe[-1] in ". ":
        safe = safe[:-1] + _encode(safe[-1])
    encoded = safe.encode()
    if len(encoded) > _MAX_PART_BYTES:
        kept = encoded[: _MAX_PART_BYTES - 17].decode("utf-8", "ignore")
        safe = f"{kept}~{xxhash.xxh3_64_hexdigest(name.encode())}"
    return safe


class FileNames:
    """Gives out paths of files in one folder, with ``/``; no two are the same to any system.

    Parameters
    ----------
    reserved : iterable of str
        Names that are not given out.
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._files = {_fold(name) for name in reserved}
        self._folders: set[str] = set()

    def give(self, name: str, number: int, ending: str = "") -> str:
        """Return the path of a layer's file.

        Parameters
        ----------
        name : str
            The layer's: its slashes are folders.
        number : int
            The layer's, for what is called like another, or like nothing.
        ending : str
            What it ends with.
        """
        path = self._with_ending("/".join(map(escape, name.split("/"))), ending)
        parts = path.split("/")
        is_long = len(parts) > _MAX_PARTS or len(path.encode()) > _MAX_PATH_BYTES
        if not name or is_long or not self._take(path):
            path = self._with_ending(
                escape(f"{number:02d}~{name}" if name else f"{number:02d}"), ending
            )
            while not self._take(path):
                path = f"~{path}"
        return path

    @staticmethod
    def _with_ending(path: str, ending: str) -> str:
        return path if path.lower().endswith(ending) else path + ending

    def _take(self, path: str) -> bool:
        folded = _fold(path)
        parts = folded.split("/")
        above = {"/".join(parts[:n]) for n in range(1, len(parts))}
        if folded in self._files or folded in self._folders or above & self._files:
            return False
        self._files.add(folded)
        self._folders |= above
        return True


def _escape_character(character: str) -> str:
    is_plain = character.isprintable() and character not in _SPECIAL
    return character if is_plain else _encode(character)


def _encode(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _fold(path: str) -> str:
    """Return what two names have in common that some system does not tell apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
