"""`LayerMapping`: a manager as a read-only mapping from layer ids to contents, and by name."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, TypeVar, overload

from jessymem.engine.engine import Engine
from jessymem.errors import AmbiguousName, LayerNotFound, clears_frames, shown
from jessymem.ids import (
    DimensionId,
    DimensionLike,
    LayerId,
    LayerLike,
    as_dimension_id,
    as_layer_id,
    is_dimension_id,
    is_layer_id,
)

T = TypeVar("T")


class LayerMapping:
    """What is loaded as a `collections.abc.Mapping`: ids to contents, ascending.

    A key may be an id in any form, or a name, as `id_of` takes it. Managers are equal only to
    themselves, and true also where nothing is loaded.
    """

    _engine: Engine

    if TYPE_CHECKING:

        def access_layer(self, layer_id: LayerLike) -> memoryview:
            """Return a layer's bytes."""

    def is_loaded(self, dimension_id: DimensionLike) -> bool:
        """Tell whether a dimension's layers can be read (simulated and evicted ones too).

        Examples
        --------
        >>> manager.is_loaded("D15"), manager.is_loaded("D14")
        (True, False)
        """
        return as_dimension_id(dimension_id) in self._engine.snapshot

    @clears_frames
    def id_of(self, name: str, dimension: DimensionLike | None = None) -> LayerId:
        """Return the id of the one layer that has a name.

        Parameters
        ----------
        name : str
            The layer's name. Without `dimension` a name that begins with ``D18/`` is that of a
            layer in D18; one that begins with a dimension's name and a slash may be that of a layer
            in there. What is of the form ``L15-00`` is always that id.
        dimension : DimensionId, int or str, optional
            Look only there; also the dimension's name.

        Returns
        -------
        LayerId

        Raises
        ------
        LayerNotFound
            If no loaded layer has that name.
        AmbiguousName
            If several have; its attribute `layers` lists them.
        DimensionNotFound
            If `dimension` is a name that no loaded dimension has; or as `access_layer`.

        Notes
        -----
        A binary search in each dimension that is asked, in a table that its first such question
        makes. Dimensions that were evicted before are mapped for it, later ones only if they may
        have the name.

        Examples
        --------
        >>> manager.id_of("grep/README"), manager.id_of("tools/grep/README")
        (L15-02, L15-02)
        >>> manager.id_of("monday", dimension="diary")
        L16-00
        """
        from jessymem import names

        return names.find_one(self._engine, name, dimension)

    # -- as a mapping ------------------------------------------------------------------------------

    @clears_frames
    def __getitem__(self, key: LayerLike) -> memoryview:
        """Return a layer's bytes, as `access_layer` does; text that is no id is a name.

        Raises
        ------
        LayerNotFound, AmbiguousName
            As `id_of`; also where a key is the number of no layer.
        """
        if isinstance(key, str) and not is_layer_id(key):
            return self.access_layer(self.id_of(key))
        try:
            wanted = as_layer_id(key)
        except ValueError as error:
            self._engine.check_open(shown(key))
            raise LayerNotFound(f"no layer: {error}", layer=None, layers=()) from None
        return self.access_layer(wanted)

    def __iter__(self) -> Iterator[LayerId]:
        """Yield the ids of all layers that were loaded when this began, ascending."""
        snapshot = self._engine.snapshot
        self._engine.check_open()
        # Copies: whoever iterates slowly keeps no region.
        numbers = [(each.dimension_id, each.numbers.copy()) for each in snapshot.loaded]
        del snapshot
        for dimension, layers in numbers:
            yield from LayerId.in_order(dimension, layers.tolist())

    def __len__(self) -> int:
        """Return how many layers are loaded."""
        return self._engine.snapshot.totals.n_layers

    def __bool__(self) -> bool:
        """Return True: a manager is there, also when nothing is loaded."""
        return True

    def __contains__(self, item: object) -> bool:
        """Tell whether a layer can be read, by its id or its name, or a dimension is loaded.

        A name that several layers have cannot tell which to read.
        """
        try:
            if isinstance(item, DimensionId) or (isinstance(item, str) and is_dimension_id(item)):
                return self.is_loaded(item)
            if isinstance(item, str) and not is_layer_id(item):
                return self._has_name(item)
            wanted = as_layer_id(item)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            return False
        loaded = self._engine.snapshot.find(wanted.dimension)
        return loaded is not None and loaded.has_layer(wanted.layer)

    @clears_frames
    def _has_name(self, name: str) -> bool:
        from jessymem import names

        return len(names.find_all(self._engine, name)) == 1

    @overload
    def get(self, key: LayerLike) -> memoryview | None: ...
    @overload
    def get(self, key: LayerLike, default: T) -> memoryview | T: ...
    def get(self, key: LayerLike, default: Any = None) -> Any:
        """Return a layer's bytes as ``manager[key]`` does; `default` where that is a KeyError.

        Examples
        --------
        >>> bytes(manager.get("monday")), manager.get("sunday", b"no entry")
        (b'Rain since Monday.', b'no entry')
        """
        try:
            return self[key]
        except (LayerNotFound, AmbiguousName):
            return default

    def keys(self) -> KeysView[LayerId]:
        """Return the ids of all loaded layers, as `dict.keys` does.

        Examples
        --------
        >>> list(manager.keys())
        [L15-00, L15-01, L15-02, L15-03, L16-00, L16-07]
        >>> manager.keys() & {LayerId("L15-00"), LayerId("L15-99")}
        {L15-00}
        """
        return KeysView(self)

    def values(self) -> ValuesView[memoryview]:
        """Return the contents of all loaded layers, as `dict.values` does; each read when due.

        Examples
        --------
        >>> [len(content) for content in manager.values()]
        [16, 24, 17, 48000, 18, 26]
        """
        return ValuesView(self)

    def items(self) -> ItemsView[LayerId, memoryview]:
        """Return ids and contents of all loaded layers, as `dict.items` does.

        Examples
        --------
        >>> {layer: content.nbytes for layer, content in manager.items() if layer.dimension == 16}
        {L16-00: 18, L16-07: 26}
        """
        return ItemsView(self)


# It inherits nothing of it: equality, and with it the hash, is a manager's own.
Mapping.register(LayerMapping)
