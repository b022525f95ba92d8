"""The published state inside a user's own compiled code, and as plain Python.

A `Store` is one array, a DIRECTORY, whose base keeps alive all that its addresses lead to. It is
handed to a compiled function as an argument; the functions here take it from there, with no lock
and no GIL. What they return as an array keeps that memory alive too.
`_numba` tells numba of them; `MmapManager.store` makes stores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jessymem.kernels import lookup, memory
from jessymem.kernels._jit import READING, Int, kernel, on_promotion
from jessymem.kernels.schema import (
    ABSENT,
    CHUNK_BITS,
    CHUNK_ROWS,
    DIRECTORY,
    LAYER,
    LAYER_BITS,
    LAYER_BYTES,
    MAX_LAYER,
    NO_DIMENSION,
    OK,
    REGION,
    REGION_BYTES,
    REGION_EMPTY,
)

_LAYER_NUM = LAYER.fields["layer_num"][1]  # type: ignore[index]
_CHUNK_BYTES = CHUNK_ROWS * REGION_BYTES


class Store(tuple[Any, ...]):
    """One immutable state of a manager's layers, for compiled code.

    Made by `MmapManager.store`. Pass it to any function compiled with ``numba.njit``, and there to
    the functions of `jessymem.kernels`. As a global or closure of a compiled function it is
    refused: numba would freeze addresses into the code.

    Lifetime: while a store is held, every layer that it leads to stays in memory, whatever is
    unloaded, replaced, evicted or closed meanwhile; that memory counts in the budget as waiting
    then. Hold it for a computation, not for good.

    A store pickles as the paths and editions of what it holds; where it is unpickled the same files
    are mapped again. Layers that are only in memory stay behind.

    Attributes
    ----------
    directory : ndarray of int64, shape (n_chunks,)
        ``dimension >> 6`` to the address of 64 rows of REGION, of which ``dimension & 63`` is the
        dimension's. Read-only; it owns the memory behind all addresses.
    regions : ndarray of REGION, shape (64 * n_chunks,)
        A copy of those rows, by dimension number: slot n is that of dimension n. Most may be empty.
        Made when it is asked for, in Python only.

    Examples
    --------
    >>> store = manager.store()
    >>> store
    <Store of 2 dimensions, 6 layers>
    >>> manager.close()
    >>> LayerId.from_packed(store.layer_ids()[2])  # still there
    L15-02
    """

    def __new__(
        cls,
        directory: NDArray[np.int64],
        reduce: Callable[[], tuple[Any, ...]] | None = None,
    ) -> Store:
        """Take a published directory; `reduce` says how the store pickles."""
        store = super().__new__(cls, (directory,))
        store._reduce = reduce
        return store

    _reduce: Callable[[], tuple[Any, ...]] | None

    @property
    def directory(self) -> NDArray[np.int64]:
        """Where the rows of 64 dimensions each are.

        Examples
        --------
        >>> from jessymem.kernels import count_slots
        >>> store = manager.store()
        >>> len(store.directory), count_slots(store)
        (1, 64)
        """
        found: NDArray[np.int64] = self[0]
        return found

    @property
    def regions(self) -> NDArray[Any]:
        """One row a dimension, by its number.

        Examples
        --------
        >>> regions = manager.store().regions
        >>> [int(regions["n_layers"][dimension]) for dimension in (15, 16, 17)]
        [4, 2, 0]
        """
        return copy_regions(self.directory)

    def layer_ids(self) -> NDArray[np.int64]:
        """Return the packed ids of all layers in memory, ascending, as an array of int64.

        The array is the caller's own. Evicted dimensions have none.

        Examples
        --------
        >>> [LayerId.from_packed(each) for each in manager.store().layer_ids()[-2:]]
        [L16-00, L16-07]
        """
        counts = self.regions["n_layers"]
        found = np.empty(int(counts.sum()), np.int64)
        list_layers(self.directory, np.flatnonzero(counts), found)
        return found

    def __repr__(self) -> str:
        """Show how much it holds."""
        rows = self.regions
        n_dimensions = int(np.count_nonzero(rows["state"] != REGION_EMPTY))
        return f"<Store of {n_dimensions} dimensions, {int(rows['n_layers'].sum())} layers>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Pickle by paths and editions."""
        if self._reduce is None:
            raise TypeError("this store was not made by a manager: it cannot be pickled")
        return self._reduce()


class Place(NamedTuple):
    """Where a layer lies, as `locate` returns it.

    Attributes
    ----------
    status : int
        ``OK`` (0), ``NO_DIMENSION``, ``NO_SUCH_LAYER``, ``EVICTED``, ``COMPRESSED`` or
        ``OUT_OF_BOUNDS`` of `jessymem.kernels.schema`; all but OK are negative. A compressed layer
        is there for code that is handed the store of `MmapManager.inflate`.
    slot : int
        The dimension's row in `Store.regions`: its number; -1 where there is no such layer.
    row : int
        The layer's row in its dimension, -1 where there is no such layer.
    offset : int
        Of the content, in bytes from the region's first; that of a layer in memory may lead out of
        the region.
    size : int
        Of the content, in bytes; also of a compressed one.

    Examples
    --------
    >>> from jessymem.kernels import locate
    >>> place = locate(manager.store(), int(LayerId("L16-07")))
    >>> int(place.slot), int(place.row), int(place.size)
    (16, 1, 26)
    """

    status: Int
    slot: Int
    row: Int
    offset: Int
    size: Int


def locate(store: Store, layer_id: Int) -> Place:
    """Find a layer.

    Parameters
    ----------
    store : Store
    layer_id : int
        Packed, as ``int(LayerId(...))``. Any other integer is one that is not there.

    Returns
    -------
    Place
        With a status that says why, where there is no such layer.

    Examples
    --------
    >>> from jessymem.kernels import locate, schema
    >>> found = locate(manager.store(), int(LayerId("L15-02")))
    >>> missing = locate(manager.store(), int(LayerId("L15-99")))
    >>> int(found.size), bool(missing.status == schema.NO_SUCH_LAYER)
    (17, True)
    """
    slot = np.int64(layer_id >> LAYER_BITS)
    none = np.int64(ABSENT)
    if slot < 0 or slot >= store.directory.shape[0] << CHUNK_BITS:
        return Place(np.int64(NO_DIMENSION), none, none, np.int64(0), np.int64(0))
    region = lookup.find_region(store.directory.ctypes.data, slot)
    row, offset, n_bytes = lookup.find_layer(region, layer_id & MAX_LAYER)
    if row < 0:
        return Place(row, none, none, np.int64(0), n_bytes)
    return Place(np.int64(OK), slot, row, offset, n_bytes)


def layer_bytes(store: Store, layer_id: Int) -> NDArray[np.uint8]:
    """Return a layer's bytes without a copy.

    Parameters
    ----------
    store : Store
    layer_id : int
        Packed.

    Returns
    -------
    ndarray of uint8, shape (size,)
        Read-only; empty where `locate` finds no such layer. Valid and unchanged for as long as it
        is held, also outside compiled code: it keeps the store's memory alive by itself.

    Examples
    --------
    >>> from jessymem.kernels import layer_bytes
    >>> content = layer_bytes(manager.store(), int(LayerId("L15-02")))
    >>> content.tobytes(), layer_bytes(manager.store(), int(LayerId("L15-99"))).size
    (b'Grep finds lines.', 0)
    """
    return layer_array(store, layer_id, np.uint8)


def layer_array(store: Store, layer_id: Int, dtype: DTypeLike) -> NDArray[Any]:
    """Return a layer's bytes as items of a dtype, without a copy.

    Parameters
    ----------
    store : Store
    layer_id : int
        Packed.
    dtype : NumPy scalar type or dtype
        Fixed when the calling function is compiled. It is not compared with that of a typed layer.

    Returns
    -------
    ndarray of `dtype`, shape (n,)
        Read-only, in the order in which the items lie in memory: `reshape` it. Empty where there is
        no such layer, its size is no multiple of an item's, or it is not aligned for the dtype (as
        layers of files by other writers may be). Lifetime as `layer_bytes`.

    Examples
    --------
    >>> from numba import njit
    >>> from jessymem.kernels import layer_array
    >>> @njit
    ... def mean_of(store, layer_id):
    ...     return layer_array(store, layer_id, np.float32).reshape(-1, 4)[:, 3].mean()
    >>> float(mean_of(manager.store(), int(LayerId("L15-03"))))
    3.0
    """
    location = locate(store, layer_id)
    directory = store.directory
    address: Int = directory.ctypes.data
    n_items: Int = np.int64(0)
    if location.status == OK:
        region = lookup.find_region(address, location.slot)
        content = memory.load_i64(region + lookup.CONTENT_ADDRESS) + location.offset
        item_bytes, alignment = memory.layout_of(dtype)
        if location.size % item_bytes == 0 and content % alignment == 0:
            address, n_items = content, location.size // item_bytes
    return memory.array_at(directory, address, n_items, dtype)


def count_slots(store: Store) -> Int:
    """Return how many slots there are: the number of every dimension loaded is below.

    Examples
    --------
    >>> from jessymem.kernels import count_slots, dimension_at
    >>> store = manager.store()
    >>> [slot for slot in range(count_slots(store)) if dimension_at(store, slot)]
    [15, 16]
    """
    return store.directory.shape[0] << CHUNK_BITS


def dimension_at(store: Store, slot: Int) -> Int:
    """Return the number of the dimension in a slot; 0 where that is empty or does not exist.

    An evicted dimension has its number, and no layers.

    Examples
    --------
    >>> from jessymem.kernels import dimension_at
    >>> [int(dimension_at(manager.store(), slot)) for slot in (15, 16, 17)]
    [15, 16, 0]
    """
    if slot < 0 or slot >= store.directory.shape[0] << CHUNK_BITS:
        return np.int64(0)
    region = lookup.find_region(store.directory.ctypes.data, slot)
    if memory.load_i32(region + lookup.STATE) == REGION_EMPTY:
        return np.int64(0)
    return np.int64(slot)


def count_layers(store: Store, dimension: Int) -> Int:
    """Return how many layers of a dimension are in memory; 0 where it is not loaded, or evicted.

    Examples
    --------
    >>> from jessymem.kernels import count_layers
    >>> [int(count_layers(manager.store(), dimension)) for dimension in (15, 16, 17)]
    [4, 2, 0]
    """
    if dimension < 0 or dimension >= store.directory.shape[0] << CHUNK_BITS:
        return np.int64(0)
    region = lookup.find_region(store.directory.ctypes.data, dimension)
    return memory.load_i64(region + lookup.N_LAYERS)


def layer_at(store: Store, dimension: Int, row: Int) -> Int:
    """Return the packed id of the layer in a dimension's row; 0 where there is none.

    Rows are in the order of layer numbers, from 0 to `count_layers` - 1.

    Examples
    --------
    >>> from jessymem.kernels import count_layers, layer_at
    >>> store = manager.store()
    >>> [LayerId.from_packed(layer_at(store, 16, row)) for row in range(count_layers(store, 16))]
    [L16-00, L16-07]
    """
    if row < 0 or row >= count_layers(store, dimension):
        return np.int64(0)
    region = lookup.find_region(store.directory.ctypes.data, dimension)
    address = memory.load_i64(region + lookup.TABLE_ADDRESS) + row * LAYER_BYTES
    return (np.int64(dimension) << LAYER_BITS) | memory.load_u16(address + _LAYER_NUM)


#: What `_numba` makes known to the compiler: these run in it as they are here.
FUNCTIONS = (
    locate,
    layer_bytes,
    layer_array,
    count_slots,
    dimension_at,
    count_layers,
    layer_at,
)


def copy_regions(directory: NDArray[np.int64]) -> NDArray[Any]:
    """Return a copy of all rows, shape (64 * n_chunks,); it keeps nothing alive."""
    chunks = [memory.array_at(None, each, _CHUNK_BYTES, np.uint8) for each in directory.tolist()]
    return np.concatenate([np.zeros(0, np.uint8), *chunks]).view(REGION)


@kernel
def list_layers(directory: NDArray[Any], slots: NDArray[Any], out: NDArray[Any]) -> None:
    """Write the packed ids of all layers in `slots` (int64), one slot after the other."""
    at = 0
    for i in range(slots.shape[0]):
        region = lookup.find_region(directory.ctypes.data, slots[i])
        first = slots[i] << LAYER_BITS
        address = memory.load_i64(region + lookup.TABLE_ADDRESS) + _LAYER_NUM
        for _ in range(memory.load_i64(region + lookup.N_LAYERS)):
            out[at] = first | memory.load_u16(address)
            address += LAYER_BYTES
            at += 1


@on_promotion(READING)
def _call_first() -> None:
    directory = np.zeros(0, DIRECTORY)
    directory.flags.writeable = False  # as it is published
    list_layers(directory, np.zeros(0, np.int64), np.zeros(0, np.int64))
