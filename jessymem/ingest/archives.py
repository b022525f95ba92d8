"""`ArchiveSource`: a file of named arrays, each of which is a layer: npz, safetensors, Zarr."""

from __future__ import annotations

import json
import os
import zipfile
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from jessymem import extras
from jessymem.errors import JessyMemoryError, RegionIOError
from jessymem.ids import DimensionId
from jessymem.ingest.contents import check_length, encode
from jessymem.ingest.folders import SourceFile, look_at, natural_key
from jessymem.ingest.manifest import Manifest, parse_record
from jessymem.ingest.numbering import number_files
from jessymem.ingest.sources import PlannedLayer, Source
from jessymem.kernels.schema import ENCODING_BYTES
from jessymem.regions.arrays import NoDescription, measure_description, read_description
from jessymem.regions.drafts import EncodedContent, as_array

#: Under which name an archive carries what `jessymem.export` says of its layers.
RECORD: Final = "jessymem"
RECORD_MEMBER: Final = "jessymem.json"

#: The magic, the version, and the longest form in which the length of a .npy header is told.
_START_BYTES: Final = 12

#: A type of tensors that NumPy does not know.
_BFLOAT16: Final = "BF16"


class Member(NamedTuple):
    """One array as it lies in its archive; `dtype` None: plain bytes, or of no dtype of NumPy's."""

    n_bytes: int
    dtype: np.dtype[Any] | None
    keywords: tuple[str, ...] = ()


class ArchiveSource(Source):
    """A file, or a folder, of named arrays; they are numbered in the natural order of their names.

    Parameters
    ----------
    path : pathlib.Path
    label : str
    """

    kind: str = "array"

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label
        self.name = path.stem
        self.manifest = Manifest(path, kind=self.kind)
        self.files = tuple(self.find_files())
        with self._naming_errors():
            self.members = dict(sorted(self.look().items(), key=lambda each: natural_key(each[0])))

    def find_files(self) -> Iterator[SourceFile]:
        """Yield all that it is made of."""
        yield SourceFile.of(self.label, self.path, look_at(self.path))

    @abstractmethod
    def look(self) -> Mapping[str, Member]:
        """Return what is in it by name, after setting `manifest` where it carries one."""

    @abstractmethod
    def open(self) -> Any:
        """Return a context manager of what loads a member by its name: as an array, or bytes."""

    def plan(self, dimension: DimensionId) -> Iterator[PlannedLayer]:
        """Yield its layers, ascending."""
        files = [SourceFile(name, self.path, each.n_bytes) for name, each in self.members.items()]
        for layer_id, name, file, entry in number_files(dimension, self, files, has_prefixes=False):
            member = self.members[file.name]
            if member.keywords and not entry.keywords:
                entry = replace(entry, keywords=member.keywords)
            form = EncodedContent(b"", ENCODING_BYTES)
            try:
                check_length(member.n_bytes)
                if member.dtype is not None and entry.encoding is None:
                    form = as_array(np.empty(0, member.dtype), layer_id, is_copied=True)
            except (ValueError, TypeError) as error:
                raise self.error(file.name, error) from None
            yield PlannedLayer(layer_id, name, member.n_bytes, entry, form, file.name)

    def read(
        self, dimension: DimensionId, planned: Sequence[PlannedLayer]
    ) -> Generator[tuple[PlannedLayer, EncodedContent], None, None]:
        """Yield its layers again, each with its content, one at a time."""
        self.check_unchanged()
        with self._naming_errors(), self.open() as load:
            for layer in planned:
                encoded = None
                try:
                    encoded = self._encode(load(layer.key), layer)
                except JessyMemoryError:
                    raise
                except (ValueError, TypeError) as error:
                    raise self.error(layer.key, error) from None
                yield layer, encoded
                del encoded  # before the next is read
        self.check_unchanged()

    def _encode(self, value: Any, layer: PlannedLayer) -> EncodedContent:
        if isinstance(value, np.ndarray) and layer.entry.encoding is None:
            return as_array(value, layer.layer_id, is_copied=False)
        if isinstance(value, np.ndarray):
            value = memoryview(np.ascontiguousarray(value)).cast("B") if value.size else b""
        return encode(value, layer.layer_id, layer.entry.encoding)

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Say of which file a library complains, whatever its errors are called."""
        try:
            yield
        except (JessyMemoryError, MemoryError):
            raise
        except OSError as error:
            if error.errno is None:
                raise self.error("", error) from error
            raise RegionIOError.from_os_error(error, "read", self.path) from error
        except Exception as error:
            raise self.error("", f"{error} ({type(error).__name__})") from error


class Npz(ArchiveSource):
    """NumPy's archive of arrays; what is no array in it is text or bytes."""

    def look(self) -> Mapping[str, Member]:
        """Read the header of each array."""
        found: dict[str, Member] = {}
        with zipfile.ZipFile(self.path) as archive:
            if RECORD_MEMBER in archive.namelist():
                self.manifest = parse_record(self.path, archive.read(RECORD_MEMBER), self.kind)
            for info in archive.infolist():
                name = info.filename
                if info.is_dir() or name == RECORD_MEMBER:
                    continue
                dtype, key = None, name.removesuffix(".npy")
                if name.endswith(".npy"):
                    with archive.open(info) as file:
                        try:
                            dtype = _read_dtype(file)
                        except NoDescription as error:
                            raise self.error(key, error) from None
                if key in found:
                    raise self.error(key, "there are two of this name")
                found[key] = Member(info.file_size, dtype)
        return found

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open it; pickles are refused."""
        with zipfile.ZipFile(self.path) as archive:
            names = set(archive.namelist())

            def load(key: str) -> Any:
                name = f"{key}.npy" if f"{key}.npy" in names else key
                with archive.open(name) as file:
                    if name == key:
                        return file.read()
                    return np.lib.format.read_array(file, allow_pickle=False)

            yield load


class Safetensors(ArchiveSource):
    """A safetensors file.

    bfloat16 becomes float32, which holds each of its numbers; of other types that NumPy does not
    know the bytes are kept, with the type as a keyword.
    """

    kind = "tensor"

    def look(self) -> Mapping[str, Member]:
        """Read the header; the library has checked it."""
        with self._open() as file:
            record = (file.metadata() or {}).get(RECORD)
            if record is not None:
                self.manifest = parse_record(self.path, record, self.kind)
            self.header, self.start = _read_header(self.path)
            found = {}
            for name in file.keys():
                first, last = self.header[name]["data_offsets"]
                kind = self.header[name]["dtype"]
                dtype = self.types.get(kind)
                if kind == _BFLOAT16:
                    found[name] = Member(2 * (last - first), np.dtype("f4"))
                elif dtype is None:
                    found[name] = Member(last - first, np.dtype("u1"), (kind,))
                else:
                    found[name] = Member(last - first, np.dtype(dtype))
        return found

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open it."""
        with self._open() as file, open(self.path, "rb") as raw:

            def load(key: str) -> Any:
                told = self.header[key]
                if told["dtype"] in self.types:
                    return file.get_tensor(key)
                first, last = told["data_offsets"]
                raw.seek(self.start + first)
                content = np.frombuffer(raw.read(last - first), "u1")
                if told["dtype"] == _BFLOAT16:
                    wide = content.view("<u2").astype("<u4") << np.uint32(16)
                    return wide.view("<f4").reshape(told["shape"])
                is_byte = np.prod(told["shape"], dtype=object) == len(content)
                return content.reshape(told["shape"]) if is_byte else content

            yield load

    def _open(self) -> Any:
        library = extras.load("safetensors", "safetensors", self.path)
        return library.safe_open(self.path, framework="numpy")

    @property
    def types(self) -> Mapping[str, Any]:
        """Types of tensors that NumPy knows."""
        return _TENSOR_TYPES


#: Types of tensors by NumPy's dtypes.
_TENSOR_TYPES: Final = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "C64": "<c8",
}


class Zarr(ArchiveSource):
    """A Zarr array, or a group of them, of version 2 or 3; in a group each array is a layer."""

    def find_files(self) -> Iterator[SourceFile]:
        """Yield every file of the store."""
        for folder, folders, files in os.walk(self.path):
            folders.sort()
            for name in sorted(files):
                path = Path(folder, name)
                yield SourceFile.of(path.relative_to(self.path).as_posix(), path, look_at(path))

    def look(self) -> Mapping[str, Member]:
        """Find the arrays, at any depth."""
        return {
            name: Member(array.size * array.dtype.itemsize, array.dtype)
            for name, array in self._arrays().items()
        }

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open it."""
        arrays = self._arrays()
        yield lambda key: np.asarray(arrays[key][...])

    def _arrays(self) -> dict[str, Any]:
        zarr = extras.load("zarr", "zarr", self.path)
        found = zarr.open(self.path, mode="r")
        if not isinstance(found, zarr.Group):
            return {self.path.stem: found}
        members = found.members(max_depth=None)
        return {name: each for name, each in members if not isinstance(each, zarr.Group)}


def is_tensor_type(dtype: np.dtype[Any]) -> bool:
    """Tell whether a safetensors file has tensors of this dtype."""
    return any(dtype == np.dtype(each) for each in _TENSOR_TYPES.values())


def is_zarr(folder: Path) -> bool:
    """Tell whether a folder is a Zarr array or group."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def _read_dtype(file: Any) -> np.dtype[Any]:
    """Read the header of a .npy file for its dtype; raise NoDescription where it is none."""
    start = file.read(_START_BYTES)
    n_header = measure_description(start)
    return read_description(start + file.read(n_header - len(start))).dtype


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file that was checked, and where its data begin."""
    with open(path, "rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(n_bytes)), 8 + n_bytes
