"""The command that searches layers."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from jessymem.errors import JessyMemoryError
from jessymem.ids import DimensionId
from jessymem.terminal.arguments import dimensions_argument
from jessymem.terminal.shell import (
    fail_with,
    json_option,
    parse_needle,
    source_option,
    write_json,
)
from jessymem.terminal.stores import files_under, folder_of, nothing_under, reader_of
from jessymem.terminal.wording import one_line

if TYPE_CHECKING:
    from jessymem.manager import MmapManager
    from jessymem.scanning.batches import HitBatch

#: As of grep: 1 is for what is not found.
_FAILED: Final = 2


class Failure(click.ClickException):
    """An error that is not the same as finding nothing."""

    exit_code = _FAILED

    def __init__(self, error: Exception) -> None:
        super().__init__(one_line(str(error)))


_COLOURS: Final = ("auto", "always", "never")


@dataclass(frozen=True)
class Form:
    """How finds are shown."""

    count: bool
    layers_with_matches: bool
    line_number: bool
    before: int
    after: int
    color: str
    as_json: bool
    jsonl: bool

    def check(self, ctx: click.Context, limit: int | None) -> None:
        """Refuse what does not go together."""
        if self.count and limit is not None:
            raise click.UsageError("--count counts all hits: it goes without --limit", ctx)
        chosen = {
            "--layers-with-matches": self.layers_with_matches,
            "--jsonl": self.jsonl,
            "--json": self.as_json and not self.count,
            "--count": self.count and not self.as_json,
            "context or line numbers": self.is_by_line,
        }
        named = [name for name, is_chosen in chosen.items() if is_chosen]
        if len(named) > 1:
            raise click.UsageError(f"{named[0]} goes without {named[1]}", ctx)

    @property
    def is_by_line(self) -> bool:
        """Whether each line with a find is shown once."""
        return self.line_number or self.before > 0 or self.after > 0

    @property
    def is_plain(self) -> bool:
        """Whether each find is shown by itself, or they are counted."""
        return not (self.layers_with_matches or self.is_by_line or self.as_json)

    @property
    def is_coloured(self) -> bool:
        """Whether there are colours: on a terminal, unless the environment or the user says so."""
        if self.color != "auto":
            return self.color == "always"
        is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        return sys.stdout.isatty() and not is_plain


def _count_of_lines(name: str, letter: str, text: str) -> Callable[..., Any]:
    return click.option(
        f"-{letter}", f"--{name}", metavar="N", type=click.IntRange(min=0), help=text
    )


@click.command()
@click.argument("needle", metavar="NEEDLE")
@dimensions_argument("[D01]...")
@click.option("-i", "--ignore-case", is_flag=True, help="Capital and small letters are the same.")
@click.option("-w", "--word", is_flag=True, help="Only whole words.")
@click.option(
    "-e", "-E", "--regexp", is_flag=True, help="NEEDLE is a regular expression, as of Python's re."
)
@click.option("--hex", "is_hex", is_flag=True, help="NEEDLE is bytes in hexadecimal.")
@click.option("--name", metavar="GLOB", help="Only in layers whose names are like that.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Stop after N hits.")
@click.option("-c", "--count", is_flag=True, help="Only say how many hits there are, in all.")
@click.option("-l", "--layers-with-matches", is_flag=True, help="Only name the layers with hits.")
@click.option("-n", "--line-number", is_flag=True, help="Show whole lines, numbered, each once.")
@_count_of_lines("after-context", "A", "Also N lines behind each, numbered.")
@_count_of_lines("before-context", "B", "Also N lines before each, numbered.")
@_count_of_lines("context", "C", "Both.")
@click.option(
    "--color", type=click.Choice(_COLOURS), default="auto", show_default=True, help="When to."
)
@click.option("--workers", metavar="N", type=click.IntRange(min=1), help="On N processes, by Dask.")
@click.option("--scheduler", metavar="ADDRESS", help="On a Dask cluster that runs already.")
@source_option()
@json_option
@click.option("--jsonl", is_flag=True, help="Write JSON to stdout, a hit a line.")
@click.pass_context
def find(
    ctx: click.Context,
    /,
    needle: str,
    dimensions: tuple[DimensionId, ...],
    ignore_case: bool,
    word: bool,
    regexp: bool,
    is_hex: bool,
    name: str | None,
    limit: int | None,
    after_context: int | None,
    before_context: int | None,
    context: int | None,
    workers: int | None,
    scheduler: str | None,
    data: Path | str,
    **options: Any,
) -> None:
    """Find bytes or expressions in the contents of layers.

    Bytes, or a regular expression, in the dimensions named, or in all under DATA. Each hit is a
    line: layer, name, offset in its content, and what is around. Hits of bytes may overlap, and
    each lies in one layer.

    With --workers or --scheduler every region file under DATA is searched, or that matches it as
    a pattern, on Dask; each hit is a line of file, layer and offset.

    \b
    Exit codes:  0  something is found
                 1  nothing is found
                 2  a region file cannot be read, or there is none
    """  # noqa: D301 - the mark with which click keeps lines as they are
    both = context or 0
    before = both if before_context is None else before_context
    after = both if after_context is None else after_context
    form = Form(before=before, after=after, **options)
    form.check(ctx, limit)
    typed = parse_needle(ctx, needle, is_hex)
    wanted: Any = _compile(ctx, typed) if regexp else typed
    if not regexp and not is_hex and ignore_case:
        wanted = _as_text(typed)
    if regexp and is_hex:
        raise click.UsageError("--regexp goes without --hex", ctx)
    if workers is not None or scheduler is not None:
        if dimensions or name or not form.is_plain:
            raise click.UsageError(
                "--workers and --scheduler search whole files: they go without dimensions, --name, "
                "--json, lines and --layers-with-matches",
                ctx,
            )
        if workers is not None and scheduler is not None:
            raise click.UsageError("--workers goes without --scheduler", ctx)
        with _failing():
            from jessymem.terminal.clusters import find_on_cluster

            forms = {"ignore_case": ignore_case, "word": word}
            forms |= {"is_count": form.count, "as_json": form.jsonl}
            n_found = find_on_cluster(wanted, data, workers, scheduler, limit, **forms)
        ctx.exit(0 if n_found else 1)
    with _failing(), ExitStack() as stack:
        folder = folder_of(data, dimensions or None)
        chosen = dimensions or tuple(files.dimension for files in files_under(folder))
        manager = stack.enter_context(reader_of(chosen, folder))
        errors = _load(manager, chosen)
        question: dict[str, Any] = {"ignore_case": ignore_case, "word": word}
        if name is not None:
            question["layers"] = manager.select(name=name)
        question["progress"] = stack.enter_context(_progress(form))
        n_found = _show(manager, wanted, typed, question, limit, form)
    if form.count and form.as_json:
        write_json({"needle": typed.hex(), "count": n_found})
    elif form.count:
        click.echo(f"{n_found}")
    fail_with(errors, _FAILED)
    if not chosen:
        raise Failure(nothing_under(data))
    if not n_found:
        ctx.exit(1)


# -- what is searched for, and where ---------------------------------------------------------------


def _compile(ctx: click.Context, typed: bytes) -> re.Pattern[bytes]:
    """Return a pattern for which ``^`` and ``$`` are at lines; letters beyond ASCII are whole."""
    whole = re.sub(rb"[\xc2-\xf4][\x80-\xbf]+", rb"(?:\g<0>)", typed)
    try:
        if whole != typed and re.search(rb"\[[^\]]*[\x80-\xff]", typed):
            raise re.error("a class has no letters beyond ASCII: say (?:a|b)")
        return re.compile(whole, re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        message = f"no regular expression: {one_line(str(error))}"
        raise click.BadParameter(message, ctx, param_hint="NEEDLE") from None


def _as_text(typed: bytes) -> str | bytes:
    """Return text, all of whose letters may be of either case, if it is that."""
    try:
        return typed.decode()
    except UnicodeDecodeError:
        return typed


def _load(manager: MmapManager, dimensions: Iterable[DimensionId]) -> list[JessyMemoryError]:
    """Load what can be loaded; return what was wrong with the others."""
    errors: list[JessyMemoryError] = []
    for dimension in sorted(set(dimensions)):
        try:
            manager.load_dimension(dimension)
        except JessyMemoryError as error:
            errors.append(error)
    return errors


# -- what is shown ---------------------------------------------------------------------------------


def _show(
    manager: MmapManager,
    wanted: Any,
    typed: bytes,
    question: dict[str, Any],
    limit: int | None,
    form: Form,
) -> int:
    """Search, and write what is found; return how many finds there are."""
    if form.count:  # which is written once the progress is off the screen
        return manager.count(wanted, **question)
    batches: Any = manager.find_batches(wanted, limit=limit, **question)
    counted = _Counted(batches)
    with closing(batches):
        for text in _texts(counted, typed, form):
            _write(text, form)
    return counted.n_hits


class _Counted:
    """Batches, and how many finds they had."""

    def __init__(self, batches: Iterable[HitBatch]) -> None:
        self.n_hits = 0
        self._batches = batches

    def __iter__(self) -> Iterator[HitBatch]:
        for batch in self._batches:
            self.n_hits += len(batch)
            yield batch


def _texts(batches: _Counted, typed: bytes, form: Form) -> Iterator[bytes]:
    """Yield what is written, a batch at a time."""
    from jessymem.terminal.context_lines import by_layer, context_lines
    from jessymem.terminal.hit_lines import hit_lines, hit_records, title_of

    is_coloured = form.is_coloured
    if form.layers_with_matches:
        for found in by_layer(batches):
            title = title_of(found.layer, found.name, is_coloured=is_coloured)
            yield f"{title}\n".encode("utf-8", "replace")
    elif form.is_by_line:
        yield from context_lines(batches, form.before, form.after, is_coloured=is_coloured)
    elif form.as_json or form.jsonl:
        if form.as_json:
            yield f'{{\n  "needle": "{typed.hex()}",\n  "hits": ['.encode()
        between = ""
        for batch in batches:
            lines = list(map(json.dumps, hit_records(batch)))
            if form.as_json:
                yield "".join(
                    f"{',' if between or i else ''}\n    {line}" for i, line in enumerate(lines)
                ).encode()
                between = ","
            else:
                yield "".join(f"{line}\n" for line in lines).encode()
        if form.as_json:
            end = "\n  " if between else ""
            yield f'{end}],\n  "count": {batches.n_hits}\n}}\n'.encode()
    else:
        for batch in batches:
            yield hit_lines(batch, is_coloured=is_coloured)


def _write(text: bytes, form: Form) -> None:
    """Write text in UTF-8 to stdout, in whatever encoding that has."""
    if form.is_coloured or not sys.stdout.encoding.lower().startswith("utf"):
        click.echo(text.decode(), nl=False, color=form.is_coloured)
    else:
        sys.stdout.buffer.write(text)


@contextmanager
def _progress(form: Form) -> Iterator[Callable[[int, int], None] | None]:
    """Show progress where somebody watches, and nothing else is written there."""
    if not sys.stderr.isatty() or (sys.stdout.isatty() and not form.count):
        yield None
        return
    from jessymem.terminal.screens import show_progress

    with show_progress() as progress:
        task = progress.add_task("searching", total=None)
        yield lambda n_done, n_total: progress.update(task, completed=n_done, total=n_total)


@contextmanager
def _failing() -> Iterator[None]:
    """Let an error end the command as one does that finds nothing to search."""
    try:
        yield
    except BrokenPipeError:
        raise
    except click.UsageError:
        raise
    except (JessyMemoryError, OSError, ImportError, click.ClickException) as error:
        raise Failure(error) from error
