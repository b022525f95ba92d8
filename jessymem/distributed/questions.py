"""What is asked of files: questions that travel to workers, and what comes back as data frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias

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


#: What is counted file by file where there is more.
_FINDS_COUNTED: Final = 65_536

#: Of all files that were asked together, one after the other: an array of NumPy, or of Arrow.
Column: TypeAlias = "np.typing.NDArray[Any] | pa.Array"


def empty(columns: dict[str, Any]) -> pd.DataFrame:
    """Return a frame with these columns and no rows, as Dask asks for one."""
    made = {name: pd.Series([], dtype=dtype) for name, dtype in columns.items()}
    return pd.DataFrame(made, index=pd.Index([], dtype=np.int64, name="file"))


class Answer(NamedTuple):
    """What some files answer.

    Attributes
    ----------
    n_rows : ndarray of int64
        Of each file.
    columns : dict of str to Column
        All but the URL, which nobody needs to be told here.
    """

    n_rows: np.typing.NDArray[np.int64]
    columns: dict[str, Column]

    @classmethod
    def joined(cls, answers: Sequence[Answer]) -> Answer:
        """Return the answers of some files, and of others, and so on, as one."""
        if len(answers) == 1:
            return answers[0]
        n_rows = np.concatenate([each.n_rows for each in answers])
        parts = {name: [each.columns[name] for each in answers] for name in answers[0].columns}
        return cls(n_rows, {name: _joined(each) for name, each in parts.items()})

    def in_order(self, order: np.typing.NDArray[np.intp]) -> Answer:
        """Return the same of the files in another order: first that of the file `order[0]`."""
        if np.array_equal(order, np.arange(len(order))):
            return self
        n_rows = self.n_rows[order]
        starts = (np.cumsum(self.n_rows) - self.n_rows)[order]
        rows = np.repeat(starts - (np.cumsum(n_rows) - n_rows), n_rows) + np.arange(n_rows.sum())
        return Answer(n_rows, {name: each.take(rows) for name, each in self.columns.items()})

    def frame(self, first: int, urls: pa.Array, dtypes: dict[str, Any]) -> pd.DataFrame:
        """Return it as a frame, whose index is the place of the file.

        Parameters
        ----------
        first : int
            The place of the first file.
        urls : Array of large_string
            Of the files.
        dtypes : dict of str to data type
            Of the columns, in their order.
        """
        which = np.repeat(np.arange(len(self.n_rows), dtype=np.int64), self.n_rows)
        columns = {**self.columns, "url": urls.take(pa.array(which))}
        index = pd.Index(which + first, name="file")
        made = {}
        for name, dtype in dtypes.items():
            column = columns[name]
            if isinstance(column, pa.Array):
                column = dtype.__from_arrow__(pa.chunked_array([column]))
            made[name] = column
        return pd.DataFrame(made, index=index, copy=False)


def _joined(parts: Sequence[Any]) -> Column:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else pa.concat_arrays(parts)


@dataclass(frozen=True)
class Find:
    """Where some bytes, or what a compiled expression stands for, are."""

    needle: Any
    limit: int | None = None
    ignore_case: bool = False
    word: bool = False

    needs_contents: ClassVar[bool] = True
    columns: ClassVar[dict[str, Any]] = {**_LAYER, "offset": np.dtype(np.int64)}

    def answer(self, manager: MmapManager, dimensions: Sequence[DimensionId]) -> Answer:
        """Ask dimensions, which ascend."""
        if self.limit is not None and len(dimensions) > 1:
            return Answer.joined([self.answer(manager, [each]) for each in dimensions])
        form: Any = {"ignore_case": self.ignore_case, "word": self.word, "workers": 1}
        hits = manager.find(self.needle, dimensions, limit=self.limit, **form).array
        layers = hits["layer"]
        columns = {"layer": layer_column(layers), "offset": hits["offset"].astype(np.int64)}
        return Answer(_n_rows(layers, dimensions), columns)


@dataclass(frozen=True)
class Count:
    """How often they are there."""

    needle: Any
    ignore_case: bool = False
    word: bool = False

    needs_contents: ClassVar[bool] = True
    columns: ClassVar[dict[str, Any]] = {"url": TEXT, "count": np.dtype(np.int64)}

    def answer(self, manager: MmapManager, dimensions: Sequence[DimensionId]) -> Answer:
        """Ask dimensions, which ascend."""
        form: Any = {"ignore_case": self.ignore_case, "word": self.word, "workers": 1}
        if len(dimensions) > 1:  # a count each takes longer than to search them all at once
            most = _FINDS_COUNTED
            hits = manager.find(self.needle, dimensions, limit=most, **form).array
            if len(hits) < most:
                n_rows = np.ones(len(dimensions), np.int64)
                return Answer(n_rows, {"count": _n_rows(hits["layer"], dimensions)})
        counts = [manager.count(self.needle, [each], **form) for each in dimensions]
        return Answer(np.ones(len(counts), np.int64), {"count": np.array(counts, np.int64)})


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

    def answer(self, manager: MmapManager, dimensions: Sequence[DimensionId]) -> Answer:
        """Ask dimensions, which ascend."""
        ids, values = manager.scan(self.kernel, self.dtype, dimensions, return_ids=True, workers=1)
        columns = {"layer": layer_column(ids.array), "value": values}
        return Answer(_n_rows(ids.array, dimensions), columns)


@dataclass(frozen=True)
class Select:
    """What is known of the layers that meet some conditions."""

    query: Query

    needs_contents: ClassVar[bool] = False
    columns: ClassVar[dict[str, Any]] = {**_LAYER, **_DESCRIPTION}

    def describe(self, table: LayerTable) -> list[LayerInfo]:
        """Return what is known of a file's layers."""
        chosen = self.query.layers_of(table)
        return [table.info_of(each, table.find_row(each), ()) for each in chosen]


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

    def answer(self, manager: MmapManager, dimensions: Sequence[DimensionId]) -> Answer:
        """Ask dimensions, which ascend. Contents are copies: the file may go."""
        query = self.query
        name = None if query.name is None else query.name.text
        infos, contents = [], []
        for dimension in dimensions:
            ranges = query.depth, query.frequency
            chosen = manager.select(query.keywords, *ranges, [dimension], name=name)
            infos.append([manager.get_layer_info(each) for each in chosen])
            contents += [bytes(manager.access_layer(each)) for each in chosen]
        described = describe(infos)
        described.columns["content"] = pa.array(contents, pa.large_binary())
        return described


def _n_rows(
    packed: np.typing.NDArray[np.int64], dimensions: Sequence[DimensionId]
) -> np.typing.NDArray[np.int64]:
    """Return how many of ascending packed ids are of each dimension."""
    firsts = np.array(dimensions, np.int64) << s.LAYER_BITS
    starts = np.searchsorted(packed, firsts)
    ends = np.searchsorted(packed, firsts + s.MAX_LAYER, side="right")
    return (ends - starts).astype(np.int64)


def describe(infos: Sequence[Sequence[LayerInfo]]) -> Answer:
    """Return what is known of the layers of each file."""
    layers = [each for file in infos for each in file]

    def texts(of: Callable[[LayerInfo], object]) -> pa.Array:
        return pa.array([str(of(each)) for each in layers], pa.large_string())

    columns = {
        "layer": texts(lambda each: each.layer_id),
        "name": texts(lambda each: each.name),
        "n_bytes": np.array([each.size for each in layers], np.int64),
        "frequency": np.array([each.frequency for each in layers], np.float32),
        "depth": np.array([each.depth for each in layers], np.uint8),
        "keywords": pa.array([each.keywords for each in layers], pa.list_(pa.string())),
        "parent": texts(lambda each: "" if each.parent is None else each.parent),
        "dtype": texts(lambda each: "" if each.dtype is None else each.dtype),
    }
    return Answer(np.array([len(file) for file in infos], np.int64), columns)


def layer_column(packed: np.typing.NDArray[np.int64]) -> pa.Array:
    """Return layer ids as texts; of equal ones that follow each other it is made once."""
    is_new = np.ones(len(packed), bool)
    is_new[1:] = packed[1:] != packed[:-1]
    texts = [str(LayerId.from_packed(each)) for each in packed[is_new].tolist()]
    return pa.array(texts, pa.large_string()).take(pa.array(np.cumsum(is_new) - 1))
