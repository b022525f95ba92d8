"""The commands that write layers to stdout."""

from __future__ import annotations

from pathlib import Path

import click

from jessymem.ids import LayerId
from jessymem.ingest.building import region_files
from jessymem.terminal import records
from jessymem.terminal.completion import complete_layer
from jessymem.terminal.shell import (
    data_option,
    json_option,
    parse_layer,
    write_content,
    write_json,
)
from jessymem.terminal.stores import reader_of


@click.command()
@click.argument("layer", metavar="L01-05", callback=parse_layer, shell_complete=complete_layer)
@data_option()
def cat(layer: LayerId, data: Path) -> None:
    """Write a layer's bytes to stdout, as they are.

    Only on a terminal are control characters shown as escapes, so that no content can act on
    it.
    """
    region = region_files(data, layer.dimension).open_newest()
    write_content(region.content_of(region.find_row(layer)))


@click.command()
@click.argument(
    "layers",
    metavar="L01-00...",
    nargs=-1,
    required=True,
    callback=parse_layer,
    shell_complete=complete_layer,
)
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
    with reader_of(dimensions, data) as manager:
        for dimension in sorted(dimensions):
            manager.load_dimension(dimension)
        found = manager.load_contexts(layers)
        if as_json:
            write_json(records.contexts_record(found))
        elif metadata:
            write_content(found.format_with_metadata(max_chars).encode())
        else:
            write_content(found.format_for_llm(max_chars).encode())
