"""`Source`: what becomes one dimension; `FolderSource`: a folder of files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jessymem.errors import ConfigError
from jessymem.ids import DimensionId, LayerId
from jessymem.ingest.contents import check_file, read_as
from jessymem.ingest.folders import SourceFile, SourceFolder, look_at
from jessymem.ingest.manifest import LayerEntry, Manifest
from jessymem.ingest.npy import is_npy
from jessymem.ingest.numbering import NameFile, name_by_path, number_files
from jessymem.regions.drafts import EncodedContent, LayerDraft, make_draft


class PlannedLayer(NamedTuple):
    """A layer that is to be, without its content.

    Attributes
    ----------
    layer_id : LayerId
    name : str
    n_bytes : int
        Of its content, as it was looked at; of a file, with its header.
    entry : LayerEntry
    form : EncodedContent
        What is known of the content without its bytes.
    key : str
        Where it comes from in its source, for messages.
    """

    layer_id: LayerId
    name: str
    n_bytes: int
    entry: LayerEntry
    form: EncodedContent
    key: str

    def draft(self, encoded: EncodedContent) -> LayerDraft:
        """Describe it with its content; raise ValueError or TypeError where that cannot be."""
        return make_draft(self.layer_id, encoded, **self.description)

    @property
    def description(self) -> dict[str, Any]:
        """What is said of it."""
        parent = self.entry.parent
        if isinstance(parent, int) and not isinstance(parent, LayerId):
            parent = LayerId(self.layer_id.dimension, parent)
        return {
            "name": self.name,
            "frequency": self.entry.frequency,
            "depth": self.entry.depth,
            "keywords": self.entry.keywords,
            "parent": parent,
        }


class Source(ABC):
    """What becomes one dimension.

    Attributes
    ----------
    name : str
        ``D07-name`` claims a number; any other is the dimension's name.
    path : pathlib.Path
    label : str
        What it is called where it was found.
    manifest : Manifest
    files : tuple of SourceFile
        All that it is made of: while they stay as they are, so does it.
    """

    name: str
    path: Path
    label: str
    manifest: Manifest
    files: tuple[SourceFile, ...]

    @property
    def options(self) -> dict[str, Any] | None:
        """What else its layers depend on, in types that JSON knows; None: that cannot be told."""
        return {}

    @abstractmethod
    def plan(self, dimension: DimensionId) -> Iterator[PlannedLayer]:
        """Yield its layers, ascending; no content is kept.

        Raises
        ------
        JessyMemoryError
            Naming what does not fit.
        ValueError, TypeError
            If something breaks a rule of the format; `error` names it.
        """

    @abstractmethod
    def read(
        self, dimension: DimensionId, planned: Sequence[PlannedLayer]
    ) -> Generator[tuple[PlannedLayer, EncodedContent], None, None]:
        """Yield its layers again, each with its content.

        Raises
        ------
        JessyMemoryError
            If something cannot be read, or is no longer what it was.
        """

    def error(self, key: str, problem: object) -> ConfigError:
        """Return the error that names this source, and what in it."""
        where = f"{self.path}: {key}" if key else f"{self.path}"
        return ConfigError(f"{where}: {problem}", field=self.label, value=key)

    def check_unchanged(self) -> None:
        """Raise ConfigError where a file is no longer the one that was planned with."""
        for file in self.files:
            if SourceFile.of(file.name, file.path, look_at(file.path)) != file:
                raise self.error("", "it was changed while it was read; build again")


class FolderSource(Source):
    """A folder: each file in it is a layer."""

    def __init__(self, folder: SourceFolder, name_file: NameFile = name_by_path) -> None:
        self.name = self.label = folder.name
        self.path = folder.path
        self.manifest = folder.manifest
        self.members = folder.files
        self.name_file = name_file

    @property
    def files(self) -> tuple[SourceFile, ...]:  # type: ignore[override]
        """The members, and what describes them."""
        said = self.manifest.path
        if not said.is_file():
            return self.members
        return (*self.members, SourceFile.of(said.name, said, look_at(said)))

    @property
    def options(self) -> dict[str, Any] | None:
        """How its files are named, where that has a name."""
        name = getattr(self.name_file, "__name__", "")
        return {"names": name} if name in ("name_by_path", "name_by_stem") else None

    def plan(self, dimension: DimensionId) -> Iterator[PlannedLayer]:
        """Yield its layers, ascending."""
        for layer_id, name, file, entry in number_files(
            dimension, self, self.members, self.name_file
        ):
            try:
                form = check_file(file.path, file.n_bytes, layer_id, _encoding_of(entry, file.name))
            except (ValueError, TypeError) as error:
                raise self.error(file.name, error) from None
            yield PlannedLayer(layer_id, name, file.n_bytes, entry, form, file.name)

    def read(
        self, dimension: DimensionId, planned: Sequence[PlannedLayer]
    ) -> Generator[tuple[PlannedLayer, EncodedContent], None, None]:
        """Yield its layers again, each with its content; each file is opened once."""
        paths = {file.name: file.path for file in self.members}
        for layer in planned:
            path = paths[layer.key]
            try:
                encoded = read_as(path, layer.layer_id, _encoding_of(layer.entry, layer.key))
            except (ValueError, TypeError) as error:
                raise self.error(layer.key, error) from None
            yield layer, encoded
            del encoded  # before the next is read


def _encoding_of(entry: LayerEntry, name: str) -> str | None:
    """Return how a file is to be read; None: as what its content looks like."""
    return entry.encoding or ("npy" if is_npy(name) else None)
