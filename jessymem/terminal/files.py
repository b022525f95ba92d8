"""The commands that look at region files as files, check them, and fold them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import click

from jessymem import inspection
from jessymem.errors import JessyMemoryError
from jessymem.ids import DimensionId, LayerId
from jessymem.ingest.building import fault_by_default
from jessymem.regions.region import VERIFY_LEVELS
from jessymem.terminal import pictures, records, screens, wording
from jessymem.terminal.arguments import dimensions_argument, layers_argument
from jessymem.terminal.completion import complete_target
from jessymem.terminal.shell import (
    data_option,
    fail_with,
    json_option,
    source_option,
    write_json,
)
from jessymem.terminal.stores import (
    fail_unless_found,
    files_under,
    find_layers,
    folder_of,
    nothing_under,
    reader_of,
    target_of,
)
from jessymem.terminal.wording import one_line
from jessymem.units import show_bytes

_MAX_LAYERS_SHOWN: Final = 100


@click.command()
@source_option()
@json_option
def discover(data: Path | str, as_json: bool) -> None:
    """List the dimensions that are there."""
    data = folder_of(data)
    findings = [inspection.survey(target) for target in inspection.find_regions(data)]
    if as_json:
        write_json([records.finding_record(finding) for finding in findings])
    elif findings:
        screens.Screen().print(pictures.regions_table(findings))
    fail_unless_found(findings, data)


@click.command()
@click.argument("target", metavar="D01|FILE", shell_complete=complete_target)
@click.option("--all", "show_all", is_flag=True, help="Show every layer, however many.")
@source_option()
@json_option
def inspect(target: str, show_all: bool, data: Path | str, as_json: bool) -> None:
    """Show what a region file holds.

    Its header, where its bytes lie, and its layers. The file is that of a dimension under DATA,
    such as D01, with the deltas beside it, or any path or URL.
    """
    region = inspection.open_target(target_of(target, data))
    _note_too_large(Counter({region.dimension_id: region.n_file_bytes}))
    if as_json:
        write_json(records.region_record(region))
        return
    screen = screens.Screen()
    max_layers = None if show_all else _MAX_LAYERS_SHOWN
    screen.print(pictures.region_view(region, screen, max_layers))


@click.command()
@click.argument("targets", metavar="[D01|FILE]...", nargs=-1, shell_complete=complete_target)
@click.option(
    "--level",
    type=click.Choice(VERIFY_LEVELS),
    default="full",
    show_default=True,
    help="How far: the header, all metadata, or every content too.",
)
@source_option()
@json_option
def verify(targets: tuple[str, ...], level: str, data: Path | str, as_json: bool) -> None:
    """Compare region files with their checksums.

    Without arguments all under DATA, deltas too. Each one that is not intact, or that lies there
    and does not count, is named on stderr; so is what no manager with default settings can load.
    """
    chosen = [target_of(target, data) for target in targets]
    if not targets:
        data = folder_of(data)
        chosen = inspection.find_regions(data)
    findings = []
    with screens.show_progress() as progress:
        for target in progress.track(chosen, description="verifying"):
            findings += inspection.examine(target, level)
    n_intact = sum(finding.error is None for finding in findings)
    if as_json:
        regions = [records.finding_record(finding) for finding in findings]
        write_json({"level": level, "n_intact": n_intact, "regions": regions})
    elif findings:
        n_bytes = show_bytes(sum(finding.n_bytes for finding in findings))
        total = wording.count(len(findings), "region file")
        click.echo(f"{n_intact:,} of {total} intact, {n_bytes}, level {level}")
    sizes: Counter[DimensionId] = Counter()
    for finding in findings:
        if finding.dimension_id is not None and finding.error is None:
            sizes[finding.dimension_id] += finding.n_bytes
    _note_too_large(sizes)
    fail_unless_found(findings, data)


@click.command()
@dimensions_argument()
@data_option()
@click.option(
    "--compress",
    metavar="CODEC",
    help="Compress plain layers: zstd, or zstd:1 to zstd:22; or none: make all plain.",
)
@json_option
def fold(
    dimensions: tuple[DimensionId, ...], data: Path, compress: str | None, as_json: bool
) -> None:
    """Write each region file and its deltas into one.

    Those of the dimensions named, or all under DATA. Readers go on meanwhile. Afterwards a
    program that knows only the plain format sees every layer, unless some are compressed.
    """
    chosen = dimensions or tuple(files.dimension for files in files_under(data))
    outcomes: list[tuple[DimensionId, bool]] = []
    errors: list[JessyMemoryError] = []
    with reader_of(chosen, data, read_only=False) as manager, screens.show_progress() as progress:
        for dimension in progress.track(sorted(set(chosen)), description="folding"):
            try:
                outcomes.append((dimension, manager.fold(dimension, compress=compress)))
            except JessyMemoryError as error:
                errors.append(error)
    if as_json:
        write_json(records.fold_record(outcomes))
    else:
        n_folded = sum(is_folded for _, is_folded in outcomes)
        click.echo(f"{n_folded:,} of {wording.count(len(outcomes), 'dimension')} folded")
    fail_with(errors)
    if not chosen:
        raise nothing_under(data)


@click.command()
@layers_argument
@data_option()
@json_option
def rm(layers: tuple[LayerId | str, ...], data: Path, as_json: bool) -> None:
    """Delete layers.

    LAYER is an id such as L01-05, or a name, as for cat. Nothing is deleted where one of them
    is not there, or a name is that of several. Readers go on meanwhile: views that they hold
    stay valid. The bytes stay in the region file until fold, or a larger write, makes it anew.
    """
    wanted = list(dict.fromkeys(find_layers(layers, data)))
    deleted: list[LayerId] = []
    errors: list[JessyMemoryError] = []
    dimensions = {layer.dimension for layer in wanted}
    with reader_of(dimensions, data, read_only=False) as manager:
        for dimension in sorted(dimensions):
            manager.load_dimension(dimension)
        manager.locate_many(wanted)  # raises where one is not there
        for layer in wanted:
            try:
                manager.delete_layer(layer)
                deleted.append(layer)
            except JessyMemoryError as error:
                errors.append(error)
    if as_json:
        write_json({"n_deleted": len(deleted), "layers": [str(layer) for layer in deleted]})
    else:
        click.echo(f"{wording.count(len(deleted), 'layer')} deleted")
    fail_with(errors)


def _note_too_large(sizes: Counter[DimensionId]) -> None:
    """Say on stderr of each dimension with so many bytes whether default settings cannot load it.

    Such a file is intact: a larger budget takes it, or a slot that is given.
    """
    for dimension, n_bytes in sorted(sizes.items()):
        fault = fault_by_default(dimension, n_bytes)
        if fault is not None:
            click.echo(f"Note: {one_line(fault)}", err=True)
