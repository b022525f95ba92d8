"""What crystallizes, as write cases, and as `Crystallization`s for tests that hold the manager.

The manager lives within `act`, as in a program that is started again after it was killed: it looks
first whether the layers are there.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest.mock import patch

from jessymem import DimensionNotFound, LayerId, LayerNotFound, MmapManager
from jessymem.kernels import schema as s
from support.system_calls import WRITE_CHUNK_BYTES, Intercept, refuse_to_replace
from support.writes import BASE, DIMENSION, Layer, Layers, WriteCase, build, layers_in, layers_of


@dataclass(frozen=True)
class Crystallization:
    """Something that is learned in D07 and crystallized.

    Attributes
    ----------
    before : dict of int to Layer
        What the file holds; empty: there is no file.
    protos : dict of int to Layer
        What is made.
    overlays : dict of int to (bytes, bytes)
        Separator and content, by the layer that they are laid over.
    is_whole : bool
        Whether the dimension is crystallized as a whole; otherwise the one layer is.
    refuse : callable, optional
        As a write case's.
    n_deltas : int
        So many of the highest of `before` lie in a delta each.
    max_deltas : int
        So many a chain may have: of names that are not synced every subset is looked at.
    """

    before: Layers
    protos: Layers
    overlays: dict[int, tuple[bytes, bytes]]
    is_whole: bool = False
    refuse: Intercept | None = None
    n_deltas: int = 0
    max_deltas: int = s.MAX_DELTAS

    @property
    def learned(self) -> list[LayerId]:
        """The layers that are written, ascending."""
        return [LayerId(DIMENSION, number) for number in sorted({*self.protos, *self.overlays})]

    @property
    def after(self) -> Layers:
        """What the file is to hold, and readers see from the beginning."""
        overlaid = {
            number: replace(
                self.before[number], content=self.before[number].content + b"".join(laid)
            )
            for number, laid in self.overlays.items()
        }
        return dict(sorted((self.before | overlaid | self.protos).items()))

    def prepare(self, folder: Path) -> None:
        numbers = sorted(self.before)
        n_first = len(numbers) - self.n_deltas
        if numbers:
            build({number: self.before[number] for number in numbers[:n_first]}, folder)
        with MmapManager(base_path=folder / BASE) as manager:
            self.load(manager)
            for number in numbers[n_first:]:
                crystallize_one(manager, number, self.before[number])

    def load(self, manager: MmapManager) -> None:
        with suppress(DimensionNotFound):
            manager.load_dimension(DIMENSION)

    def learn(self, manager: MmapManager) -> None:
        manager.create_proto_layers(
            {"dimension_id": DIMENSION, "layer": number, **asdict(layer)}
            for number, layer in self.protos.items()
        )
        for number, (separator, content) in self.overlays.items():
            manager.overlay_layer(LayerId(DIMENSION, number), content, separator=separator)

    def crystallize(self, manager: MmapManager) -> None:
        with patch.object(s, "MAX_DELTAS", self.max_deltas):
            if self.is_whole:
                assert manager.crystallize_dimension(DIMENSION) == self.learned
            else:
                (layer_id,) = self.learned
                manager.crystallize_proto_dimension(layer_id)

    def act(self, folder: Path) -> None:
        with MmapManager(base_path=folder / BASE) as manager:
            self.load(manager)
            known = layers_of(manager) if manager.is_loaded(DIMENSION) else {}
            if known != self.after:
                self.learn(manager)
                self.crystallize(manager)

    def fold(self, folder: Path) -> None:
        with MmapManager(base_path=folder / BASE) as manager:
            manager.fold(DIMENSION)

    def check(self, folder: Path) -> str:
        found = layers_in(folder)
        if found == self.after:
            return "new"
        assert (found or {}) == self.before, "neither the old layers nor the new ones"
        return "old"


def crystallize_one(manager: MmapManager, number: int, layer: Layer) -> None:
    """Make one layer of D07 and crystallize it."""
    made = manager.create_proto_dimension(DIMENSION, layer=number, **asdict(layer))
    manager.crystallize_proto_dimension(made)


ON_DISK: Layers = {
    0: Layer(b"root", "zero", ("first", "word"), 2.5, 1),
    1: Layer("gr\u00fcn".encode() * 100, "one", parent=LayerId(DIMENSION, 0)),
    4: Layer(b""),
    9: Layer(b"\xff\0" * 300, "nine", ("last",), 0.0, 255, LayerId(1, 3)),
}
PROTO = Layer(
    b"p" * (2 * WRITE_CHUNK_BYTES + 5),
    "a proto",
    ("new", "w\u00f6rter"),
    0.5,
    7,
    LayerId(DIMENSION, 9),
)
PROTOS: Layers = {2: PROTO, 3: Layer(b""), 12: Layer(b"t" * 70, "twelve")}

CRYSTALLIZATIONS: dict[str, Crystallization] = {
    "crystallize": Crystallization({}, {3: PROTO}, {}),
    "crystallize into": Crystallization(ON_DISK, {2: PROTO}, {}),
    "crystallize all": Crystallization(
        ON_DISK, PROTOS, {0: (b"", b"and more"), 9: (b"\n", b"")}, True
    ),
    "crystallize overlay": Crystallization(ON_DISK, {}, {1: (b"\n", b"l" * WRITE_CHUNK_BYTES)}),
    "crystallize beside": Crystallization(ON_DISK, {2: PROTO}, {}, refuse=refuse_to_replace),
}


@dataclass(frozen=True)
class Deletion:
    """A layer of D07 that is deleted.

    Attributes
    ----------
    before, n_deltas, max_deltas
        As of a `Crystallization`.
    number : int
    """

    before: Layers
    number: int
    n_deltas: int = 0
    max_deltas: int = s.MAX_DELTAS

    @property
    def after(self) -> Layers:
        """What the files are to hold."""
        return {number: each for number, each in self.before.items() if number != self.number}

    def prepare(self, folder: Path) -> None:
        Crystallization(self.before, {}, {}, n_deltas=self.n_deltas).prepare(folder)

    def delete(self, manager: MmapManager) -> None:
        with patch.object(s, "MAX_DELTAS", self.max_deltas):
            manager.delete_layer(LayerId(DIMENSION, self.number))

    def act(self, folder: Path) -> None:
        with MmapManager(base_path=folder / BASE) as manager:
            manager.load_dimension(DIMENSION)
            with suppress(LayerNotFound):  # gone already
                self.delete(manager)

    def check(self, folder: Path) -> str:
        found = layers_in(folder)
        if found == self.after:
            return "new"
        assert found == self.before, "neither with the layer nor without it"
        return "old"


#: Long beside what is laid over it and learned.
LONG: Layers = {**ON_DISK, 20: Layer(b"long" * 8 * WRITE_CHUNK_BYTES)}
WITH_DELTAS: Layers = LONG | {number: Layer(b"%d" % number) for number in range(30, 46)}

DELTAS: dict[str, Crystallization] = {
    "crystallize a delta": Crystallization(LONG, {2: PROTO}, {0: (b"", b"more")}, True),
    "crystallize another delta": Crystallization(WITH_DELTAS, {}, {30: (b"", b"more")}, n_deltas=2),
    "crystallize in the place of deltas": Crystallization(
        WITH_DELTAS, {50: Layer(b"fifty")}, {}, n_deltas=3, max_deltas=3
    ),
}
CRYSTALLIZATIONS |= DELTAS
FOLDED = Crystallization(WITH_DELTAS, {}, {}, n_deltas=3)

DELETIONS: dict[str, Deletion] = {
    "delete": Deletion(LONG, 1),
    "delete from a short file": Deletion(ON_DISK, 9),
    "delete from a chain": Deletion(WITH_DELTAS, 30, n_deltas=2),
    "delete in the place of deltas": Deletion(WITH_DELTAS, 45, n_deltas=3, max_deltas=3),
}

CRYSTALLIZE_CASES: dict[str, WriteCase] = {
    name: WriteCase(case.prepare, case.act, case.check, case.refuse)
    for name, case in CRYSTALLIZATIONS.items()
} | {name: WriteCase(each.prepare, each.act, each.check) for name, each in DELETIONS.items()}
CRYSTALLIZE_CASES |= {"fold": WriteCase(FOLDED.prepare, FOLDED.fold, FOLDED.check)}
