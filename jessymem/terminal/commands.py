"""The commands: each parses, calls one part of the package, and shows what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from jessymem import inspection, warming
from jessymem._version import __version__
from jessymem.bench.run import FAMILIES, run_bench
from jessymem.config import MIB, MemoryConfig
from jessymem.demo.run import STEPS, run_demo
from jessymem.errors import DimensionNotFound, JessyMemoryError
from jessymem.ids import DimensionId, LayerId
from jessymem.ingest.building import plan_folder, region_files
from jessymem.manager import MmapManager
from jessymem.regions.files import RegionFiles
from jessymem.regions.region import VERIFY_LEVELS
from jessymem.terminal import pictures, records, wording
from jessymem.terminal.shell import (
    FOLDER,
    Commands,
    Folder,
    data_option,
    fail_on,
    fail_with,
    json_option,
    parse_dimension,
    parse_layer,
    parse_needle,
    write_content,
    write_json,
)

_MAX_LAYERS_SHOWN: Final = 100


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="jessymem")
def main() -> None:
    """Build, look at and read region files: layers that are mapped, not copied.

    \b
    Exit codes:  0  fine
                 1  something is wrong with the data
                 2  the command was not understood
               130  it was interrupted
    """  # noqa: D301 - the mark with which click keeps lines as they are


@main.command()
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


@main.command()
@data_option()
@json_option
def discover(data: Path, as_json: bool) -> None:
    """List the dimensions that are on disk."""
    findings = [inspection.survey(target) for target in inspection.find_regions(data)]
    if as_json:
        write_json([records.finding_record(finding) for finding in findings])
    elif findings:
        pictures.Screen().print(pictures.regions_table(findings))
    _check(findings, data)


@main.command()
@click.argument("target", metavar="D01|FILE")
@click.option("--all", "show_all", is_flag=True, help="Show every layer, however many.")
@data_option()
@json_option
def inspect(target: str, show_all: bool, data: Path, as_json: bool) -> None:
    """Show what a region file holds.

    Its header, where its bytes lie, and its layers. The file is that of a dimension under DATA,
    such as D01, with the deltas beside it, or any path.
    """
    region = inspection.open_target(inspection.resolve_target(target, data))
    if as_json:
        write_json(records.region_record(region))
        return
    screen = pictures.Screen()
    max_layers = None if show_all else _MAX_LAYERS_SHOWN
    screen.print(pictures.region_view(region, screen, max_layers))


@main.command()
@click.argument("targets", metavar="[D01|FILE]...", nargs=-1)
@click.option(
    "--level",
    type=click.Choice(VERIFY_LEVELS),
    default="full",
    show_default=True,
    help="How far: the header, all metadata, or every content too.",
)
@data_option()
@json_option
def verify(targets: tuple[str, ...], level: str, data: Path, as_json: bool) -> None:
    """Compare region files with their checksums.

    Without arguments all under DATA, deltas too. Each one that is not intact, or that lies there
    and does not count, is named on stderr.
    """
    chosen = [inspection.resolve_target(target, data) for target in targets]
    chosen = chosen or inspection.find_regions(data)
    findings = []
    with pictures.show_progress() as progress:
        for target in progress.track(chosen, description="verifying"):
            findings += inspection.examine(target, level)
    n_intact = sum(finding.error is None for finding in findings)
    if as_json:
        regions = [records.finding_record(finding) for finding in findings]
        write_json({"level": level, "n_intact": n_intact, "regions": regions})
    elif findings:
        n_bytes = wording.show_bytes(sum(finding.n_bytes for finding in findings))
        total = wording.count(len(findings), "region file")
        click.echo(f"{n_intact:,} of {total} intact, {n_bytes}, level {level}")
    _check(findings, data)


@main.command()
@click.argument("layer", metavar="L01-05", callback=parse_layer)
@data_option()
def cat(layer: LayerId, data: Path) -> None:
    """Write a layer's bytes to stdout, as they are.

    Only on a terminal are control characters shown as escapes, so that no content can act on
    it.
    """
    region = region_files(data, layer.dimension).open_newest()
    write_content(region.content_of(region.find_row(layer)))


@main.command()
@click.argument("dimensions", metavar="[D15]...", nargs=-1, callback=parse_dimension)
@data_option()
@json_option
def fold(dimensions: tuple[DimensionId, ...], data: Path, as_json: bool) -> None:
    """Write each region file and its deltas into one.

    Those of the dimensions named, or all under DATA. Readers go on meanwhile. Afterwards a
    program that knows only the plain format sees every layer.
    """
    chosen = dimensions or tuple(files.dimension for files in _files_under(data))
    outcomes: list[tuple[DimensionId, bool]] = []
    errors: list[JessyMemoryError] = []
    with _reader_of(chosen, data, read_only=False) as manager, pictures.show_progress() as progress:
        for dimension in progress.track(sorted(set(chosen)), description="folding"):
            try:
                outcomes.append((dimension, manager.fold(dimension)))
            except JessyMemoryError as error:
                errors.append(error)
    if as_json:
        write_json(records.fold_record(outcomes))
    else:
        n_folded = sum(is_folded for _, is_folded in outcomes)
        click.echo(f"{n_folded:,} of {wording.count(len(outcomes), 'dimension')} folded")
    fail_with(errors)
    if not chosen:
        raise _nothing_under(data)


@main.command()
@click.argument("layers", metavar="L01-00...", nargs=-1, required=True, callback=parse_layer)
@click.option("--max-chars", metavar="N", type=click.IntRange(min=0), help="Cut at N characters.")
@click.option("--metadata", is_flag=True, help="With all that is known of each layer.")
@data_option()
@json_option
def contexts(
    layers: tuple[LayerId, ...],
    max_chars: int | None,
    metadata: bool,
    data: Path,
    as_json: bool,
) -> None:
    """Write layers as text for a language model.

    In the order given, each with a heading; UTF-8, whatever the terminal's encoding.
    """
    dimensions = {layer.dimension for layer in layers}
    with _reader_of(dimensions, data) as manager:
        for dimension in sorted(dimensions):
            manager.load_dimension(dimension)
        found = manager.load_contexts(layers)
        if as_json:
            write_json(records.contexts_record(found))
        elif metadata:
            write_content(found.format_with_metadata(max_chars).encode())
        else:
            write_content(found.format_for_llm(max_chars).encode())


@main.command()
@click.argument("needle", metavar="NEEDLE")
@click.argument("dimensions", metavar="[D01]...", nargs=-1, callback=parse_dimension)
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
    chosen = dimensions or tuple(files.dimension for files in _files_under(data))
    errors: list[JessyMemoryError] = []
    with _reader_of(chosen, data) as manager:
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
        raise _nothing_under(data)
    if not n_found:
        ctx.exit(1)


@main.command()
@json_option
def warmup(as_json: bool) -> None:
    """Compile the kernels ahead of time.

    Later processes find them in the cache on disk; nothing else is touched.
    """
    with pictures.show_progress() as progress:
        progress.add_task("compiling", total=None)
        report = warming.warmup()
    if as_json:
        write_json(records.warmup_record(report))
    else:
        click.echo("\n".join(wording.warmup_lines(report)))


@main.command()
@click.option("--strict", is_flag=True, help="Exit code 1 also where a target is missed.")
@click.option("--data", type=FOLDER, help="Where the region files go, and stay.")
@json_option
def demo(strict: bool, data: Path | None, as_json: bool) -> None:
    """Do the main job on real input, and measure it.

    The 14 core dimensions are made from the bundled data and further ones from the source
    files of Python's standard library. They are mapped, read back, compared byte by byte, and
    read by 100 threads. Nothing is downloaded, and without --data nothing stays. Exit code 1 if
    a byte is not that of its source.
    """
    kept = data
    with ExitStack() as stack:
        if data is None:
            temporary = tempfile.TemporaryDirectory(prefix="jessymem-", ignore_cleanup_errors=True)
            data = Path(stack.enter_context(temporary))
        progress = stack.enter_context(pictures.show_progress(is_live=False))
        task = progress.add_task("demo", total=len(STEPS))

        def announce(step: str) -> None:
            progress.update(task, description=step, completed=STEPS.index(step), refresh=True)

        report = run_demo(data, announce=announce)
    if as_json:
        write_json(records.demo_record(report))
    else:
        pictures.Screen().print(pictures.demo_view(report, kept))
    if report.differing or (strict and report.missed):
        raise click.exceptions.Exit(1)


@main.command()
@click.option("--quick", is_flag=True, help="Fewer rounds, the same stores; ratios tremble more.")
@click.option(
    "--only",
    metavar="FAMILY",
    type=click.Choice(tuple(FAMILIES)),
    multiple=True,
    help=f"Only these of {', '.join(FAMILIES)}; may be given again.",
)
@click.option("--check", is_flag=True, help="Exit code 1 where a ratio is missed unexpectedly.")
@click.option("--scratch", type=FOLDER, help="Measure on the disk that this folder is on.")
@json_option
def bench(
    quick: bool, only: tuple[str, ...], check: bool, scratch: Path | None, as_json: bool
) -> None:
    """Measure beside what one would use instead.

    Each row is timed in turns with its peer on this machine, and the median of the ratios
    compared with a target. A peer that is not installed is "not run": pip install
    "jessymem[bench]" brings them all. Targets marked "abs" are no ratios: they tell of the
    machine as much, and a miss is no failure. About 1 GB is written and taken away again.

    With --check the exit code is 1 where a ratio is missed that is not listed, with its
    evidence, among those that are known to be; docs/performance.md has that list.
    """
    chosen = [family for family in FAMILIES if not only or family in only]
    with pictures.show_progress(is_live=False) as progress:
        task = progress.add_task("bench", total=len(chosen))

        def announce(family: str) -> None:
            done = chosen.index(family)
            progress.update(task, description=family, completed=done, refresh=True)

        report = run_bench(chosen, is_quick=quick, folder=scratch, announce=announce)
    if as_json:
        write_json(records.bench_record(report))
    else:
        screen = pictures.Screen()
        screen.print(pictures.bench_view(report, screen))
    if check and report.missed:
        raise click.exceptions.Exit(1)


def _files_under(data: Path) -> list[RegionFiles]:
    """Return the files of each dimension under `data`."""
    return [target.files for target in inspection.find_regions(data) if target.files is not None]


def _reader_of(
    dimensions: Iterable[DimensionId], data: Path, *, read_only: bool = True
) -> MmapManager:
    """Return a manager with a budget for all of `dimensions`, which as a rule only reads."""
    found = [region_files(data, dimension).find(tidy=False) for dimension in set(dimensions)]
    paths = {path for each in found for path in each.chain.paths}
    n_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    return MmapManager(
        MemoryConfig(
            total_memory_mb=MemoryConfig.total_memory_mb + n_bytes // MIB,
            base_path=data,
            simulation="never",
            read_only=read_only,
        )
    )


def _check(findings: list[inspection.Finding], data: Path) -> None:
    """End with exit code 1 where something is wrong, or there is nothing."""
    fail_on(findings)
    if not findings:
        raise _nothing_under(data)


def _nothing_under(data: Path) -> DimensionNotFound:
    return DimensionNotFound(f"no region files under {data}", dimension=None, path=str(data))
