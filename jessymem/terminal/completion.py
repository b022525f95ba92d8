"""What a shell is offered where a command takes a dimension, a layer or a region file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from jessymem import inspection
from jessymem.config import MemoryConfig
from jessymem.errors import JessyMemoryError

#: More than that nobody reads, and a file may have 65,536 layers.
_N_OFFERED: Final = 200

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offering(offers: Callable[[Path, str], Iterator[CompletionItem]]) -> Complete:
    """Return what click calls: of what is offered under the folder that was chosen, the first."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        data = Path(ctx.params.get("data") or MemoryConfig.base_path)
        try:
            return list(islice(offers(data, incomplete), _N_OFFERED))
        except (JessyMemoryError, OSError):
            return []  # the command itself will say why

    return complete


def _dimensions(data: Path, incomplete: str) -> Iterator[CompletionItem]:
    for target in inspection.find_regions(data):
        if str(target.dimension_id).startswith(incomplete.upper()):
            facts = inspection.survey(target).facts
            yield CompletionItem(
                str(target.dimension_id), help=facts.name if facts else "unreadable"
            )


def _targets(data: Path, incomplete: str) -> Iterator[CompletionItem]:
    yield from _dimensions(data, incomplete)
    yield CompletionItem(incomplete, type="file")


def _layers(data: Path, incomplete: str) -> Iterator[CompletionItem]:
    wanted = incomplete.upper()
    for target in inspection.find_regions(data):
        start = f"L{str(target.dimension_id)[1:]}-"
        if start.startswith(wanted) or wanted.startswith(start):
            region: Any = inspection.open_target(target)
            for layer in region.list_layers():
                if str(layer).startswith(wanted):
                    yield CompletionItem(str(layer), help=region.get_layer_info(layer).name)


complete_dimension: Final = _offering(_dimensions)
complete_target: Final = _offering(_targets)
complete_layer: Final = _offering(_layers)
