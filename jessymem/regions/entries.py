"""Plain V1 entries to LAYER rows: by compiled code once so much was parsed that it pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels import _jit, parse
from jessymem.kernels import schema as s
from jessymem.locks import outside
from jessymem.regions import faults
from jessymem.regions.faults import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

_parse_plainly: Final = _jit.plain_forms(parse)["parse_entries"]

#: So many entries are parsed before it is asked again whether compiled code is worth it.
_FEW: Final = 256

# Plain Python takes 0.55 us for an entry and 0.2 us for a keyword, compiled code 7 ns. It is
# taken once plain Python has parsed for as long as it takes to have compiled code, counting the
# files before: a process that parses little never waits for it, and one that parses much waits
# about as long as it has parsed. So many entries and keywords are parsed in that time:

#: Where numba has to be imported, and the parser loaded: 0.4 s, or 1.5 s where no cache has it.
WORTH_STARTING: Final = 1_000_000

#: Where numba is in use, and the cache has the parser: 7 ms.
WORTH_LOADING: Final = 16_384

#: Where numba is in use, and the parser has to be compiled: 1.1 s.
WORTH_COMPILING: Final = 3_000_000


def read_entries(
    data: NDArray[np.uint8], n_layers: int, source: Source
) -> tuple[NDArray[Any], int]:
    """Return the rows of the plain entries, in their order, and the offset behind the last.

    Raises
    ------
    RegionFormatError
        At the first entry that breaks a rule.
    """
    rows = np.zeros(n_layers, s.LAYER)
    fault = np.zeros(1, s.FAULT)
    view, columns = memoryview(data), parse.plain_rows(rows)
    first, at = 0, s.HEADER_BYTES
    while first < n_layers:
        if _is_compiled_for(n_layers - first):
            last = n_layers
            some = parse.parse_entries(data, at, rows.view(parse.PARSED), first, last, fault)
        else:
            last = min(first + _FEW, n_layers)
            some = _parse_plainly(view, at, columns, first, last, fault)
        at = int(some)
        if at < 0:
            raise faults.broken_entry(source, at, fault[0])
        n_keywords = int(rows["keyword_count"][first:last].sum())
        _jit.count_items(last - first + n_keywords, _jit.PARSING)
        first = last
    return rows, at


def _is_compiled_for(n_entries: int) -> bool:
    """Tell whether the parser is compiled, after compiling it if so many entries are worth it."""
    if _jit.is_promoted(_jit.PARSING):
        return True
    n_items = n_entries + _jit.count_items(0, _jit.PARSING)
    if n_items < WORTH_LOADING:
        return False
    worth = WORTH_STARTING
    if _jit.is_started():
        worth = WORTH_LOADING if _jit.is_cached(_jit.PARSING) else WORTH_COMPILING
    if n_items < worth or _jit.is_disabled():
        return False
    if not _was_tried:
        outside(_promote)
    return _jit.is_promoted(_jit.PARSING)


#: Holds something once promoting was tried: where it does not help, it is not tried for ever.
_was_tried: Final[list[bool]] = []


def _promote() -> None:
    _jit.promote(_jit.PARSING)
    _was_tried.append(True)
