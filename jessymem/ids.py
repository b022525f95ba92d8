"""`DimensionId` and `LayerId`: integers that know how they are written."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import Any, Final, TypeAlias, TypeVar

from jessymem.errors import shown
from jessymem.kernels.schema import LAYER_BITS, MAX_DIMENSION, MAX_LAYER

T = TypeVar("T")

_DIMENSION: Final = re.compile(r"D0*([0-9]{1,5})", re.IGNORECASE)
_LAYER: Final = re.compile(r"L0*([0-9]{1,5})-0*([0-9]{1,5})", re.IGNORECASE)


class DimensionId(int):
    """A dimension's number; prints as ``D01``.

    An integer in every respect: it hashes, orders, pickles and indexes as its number does.

    Parameters
    ----------
    number : int or str
        1 to 65535; or as it is printed, which `parse` reads.

    Raises
    ------
    ValueError
        If the number is out of range, or text does not parse.
    TypeError
        If it is neither an integer nor text.

    Examples
    --------
    >>> DimensionId(7), DimensionId("D07") == 7
    (D07, True)
    """

    __slots__ = ()

    def __new__(cls, number: int | str) -> DimensionId:
        """Check the range; anything with ``__index__`` will do, and text is parsed."""
        if isinstance(number, str):
            return cls.parse(number)
        value = as_integer(number, "a dimension number")
        if not 1 <= value <= MAX_DIMENSION:
            raise ValueError(f"a dimension number is 1 to {MAX_DIMENSION}, not {shown(value)}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> DimensionId:
        """Read ``D01``; leading zeros and case do not matter.

        Raises
        ------
        ValueError
            If `text` is not of that form, or the number is out of range.

        Examples
        --------
        >>> DimensionId.parse("d007")
        D07
        >>> DimensionId.parse("seven")
        Traceback (most recent call last):
            ...
        ValueError: not a dimension: 'seven' (expected something like 'D01')
        """
        match = _DIMENSION.fullmatch(_as_text(text))
        if match is None:
            raise ValueError(f"not a dimension: {shown(text)} (expected something like 'D01')")
        return cls(int(match[1]))

    @property
    def number(self) -> int:
        """The number alone, as a plain int.

        Examples
        --------
        >>> DimensionId("D07").number
        7
        """
        return int(self)

    def __repr__(self) -> str:
        """Return ``D01``."""
        return f"D{int(self):02d}"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        """Format the printed form, not the number."""
        return format(repr(self), spec)

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Pickle by number."""
        return (int(self),)


class LayerId(int):
    """A layer's address: dimension and number in it; prints as ``L01-05``.

    As an integer it is packed, ``dimension << 16 | layer``, which is what kernels take and what
    orders it.

    Parameters
    ----------
    dimension : DimensionId, int or str
        Without `layer`: the whole address as it is printed, which `parse` reads.
    layer : int, optional
        0 to 65535.

    Raises
    ------
    ValueError
        If a number is out of range or a string does not parse.
    TypeError
        If a number is not an integer, or there is none for the layer.

    Examples
    --------
    >>> layer = LayerId("D01", 5)
    >>> layer, layer.dimension, layer.layer, int(layer)
    (L01-05, D01, 5, 65541)
    >>> LayerId("L01-05") == layer
    True
    """

    __slots__ = ()

    def __new__(cls, dimension: DimensionLike, layer: int | None = None) -> LayerId:
        """Check both ranges and pack; a single text is parsed."""
        if layer is None and isinstance(dimension, LayerId):
            return dimension
        if layer is None and isinstance(dimension, str):
            return cls.parse(dimension)
        number = as_integer(layer, "a layer number")
        if not 0 <= number <= MAX_LAYER:
            raise ValueError(f"a layer number is 0 to {MAX_LAYER}, not {shown(number)}")
        return super().__new__(cls, as_dimension_id(dimension) << LAYER_BITS | number)

    @classmethod
    def parse(cls, text: str) -> LayerId:
        """Read ``L01-05``; leading zeros and case do not matter.

        Raises
        ------
        ValueError
            If `text` is not of that form, or a number is out of range.

        Examples
        --------
        >>> LayerId.parse("l1-5")
        L01-05
        >>> LayerId.parse("L01")
        Traceback (most recent call last):
            ...
        ValueError: not a layer: 'L01' (expected something like 'L01-05')
        """
        match = _LAYER.fullmatch(_as_text(text))
        if match is None:
            raise ValueError(f"not a layer: {shown(text)} (expected something like 'L01-05')")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_packed(cls, packed: int) -> LayerId:
        """Make the id whose `int()` is `packed`.

        Raises
        ------
        ValueError
            If no layer packs to that number.

        Examples
        --------
        >>> LayerId.from_packed(15 << 16 | 2)
        L15-02
        """
        value = as_integer(packed, "a packed layer id")
        return cls(value >> LAYER_BITS, value & MAX_LAYER)

    @classmethod
    def in_order(cls, dimension: DimensionId, layers: Iterable[int]) -> list[LayerId]:
        """Make the ids of many layers of one dimension; `layers` are known to be in range.

        Examples
        --------
        >>> LayerId.in_order(DimensionId(15), [0, 2, 300])
        [L15-00, L15-02, L15-300]
        """
        first = dimension << LAYER_BITS
        return [int.__new__(cls, first | layer) for layer in layers]

    @property
    def dimension(self) -> DimensionId:
        """The dimension it lies in.

        Examples
        --------
        >>> LayerId("L15-02").dimension
        D15
        """
        return int.__new__(DimensionId, int(self) >> LAYER_BITS)

    @property
    def layer(self) -> int:
        """Its number there.

        Examples
        --------
        >>> LayerId("L15-02").layer
        2
        """
        return int(self) & MAX_LAYER

    def __repr__(self) -> str:
        """Return ``L01-05``."""
        return f"L{int(self) >> LAYER_BITS:02d}-{int(self) & MAX_LAYER:02d}"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        """Format the printed form, not the number."""
        return format(repr(self), spec)

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Pickle by dimension and layer."""
        return int(self) >> LAYER_BITS, int(self) & MAX_LAYER


DimensionLike: TypeAlias = DimensionId | int | str
DimensionsLike: TypeAlias = DimensionLike | Iterable[DimensionLike]
LayerLike: TypeAlias = LayerId | int | str


def as_dimension_id(value: DimensionLike) -> DimensionId:
    """Take an id, a number or a string; return the id, or raise ValueError or TypeError."""
    if isinstance(value, DimensionId):
        return value
    return DimensionId(value)


def as_dimension_ids(value: DimensionsLike) -> frozenset[DimensionId]:
    """Take one dimension, or several; return the ids, or raise ValueError or TypeError."""
    if isinstance(value, bytes):
        raise TypeError(f"a dimension is a number or text such as 'D01', not {shown(value)}")
    if isinstance(value, str) or not isinstance(value, Iterable):
        return frozenset((as_dimension_id(value),))
    return frozenset(map(as_dimension_id, items_of(value, "dimensions")))


def as_layer_id(value: LayerLike) -> LayerId:
    """Take an id, its packed number or a string; return the id or raise Value- or TypeError."""
    if isinstance(value, LayerId):
        return value
    if isinstance(value, str):
        return LayerId.parse(value)
    return LayerId.from_packed(value)


def is_dimension_id(text: str) -> bool:
    """Tell whether a text is of the form ``D01``, also where there is no such number."""
    return _DIMENSION.fullmatch(text) is not None


def is_layer_id(text: str) -> bool:
    """Tell whether a text is of the form ``L01-05``, also where there are no such numbers."""
    return _LAYER.fullmatch(text) is not None


def is_bool(value: object) -> bool:
    """Return whether it is Python's bool or NumPy's: with NumPy 2.0 that has an ``__index__``."""
    return type(value).__name__ == "bool"


def as_integer(value: object, what: str) -> int:
    """Return what has an ``__index__`` as an int; else raise TypeError, naming `what` it is."""
    if type(value) is int:
        return value
    try:
        if not is_bool(value):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise TypeError(f"{what} is an integer, not {type(value).__name__}")


def items_of(values: Iterable[T], what: str) -> list[T]:
    """Return what a sequence has; raise TypeError, naming `what` it is, where it gives nothing."""
    try:
        return list(values)
    except NotImplementedError:  # a buffer of several axes
        raise TypeError(f"{what} have one axis, not as {type(values).__name__} has it") from None


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string is parsed, not {type(value).__name__}")
    return value
