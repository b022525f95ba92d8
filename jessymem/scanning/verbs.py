"""The manager's verbs for scans: each goes over all bytes of the layers chosen, without the GIL."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

import jessymem
from jessymem.errors import lets_go
from jessymem.ids import DimensionId, DimensionLike, as_integer
from jessymem.sampling import ReadSampler
from jessymem.snapshot import Snapshot, Standing

if TYPE_CHECKING:
    from jessymem.places import Located
    from jessymem.regions.table import LayerTable
    from jessymem.scanning.crew import Crew
    from jessymem.scanning.spans import Spans


class ScanningVerbs:
    """The part of a manager that goes over all bytes of many layers."""

    _snapshot: Snapshot
    _sampler: ReadSampler

    if TYPE_CHECKING:

        def _check_open(self) -> None: ...
        def _standing_for(
            self, dimension: DimensionId, snapshot: Snapshot | None = None
        ) -> Standing: ...
        def _bring_back_if_loaded(self, dimension: DimensionId) -> LayerTable | None: ...
        def _keeping(self, dimensions: Iterable[DimensionId]) -> AbstractContextManager[None]: ...
        def _note_batch(self, located: Located) -> None: ...

    @lets_go
    def find(
        self,
        needle: jessymem.hints.Buffer | str,
        dimensions: Iterable[DimensionLike] | None = None,
        limit: int | None = None,
        *,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> jessymem.Hits:
        """Find every place in the layers' contents at which some bytes are.

        Contents are searched as they are stored. A find lies within one layer; finds may overlap.

        Parameters
        ----------
        needle : bytes-like or str
            At least one byte; a string is encoded as UTF-8.
        dimensions : iterable of DimensionId, int or str, optional
            Which to search; by default all that are loaded. Evicted ones are mapped again.
        limit : int, optional
            Stop after so many finds, the first in order.
        workers : int, optional
            Threads; by default one for each CPU that the process may use. A small store is searched
            in the caller's.
        progress : callable, optional
            Called now and then as ``progress(n_done, n_total)``, in bytes, in the caller's thread.
            Dimensions that still have to be mapped count with the length of their files. What it
            raises ends the scan.
        cancel : threading.Event, optional
            Ends the scan soon after it is set; any object with such an ``is_set`` will do.

        Returns
        -------
        Hits
            Ascending by layer, then by offset in the layer's content. All of one state of the store
            where everything chosen is in memory; else of one state per dimension, which are then
            mapped and searched one after the other, so that they need not fit in memory together.

        Raises
        ------
        DimensionNotFound
            If one of `dimensions` is not loaded; or as `access_layer`.
        OutOfBounds
            If a file was changed under its mapping so that a layer would lie outside.
        LimitExceeded, RegionIOError, RegionFormatError, AllocationFailed
            If an evicted dimension cannot be mapped again.
        concurrent.futures.CancelledError
            If `cancel` was set.
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If an argument is not of that form; a needle of no bytes.
        """
        from jessymem.scanning.crew import Crew
        from jessymem.scanning.hits import join_hits
        from jessymem.scanning.needles import Needle
        from jessymem.scanning.searching import find_in

        wanted, crew = Needle(needle), Crew(workers, progress, cancel)
        left = None if limit is None else as_integer(limit, "limit")
        if left is not None and left < 0:
            raise ValueError(f"limit is a number of finds, not {limit!r}")
        parts: list[np.typing.NDArray[Any]] = []
        with closing(self._states(dimensions, crew)) as states:
            for spans in states:
                found, n_found = find_in(spans, wanted, crew, left)
                del spans  # it may have to go for the next
                parts += found
                if left is not None:
                    left -= n_found
                    if left == 0:
                        break
        return join_hits(parts)

    @lets_go
    def count(
        self,
        needle: jessymem.hints.Buffer | str,
        dimensions: Iterable[DimensionLike] | None = None,
        *,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> int:
        """Return at how many places in the layers' contents some bytes are.

        Those that `find` would return, without a list of them.

        Parameters
        ----------
        needle, dimensions, workers, progress, cancel
            As `find`.

        Raises
        ------
        DimensionNotFound, OutOfBounds, LimitExceeded, RegionIOError, RegionFormatError,
        AllocationFailed, concurrent.futures.CancelledError, InvalidAccess, ValueError, TypeError
            As `find`.
        """
        from jessymem.scanning.crew import Crew
        from jessymem.scanning.needles import Needle
        from jessymem.scanning.searching import count_in

        wanted, crew = Needle(needle), Crew(workers, progress, cancel)
        n_found = 0
        with closing(self._states(dimensions, crew)) as states:
            for spans in states:
                n_found += count_in(spans, wanted, crew)
                del spans
        return n_found

    @overload
    def scan(
        self,
        kernel: Callable[..., Any],
        dtype: np.typing.DTypeLike,
        dimensions: Iterable[DimensionLike] | None = None,
        *,
        return_ids: Literal[False] = False,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> np.typing.NDArray[Any]: ...
    @overload
    def scan(
        self,
        kernel: Callable[..., Any],
        dtype: np.typing.DTypeLike,
        dimensions: Iterable[DimensionLike] | None = None,
        *,
        return_ids: Literal[True],
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> tuple[np.typing.NDArray[np.int64], np.typing.NDArray[Any]]: ...
    @lets_go
    def scan(
        self,
        kernel: Callable[..., Any],
        dtype: np.typing.DTypeLike,
        dimensions: Iterable[DimensionLike] | None = None,
        *,
        return_ids: bool = False,
        workers: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        cancel: jessymem.hints.CancelToken | None = None,
    ) -> np.typing.NDArray[Any] | tuple[np.typing.NDArray[np.int64], np.typing.NDArray[Any]]:
        """Call a compiled function for every layer; return what it makes of each.

        Parameters
        ----------
        kernel : callable
            ``kernel(content, row) -> number``, a function that numba can compile, or has: one that
            is no dispatcher yet is compiled, and remembered for the next call. `content` is the
            layer's bytes, a read-only array of uint8; `row` a record of its own, with the fields
            ``layer_num``, ``depth``, ``frequency``, ``parent`` and the others of LAYER in
            `jessymem.kernels.schema`. Both end with the call. It runs in several threads at once,
            without the GIL, on layers in no certain order.
        dtype : data type
            Of the values: a boolean or number to which what the kernel returns casts, as
            `numpy.can_cast` says with ``"same_kind"``.
        dimensions : iterable of DimensionId, int or str, optional
            As `find`.
        return_ids : bool
            Whether to return the layers' ids too.
        workers, progress, cancel
            As `find`; threads share the work layer by layer.

        Returns
        -------
        values : ndarray of `dtype`, shape (n,)
            One for each layer, ascending by layer id.
        ids : ndarray of int64, shape (n,)
            With ``return_ids=True``, and before the values: the packed ids of the layers, of the
            same state.

        Raises
        ------
        TypeError
            If the kernel is no function, cannot be compiled for these arguments, or returns what is
            no `dtype`; or an argument is not of that form.
        Exception
            What the kernel raises, with a note that names it and the layer.
        DimensionNotFound, OutOfBounds, LimitExceeded, RegionIOError, RegionFormatError,
        AllocationFailed, concurrent.futures.CancelledError, InvalidAccess, ValueError
            As `find`.
        """
        from jessymem.scanning.applying import Applied
        from jessymem.scanning.crew import Crew

        crew, applied = Crew(workers, progress, cancel), Applied(kernel, dtype)
        values, ids = [np.zeros(0, applied.dtype)], [np.zeros(0, np.int64)]
        with closing(self._states(dimensions, crew)) as states:
            for spans in states:
                values.append(applied.to(spans, crew))
                ids.append(spans.rows["layer"])
                del spans
        found = np.concatenate(values)
        return (np.concatenate(ids), found) if return_ids else found

    # -- inside ------------------------------------------------------------------------------------

    def _states(
        self, dimensions: Iterable[DimensionLike] | None, crew: Crew
    ) -> Generator[Spans, None, None]:
        """Yield the layers to scan: all at once where all are in memory, else by dimension.

        While they are scanned, this thread counts as a reader and none of them is evicted. Who has
        scanned them lets go of them, since they may have to go for the next.
        """
        from jessymem.selection import as_dimensions

        with self._sampler.reader():
            snapshot = self._snapshot
            self._check_open()
            if dimensions is None:
                wanted = [each.dimension_id for each in snapshot.loaded]
            else:
                wanted = sorted(as_dimensions(dimensions))
                for dimension in wanted:
                    self._standing_for(dimension, snapshot)  # raises where it is not loaded
            if all(int(dimension) in snapshot.readers for dimension in wanted):
                with self._keeping(wanted):
                    spans = self._spans_in(snapshot, wanted)
                    del snapshot
                    crew.expect(spans.n_bytes)
                    yield spans
                    return
            expected = {each.dimension_id: each.edition.n_bytes for each in snapshot.loaded}
            del snapshot
            crew.expect(sum(expected[dimension] for dimension in wanted))
            for dimension in wanted:
                with self._keeping([dimension]):
                    if self._bring_back_if_loaded(dimension) is None:
                        crew.expect(-expected[dimension])
                        continue  # unloaded meanwhile
                    spans = self._spans_in(self._snapshot, [dimension])
                    crew.expect(spans.n_bytes - expected[dimension])
                    yield spans
                    del spans

    def _spans_in(self, snapshot: Snapshot, dimensions: list[DimensionId]) -> Spans:
        """Find the layers of dimensions in one state, and note the access."""
        from jessymem.places import locate, settle
        from jessymem.scanning.spans import Spans, packed_ids

        packed = packed_ids(snapshot, dimensions)
        located = locate(snapshot, packed)
        settle(located, packed, is_strict=True)
        self._note_batch(located)
        return Spans.of(located, packed)
