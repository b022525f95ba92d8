"""`computed_once`: an attribute that is made when first asked for, without a lock.

`functools.cached_property` of Python 3.11 has one lock for all instances of a class: readers of
different regions would wait for each other, and a forked child for a thread that it does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class computed_once(Generic[T]):  # it reads as the decorator that it is
    """Decorate a method of no arguments: its first result becomes the instance's attribute.

    Threads that ask at once may each compute it; all of them get the same one.

    Parameters
    ----------
    compute : callable
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> computed_once[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> computed_once[T] | T:
        """Compute and keep; from then on the instance's own attribute is found first."""
        if instance is None:
            return self
        value: T = instance.__dict__.setdefault(self._name, self._compute(instance))
        return value
