"""The command that writes layers to files of other formats."""

from __future__ import annotations

from pathlib import Path

import click

from jessymem.ids import DimensionId
from jessymem.ingest.exporting import export as export_files
from jessymem.ingest.writers import WRITERS
from jessymem.terminal import pictures, records, screens, wording
from jessymem.terminal.arguments import dimensions_argument
from jessymem.terminal.shell import (
    FOLDER,
    data_option,
    json_option,
    write_json,
)


@click.command()
@dimensions_argument()
@click.option("-o", "--out", type=FOLDER, required=True, help="The folder to write to.")
@click.option(
    "--format",
    type=click.Choice(list(WRITERS)),
    default="files",
    show_default=True,
    help="What to write.",
)
@data_option()
@click.option("--force", is_flag=True, help="Replace files, and exported folders with all in them.")
@json_option
def export(
    dimensions: tuple[DimensionId, ...],
    out: Path,
    format: str,
    data: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Write layers to files that other programs read.

    Those of the dimensions named, or all under DATA. For each dimension there is one file or
    folder under OUT, called D15-name; `jessymem build OUT/D15-name` makes the same layers of it.

    \b
        files        a folder: a file for each layer, a dimension.toml with what is said of them
        npz          NumPy's archive: an array for each layer, what is no array as it is
        safetensors  a tensor for each layer, what is no array as bytes
        arrow        Arrow IPC: a row for each layer, with the columns id, name, content,
                     encoding, frequency, depth, keywords, parent
        parquet      the same as Parquet

    Layers are called by their names. A name that would lead elsewhere, or that some system
    does not allow, is written with %2F and the like, and two of one name get their numbers.
    safetensors, arrow and parquet need the extras safetensors and arrow.
    """  # noqa: D301 - the mark with which click keeps lines as they are
    with screens.show_progress() as progress:
        task = progress.add_task("exporting", total=None)

        def advance(n_done: int, n_all: int) -> None:
            progress.update(task, completed=n_done, total=n_all)

        report = export_files(
            data, out, format, dimensions=dimensions or None, force=force, progress=advance
        )
    if as_json:
        write_json(records.export_record(report))
        return
    screens.Screen().print(pictures.exported_table(report.dimensions))
    click.echo(wording.exported_line(report, out))
