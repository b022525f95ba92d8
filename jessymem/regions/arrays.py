"""Arrays as layers: their descriptions, which are headers of .npy files, written and read.

The form is NumPy's own (``numpy.lib.format``): a description and the content of its layer, one
behind the other, are a .npy file. Nothing of a description is believed: what is read here comes
from files, and whatever is wrong with it is a `NoDescription`.
"""

from __future__ import annotations

import math
import re
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.lib.format import descr_to_dtype

from jessymem.kernels import schema as s
from jessymem.regions.faults import show
from jessymem.regions.literals import read_literal

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC: Final = b"\x93NUMPY"

#: By version: how the text's length is written, and the text. 2.0 is read, and never written: it
#: is for texts that are longer than any may be.
_VERSIONS: Final = {
    b"\1\0": (struct.Struct("<H"), "latin-1"),
    b"\2\0": (struct.Struct("<I"), "latin-1"),
    b"\3\0": (struct.Struct("<I"), "utf-8"),
}
_LATIN: Final = b"\1\0"
_UNICODE: Final = b"\3\0"
_NO_LENGTH: Final = struct.Struct("")
_MAX_TOLD: Final = 2**16 - 1

#: Byte order, kind and size of a dtype without fields, as NumPy spells it; no objects.
_SCALAR: Final = re.compile(r"[<>|][biufcmMSUV][0-9]{0,10}(\[[0-9A-Za-z]{1,24}\])?")

#: What NumPy can make.
_MAX_AXES: Final = 64
_MAX_ARRAY_BYTES: Final = 2**63 - 1

_KEYS: Final = {"descr", "fortran_order", "shape"}


class NoDescription(ValueError):
    """Bytes that describe no array, or not the one that is there.

    Attributes
    ----------
    expected, got : object
    """

    def __init__(self, expected: str, got: Any) -> None:
        super().__init__(f"expected {expected}, got {show(got)}")
        self.expected = expected
        self.got = got


class ArrayForm(NamedTuple):
    """What makes bytes an array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    n_bytes: int

    def make_array(self, content: memoryview) -> NDArray[Any]:
        """Make an array of just as many bytes, without a copy; its base is who owns them."""
        return np.ndarray(self.shape, self.dtype, content, 0, None, self.order)


# -- reading ---------------------------------------------------------------------------------------


# Of a store's arrays most are described alike. A malformed description is read anew each time.
@lru_cache(maxsize=512)
def read_description(raw: bytes) -> ArrayForm:
    """Read a description; raise NoDescription where it is malformed.

    That shows the description and never a part of it: who prints a number of it may wait for long.
    """
    if measure_description(raw) != len(raw):
        raise NoDescription(f"a header of {len(raw)} bytes", raw)
    length, encoding = _VERSIONS[raw[6:8]]
    try:
        fields = read_literal(raw[8 + length.size :].decode(encoding))
    except ValueError as error:  # a UnicodeDecodeError is one
        raise NoDescription("a dictionary as a literal", raw) from error
    if not isinstance(fields, dict) or fields.keys() != _KEYS:
        raise NoDescription("a dictionary of descr, fortran_order and shape", raw)
    shape, is_fortran = fields["shape"], fields["fortran_order"]
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise NoDescription("a shape of numbers from 0 on", raw)
    if len(shape) > _MAX_AXES:
        raise NoDescription(f"at most {_MAX_AXES} axes", len(shape))
    if type(is_fortran) is not bool:
        raise NoDescription("True or False as fortran_order", raw)
    descr = fields["descr"]
    try:
        dtype = descr_to_dtype(descr) if _is_spelled_well(descr) else None
    except Exception as error:  # as many kinds as NumPy has objections
        raise NoDescription("a descr that NumPy can make a dtype of", raw) from error
    if dtype is None:
        raise NoDescription("dtypes in the spelling of .npy files, without objects", raw)
    # NumPy counts so; what is empty may be too large for it, too.
    if math.prod(n or 1 for n in shape) * (dtype.itemsize or 1) > _MAX_ARRAY_BYTES:
        raise NoDescription(f"an array of at most {_MAX_ARRAY_BYTES} bytes", raw)
    n_bytes = math.prod(shape) * dtype.itemsize
    return ArrayForm(dtype, shape, "F" if is_fortran else "C", n_bytes)


def measure_description(start: bytes) -> int:
    """Return how long the description is that begins with these bytes; a few are enough.

    Raises
    ------
    NoDescription
        If none does, or one beyond the limit.
    """
    length, _ = _VERSIONS.get(start[6:8], (_NO_LENGTH, ""))
    if start[:6] != _MAGIC or not 0 < length.size <= len(start) - 8:
        raise NoDescription("the header of a .npy file, version 1.0 to 3.0", start[:12])
    n_bytes = 8 + length.size + int(length.unpack_from(start, 8)[0])
    if n_bytes > s.MAX_ARRAY_HEADER_BYTES:
        raise NoDescription(f"a header of at most {s.MAX_ARRAY_HEADER_BYTES:,} bytes", n_bytes)
    return n_bytes


def _is_spelled_well(descr: Any) -> bool:
    """Tell whether NumPy itself may write a descr so: no objects, names of types, lists in text."""
    if isinstance(descr, str):
        return _SCALAR.fullmatch(descr) is not None
    return type(descr) is list and all(
        type(field) is tuple and len(field) in (2, 3) and _is_spelled_well(field[1])
        for field in descr
    )


# -- writing ---------------------------------------------------------------------------------------


def describe_array(array: object, who: object) -> tuple[bytes, Any]:
    """Return an array's description and its bytes, in its order; those of other strides in C's.

    Parameters
    ----------
    array : ndarray
    who : LayerId or DimensionId
        For messages.

    Returns
    -------
    bytes, bytes-like
        Copied only where neither order fits the array.

    Raises
    ------
    TypeError
        If it is no array, or would not come back as it is.
    ValueError
        If it, or its description, is longer than the format allows.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{who}: an array is a numpy.ndarray, not {type(array).__name__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{who}: a masked array would lose its mask: add its data, and the mask")
    if array.nbytes > s.MAX_CONTENT_BYTES:
        raise ValueError(
            f"{who}: an array of {array.nbytes:,} bytes; the format allows {s.MAX_CONTENT_BYTES:,}"
        )
    plain = np.asarray(array)
    is_fortran = plain.flags.f_contiguous and not plain.flags.c_contiguous
    description = _write_description(plain.dtype, plain.shape, is_fortran, who)
    if not plain.nbytes:
        return description, b""
    ordered = np.ascontiguousarray(plain.T if is_fortran else plain)
    return description, memoryview(ordered.reshape(-1).view(np.uint8))


def _write_description(
    dtype: np.dtype[Any], shape: tuple[int, ...], is_fortran: bool, who: object
) -> bytes:
    if dtype.hasobject:
        raise TypeError(f"{who}: dtype {dtype} refers to objects; a layer holds plain bytes")
    if _has_metadata(dtype):
        raise TypeError(f"{who}: the metadata of dtype {dtype} would be lost")
    try:
        descr = descr_of(dtype)
        order = f"'fortran_order': {is_fortran}"
        raw = _wrap(f"{{'descr': {descr!r}, {order}, 'shape': {shape!r}, }}")
    except ValueError as error:  # fields that overlap; a name that is no text
        raise _does_not_survive(dtype, who) from error
    if len(raw) > s.MAX_ARRAY_HEADER_BYTES:
        limit = f"the format allows {s.MAX_ARRAY_HEADER_BYTES:,}"
        raise ValueError(f"{who}: dtype and shape take {len(raw):,} bytes to tell; {limit}")
    try:
        form = read_description(raw)
    except NoDescription as error:
        raise _does_not_survive(dtype, who) from error
    if form[:3] != (dtype, shape, "F" if is_fortran else "C"):
        raise _does_not_survive(dtype, who)
    return raw


def descr_of(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as .npy files tell it: a string, or a list of fields."""
    return dtype.str if dtype.names is None else dtype.descr


def _wrap(text: str) -> bytes:
    """Put in front of a header's text what precedes it, and fill up to a boundary as NumPy does."""
    try:
        version, encoded = _LATIN, text.encode("latin-1")
    except UnicodeEncodeError:
        version, encoded = _UNICODE, text.encode()
    start = 8 + _VERSIONS[version][0].size
    encoded += b" " * (-(start + len(encoded) + 1) % s.ALIGNMENT) + b"\n"
    length = min(len(encoded), _MAX_TOLD)  # what is longer is refused
    return _MAGIC + version + _VERSIONS[version][0].pack(length) + encoded


def _has_metadata(dtype: np.dtype[Any]) -> bool:
    if dtype.metadata is not None:
        return True
    if dtype.subdtype is not None:
        return _has_metadata(dtype.subdtype[0])
    return any(_has_metadata(field[0]) for field in (dtype.fields or {}).values())


def _does_not_survive(dtype: np.dtype[Any], who: object) -> TypeError:
    return TypeError(f"{who}: dtype {dtype} would come back as another: .npy files cannot tell it")
