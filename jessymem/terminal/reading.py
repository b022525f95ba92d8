"""The commands that write layers to stdout."""

from __future__ import annotations

from pathlib import Path

import click

from jessymem.ids import LayerId
from jessymem.regions.paths import region_files
from jessymem.terminal import records
from jessymem.terminal.arguments import layers_argument
from jessymem.terminal.completion import complete_layer
from jessymem.terminal.shell import (
    json_option,
    parse_layer,
    source_option,
    write_content,
    write_json,
)
from jessymem.terminal.stores import dimensions_of, find_layers, folder_of, reader_of


@click.command()
@click.argument("layer", metavar="LAYER", callback=parse_layer, shell_complete=complete_layer)
@source_option()
def cat(layer: LayerId | str, data: Path | str) -> None:
    """Write a layer's bytes to stdout, as they are.

    LAYER is an id such as L01-05, or a name: bash/README, or D18/bash/README where other
    dimensions have one too.

    Only on a terminal are control characters shown as escapes, so that no content can act on
    it.
    """
    folder = folder_of(data, dimensions_of([layer]))
    (found,) = find_layers([layer], folder)
    region = region_files(folder, found.dimension).open_newest()
    write_content(region.content_of(region.find_row(found)))


@click.command()
@layers_argument
@click.option("--max-chars", metavar="N", type=click.IntRange(min=0), help="Cut at N characters.")
@click.option("--metadata", is_flag=True, help="With all that is known of each layer.")
@source_option()
@json_option
def contexts(
    layers: tuple[LayerId | str, ...],
    max_chars: int | None,
    metadata: bool,
    data: Path | str,
    as_json: bool,
) -> None:
    """Write layers as text for a language model.

    In the order given, each with a heading; UTF-8, whatever the terminal's encoding. LAYER is
    an id such as L01-05, or a name, as for cat.
    """
    folder = folder_of(data, dimensions_of(layers))
    wanted = find_layers(layers, folder)
    dimensions = {layer.dimension for layer in wanted}
    with reader_of(dimensions, folder) as manager:
        for dimension in sorted(dimensions):
            manager.load_dimension(dimension)
        found = manager.load_contexts(wanted)
        if as_json:
            write_json(records.contexts_record(found))
        elif metadata:
            write_content(found.format_with_metadata(max_chars).encode())
        else:
            write_content(found.format_for_llm(max_chars).encode())
