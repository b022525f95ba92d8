"""The formats of an export: each writes the layers of one dimension to one file or folder."""

from __future__ import annotations

import json
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from jessymem import extras
from jessymem.errors import ConfigError, shown
from jessymem.ids import LayerId
from jessymem.ingest import archives, arrow
from jessymem.ingest.contents import is_text
from jessymem.ingest.file_names import FileNames
from jessymem.ingest.manifest import MANIFEST_FILE
from jessymem.regions.drafts import as_array

#: By what a folder of an export is known.
MARK: Final = "# Written by jessymem export."

_BATCH_ROWS: Final = 1_024
_BATCH_BYTES: Final = 2**24


class Layer(NamedTuple):
    """One layer that is exported.

    Attributes
    ----------
    layer_id : LayerId
    name : str
    frequency : float
    depth : int
    keywords : tuple of str
    parent : LayerId or None
    content : memoryview
    encoding : {"text", "bytes", "npy"}
    array : ndarray or None
        The content, where it is one.
    """

    layer_id: LayerId
    name: str
    frequency: float
    depth: int
    keywords: tuple[str, ...]
    parent: LayerId | None
    content: memoryview
    encoding: str
    array: np.typing.NDArray[Any] | None

    @property
    def npy(self) -> tuple[bytes, Any]:
        """The header and the content of a .npy file."""
        encoded = as_array(self.array, self.layer_id, is_copied=False)
        return encoded.array_header, encoded.data

    @property
    def description(self) -> dict[str, Any]:
        """What a manifest says of it, all but what it says where it says nothing."""
        told: dict[str, Any] = {"layer": self.layer_id.layer, "name": self.name}
        if self.frequency != 1.0:
            told["frequency"] = self.frequency
        if self.depth:
            told["depth"] = self.depth
        if self.keywords:
            told["keywords"] = list(self.keywords)
        if self.parent is not None:
            told["parent"] = str(self.parent)
        return told


def encoding_of(encoding: str, content: memoryview) -> str:
    """Return how a layer is exported: text that is none, as others may write it, as bytes."""
    if encoding == "array":
        return "npy"
    return "text" if encoding == "text" and is_text(content) else "bytes"


class Writer(ABC):
    """Writes one dimension.

    Attributes
    ----------
    ending : str
        Of the file; a folder has none.
    """

    ending: str = ""

    def prepare(self, out: Path) -> None:  # noqa: B027  # most need nothing
        """Raise ConfigError where a library is missing, before anything is written."""

    @abstractmethod
    def write(self, path: Path, name: str, layers: Iterable[Layer]) -> None:
        """Write a dimension of this name to `path`, which is not there yet."""


class Files(Writer):
    """A folder with a file for each layer, and a `dimension.toml`."""

    def write(self, path: Path, name: str, layers: Iterable[Layer]) -> None:
        """Write it."""
        path.mkdir()
        names = FileNames([MANIFEST_FILE])
        with open(path / MANIFEST_FILE, "x", encoding="utf-8", newline="\n") as manifest:
            manifest.write(f"{MARK}\n\nname = {_toml(name)}\n")
            for layer in layers:
                ending = ".npy" if layer.array is not None else ""
                file = names.give(layer.name, layer.layer_id.layer, ending)
                target = path.joinpath(*file.split("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as stream:
                    for part in layer.npy if layer.array is not None else (layer.content,):
                        stream.write(part)
                told = layer.description
                if layer.encoding != _encoding_seen(file, layer):
                    told["encoding"] = layer.encoding
                manifest.write(f"\n[layers.{_toml(file)}]\n")
                manifest.writelines(f"{key} = {_toml(value)}\n" for key, value in told.items())


class Npz(Writer):
    """NumPy's archive: arrays as such, all else as it is."""

    ending = ".npz"

    def write(self, path: Path, name: str, layers: Iterable[Layer]) -> None:
        """Write it."""
        names = FileNames([archives.RECORD_MEMBER])
        told: dict[str, Any] = {}
        with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
            for layer in layers:
                is_array = layer.array is not None
                # What ends so is taken for an array, and is the same key as what does not.
                is_other = not is_array and layer.name.endswith(".npy")
                called = layer.name.removesuffix(".npy") if is_array else layer.name
                key = names.give(called, layer.layer_id.layer, ".bin" if is_other else "")
                file = f"{key}.npy" if is_array else key
                with archive.open(file, "w", force_zip64=True) as stream:
                    for part in layer.npy if is_array else (layer.content,):
                        stream.write(part)
                encoding = {} if is_array else {"encoding": layer.encoding}
                told[key] = layer.description | encoding
            record = json.dumps({"name": name, "layers": told})
            archive.writestr(archives.RECORD_MEMBER, record)


class Safetensors(Writer):
    """A safetensors file; what is no tensor is one of bytes."""

    ending = ".safetensors"

    def prepare(self, out: Path) -> None:
        """Look for the library."""
        self._library = extras.load("safetensors.numpy", "safetensors", out)

    def write(self, path: Path, name: str, layers: Iterable[Layer]) -> None:
        """Write it."""
        tensors: dict[str, np.typing.NDArray[Any]] = {}
        told: dict[str, Any] = {}
        for layer in layers:
            key = layer.name
            if key in ("", "__metadata__") or key in tensors:
                key = f"{key}~{layer.layer_id}"
            while key in tensors:
                key += "~"
            array, encoding = layer.array, {"encoding": layer.encoding}
            if array is not None and archives.is_tensor_type(array.dtype):
                tensors[key], encoding = np.ascontiguousarray(array).reshape(array.shape), {}
            elif array is not None:
                tensors[key] = np.frombuffer(b"".join(layer.npy), "u1")
            else:
                tensors[key] = np.frombuffer(layer.content, "u1")
            told[key] = layer.description | encoding
        record = json.dumps({"name": name, "layers": told})
        self._library.save_file(tensors, path, metadata={archives.RECORD: record})


class Arrow(Writer):
    """Arrow IPC, or Parquet: a row for each layer."""

    def __init__(self, ending: str) -> None:
        self.ending = ending

    def prepare(self, out: Path) -> None:
        """Look for the library."""
        self._arrow = extras.load("pyarrow", "arrow", out)
        self._parquet = extras.load("pyarrow.parquet", "arrow", out)

    def write(self, path: Path, name: str, layers: Iterable[Layer]) -> None:
        """Write it."""
        pa = self._arrow
        schema = pa.schema(
            [
                ("id", pa.string()),
                ("name", pa.string()),
                ("content", pa.large_binary()),
                ("encoding", pa.string()),
                ("frequency", pa.float32()),
                ("depth", pa.uint8()),
                ("keywords", pa.list_(pa.string())),
                ("parent", pa.string()),
            ],
            {arrow.RECORD: json.dumps({"name": name}).encode()},
        )
        # The file is opened here: it takes no names that are not UTF-8.
        with path.open("wb") as file, pa.PythonFile(file, "w") as sink:
            is_parquet = self.ending == ".parquet"
            make = self._parquet.ParquetWriter if is_parquet else pa.ipc.new_file
            with make(sink, schema) as writer:
                for rows in _batches(layers):
                    columns = [list(column) for column in zip(*rows, strict=True)]
                    arrays = [
                        pa.array(column, field.type)
                        for column, field in zip(columns, schema, strict=True)
                    ]
                    writer.write_batch(pa.record_batch(arrays, schema=schema))


WRITERS: Final = {
    "files": Files(),
    "npz": Npz(),
    "safetensors": Safetensors(),
    "arrow": Arrow(".arrow"),
    "parquet": Arrow(".parquet"),
}


def writer_of(format: str) -> Writer:
    """Return what writes a format; raise ConfigError where there is none such."""
    if not isinstance(format, str) or format not in WRITERS:
        known = ", ".join(WRITERS)
        raise ConfigError(
            f"format is one of {known}, not {shown(format)}", field="format", value=format
        )
    return WRITERS[format]


def _batches(layers: Iterable[Layer]) -> Iterator[list[tuple[Any, ...]]]:
    """Yield rows, so many as are written together."""
    rows: list[tuple[Any, ...]] = []
    n_bytes = 0
    for layer in layers:
        content = b"".join(layer.npy) if layer.array is not None else bytes(layer.content)
        parent = None if layer.parent is None else str(layer.parent)
        told = (layer.encoding, layer.frequency, layer.depth, list(layer.keywords), parent)
        rows.append((str(layer.layer_id), layer.name, content, *told))
        n_bytes += len(content)
        if len(rows) == _BATCH_ROWS or n_bytes >= _BATCH_BYTES:
            yield rows
            rows, n_bytes = [], 0
    if rows:
        yield rows


def _encoding_seen(file: str, layer: Layer) -> str:
    """Return what a build would take a file for."""
    if file.lower().endswith(".npy"):
        return "npy"
    return "text" if is_text(layer.content) else "bytes"


def _toml(value: Any) -> str:
    """Write a value as TOML: a string, a number, or a list of strings."""
    if isinstance(value, str):
        # What JSON writes is TOML, but for one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def is_export(folder: Path) -> bool:
    """Tell whether a folder was written by an export, so that another may replace it."""
    try:
        with open(folder / MANIFEST_FILE, encoding="utf-8", errors="replace") as file:
            return not os.path.islink(folder) and file.readline().rstrip("\n") == MARK
    except OSError:
        return False
