"""The command that makes region files."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from jessymem.errors import JessyWarning
from jessymem.ingest.building import build as build_files
from jessymem.terminal import pictures, records, screens, wording
from jessymem.terminal.shell import SourcePath, data_option, json_option, write_json


@click.command()
@click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=SourcePath())
@data_option("-o", text="Where the region files go.")
@click.option("--column", metavar="NAME", help="The column of a table that holds the contents.")
@click.option("--name-column", metavar="NAME", help="The column that names the layers.")
@click.option("--keywords-column", metavar="NAME", help="The column of their keywords.")
@click.option(
    "--names",
    type=click.Choice(["path", "stem"]),
    default="path",
    show_default=True,
    help="What a file's layer is called: its path in its folder, with its ending or without.",
)
@click.option("--force", is_flag=True, help="Replace region files, whatever they hold.")
@click.option("--no-resume", is_flag=True, help="Do not go on from what an earlier build wrote.")
@click.option(
    "--compress",
    metavar="CODEC",
    help="Keep layers compressed where that is shorter: zstd, or zstd:1 to zstd:22.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@json_option
def build(
    sources: tuple[Path, ...],
    data: Path,
    column: str | None,
    name_column: str | None,
    keywords_column: str | None,
    names: str,
    force: bool,
    no_resume: bool,
    compress: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make region files of folders, files, tables and archives.

    Each sub-folder of a folder SRC becomes a dimension, and the files directly in SRC become
    one more, called like SRC. A folder SRC that is called D07-name, or has a dimension.toml, is
    one dimension itself. What is called D07-name or D07 becomes that dimension. Any other keeps
    the number that it has under DATA by its name, or takes the next free one from D15 upwards.

    Each file is a layer. One that lies directly in its folder and is called NN-name gets the
    number NN; all others, those in deeper folders too, fill the free numbers in natural order.
    A .npy file is kept as the array in it, what is valid UTF-8 as text, all else as bytes.

    A file SRC that is a table becomes a dimension with a layer for each row: .jsonl, .ndjson,
    .csv, .tsv and, with the extra "arrow", .parquet, .arrow, .feather, .ipc. The contents are
    in the column text, content or body, the names in name, title or id, the keywords in
    keywords or tags, unless options name others. One that is an archive becomes a dimension
    with a layer for each array: .npz and, with the extras of these names, .safetensors and a
    folder of Zarr. Other files become one dimension for each folder that they lie in. Patterns
    such as "notes/**/*.md" may be quoted.

    An optional dimension.toml in a folder says more:

    \b
        name = "Technical"
        [layers."00-tools.md"]      # the file's path in the folder
        name = "Tools"              # by default that path, without NN-
        layer = 3
        frequency = 1.2
        depth = 1
        keywords = ["hammer", "loom"]
        parent = "L07-00"           # or a layer number of this dimension
        encoding = "bytes"          # or text, or npy

    A build that was interrupted goes on when it is called again. What an earlier build wrote
    is left alone where its source has not changed, and replaced where it has; a region file
    that holds anything else is in the way unless --force is given. Everything is checked
    before the first file is written.

    Left out, and named on stderr, are hidden files, links that leave SRC, whatever is no
    regular file, and folders without files. A file that no manager with default settings could
    load is written, with a warning.
    """  # noqa: D301 - as above
    with screens.show_progress() as progress:
        task = progress.add_task("building", total=None)

        def advance(n_done: int, n_all: int) -> None:
            progress.update(task, completed=n_done, total=n_all)

        with warnings.catch_warnings():  # below each is told of on a line of its own
            warnings.filterwarnings("ignore", ".* left out of the build", JessyWarning)
            report = build_files(
                sources,
                data,
                names=names,
                column=column,
                name_column=name_column,
                keywords_column=keywords_column,
                force=force,
                resume=not no_resume,
                dry_run=dry_run,
                compress=compress,
                progress=advance,
            )
    for line in wording.fault_lines(report.dimensions):
        click.echo(line, err=True)
    if as_json:
        write_json(records.build_record(report))
        return
    for line in wording.skipped_lines(report.skipped):
        click.echo(line, err=True)
    screens.Screen().print(pictures.built_table(report.dimensions))
    click.echo(wording.built_line(report, data))
