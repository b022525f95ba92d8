"""`Claims`: blocks of an allocator by index, so that no interrupt loses one.

After a call the interpreter looks for interrupts before it does anything with the result: a block
that a kernel has just claimed would be lost. After an index it does not.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, Final, Protocol

from jessymem.kernels import _jit
from jessymem.kernels import schema as s
from jessymem.kernels.memory import Words


class Claims(Protocol):
    """What is asked for a block."""

    def __getitem__(self, n_bytes: int, /) -> int:
        """Claim a block of so many bytes; return its handle, or the code why there is none."""


class _Refusal:
    """Claims nothing."""

    __slots__ = ("_code",)

    def __init__(self, code: int) -> None:
        self._code = code

    def __getitem__(self, n_bytes: int) -> int:
        return self._code


#: Before kernels are compiled: the slow way calls plain ones.
NOT_STARTED: Final[Claims] = _Refusal(s.NOT_STARTED)

#: Of an allocator that is closed.
CLOSED: Final[Claims] = _Refusal(s.IS_CLOSED)


def claims_on(words: Words, allocation: Any) -> Claims:
    """Return what claims blocks by a compiled kernel of `allocation`, or of `near`.

    Whoever uses it keeps the words.
    """
    # An index is looked up in the type: one for each allocator, with no Python in between.
    claim = MethodType(_jit.entry_of(allocation.allocate_quietly, words, 1), words)
    claims: Claims = type("CompiledClaims", (), {"__slots__": (), "__getitem__": claim})()
    return claims
