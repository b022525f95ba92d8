"""What a language model is given: described layers, and two ways to write them down."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final, cast, overload

import jessymem
from jessymem.content_views import as_content_view
from jessymem.errors import shown
from jessymem.ids import LayerId, LayerLike, as_layer_id, items_of
from jessymem.regions.table import LayerTable

#: A character is at most four bytes of UTF-8.
_MAX_UTF8_BYTES: Final = 4

#: In so many bytes text has no NUL, and what is not text has as a rule.
_N_LOOKED_AT: Final = 8_000
_N_SHOWN: Final = 40


@dataclass(frozen=True, repr=False)
class LoadedContext:
    """One layer, read: its content without a copy, and what describes it.

    Pickled, copied deeply or made a dictionary, it takes the content's bytes along and leaves the
    region behind.

    Attributes
    ----------
    layer_id : LayerId
    content : memoryview
        Read-only, format "B"; valid and unchanged for as long as this object or the view is held.
    frequency : float
    keywords : tuple of str
    name : str
        The layer's.
    dimension_name : str
    depth : int
    parent : LayerId or None
    encoding : str
        As `LayerInfo.encoding`.

    Examples
    --------
    >>> context = manager.load_layer_context("L15-02")
    >>> context
    <LoadedContext L15-02 'grep/README', 17 bytes: 'Grep finds lines.'>
    >>> context.frequency, context.dimension_name, context.keywords
    (2.5, 'tools', ('search',))
    """

    layer_id: LayerId
    content: memoryview
    frequency: float
    keywords: tuple[str, ...]
    name: str
    dimension_name: str
    depth: int = 0
    parent: LayerId | None = None
    encoding: str = "bytes"

    __hash__ = None  # type: ignore[assignment]  # a mapped view cannot be hashed

    def __post_init__(self) -> None:
        """Take any bytes for the content."""
        object.__setattr__(self, "content", as_content_view(self.content))

    def __copy__(self) -> LoadedContext:
        """Return this one: nothing of it changes."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Travel with the content as bytes."""
        return {**self.__dict__, "content": bytes(self.content)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive with the content as a view again."""
        self.__dict__.update(state)
        self.__post_init__()

    @classmethod
    def of(cls, layer_id: LayerId, region: LayerTable, row: int) -> LoadedContext:
        """Read a layer from its row of a region.

        Raises
        ------
        OutOfBounds, RegionFormatError
            As `MmapManager.load_layer_context`.

        Examples
        --------
        >>> LoadedContext.of(LayerId("L15-02"), region, 2)
        <LoadedContext L15-02 'grep/README', 17 bytes: 'Grep finds lines.'>
        """
        record = region.rows[row]
        context = cls.__new__(cls)  # its content is a view of ours already
        context.__dict__.update(
            layer_id=layer_id,
            content=region.content_of(row),
            frequency=float(record["frequency"]),
            keywords=region.keywords_of(row),
            name=region.name_of(row),
            dimension_name=region.name,
            depth=int(record["depth"]),
            parent=region.parent_of(row),
            encoding=region.encoding_of(row),
        )
        return context

    def __repr__(self) -> str:
        """Say in one line what it is, and how it begins."""
        name = f" {shown(self.name)}" if self.name else ""
        begin = "" if self.is_binary else f": {self.text_prefix(_N_SHOWN)!r}"
        more = "..." if begin and self.content.nbytes > _N_SHOWN else ""
        return f"<LoadedContext {self.layer_id}{name}, {self.content.nbytes:,} bytes{begin}{more}>"

    @property
    def is_binary(self) -> bool:
        """Whether it is no text: an array; or bytes, not said to be text, with a NUL in front.

        Within the first 8,000 bytes, that is.

        Examples
        --------
        >>> [context.is_binary for context in manager.load_contexts(["L15-02", "L15-03"])]
        [False, True]
        """
        if self.encoding == "bytes":
            return b"\0" in bytes(self.content[:_N_LOOKED_AT])
        return self.encoding != "text"

    @property
    def text(self) -> str:
        """The content decoded as UTF-8; what does not decode is shown as U+FFFD.

        Examples
        --------
        >>> manager.load_layer_context("L15-02").text.upper()
        'GREP FINDS LINES.'
        """
        return str(self.content, "utf-8", "replace")

    def text_prefix(self, n_chars: int) -> str:
        """Return the first `n_chars` characters of `text`, decoding no more than they need.

        Examples
        --------
        >>> manager.load_layer_context("L15-02").text_prefix(10)
        'Grep finds'
        """
        # One character more, so that what the cut tore off lies behind the prefix.
        enough = self.content[: _MAX_UTF8_BYTES * (n_chars + 1)]
        return str(enough, "utf-8", "replace")[:n_chars]


@dataclass(frozen=True)
class NavigationPath:
    """A sequence of layers that a navigator chose.

    Parameters
    ----------
    layer_sequence : iterable of LayerId, int or str
        Kept in order, with what occurs twice.
    frequency : float, optional
        The frequency that the path was chosen for.
    confidence : float, optional
        The navigator's own measure.

    Raises
    ------
    ValueError, TypeError
        If an item is not a layer id, or `frequency` or `confidence` not a number.

    Examples
    --------
    >>> path = NavigationPath(["L15-00", "L15-01"], confidence=0.8)
    >>> list(path)
    [L15-00, L15-01]
    >>> len(manager.load_contexts([path, "L16-00"]))
    3
    """

    layer_sequence: Iterable[LayerLike]
    frequency: float | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        """Read every id."""
        if isinstance(self.layer_sequence, str | bytes):
            raise TypeError(f"a path is a sequence of layer ids, not {shown(self.layer_sequence)}")
        layers = tuple(map(as_layer_id, items_of(self.layer_sequence, "layer ids")))
        object.__setattr__(self, "layer_sequence", layers)
        for name in ("frequency", "confidence"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Real):
                raise TypeError(f"{name} is a number, not {shown(value)}")

    def __len__(self) -> int:
        """Return how many layers it visits."""
        return len(cast("tuple[LayerId, ...]", self.layer_sequence))

    def __iter__(self) -> Iterator[LayerId]:
        """Visit the layers in order."""
        return iter(cast("tuple[LayerId, ...]", self.layer_sequence))


def flatten_paths(paths: NavigationPath | Iterable[LayerLike | NavigationPath]) -> list[LayerId]:
    """Return the ids that paths and single ids come to, in order."""
    if isinstance(paths, str | bytes) or not isinstance(paths, Iterable):
        raise TypeError(f"paths are a sequence of layer ids or NavigationPaths, not {shown(paths)}")
    wanted: list[LayerId] = []
    for item in items_of(paths, "paths"):
        if isinstance(item, NavigationPath):
            wanted.extend(item)
        else:
            wanted.append(as_layer_id(item))
    return wanted


@dataclass(frozen=True, eq=False, repr=False)
class ContextCollection(Sequence[LoadedContext]):
    """Contexts in the order of the paths they were loaded for; an immutable sequence.

    Parameters
    ----------
    contexts : iterable of LoadedContext
        Kept as a tuple.

    Examples
    --------
    >>> contexts = manager.load_contexts(["L15-00", "L16-00", "L16-07"])
    >>> contexts, contexts[1:]
    (<ContextCollection 3 contexts 60 bytes>, <ContextCollection 2 contexts 44 bytes>)
    """

    contexts: Iterable[LoadedContext]

    def __post_init__(self) -> None:
        """Take the contexts out of whatever they came in."""
        object.__setattr__(self, "contexts", tuple(self.contexts))

    @property
    def _contexts(self) -> tuple[LoadedContext, ...]:
        return cast("tuple[LoadedContext, ...]", self.contexts)

    def __len__(self) -> int:
        """Return how many contexts there are."""
        return len(self._contexts)

    @overload
    def __getitem__(self, index: int) -> LoadedContext: ...
    @overload
    def __getitem__(self, index: slice) -> ContextCollection: ...
    def __getitem__(self, index: int | slice) -> LoadedContext | ContextCollection:
        """Return a context, or the collection of a slice."""
        if isinstance(index, slice):
            return ContextCollection(self._contexts[index])
        return self._contexts[index]

    def __eq__(self, other: object) -> bool:
        """Compare contents and descriptions."""
        if not isinstance(other, ContextCollection):
            return NotImplemented
        return self._contexts == other._contexts

    def __repr__(self) -> str:
        """Show how many and how large."""
        return f"<ContextCollection {len(self)} contexts {self.total_size:,} bytes>"

    def _repr_html_(self) -> str:
        """Show it in a notebook's cell."""
        return jessymem.notebooks.show_contexts(self)

    @property
    def total_size(self) -> int:
        """Bytes of all contents together, each as often as it occurs.

        Examples
        --------
        >>> manager.load_contexts(["L16-00", "L16-00"]).total_size
        36
        """
        return sum(context.content.nbytes for context in self._contexts)

    def format_for_llm(self, max_chars: int | None = None) -> str:
        """Write the contexts for a prompt: one heading line each, then the text.

        Of what is not text (`LoadedContext.is_binary`) a line says that it is left out.

        Parameters
        ----------
        max_chars : int, optional
            The result is at most so long. Its last line then says what was cut, as far as that line
            fits itself.

        Returns
        -------
        str
            What is not UTF-8 is shown as U+FFFD.

        Raises
        ------
        ValueError
            If `max_chars` is negative.

        Examples
        --------
        >>> contexts = manager.load_contexts(["L15-00", "L15-02"])
        >>> print(contexts[1:].format_for_llm(), end="")
        [L15-02 tools / grep/README | frequency 2.50 | search]
        Grep finds lines.
        >>> print(contexts.format_for_llm(max_chars=140), end="")
        [L15-00 tools / bash/README | frequency 1.00 | shell]
        Bash is a shell.
        <BLANKLINE>
        [L15-02 tools / grep/README
        [cut at 140 characters, within L15-02]
        """
        return self._format(_heading, max_chars)

    def format_with_metadata(self, max_chars: int | None = None) -> str:
        """Write the contexts with all that is known of them, a line each, then the text.

        Parameters and the rest are as for `format_for_llm`.

        Examples
        --------
        >>> print(manager.load_contexts(["L15-01"]).format_with_metadata(), end="")
        ---
        layer: L15-01 bash/usage
        dimension: D15 tools
        depth: 1
        frequency: 1.00
        parent: L15-00
        keywords: none
        size: 24 bytes
        ---
        bash FILE runs a script.
        """
        return self._format(_description, max_chars)

    def _format(self, describe: Callable[[LoadedContext], str], max_chars: int | None) -> str:
        if max_chars is None:
            return "".join(_parts(self._contexts, describe, None))
        max_chars = operator.index(max_chars)
        if max_chars < 0:
            raise ValueError(f"max_chars is 0 or more, not {shown(max_chars)}")
        parts: list[str] = []
        n_chars = 0
        for part in _parts(self._contexts, describe, max_chars + 1):
            parts.append(part)
            n_chars += len(part)
            if n_chars > max_chars:
                return self._cut(parts, max_chars)
        return "".join(parts)

    def _cut(self, parts: list[str], max_chars: int) -> str:
        """Shorten `parts`, too long together, to `max_chars` with a notice as their end."""
        notice = ""
        for last in range(len(parts) - 1, -1, -1):
            notice = _cut_notice(self._contexts[last:], max_chars)
            whole = sum(map(len, parts[:last]))
            n_left = max_chars - len(notice)
            if n_left > whole:  # of part `last` at least one character is shown, and one is cut
                kept = min(n_left, whole + len(parts[last]) - 1)
                return "".join(parts)[:kept] + notice
        return notice.lstrip("\n")[:max_chars]


def _parts(
    contexts: Sequence[LoadedContext],
    describe: Callable[[LoadedContext], str],
    max_chars: int | None,
) -> Iterator[str]:
    """Write the contexts one by one; of each text no more than `max_chars`."""
    for i, context in enumerate(contexts):
        if context.is_binary:
            text = f"[left out: {context.content.nbytes:,} bytes that are not text]\n"
        else:
            text = context.text if max_chars is None else context.text_prefix(max_chars)
        end = "" if text.endswith("\n") else "\n"
        yield ("\n" if i else "") + describe(context) + text + end


def _heading(context: LoadedContext) -> str:
    names = filter(None, map(_one_line, (context.dimension_name, context.name)))
    parts = [
        f"{context.layer_id} {' / '.join(names)}".rstrip(),
        f"frequency {context.frequency:.2f}",
    ]
    if context.keywords:
        parts.append(_join(context.keywords))
    return f"[{' | '.join(parts)}]\n"


def _description(context: LoadedContext) -> str:
    lines = {
        "layer": f"{context.layer_id} {_one_line(context.name)}".rstrip(),
        "dimension": f"{context.layer_id.dimension} {_one_line(context.dimension_name)}".rstrip(),
        "depth": context.depth,
        "frequency": f"{context.frequency:.2f}",
        "parent": context.parent if context.parent is not None else "none",
        "keywords": _join(context.keywords) if context.keywords else "none",
        "size": f"{context.content.nbytes} bytes",
    }
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in lines.items()) + "---\n"


def _cut_notice(contexts: Sequence[LoadedContext], max_chars: int) -> str:
    """Say that the first of `contexts` is there in part and the rest not at all."""
    partial, *rest = contexts
    notice = f"\n[cut at {max_chars} characters, within {partial.layer_id}"
    if rest:
        notice += f"; {len(rest)} more left out, from {rest[0].layer_id}"
    return notice + "]\n"


def _join(keywords: Iterable[str]) -> str:
    return ", ".join(map(_one_line, keywords))


def _one_line(text: str) -> str:
    """Keep a name from a file from looking like a heading of ours."""
    return " ".join(text.split())
