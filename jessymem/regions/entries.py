"""Plain V1 entries to LAYER rows: by compiled code once so much was parsed that it pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels import _jit, parse
from jessymem.kernels import schema as s
from jessymem.regions import faults
from jessymem.regions.faults import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: So many entries are parsed before it is asked again whether compiled code is worth it.
_FEW: Final = 256

# Plain Python takes 0.55 us for an entry and 0.2 us for a keyword, compiled code 7 ns an entry. To
# have compiled code takes 0.4 s where numba has to be imported, 7 ms where it is in use, and a
# second more where the cache has none. So it is taken when plain Python has parsed for as long,
# counting the files before: a process that parses little never waits for it, and one that parses
# much waits about as long as it has parsed.

#: Entries and keywords that plain Python parses in the time that numba takes to start.
WORTH_STARTING: Final = 1_000_000

#: And in the time that compiled code takes to load, once numba is in use.
WORTH_LOADING: Final = 16_384


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
            some = parse.parse_entries(view, at, columns, first, last, fault)
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
    worth = WORTH_LOADING if _jit.is_started() else WORTH_STARTING
    n_items = n_entries + _jit.count_items(0, _jit.PARSING)
    return n_items >= worth and _jit.promote(_jit.PARSING)
