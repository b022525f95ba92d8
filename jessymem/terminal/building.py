"""The command that makes region files."""

from __future__ import annotations

from pathlib import Path

import click

from jessymem.ingest.building import plan_folder
from jessymem.terminal import pictures, records, wording
from jessymem.terminal.shell import Folder, data_option, json_option, write_json


@click.command()
@click.argument("source", metavar="SRC", type=Folder(exists=True))
@data_option("-o", text="Where the region files go.")
@click.option("--force", is_flag=True, help="Replace region files that exist.")
@json_option
def build(source: Path, data: Path, force: bool, as_json: bool) -> None:
    """Make a region file of each sub-folder of SRC.

    A sub-folder called D07-name or D07 becomes that dimension. Any other keeps the number that
    it has under DATA by its name, or takes the next free one from D15 upwards.

    Each file is a layer. One that lies directly in the sub-folder and is called NN-name gets
    the number NN; all others, those in deeper folders too, fill the free numbers in natural
    order. A .npy file is kept as the array in it, what is valid UTF-8 as text, all else as
    bytes.

    An optional dimension.toml in the sub-folder says more:

    \b
        name = "Technical"
        [layers."00-tools.md"]      # the file's path in the sub-folder
        name = "Tools"              # by default that path, without NN-
        layer = 3
        frequency = 1.2
        depth = 1
        keywords = ["hammer", "loom"]
        parent = "L07-00"           # or a layer number of this dimension

    Left out, and named on stderr, are hidden files, links that leave SRC, whatever is no
    regular file, files directly in SRC, and sub-folders without files. Everything is checked
    before the first file is written; without --force nothing is, where a region file exists.
    A file that no manager with default settings could load is written, with a warning.
    """  # noqa: D301 - as above
    plan = plan_folder(source, data, force=force)
    with pictures.show_progress() as progress:
        task = progress.add_task("building", total=plan.n_bytes)
        built = plan.write(lambda n_bytes: progress.advance(task, n_bytes))
    for line in wording.fault_lines(built):
        click.echo(line, err=True)
    if as_json:
        write_json(records.build_record(built, plan.skipped))
        return
    for line in wording.skipped_lines(plan.skipped):
        click.echo(line, err=True)
    pictures.Screen().print(pictures.built_table(built))
    files = wording.count(len(built), "region file")
    click.echo(f"{files} written under {wording.visible(str(data))}")
