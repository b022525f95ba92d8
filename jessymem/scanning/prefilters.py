"""`Prefilter`: bytes that whatever a regular expression matches contains.

They are read off the expression as `re` has parsed it. How it does that is `re`'s own affair: what
is not as expected here makes no prefilter, and the expression is tried everywhere.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jessymem.scanning.needles import Needle
from jessymem.scanning.spans import Job, Spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

#: Fewer bytes are everywhere.
_MIN_BYTES: Final = 3

_NEWLINE: Final = ord("\n")
_END_OF_LINE: Final = re.compile(b"\n")
#: Looked through together for where a line begins.
_STEP_BYTES: Final = 256


class Prefilter(NamedTuple):
    """What is searched for before a regular expression is tried.

    Attributes
    ----------
    needle : Needle
        What every match contains.
    is_in_line : bool
        Whether every match lies within a line, and depends on nothing outside it.
    is_prefixed : bool
        Whether every match begins with the same byte, for which `re` looks by itself.
    """

    needle: Needle
    is_in_line: bool
    is_prefixed: bool

    @classmethod
    def of(cls, pattern: re.Pattern[bytes]) -> Prefilter | None:
        """Return the longest bytes that are certain; None where they are few, or none are."""
        flags = pattern.flags
        if flags & re.LOCALE:
            return None
        try:
            items = list(import_module("re._parser").parse(pattern.pattern, flags))
            required = max(_required(items), key=len, default=b"")
            is_in_line = not any(_may_cross_lines(item, flags) for item in items)
        except (ImportError, AttributeError, TypeError, ValueError):
            return None  # another version's
        if len(required) < _MIN_BYTES:
            return None
        ignore_case = bool(flags & re.IGNORECASE)
        is_prefixed = not ignore_case and str(items[0][0]) == "LITERAL"
        return cls(Needle(required, ignore_case=ignore_case), is_in_line, is_prefixed)

    def pieces(
        self, spans: Spans, job: Job, parts: Iterable[NDArray[Any]]
    ) -> Iterator[tuple[memoryview, int, int, int]]:
        """Yield the lines, or layers, with the finds of the needle: bytes, start, end and layer."""
        span, view, end = job.span - 1, memoryview(b""), 0
        layers = spans.rows["layer"]
        layer = -1
        for part in parts:
            for found, at in part.tolist():
                if found != layer:
                    layer = found
                    span = int(layers.searchsorted(layer))
                    view, end = spans.view(span), 0
                if at < end:
                    continue  # in what was yielded before
                start = 0
                if self.is_in_line:
                    start = _line_start(view, at, end)
                    newline = _END_OF_LINE.search(view, at)
                    end = newline.start() if newline else len(view)
                else:
                    end = len(view)
                yield view, start, end, layer


def _line_start(view: memoryview, at: int, first: int) -> int:
    """Return where the line of a position begins; it is known to be at `first` or behind it."""
    while at > first:
        piece = bytes(view[max(first, at - _STEP_BYTES) : at])
        newline = piece.rfind(b"\n")
        if newline >= 0:
            return at - len(piece) + newline + 1
        at -= len(piece)
    return first


def _required(items: Iterable[Any]) -> Iterator[bytes]:
    """Yield runs of bytes that are in whatever matches these items, one behind the other."""
    run = bytearray()
    for operation, argument in items:
        name = str(operation)
        if name == "LITERAL":
            run.append(argument)
            continue
        yield bytes(run)
        run.clear()
        if name == "SUBPATTERN":
            _, added, removed, inner = argument
            if not added and not removed:
                yield from _required(inner)
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, _, inner = argument
            if least:
                yield from _required(inner)
        elif name == "ATOMIC_GROUP":
            yield from _required(argument)
    yield bytes(run)


def _may_cross_lines(item: Any, flags: int) -> bool:
    """Tell whether an item may match a newline, or look at what is behind one."""
    operation, argument = item
    name = str(operation)
    if name == "LITERAL":
        return bool(argument == _NEWLINE)
    if name == "NOT_LITERAL":
        return bool(argument != _NEWLINE)
    if name == "ANY":
        return bool(flags & re.DOTALL)
    if name == "IN":
        return _may_be_newline(argument)
    if name == "AT":  # at the end of a line, or of a word, a line's end is as good as what follows
        is_multiline = bool(flags & re.MULTILINE)
        return not (
            str(argument) in ("AT_BOUNDARY", "AT_NON_BOUNDARY")
            or (is_multiline and str(argument) in ("AT_BEGINNING", "AT_END"))
        )
    if name == "SUBPATTERN":
        _, added, removed, inner = argument
        return bool(added or removed) or any(_may_cross_lines(each, flags) for each in inner)
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        return any(_may_cross_lines(each, flags) for each in argument[2])
    if name == "BRANCH":
        return any(_may_cross_lines(each, flags) for branch in argument[1] for each in branch)
    if name in ("ASSERT", "ASSERT_NOT"):
        return any(_may_cross_lines(each, flags) for each in argument[1])
    if name == "ATOMIC_GROUP":
        return any(_may_cross_lines(each, flags) for each in argument)
    return name != "GROUPREF"


def _may_be_newline(members: Iterable[Any]) -> bool:
    """Tell whether a class of bytes may have the newline."""
    members = list(members)
    if members and str(members[0][0]) == "NEGATE":
        return not any(_surely_newline(*each) for each in members[1:])
    return any(_maybe_newline(*each) for each in members)


def _surely_newline(operation: Any, argument: Any) -> bool:
    name = str(operation)
    if name == "LITERAL":
        return bool(argument == _NEWLINE)
    if name == "RANGE":
        return bool(argument[0] <= _NEWLINE <= argument[1])
    return name == "CATEGORY" and str(argument) in (
        "CATEGORY_SPACE",
        "CATEGORY_NOT_DIGIT",
        "CATEGORY_NOT_WORD",
    )


def _maybe_newline(operation: Any, argument: Any) -> bool:
    if str(operation) in ("LITERAL", "RANGE", "CATEGORY"):
        return _surely_newline(operation, argument)
    return True
