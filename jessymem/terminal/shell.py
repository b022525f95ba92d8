"""Where commands meet the shell: arguments in, text, bytes and exit codes out."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from glob import has_magic
from importlib import import_module
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from jessymem import osmem
from jessymem.config import MemoryConfig, as_path
from jessymem.errors import ConfigError, JessyMemoryError, JessyWarning
from jessymem.ids import DimensionId, LayerId, is_layer_id
from jessymem.terminal.wording import one_line, visible

if TYPE_CHECKING:
    from jessymem.inspection import Finding


class Commands(click.Group):
    """Commands whose errors and warnings are a line on stderr, for which a closed pipe is no error.

    Ctrl-C ends them with exit code 130. A command's module is imported when the command is asked
    for.

    Parameters
    ----------
    homes : dict
        By the name of a command, the module of this package that has it.
    """

    def __init__(self, *arguments: Any, homes: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._homes = homes

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return sorted(self._homes)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command."""
        home = self._homes.get(name)
        if home is None:
            return None
        command: click.Command = getattr(import_module(f"jessymem.terminal.{home}"), name)
        return command

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the arguments."""
        try:
            return super().make_context(*arguments, **options)
        except KeyboardInterrupt:
            _end_interrupted()

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        for stream in (sys.stdout, sys.stderr):
            _tolerate_names(stream)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", JessyWarning)
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except BrokenPipeError:
            _abandon_stdout()
            ctx.exit(0)
        except KeyboardInterrupt:
            _end_interrupted()
        except (JessyMemoryError, OSError) as error:
            raise click.ClickException(one_line(str(error))) from error


class Folder(click.Path):
    """A folder; what cannot be one is named as it was typed. A URL may be one, and stays a text."""

    def __init__(self, *, exists: bool = False, may_be_url: bool = False) -> None:
        super().__init__(exists=exists, file_okay=False, path_type=Path)
        self._may_be_url = may_be_url

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> Any:
        """Take a path."""
        value = osmem.without_scheme(value)
        shown = visible(os.fspath(value))
        if osmem.is_url(value):
            if self._may_be_url:
                return value
            self.fail(f"'{shown}' is a URL; it takes a folder, to write to", param, ctx)
        try:
            path = as_path("folder", value)
        except ConfigError:
            self.fail(f"no folder can be called '{shown}'", param, ctx)
        if path.exists() and not path.is_dir():
            self.fail(f"'{shown}' is a file; it takes a folder", param, ctx)
        return super().convert(value, param, ctx)


class SourcePath(click.Path):
    """A folder, a file, or a pattern, which is quoted; what is none is named as it was typed."""

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> Any:
        """Take a path; a pattern may match nothing yet."""
        shown = visible(os.fspath(value))
        try:
            path = as_path("source", value)
        except ConfigError:
            self.fail(f"no file can be called '{shown}'", param, ctx)
        if not os.path.lexists(path) and not has_magic(os.fspath(path)):
            self.fail(f"there is no '{shown}'", param, ctx)
        return path


FOLDER: Final = Folder()

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")


def data_option(
    *short: str, text: str = "Where the region files are.", may_be_url: bool = False
) -> Callable[..., Any]:
    """Return the option that says where the region files are."""
    default = MemoryConfig.base_path
    kind = Folder(may_be_url=True) if may_be_url else FOLDER
    return click.option(*short, "--data", type=kind, default=default, show_default=True, help=text)


def source_option() -> Callable[..., Any]:
    """Return the option that says where region files are read from: a folder, or a URL."""
    return data_option(text="Where the region files are: a folder, or a URL.", may_be_url=True)


def parse_layer(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Take ``L01-05``, or several, from the command line; any other text is a layer's name."""
    texts = value if isinstance(value, tuple) else (value,)
    try:
        layers = tuple(LayerId(text) if is_layer_id(text) else text for text in texts)
        return layers if isinstance(value, tuple) else layers[0]
    except ValueError as error:
        raise click.BadParameter(one_line(str(error)), ctx, param) from None


def parse_dimension(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Take several ``D01`` from the command line."""
    try:
        return tuple(DimensionId.parse(text) for text in value)
    except ValueError as error:
        raise click.BadParameter(one_line(str(error)), ctx, param) from None


def parse_needle(ctx: click.Context, text: str, is_hex: bool) -> bytes:
    """Take bytes from the command line: as they were typed, or in hexadecimal."""
    try:
        needle = bytes.fromhex(text) if is_hex else os.fsencode(text)
    except ValueError as error:
        message = f"not hexadecimal: {one_line(repr(text))} ({error})"
        raise click.BadParameter(message, ctx, param_hint="NEEDLE") from None
    if not needle:
        raise click.BadParameter("there is nothing to find", ctx, param_hint="NEEDLE")
    return needle


def write_json(value: Any) -> None:
    """Write a value as JSON in ASCII."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def write_content(content: memoryview | bytes) -> None:
    """Write content as it is; on a terminal as text, with control characters made visible."""
    if sys.stdout is None:  # it was closed before this process began
        raise click.ClickException("there is no stdout to write to")
    if sys.stdout.isatty():
        click.echo(visible(str(content, "utf-8", "replace"), keep="\n\t"), nl=False)
        return
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def fail_on(findings: Iterable[Finding]) -> None:
    """Name each finding with an error on stderr; where there is any, end with exit code 1."""
    fail_with(finding.error for finding in findings if finding.error is not None)


def fail_with(errors: Iterable[JessyMemoryError], exit_code: int = 1) -> None:
    """Name each error on stderr; where there is any, end with an exit code."""
    errors = list(errors)
    for error in errors:
        click.echo(f"Error: {one_line(str(error))}", err=True)
    if errors:
        raise click.exceptions.Exit(exit_code)


def _show_warning(message: Warning | str, *rest: Any, **options: Any) -> None:
    """Show a warning as commands show errors: whose line of code it is says nothing here."""
    click.echo(f"Warning: {one_line(str(message))}", err=True)


def _end_interrupted() -> NoReturn:
    """End with exit code 130; whoever was to read the output may have been interrupted too."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _abandon_stdout()
    raise click.exceptions.Exit(128 + SIGINT)  # as a shell has it


def _tolerate_names(stream: Any) -> None:
    """Let no name in some other script end a command where the stream cannot write it."""
    if hasattr(stream, "reconfigure") and not stream.encoding.lower().startswith("utf"):
        stream.reconfigure(errors="replace")


def _abandon_stdout() -> None:
    """Point stdout at nothing: what is still buffered would fail again when the process ends."""
    with suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
