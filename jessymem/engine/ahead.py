"""`ReadAhead`: while one file is loaded, the system fetches the beginnings of those that follow.

A thread of its own opens each file for a moment and asks for the pages that a load checks; on a
slow medium that is what a load waits for. It opens and checks nothing for the load itself: that is
Python's work, of which two threads do no more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jessymem import osmem
from jessymem.ids import DimensionId

if TYPE_CHECKING:
    from queue import SimpleQueue

#: The system is asked for so many files while as many before them are loaded.
_N_TOGETHER: Final = 64

#: Where the first of them are in memory already, so are the others, more likely than not.
_N_TRIED: Final = 8

#: What is asked for of each: header, entries, table and names of a file of ordinary size.
_N_BYTES: Final = 2**17

#: A thread that nobody tells anything for so long was left behind by an interrupt.
_PATIENCE_SECONDS: Final = 60.0


class ReadAhead:
    """Passes dimensions on, and has the files of those that follow fetched meanwhile.

    A context manager. Where there are few, or the system takes no such hint, it only passes on.

    Parameters
    ----------
    dimensions : sequence of DimensionId
        In the order in which they will be loaded.
    path_of : callable
        Returns where a dimension's file belongs.
    """

    def __init__(
        self, dimensions: Sequence[DimensionId], path_of: Callable[[DimensionId], Path]
    ) -> None:
        self._dimensions = dimensions
        self._path_of = path_of
        self._wanted: SimpleQueue[Sequence[DimensionId]] | None = None

    def __enter__(self) -> Iterator[DimensionId]:
        """Begin; return the dimensions, which are to be loaded in this order."""
        if len(self._dimensions) <= _N_TOGETHER or not osmem.CAN_READ_AHEAD:
            return iter(self._dimensions)
        # Not before many are loaded: both are a part of what a first read would wait for.
        from queue import SimpleQueue
        from threading import Thread

        self._wanted = SimpleQueue()
        arguments = self._wanted, self._path_of
        try:
            Thread(target=_fetch, args=arguments, name="jessymem-ahead", daemon=True).start()
        except RuntimeError:  # there is no thread to be had
            return iter(self._dimensions)
        return self._passing(self._wanted)

    def __exit__(self, *exception: object) -> None:
        """End the thread, which is not waited for."""
        if self._wanted is not None:
            self._wanted.put(())

    def _passing(self, wanted: SimpleQueue[Sequence[DimensionId]]) -> Iterator[DimensionId]:
        for start in range(0, len(self._dimensions), _N_TOGETHER):
            end = start + _N_TOGETHER
            # Together: who waits for one at a time would take turns with who loads.
            if following := self._dimensions[end : end + _N_TOGETHER]:
                wanted.put(following)
            yield from self._dimensions[start:end]


def _fetch(
    wanted: SimpleQueue[Sequence[DimensionId]], path_of: Callable[[DimensionId], Path]
) -> None:
    from queue import Empty

    with suppress(Empty):
        while dimensions := wanted.get(timeout=_PATIENCE_SECONDS):
            n_fetched = 0
            for n_tried, dimension in enumerate(dimensions):
                if n_tried == _N_TRIED and not n_fetched:
                    break
                n_fetched += osmem.read_ahead(path_of(dimension), _N_BYTES)
