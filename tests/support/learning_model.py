"""The oracle for what a manager learns: dimensions as dicts of layers, slow and obvious.

It knows the files by generation, which of them is loaded and what lies over it, and nothing of
memory; what a verb must answer is left to the test.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jessymem import LayerId


@dataclass(frozen=True)
class Layer:
    """What a reader is to find."""

    content: bytes
    name: str = ""
    frequency: float = 1.0
    depth: int = 0
    keywords: tuple[str, ...] = ()
    parent: LayerId | None = None

    @property
    def description(self):
        return {
            "name": self.name,
            "frequency": self.frequency,
            "depth": self.depth,
            "keywords": self.keywords,
            "parent": self.parent,
        }


@dataclass
class Learned:
    """A proto layer; or, with a tail, what lies over a file's layer."""

    layer: Layer
    base: bytes = b""
    tail: bytes | None = None
    state: str = "active"
    written: int = 0

    @property
    def is_overlay(self):
        return self.tail is not None


@dataclass
class Dimension:
    """One dimension: its files by generation, which of them is loaded, what is learned."""

    files: dict[int, dict[int, Layer]] = field(default_factory=dict)
    loaded: int | None = None
    learned: dict[int, Learned] = field(default_factory=dict)
    is_pinned: bool = False

    @property
    def newest(self):
        return max(self.files, default=0)

    @property
    def on_disk(self):
        return self.files.get(self.newest, {})

    @property
    def base(self):
        return {} if self.loaded is None else self.files[self.loaded]

    @property
    def is_loaded(self):
        return self.loaded is not None or bool(self.learned)

    @property
    def layers(self):
        """What readers see."""
        return self.base | {number: each.layer for number, each in self.learned.items()}

    def publish(self, layers):
        """Put a new generation on disk."""
        self.files[self.newest + 1] = layers

    def lay_again(self):
        """What is learned lies over another file now."""
        for number, each in list(self.learned.items()):
            under = self.base.get(number)
            if each.state == "crystallized":
                if under is not None or self.loaded > each.written:
                    del self.learned[number]
            elif each.is_overlay and under not in (None, replace(each.layer, content=each.base)):
                each.base = under.content
                each.layer = replace(under, content=each.base + each.tail)

    def merged(self, numbers):
        """Return what the next file is to hold, or None where a number was taken."""
        result = dict(self.on_disk)
        for number in numbers:
            each, under = self.learned[number], result.get(number)
            if self.is_gone(each, under):
                pass
            elif under is None:
                result[number] = each.layer
            elif each.state == "crystallized":
                pass  # it is there, as others may have changed it
            elif each.is_overlay:
                result[number] = replace(under, content=under.content + each.tail)
            else:
                return None
        return result

    def is_gone(self, each, under):
        """Whether a learned layer came to disk, and was taken from there since."""
        return under is None and each.state == "crystallized" and self.newest > each.written

    def mark_written(self, numbers):
        """They are on disk, though still read from memory."""
        for number in numbers:
            self.learned[number].state = "crystallized"
            self.learned[number].written = self.newest

    def free_number(self):
        taken = self.on_disk.keys() | self.layers.keys()
        top = max(taken, default=-1) + 1
        if top < 65_536:
            return top
        return next(number for number in range(65_536) if number not in taken)
