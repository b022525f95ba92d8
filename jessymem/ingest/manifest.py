"""`dimension.toml`: what a folder says of the dimension that is made from it.

Files that `jessymem.export` writes carry the same tables, as JSON.

::

    name = "Technical"

    [layers."00-tools.md"]      # a file of the folder, with / between sub-folder and file
    name = "Tools"
    layer = 3
    frequency = 1.2
    depth = 1
    keywords = ["hammer", "loom"]
    parent = "L07-00"           # or 0, a layer of the same dimension
    encoding = "text"           # or "bytes", or "npy"; by default what the file looks like

Every key is optional. One that is unknown, or a value of another type, is an error that names file
and key.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jessymem import osmem
from jessymem.errors import ConfigError, RegionIOError, shown
from jessymem.ids import LayerId
from jessymem.kernels.schema import MAX_LAYER

MANIFEST_FILE: Final = "dimension.toml"

#: Longer ones are not read; one that an export wrote for as many layers as there may be is shorter.
MAX_BYTES: Final = 64 * 2**20

# Each dot of a key is a table in the one before it: to read many takes the square of the time, and
# more memory than there is.
_MAX_DOTS: Final = 100
_PIECE: Final = r"""(?:(?<![\w-])[\w-]++|"(?:[^"\\\n]|\\.){0,200}+"|'[^'\n]{0,200}+')"""
_DEEP_KEY: Final = re.compile(rf"(?:{_PIECE}[ \t]*+\.[ \t]*+){{{_MAX_DOTS + 1}}}")

_LAYER_KEYS: Final = ("name", "layer", "frequency", "depth", "keywords", "parent", "encoding")

#: How content may be said to be kept: as UTF-8, as it is, or as the array of a .npy file.
ENCODINGS: Final = ("text", "bytes", "npy")


@dataclass(frozen=True)
class LayerEntry:
    """What is said of one file; None: nothing.

    Attributes
    ----------
    name : str or None
    layer : int or None
    frequency : float
    depth : int
    keywords : tuple of str
    parent : LayerId, int or None
        An int is a layer of the same dimension.
    encoding : {"text", "bytes", "npy"} or None
    """

    name: str | None = None
    layer: int | None = None
    frequency: float = 1.0
    depth: int = 0
    keywords: tuple[str, ...] = ()
    parent: LayerId | int | None = None
    encoding: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A folder's `dimension.toml`, or the absence of one.

    Attributes
    ----------
    path : Path
    name : str or None
    layers : dict of str to LayerEntry
        By the file's path relative to the folder.
    kind : str
        What a layer is made from: a file, a tensor, ...
    """

    path: Path
    name: str | None = None
    layers: dict[str, LayerEntry] = field(default_factory=dict)
    kind: str = "file"

    def error(self, key: str, value: Any, problem: str) -> ConfigError:
        """Return the error that names this file and one of its keys."""
        return ConfigError(f"{self.path}: {key}: {problem}", field=key, value=value)


def read_manifest(path: Path) -> Manifest:
    """Read and check a `dimension.toml`.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    Manifest

    Raises
    ------
    RegionIOError
        If it cannot be read.
    ConfigError
        If it is not TOML, or a key or the type of its value is not of the form above.
    """
    manifest = Manifest(path)
    return _of_table(manifest, _parse(manifest))


def parse_record(path: Path, text: str | bytes, kind: str) -> Manifest:
    """Read what `jessymem.export` has put into a file, which has the same keys.

    Parameters
    ----------
    path : pathlib.Path
        The file, for messages.
    text : str or bytes
        JSON.
    kind : str
        What the file's layers are.

    Raises
    ------
    ConfigError
        If it is not JSON, or a key or the type of its value is not of the form above.
    """
    manifest = Manifest(path, kind=kind)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: what jessymem wrote in it is not JSON: {error}", field="jessymem", value=None
        ) from None
    if not isinstance(table, dict):
        raise manifest.error("jessymem", table, "expected a table")
    return _of_table(manifest, table)


def as_entry(manifest: Manifest, file: str, table: Any) -> LayerEntry:
    """Check what is said of one layer."""
    return _entry(manifest, file, table)


def _of_table(manifest: Manifest, table: dict[str, Any]) -> Manifest:
    for key in table.keys() - {"name", "layers"}:
        raise manifest.error(key, table[key], "no such key; there are name and layers")
    name = _take(manifest, table, "", "name", str, "a string", default=None)
    files = _take(manifest, table, "", "layers", dict, "a table", default={})
    entries = {file: _entry(manifest, file, files[file]) for file in files}
    return Manifest(manifest.path, name, entries, manifest.kind)


def _parse(manifest: Manifest) -> dict[str, Any]:
    def admit(n_bytes: int) -> None:
        if n_bytes > MAX_BYTES:
            raise _no_toml(manifest, f"{n_bytes:,} bytes are more than {MAX_BYTES:,}")

    try:
        text = str(memoryview(osmem.read_file(manifest.path, admit).data), "utf-8")
        if _DEEP_KEY.search(text):
            raise _no_toml(manifest, f"a key has more than {_MAX_DOTS} dots")
        return tomllib.loads(text.replace("\r\n", "\n"))
    except OSError as error:
        raise RegionIOError.from_os_error(error, "read", manifest.path) from error
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise _no_toml(manifest, str(error)) from None


def _no_toml(manifest: Manifest, fault: str) -> ConfigError:
    return ConfigError(f"{manifest.path}: not TOML: {fault}", field=MANIFEST_FILE, value=None)


def _entry(manifest: Manifest, file: str, table: Any) -> LayerEntry:
    where = f'layers."{file}"'
    if not isinstance(table, dict):
        raise manifest.error(where, table, f"expected a table, got {shown(table)}")
    for key in table.keys() - set(_LAYER_KEYS):
        known = ", ".join(_LAYER_KEYS)
        raise manifest.error(f"{where}.{key}", table[key], f"no such key; there are {known}")

    def take(key: str, types: Any, expected: str, default: Any) -> Any:
        return _take(manifest, table, f"{where}.", key, types, expected, default)

    layer = take("layer", int, "an integer", None)
    keywords = take("keywords", list, "a list of strings", [])
    if layer is not None and not 0 <= layer <= MAX_LAYER:
        raise manifest.error(
            f"{where}.layer", layer, f"expected 0 to {MAX_LAYER}, got {shown(layer)}"
        )
    if not all(isinstance(keyword, str) for keyword in keywords):
        expected = f"expected a list of strings, got {shown(keywords)}"
        raise manifest.error(f"{where}.keywords", keywords, expected)
    parent = take("parent", int | str, "a layer such as 'L07-00' or 0", None)
    if isinstance(parent, str):
        try:
            parent = LayerId.parse(parent)
        except ValueError as error:
            raise manifest.error(f"{where}.parent", parent, str(error)) from None
    encoding = take("encoding", str, "a string", None)
    if encoding not in (None, *ENCODINGS):
        expected = f"expected one of {', '.join(ENCODINGS)}, got {shown(encoding)}"
        raise manifest.error(f"{where}.encoding", encoding, expected)
    return LayerEntry(
        name=take("name", str, "a string", None),
        layer=layer,
        frequency=take("frequency", int | float, "a number", 1.0),
        depth=take("depth", int, "an integer", 0),
        keywords=tuple(keywords),
        parent=parent,
        encoding=encoding,
    )


def _take(
    manifest: Manifest,
    table: dict[str, Any],
    where: str,
    key: str,
    types: Any,
    expected: str,
    default: Any,
) -> Any:
    """Return a key's value, or `default` where it is not there; a bool is not a number."""
    value = table.get(key, default)
    if key in table and (isinstance(value, bool) or not isinstance(value, types)):
        raise manifest.error(f"{where}{key}", value, f"expected {expected}, got {shown(value)}")
    return value
