"""`NamedTuple`: as `typing.NamedTuple`, made in a tenth of the time, for what a first read needs.

That one compiles a function for every class, and each annotation: for some twenty-five classes a
fifth of all that this package adds to `import numpy`. Public values stay with it, whose signatures
people look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from collections import _tuplegetter

    class _Maker(type):
        """Makes a class of tuples out of annotations; with `annotations` of the future, names."""

        def __new__(cls, name, bases, namespace):
            fields = tuple(namespace.get("__annotations__", ()))
            defaults = {field: namespace[field] for field in fields if field in namespace}
            for at, field in enumerate(fields):
                namespace[field] = _tuplegetter(at, field)
            named = {"_fields": fields, "__match_args__": fields, "_field_defaults": defaults}
            return super().__new__(cls, name, bases, {**namespace, **named, "__slots__": ()})

    class NamedTuple(tuple, metaclass=_Maker):
        """A tuple whose items have names: the annotations of a class that is derived from it."""

        def __new__(cls, *values: Any, **named: Any) -> NamedTuple:
            """Make one of values in order, or by name; what is left out is as the class says."""
            if named or len(values) != len(cls._fields):
                found = {**cls._field_defaults, **named}
                left = cls._fields[len(values) :]
                is_each_there = found.keys() >= set(left) and named.keys() <= set(left)
                if not is_each_there or len(values) > len(cls._fields):
                    raise TypeError(f"{cls.__name__} takes {', '.join(cls._fields)}, each once")
                values = (*values, *map(found.get, left))
            return tuple.__new__(cls, values)

        @classmethod
        def _make(cls, values: Any) -> NamedTuple:
            return cls(*values)

        def _replace(self, **changes: Any) -> NamedTuple:
            made = self._make(map(changes.pop, self._fields, self))
            if changes:
                raise TypeError(f"{type(self).__name__} has no {', '.join(changes)}")
            return made

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self) -> tuple[Any, ...]:
            """Return what a copy is made of."""
            return tuple(self)

        def __repr__(self) -> str:
            """Show each item with its name."""
            items = (f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({', '.join(items)})"
