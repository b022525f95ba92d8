"""The commands that look at other processes: what they show of their memory."""

from __future__ import annotations

import time
from math import isfinite
from pathlib import Path
from typing import Any

import click
from rich.live import Live

from jessymem.errors import JessyMemoryError
from jessymem.status import reader
from jessymem.status.reader import Status
from jessymem.terminal import records, screens
from jessymem.terminal.keys import pressed_keys
from jessymem.terminal.shell import json_option, write_json
from jessymem.terminal.status_views import SORTS, fitting_view, processes_table, status_view

_NOBODY = 'no process shows itself: MemoryConfig(status="auto") makes a manager do so'


@click.command()
@json_option
def ps(as_json: bool) -> None:
    """List the processes of this user that show themselves.

    A manager does that whose MemoryConfig has status="auto".
    """
    found = list(reader.running())
    if as_json:
        write_json([records.status_record(each) for each in found])
    elif found:
        screen = screens.Screen()
        screen.print(processes_table(found, screen.width))
    else:
        screens.Screen(is_error=True).print(_NOBODY)


@click.command()
@click.argument("target", metavar="[PID|PATH]", required=False)
@click.option("--once", is_flag=True, help="Show it once, and end.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=3_600),
    default=1.0,
    show_default=True,
    help="How long between two looks.",
)
@click.option(
    "--sort",
    type=click.Choice([name for name, _ in SORTS.values()]),
    default="bytes",
    show_default=True,
    help="What dimensions are sorted by.",
)
@json_option
def top(target: str | None, once: bool, interval: float, sort: str, as_json: bool) -> None:
    """Watch the memory of a running process, without touching it.

    PID, or the PATH of a status file; without, of the only process that shows itself. Keys: b l w
    n d sort dimensions by bytes, layers, learned layers (w), name or number (d); q ends.
    """
    status = _find(target)
    if as_json:
        write_json(records.status_record(status))
        return
    if not isfinite(interval):
        raise click.UsageError("--interval is a number of seconds")
    screen = screens.Screen()
    key = next(each for each, (name, _) in SORTS.items() if name == sort)
    if once or not screen.is_terminal:
        screen.print(status_view(status, None, key, screen.width))
        return
    _watch(status, screen, key, interval)


def _find(target: str | None) -> Status:
    """Return what was asked for; raise ClickException where there is none, or several."""
    if target is not None and not target.isdecimal():
        return reader.read(Path(target))
    found = [each for each in reader.running() if target is None or each.pid == int(target)]
    if not found:
        raise click.ClickException(
            _NOBODY if target is None else f"process {target} shows nothing, or is not there"
        )
    if len(found) > 1:
        listed = ", ".join(f"{each.path} (process {each.pid})" for each in found)
        raise click.ClickException(f"several managers show themselves; name one: {listed}")
    return found[0]


def _watch(status: Status, screen: Any, sort: str, interval: float) -> None:
    """Show it until a key ends that, or the process has ended."""
    before: Status | None = None
    with pressed_keys() as keys, Live(console=screen, screen=True, auto_refresh=False) as live:
        while True:
            live.update(fitting_view(status, before, sort, screen), refresh=True)
            ends = time.monotonic() + interval
            while (left := ends - time.monotonic()) > 0:
                key = keys.wait(left)
                if key in ("q", "\x1b", "\x03"):
                    return
                if key is not None and key in SORTS:
                    sort = key
                    break
            try:
                now = reader.read(status.path)
            except JessyMemoryError:
                break
            if now.written_at > status.written_at:
                before, status = status, now
            elif not now.is_alive:
                break
    screen.print(f"process {status.pid} shows nothing any more")
