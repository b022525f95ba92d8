"""The commands that compile and measure."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from jessymem import warming
from jessymem.bench.run import FAMILIES, run_bench
from jessymem.demo.run import STEPS, run_demo
from jessymem.terminal import pictures, records, screens, wording
from jessymem.terminal.shell import FOLDER, json_option, write_json

#: How steps are called that take long and measure nothing.
_SHOWN: Final = {"compile": "compiling kernels, the first time some 15 s"}


@click.command()
@json_option
def warmup(as_json: bool) -> None:
    """Compile the kernels ahead of time.

    Later processes find them in the cache on disk; nothing else is touched.
    """
    with screens.show_progress() as progress:
        progress.add_task("compiling", total=None)
        report = warming.warmup()
    if as_json:
        write_json(records.warmup_record(report))
    else:
        click.echo("\n".join(wording.warmup_lines(report)))


@click.command()
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
        progress = stack.enter_context(screens.show_progress(is_live=False))
        task = progress.add_task("demo", total=len(STEPS))

        refresher = screens.Refresher(progress)
        stack.callback(refresher.stop)

        def announce(step: str) -> None:
            refresher.stop()
            shown = _SHOWN.get(step, step)
            progress.update(task, description=shown, completed=STEPS.index(step), refresh=True)
            if step in _SHOWN:
                refresher.start()

        report = run_demo(data, announce=announce)
    if as_json:
        write_json(records.demo_record(report))
    else:
        screens.Screen().print(pictures.demo_view(report, kept))
    if report.differing or (strict and report.missed):
        raise click.exceptions.Exit(1)


@click.command()
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
    with screens.show_progress(is_live=False) as progress:
        task = progress.add_task("bench", total=len(chosen))

        def announce(family: str) -> None:
            done = chosen.index(family)
            progress.update(task, description=family, completed=done, refresh=True)

        report = run_bench(chosen, is_quick=quick, folder=scratch, announce=announce)
    if as_json:
        write_json(records.bench_record(report))
    else:
        screen = screens.Screen()
        screen.print(pictures.bench_view(report, screen))
    if check and report.missed:
        raise click.exceptions.Exit(1)
