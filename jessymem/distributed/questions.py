"""What is asked of each file: questions that travel to workers and come back as data frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.selection import Query

if TYPE_CHECKING:
    from jessymem.ids import DimensionId
    from jessymem.manager import MmapManager
    from jessymem.regions.metadata import LayerInfo
    from jessymem.regions.table import LayerTable

TEXT: Final = pd.StringDtype("pyarrow")

#: Of every frame: which file, by its place among those that were asked; and which layer.
_LAYER: Final = {"url": TEXT, "layer": TEXT}
_DESCRIPTION: Final = {
    "name": TEXT,
    "n_bytes": np.dtype(np.int64),
    "frequency": np.dtype(np.float32),
    "depth": np.dtype(np.uint8),
    "keywords": pd.ArrowDtype(pa.list_(pa.string())),
    "parent": TEXT,
    "dtype": TEXT,
}


def empty(columns: dict[str, Any]) -> pd.DataFrame:
    """Return a frame with these columns and no rows, as Dask asks for one."""
    made = {name: pd.Series([], dtype=dtype) for name, dtype in columns.items()}
    return pd.DataFrame(made, index=pd.Index([], dtype=np.int64, name="file"))


@dataclass(frozen=True)
class Find:
    """Where some bytes, or what a compiled expression stands for, are."""

    needle: Any
    limit: int | None = None
    ignore_case: bool = False
    word: bool = False

    needs_contents: ClassVar[bool] = True
    columns: ClassVar[dict[str, Any]] = {**_LAYER, "offset": np.dtype(np.int64)}

    def answers(
        self, manager: MmapManager, dimensions: Sequence[DimensionId]
    ) -> dict[DimensionId, dict[str, Any]]:
        """Return for each dimension a column of each name."""
        if self.limit is not None and len(dimensions) > 1:
            return {each: self.answers(manager, [each])[each] for each in dimensions}
        form: Any = {"ignore_case": self.ignore_case, "word": self.word, "workers": 1}
        hits = manager.find(self.needle, dimensions, limit=self.limit, **form).array
        parts = _by_dimension(hits["layer"], dimensions)
        return {
            each: {"layer": layer_column(hits["layer"][part]), "offset": hits["offset"][part]}
            for each, part in zip(dimensions, parts, strict=True)
        }


@dataclass(frozen=True)
class Count:
    """How often they are there."""

    needle: Any
    ignore_case: bool = False
    word: bool = False

    needs_contents: ClassVar[bool] = True
    columns: ClassVar[dict[str, Any]] = {"url": TEXT, "count": np.dtype(np.int64)}

    def answers(
        self, manager: MmapManager, dimensions: Sequence[DimensionId]
    ) -> dict[DimensionId, dict[str, Any]]:
        """Return for each dimension a column of each name."""
        form: Any = {"ignore_case": self.ignore_case, "word": self.word, "workers": 1}
        found = {each: manager.count(self.needle, [each], **form) for each in dimensions}
        return {each: {"count": np.array([number], np.int64)} for each, number in found.items()}


@dataclass(frozen=True)
class Scan:
    """What a compiled function makes of each layer."""

    kernel: Callable[..., Any]
    dtype: np.dtype[Any]

    needs_contents: ClassVar[bool] = True

    @property
    def columns(self) -> dict[str, Any]:
        """Return what the answer consists of."""
        return {**_LAYER, "value": self.dtype}

    def answers(
        self, manager: MmapManager, dimensions: Sequence[DimensionId]
    ) -> dict[DimensionId, dict[str, Any]]:
        """Return for each dimension a column of each name."""
        ids, values = manager.scan(self.kernel, self.dtype, dimensions, return_ids=True, workers=1)
        parts = _by_dimension(ids.array, dimensions)
        return {
            each: {"layer": layer_column(ids.array[part]), "value": values[part]}
            for each, part in zip(dimensions, parts, strict=True)
        }


@dataclass(frozen=True)
class Select:
    """What is known of the layers that meet some conditions."""

    query: Query

    needs_contents: ClassVar[bool] = False
    columns: ClassVar[dict[str, Any]] = {**_LAYER, **_DESCRIPTION}

    def describe(self, table: LayerTable) -> dict[str, Any]:
        """Return a column of each name."""
        chosen = self.query.layers_of(table)
        return describe([table.info_of(each, table.find_row(each), ()) for each in chosen])


@dataclass(frozen=True)
class Layers:
    """What is known of the layers that meet some conditions, and their contents."""

    query: Query

    needs_contents: ClassVar[bool] = True
    columns: ClassVar[dict[str, Any]] = {
        **_LAYER,
        **_DESCRIPTION,
        "content": pd.ArrowDtype(pa.large_binary()),
    }

    def answers(
        self, manager: MmapManager, dimensions: Sequence[DimensionId]
    ) -> dict[DimensionId, dict[str, Any]]:
        """Return for each dimension a column of each name; contents are copies: the file may go."""
        query, found = self.query, {}
        for dimension in dimensions:
            name = None if query.name is None else query.name.text
            ranges = query.depth, query.frequency
            chosen = manager.select(query.keywords, *ranges, [dimension], name=name)
            described = describe([manager.get_layer_info(each) for each in chosen])
            contents = [bytes(manager.access_layer(each)) for each in chosen]
            found[dimension] = {**described, "content": contents}
        return found


def _by_dimension(
    packed: np.typing.NDArray[np.int64], dimensions: Sequence[DimensionId]
) -> list[slice]:
    """Return where in ascending packed ids those of each dimension are."""
    firsts = np.array(dimensions, np.int64) << s.LAYER_BITS
    starts = np.searchsorted(packed, firsts)
    ends = np.searchsorted(packed, firsts + s.MAX_LAYER, side="right")
    return [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def describe(layers: Sequence[LayerInfo]) -> dict[str, Any]:
    """Return what is known of layers, a column of each name."""
    return {
        "layer": [str(each.layer_id) for each in layers],
        "name": [each.name for each in layers],
        "n_bytes": [each.size for each in layers],
        "frequency": [each.frequency for each in layers],
        "depth": [each.depth for each in layers],
        "keywords": [list(each.keywords) for each in layers],
        "parent": ["" if each.parent is None else str(each.parent) for each in layers],
        "dtype": ["" if each.dtype is None else str(each.dtype) for each in layers],
    }


def layer_column(packed: np.typing.NDArray[np.int64]) -> np.typing.NDArray[Any]:
    """Return layer ids as texts, each made once."""
    distinct, places = np.unique(packed, return_inverse=True)
    texts = np.array([str(LayerId.from_packed(each)) for each in distinct.tolist()], dtype=object)
    return texts[places]
