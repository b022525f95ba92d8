"""`ArrowTable`: rows of Parquet, Arrow IPC and Feather files, by way of pyarrow."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np

from jessymem import extras
from jessymem.ids import LayerId
from jessymem.ingest.columns import Columns, as_text
from jessymem.ingest.contents import encode
from jessymem.ingest.folders import SourceFile
from jessymem.ingest.manifest import LayerEntry, Manifest, as_entry, parse_record
from jessymem.ingest.tables import Row, TableSource
from jessymem.regions.drafts import EncodedContent

#: The key under which a file's own metadata say that this package wrote it.
RECORD: Final = b"jessymem"

#: What it writes in its columns, beside `content`: the keys of a manifest.
DESCRIPTION: Final = ("name", "encoding", "frequency", "depth", "keywords", "parent")

_BATCH_ROWS: Final = 1_024


class ArrowTable(TableSource):
    """A file of Arrow's: Parquet, or IPC, which is Feather's second version.

    Raises
    ------
    ConfigError
        If pyarrow is not installed, or the file is none of these.
    """

    def __init__(self, file: SourceFile, columns: Columns) -> None:
        super().__init__(file, columns)
        self.arrow = extras.load("pyarrow", "arrow", file.path)
        self.is_parquet = file.path.suffix.lower() == ".parquet"
        schema = self._open()[0]
        record = (schema.metadata or {}).get(RECORD)
        self.is_ours = record is not None and columns == Columns()
        if record is not None and self.is_ours:
            said = parse_record(file.path, record, self.kind)
            self.manifest = Manifest(file.path, said.name, kind=self.kind)

    def rows(self) -> Generator[Row, None, None]:
        """Yield the rows."""
        schema, n_rows, batches = self._open()
        self.check_rows(n_rows)
        names = list(schema.names)
        if self.is_ours:
            columns = Columns("content")
            chosen = ["id", "content", *DESCRIPTION]
            missing = [name for name in chosen if name not in names]
            if missing:
                raise ValueError(f"what jessymem wrote has no column {', '.join(missing)}")
        else:
            columns = self.columns.among(names)
            chosen = [name for name in dict.fromkeys(columns) if name is not None]
        number = 0
        try:
            for batch in batches(chosen):
                contents = batch.column(chosen.index(str(columns.content)))
                others = [name for name in chosen if name != columns.content]
                values = [batch.column(chosen.index(name)).to_pylist() for name in others]
                for at in range(batch.num_rows):
                    key = f"row {number:,}"
                    row = dict(zip(others, (value[at] for value in values), strict=True))
                    yield Row(key, self._entry(columns, row, key), self._value(contents[at]))
                    number += 1
        except self.arrow.ArrowException as error:
            raise ValueError(f"behind row {number:,}: {error}") from None

    def encode(self, row: Row, layer_id: LayerId) -> EncodedContent:
        """Take a row's content."""
        if not self.is_ours:
            return super().encode(row, layer_id)
        return encode(memoryview(row.content), layer_id, row.entry.encoding)

    def _entry(self, columns: Columns, row: dict[str, Any], key: str) -> LayerEntry:
        if not self.is_ours:
            name, keywords = columns.describe(row)
            return replace(LayerEntry(), name=name, keywords=keywords)
        layer_id = LayerId.parse(row.pop("id"))
        said = {name: value for name, value in row.items() if value is not None}
        return as_entry(self.manifest, key, {**said, "layer": layer_id.layer})

    def _value(self, scalar: Any) -> Any:
        """Return a content: bytes and numbers as they lie in memory, anything else as text."""
        types, kind = self.arrow.types, scalar.type
        if types.is_dictionary(kind):
            return self._value(scalar.value) if scalar.is_valid else ""
        if not scalar.is_valid:
            return ""
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
            return scalar.as_buffer()
        is_list = any(
            tells(kind) for tells in (types.is_list, types.is_large_list, types.is_fixed_size_list)
        )
        if is_list and (types.is_integer(kind.value_type) or types.is_floating(kind.value_type)):
            return np.ascontiguousarray(scalar.values.to_numpy(zero_copy_only=False))
        return as_text(scalar.as_py())

    def _open(self) -> tuple[Any, int, Any]:
        """Return a file's schema, how many rows it has, and what yields them in batches."""
        try:
            return self._open_parquet() if self.is_parquet else self._open_ipc()
        except self.arrow.ArrowException as error:
            kind = "Parquet" if self.is_parquet else "Arrow IPC"
            raise self.error("", f"no {kind} file that pyarrow reads: {error}") from None

    def _open_parquet(self) -> tuple[Any, int, Any]:
        parquet = extras.load("pyarrow.parquet", "arrow", self.path)
        file = parquet.ParquetFile(self.path)

        def batches(columns: list[str]) -> Iterator[Any]:
            with file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    yield batch.select(columns)

        return file.schema_arrow, file.metadata.num_rows, batches

    def _open_ipc(self) -> tuple[Any, int, Any]:
        source = self.arrow.OSFile(str(self.path))
        reader = self.arrow.ipc.open_file(source)

        def batches(columns: list[str]) -> Iterator[Any]:
            with source:
                for at in range(reader.num_record_batches):
                    yield reader.get_batch(at).select(columns)

        return reader.schema, 0, batches  # how many rows there are it does not say
