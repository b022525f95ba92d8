"""`TableSource`: a file of rows, each of which is a layer: JSON lines, CSV, Parquet, Arrow."""

from __future__ import annotations

import csv
import json
import threading
from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from typing import IO, Any, Final, NamedTuple

from jessymem.errors import DuplicateLayer, JessyMemoryError, RegionIOError
from jessymem.ids import DimensionId, LayerId
from jessymem.ingest.columns import Columns, as_text
from jessymem.ingest.folders import SourceFile
from jessymem.ingest.manifest import LayerEntry, Manifest
from jessymem.ingest.numbering import check_count
from jessymem.ingest.sources import PlannedLayer, Source
from jessymem.kernels.schema import MAX_LAYERS
from jessymem.regions.drafts import EncodedContent, as_content_or_array

#: A field of a CSV file may be as long as a content; Python's own limit is one for all threads.
_MAX_FIELD_CHARS: Final = 2**31 - 1
_FIELD_LIMIT: Final = threading.Lock()
_found_limits: Final[list[int]] = []  # one for each reader, the first of them Python's


class Row(NamedTuple):
    """One row: where it is, what is said of it, and its content as it was found."""

    key: str
    entry: LayerEntry
    content: Any


class TableSource(Source):
    """A file of rows, numbered from 0.

    Parameters
    ----------
    file : SourceFile
    columns : Columns
        What was asked for.
    """

    kind: str = "row"

    def __init__(self, file: SourceFile, columns: Columns) -> None:
        self.file, self.columns = file, columns
        self.path, self.label = file.path, file.name
        self.name = file.path.stem if file.path.name == file.name else file.name
        self.manifest = Manifest(file.path, kind=self.kind)
        self.files = (file,)

    @property
    def options(self) -> dict[str, Any] | None:
        """Which columns were asked for."""
        return {"columns": list(self.columns)}

    @abstractmethod
    def rows(self) -> Generator[Row, None, None]:
        """Yield the rows in order; raise ValueError where one is malformed, naming it."""

    def plan(self, dimension: DimensionId) -> Iterator[PlannedLayer]:
        """Yield its layers, ascending."""
        planned = [layer for layer, _ in self._layers(dimension)]
        numbers: dict[LayerId, PlannedLayer] = {}
        for layer in planned:
            other = numbers.setdefault(layer.layer_id, layer)
            if other is not layer:
                both = f"{other.key} and {layer.key} of {self.path}"
                raise DuplicateLayer(
                    f"{layer.layer_id} is claimed by both {both}", layer=layer.layer_id
                )
        self.check_unchanged()
        yield from sorted(planned, key=lambda layer: layer.layer_id)

    def read(
        self, dimension: DimensionId, planned: Sequence[PlannedLayer]
    ) -> Generator[tuple[PlannedLayer, EncodedContent], None, None]:
        """Yield its layers again in the order of its rows, each with its content."""
        self.check_unchanged()
        yield from self._layers(dimension)
        self.check_unchanged()

    def _layers(
        self, dimension: DimensionId
    ) -> Generator[tuple[PlannedLayer, EncodedContent], None, None]:
        with closing(self.rows()) as found:
            for number in count():
                row = self._next(found)
                if row is None:
                    return
                if number == MAX_LAYERS:
                    problem = (
                        f"more than {MAX_LAYERS:,} rows, which is as many as a dimension holds"
                    )
                    raise self.error("", f"{problem}: make several files of it")
                yield self._layer(dimension, number, row)

    def _next(self, found: Iterator[Row]) -> Row | None:
        """Take the next row; what is wrong with it is said of this file."""
        try:
            return next(found, None)
        except JessyMemoryError:
            raise
        except OSError as error:
            raise RegionIOError.from_os_error(error, "read", self.path) from error
        except ValueError as error:
            raise self.error("", error) from None

    def _layer(
        self, dimension: DimensionId, number: int, row: Row
    ) -> tuple[PlannedLayer, EncodedContent]:
        entry = row.entry
        claimed = number if entry.layer is None else entry.layer
        layer_id = LayerId(dimension, claimed)
        try:
            encoded = self.encode(row, layer_id)
        except (ValueError, TypeError) as error:
            raise self.error(row.key, error) from None
        form = encoded._replace(data=b"")
        n_bytes = len(encoded.data)
        return PlannedLayer(layer_id, entry.name or "", n_bytes, entry, form, row.key), encoded

    def encode(self, row: Row, layer_id: LayerId) -> EncodedContent:
        """Take a row's content; raise ValueError or TypeError where it cannot be."""
        return as_content_or_array(row.content, layer_id, is_copied=False)

    def check_rows(self, n_rows: int) -> None:
        """Raise ConfigError where there are more than fit into one dimension."""
        check_count(n_rows, self, self.kind)


class JsonLines(TableSource):
    """One JSON object a line; empty lines are none."""

    _chosen: Columns | None = None

    def rows(self) -> Generator[Row, None, None]:
        """Yield the lines."""
        if self._chosen is None:  # a line need not have every column: all are looked at first
            found = dict.fromkeys(name for _, row in self._objects() for name in row)
            if not found and next(self._objects(), None) is None:
                return
            self._chosen = self.columns.among(list(found))
        columns = self._chosen
        assert columns.content is not None
        for key, row in self._objects():
            yield _row(key, columns, row, as_text(row.get(columns.content)))

    def _objects(self) -> Generator[tuple[str, dict[str, Any]], None, None]:
        """Yield each line that is not empty, and where it is."""
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                key = f"line {number:,}"
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield key, _parse_line(line, key)


class SeparatedValues(TableSource):
    """Values with commas between them, or tabs; the first line names the columns."""

    def __init__(self, file: SourceFile, columns: Columns, delimiter: str) -> None:
        super().__init__(file, columns)
        self.delimiter = delimiter

    def rows(self) -> Generator[Row, None, None]:
        """Yield the records."""
        with open(self.path, encoding="utf-8-sig", newline="") as lines, _long_fields():
            yield from self._records(lines)

    def _records(self, lines: IO[str]) -> Generator[Row, None, None]:
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        header: list[str] = []
        columns = Columns()
        while True:
            try:
                fields = next(reader, None)
            except UnicodeDecodeError as error:
                raise ValueError(f"behind line {reader.line_num:,}: no UTF-8: {error}") from None
            except csv.Error as error:
                raise ValueError(f"line {reader.line_num:,}: {error}") from None
            if fields is None:
                break
            key = f"line {reader.line_num:,}"
            if not fields:
                continue
            if not header:
                header = fields
                if len(set(header)) < len(header):
                    raise ValueError(f"{key}: two columns have one name: {', '.join(header)}")
                columns = self.columns.among(header)
                continue
            if len(fields) != len(header):
                expected = f"{len(header)} fields, as its first line names"
                raise ValueError(f"{key}: expected {expected}, got {len(fields)}")
            row = dict(zip(header, fields, strict=True))
            assert columns.content is not None
            yield _row(key, columns, row, row[columns.content])
        if not header:
            raise ValueError("no line that names the columns")


def _row(key: str, columns: Columns, row: dict[str, Any], content: Any) -> Row:
    name, keywords = columns.describe(row)
    return Row(key, replace(LayerEntry(), name=name, keywords=keywords), content)


def _parse_line(line: bytes, key: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is one
        raise ValueError(f"{key}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{key}: expected an object, got {type(row).__name__}")
    return row


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let fields be long, until the last who reads such is done."""
    with _FIELD_LIMIT:
        _found_limits.append(csv.field_size_limit(_MAX_FIELD_CHARS))
    try:
        yield
    finally:
        with _FIELD_LIMIT:
            if len(_found_limits) == 1:
                csv.field_size_limit(_found_limits[0])
                _found_limits.clear()
            else:
                _found_limits.pop()
