"""The command that searches layers."""

from __future__ import annotations

from pathlib import Path

import click

from jessymem.errors import JessyMemoryError
from jessymem.ids import DimensionId
from jessymem.terminal import pictures, records
from jessymem.terminal.completion import complete_dimension
from jessymem.terminal.shell import (
    data_option,
    fail_with,
    json_option,
    parse_dimension,
    parse_needle,
    write_json,
)
from jessymem.terminal.stores import files_under, nothing_under, reader_of


@click.command()
@click.argument("needle", metavar="NEEDLE")
@click.argument(
    "dimensions",
    metavar="[D01]...",
    nargs=-1,
    callback=parse_dimension,
    shell_complete=complete_dimension,
)
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Stop after N hits.")
@click.option("--count", "is_count", is_flag=True, help="Only say how many hits there are.")
@click.option("--hex", "is_hex", is_flag=True, help="NEEDLE is bytes in hexadecimal.")
@data_option()
@json_option
@click.pass_context
def find(
    ctx: click.Context,
    needle: str,
    dimensions: tuple[DimensionId, ...],
    limit: int | None,
    is_count: bool,
    is_hex: bool,
    data: Path,
    as_json: bool,
) -> None:
    """Find bytes in the contents of layers.

    In the dimensions named, or in all under DATA. Each hit is a line: layer, offset in its
    content, and what is around. Hits may overlap, and each lies in one layer. Exit code 1 if
    nothing is found, or a region file cannot be read.
    """
    wanted = parse_needle(ctx, needle, is_hex)
    if is_count and limit is not None:
        raise click.UsageError("--count counts all hits: it goes without --limit", ctx)
    chosen = dimensions or tuple(files.dimension for files in files_under(data))
    errors: list[JessyMemoryError] = []
    with reader_of(chosen, data) as manager:
        for dimension in sorted(set(chosen)):
            try:
                manager.load_dimension(dimension)
            except JessyMemoryError as error:
                errors.append(error)
        with pictures.show_progress() as progress:
            task = progress.add_task("searching", total=None)

            def show(n_done: int, n_total: int) -> None:
                progress.update(task, completed=n_done, total=n_total)

            if is_count:
                n_found = manager.count(wanted, progress=show)
            else:
                hits = manager.find(wanted, limit=limit, progress=show)
                n_found = len(hits)
        if as_json:
            found = [] if is_count else records.hit_records(manager, hits, len(wanted))
            write_json({"needle": wanted.hex(), "count": n_found, "hits": found})
        elif is_count:
            click.echo(f"{n_found}")
        else:
            screen = pictures.Screen()
            for line in pictures.hit_lines(manager, hits, len(wanted)):
                screen.print(line, soft_wrap=True)
    fail_with(errors)
    if not chosen:
        raise nothing_under(data)
    if not n_found:
        ctx.exit(1)
