"""Searches of many files by Dask: on processes of this machine, or on a cluster that runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click

#: So many tasks are asked for at once: what is found comes in the order of the files.
_N_TASKS_AHEAD = 8


def find_on_cluster(
    needle: Any,
    data: Path | str,
    workers: int | None,
    scheduler: str | None,
    limit: int | None,
    *,
    ignore_case: bool,
    word: bool,
    is_count: bool,
    as_json: bool,
) -> int:
    """Write what is found in all files under `data`; return how many finds there are."""
    import jessymem.distributed as jd

    form: Any = {"ignore_case": ignore_case, "word": word}
    ask: Any = jd.count if is_count else partial(jd.find, limit=limit)
    asked = ask(data, needle, **form)
    n_found = 0
    with _client(workers, scheduler) as client, _progress() as advance:
        for frame in _frames(client, asked.to_delayed(), advance):
            if is_count:
                n_found += int(frame["count"].sum())
                continue
            rows = zip(frame["url"], frame["layer"], frame["offset"].tolist(), strict=True)
            kept = list(islice(rows, None if limit is None else limit - n_found))
            n_found += len(kept)
            sys.stdout.write("".join(_line(row, as_json=as_json) for row in kept))
            if n_found == limit:
                break
    if is_count:
        click.echo(f"{n_found}")
    return n_found


def _frames(client: Any, parts: list[Any], advance: Any) -> Iterator[Any]:
    """Yield what tasks return, in their order, while some of the next ones run."""
    n_ahead = max(_N_TASKS_AHEAD, 2 * sum(client.nthreads().values()))
    left = iter(parts)
    running = [client.compute(part) for part in islice(left, n_ahead)]
    n_done = 0
    while running:
        frame = running.pop(0).result()
        running += [client.compute(part) for part in islice(left, 1)]
        n_done += 1
        advance(n_done, len(parts))
        yield frame


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """Return a client of a cluster that runs, or of one that ends with it."""
    import distributed

    dask: Any = distributed  # its functions have no types
    if scheduler is not None:
        with dask.Client(scheduler) as found:
            yield found
        return
    with (
        dask.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as made,
        dask.Client(made) as found,
    ):
        yield found


@contextmanager
def _progress() -> Iterator[Any]:
    """Show how many tasks are done, where somebody watches, and nothing else is written there."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield lambda n_done, n_total: None
        return
    from jessymem.terminal.screens import show_progress

    with show_progress() as progress:
        task = progress.add_task("searching", total=None)
        yield lambda n_done, n_total: progress.update(task, completed=n_done, total=n_total)


def _line(row: tuple[str, str, int], *, as_json: bool) -> str:
    """Return a line for one find: where it is."""
    url, layer, offset = row
    if as_json:
        return json.dumps({"url": url, "layer": layer, "offset": offset}) + "\n"
    return f"{url}:{layer}:{offset}\n"
