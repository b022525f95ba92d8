"""Many layers in one call: places, views, or one buffer of all; and the store for compiled code.

Each batch is of one state of the store, and takes no lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

import jessymem
from jessymem.config import MemoryConfig
from jessymem.errors import lets_go
from jessymem.eviction import Policy
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.loading import Loader
from jessymem.sampling import ReadSampler
from jessymem.snapshot import Snapshot

if TYPE_CHECKING:
    from jessymem.places import Located


class BatchVerbs:
    """The part of a manager that reads many layers at once."""

    _snapshot: Snapshot
    _sampler: ReadSampler
    _loader: Loader
    _policy: Policy
    _config: MemoryConfig

    if TYPE_CHECKING:

        def _check_open(self) -> None: ...
        def _bring_all_back(self, layer_ids: Iterable[LayerId]) -> Snapshot: ...
        def _keeping(self, dimensions: Iterable[DimensionId]) -> AbstractContextManager[None]: ...

    @lets_go
    def locate_many(
        self, layer_ids: jessymem.hints.LayersLike, missing: str = "raise"
    ) -> np.typing.NDArray[Any]:
        """Find many layers in one call, without touching their contents.

        Parameters
        ----------
        layer_ids : ndarray of integers, shape (n,), or iterable of LayerId, int or str
            An array of packed ids is quickest: some nanoseconds a layer.
        missing : {"raise", "mark"}
            What to do about layers that are not loaded.

        Returns
        -------
        ndarray of LOCATION, shape (n,)
            In the order of the ids, the caller's own. Fields: ``offset`` and ``size`` of the
            content in bytes (int64), the offset from the region's first byte, out of which that of
            a layer in memory may lead; ``region``, the region id (int32); ``status`` (int32), 0
            where the layer was found, else NO_DIMENSION, NO_SUCH_LAYER or OUT_OF_BOUNDS of
            `jessymem.kernels.schema`, with region -1; ``slot`` and ``row`` (int32), its rows in the
            tables of `store`. Places are those of one state: they keep nothing alive.

        Raises
        ------
        LayerNotFound
            With ``missing="raise"``; its attribute `layers` lists all that are not loaded.
        OutOfBounds
            With ``missing="raise"``, if a file was changed under its mapping.
        LimitExceeded
            If evicted dimensions have to be mapped again, and all of these do not fit at once.
        DimensionNotFound, RegionIOError, RegionFormatError, AllocationFailed
            If an evicted dimension cannot be mapped again.
        InvalidAccess
            If the manager is closed.
        ValueError, TypeError
            If an argument is not of that form.
        """
        from jessymem.places import as_packed

        with self._located(as_packed(layer_ids), missing) as located:
            return located.places

    @lets_go
    def access_many(
        self, layer_ids: jessymem.hints.LayersLike, missing: str = "raise"
    ) -> list[memoryview | None]:
        """Return the bytes of many layers without a copy, all of one state of the store.

        Parameters
        ----------
        layer_ids, missing
            As `locate_many`.

        Returns
        -------
        list of memoryview
            In the order of the ids; views as `access_layer` hands out, with the same lifetime. None
            for what is missing, with ``missing="mark"``.

        Raises
        ------
        LayerNotFound, OutOfBounds, LimitExceeded, DimensionNotFound, RegionIOError,
        RegionFormatError, AllocationFailed, InvalidAccess, ValueError, TypeError
            As `locate_many`.
        """
        from jessymem.places import as_packed, cut_views

        with self._located(as_packed(layer_ids), missing) as located:
            return cut_views(located)

    @lets_go
    def gather(
        self, layer_ids: jessymem.hints.LayersLike, missing: str = "raise"
    ) -> tuple[np.typing.NDArray[np.uint8], np.typing.NDArray[np.int64]]:
        """Copy many layers into one contiguous buffer, as Arrow lays out a column of binaries.

        One kernel call for all, without the GIL.

        Parameters
        ----------
        layer_ids, missing
            As `locate_many`.

        Returns
        -------
        data : ndarray of uint8, shape (n_bytes,)
            The contents one behind the other, in the order of the ids. The caller's own memory: not
            in the budget.
        offsets : ndarray of int64, shape (n + 1,)
            Layer i is ``data[offsets[i]:offsets[i + 1]]``; one that is missing is empty, with
            ``missing="mark"``.

        Raises
        ------
        AllocationFailed
            If the system has no memory for the buffer; or as `locate_many`.
        LayerNotFound, OutOfBounds, LimitExceeded, DimensionNotFound, RegionIOError,
        RegionFormatError, InvalidAccess, ValueError, TypeError
            As `locate_many`.
        """
        from jessymem.places import as_packed, copy_out

        with self._located(as_packed(layer_ids), missing) as located:
            return copy_out(located)

    @lets_go
    def store(self) -> jessymem.hints.Store:
        """Return the present state for use in compiled code, with no lock and no GIL.

        Returns
        -------
        Store
            A tuple of two arrays, to be passed to functions compiled with ``numba.njit``; see
            `jessymem.kernels`. What it leads to stays in memory, unchanged, while it is held.
            Layers that were evicted are not in it: read them, or pin their dimensions, before.

        Raises
        ------
        InvalidAccess
            If the manager is closed.
        """
        from jessymem.processes import Origin

        snapshot = self._snapshot
        self._check_open()
        return Origin(self._config, self._loader, snapshot).store()

    # -- inside ------------------------------------------------------------------------------------

    @contextmanager
    def _located(self, packed: np.typing.NDArray[np.int64], missing: str) -> Iterator[Located]:
        """Find the layers of a batch in one state, which is held within; evicted ones are mapped.

        Raises LayerNotFound or OutOfBounds with ``missing="raise"``.
        """
        from jessymem.places import locate, settle

        if not isinstance(missing, str) or missing not in ("raise", "mark"):
            raise ValueError(f"missing is 'raise' or 'mark', not {missing!r}")
        is_strict = missing == "raise"
        with self._sampler.reader():
            snapshot = self._snapshot
            self._check_open()
            located = locate(snapshot, packed)
            is_evicted = located.places["status"] == s.EVICTED if located.n_missing else False
            if not np.any(is_evicted):
                settle(located, packed, is_strict)
                self._note_batch(located)
                yield located
                return
            evicted = [LayerId.from_packed(each) for each in packed[is_evicted].tolist()]
            numbers = np.flatnonzero(located.touched).tolist()
            found = snapshot.regions["dimension"][numbers].tolist()
            dimensions = {DimensionId(number) for number in found}
            dimensions.update(layer_id.dimension for layer_id in evicted)
            del snapshot, located  # what else they hold may have to go
            with self._keeping(dimensions):
                located = locate(self._bring_all_back(evicted), packed)
                settle(located, packed, is_strict)
                self._note_batch(located)
                yield located

    def _note_batch(self, located: Located) -> None:
        """Note one access of each dimension in a batch."""
        slots = np.flatnonzero(located.touched)
        numbers = located.snapshot.regions["dimension"][slots].tolist()
        for number, tick in zip(numbers, self._policy.gate(len(numbers)), strict=True):
            located.snapshot.readers[number][-1][0] = tick
