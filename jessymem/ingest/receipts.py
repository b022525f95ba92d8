"""`build.json`: from what a region file was built, so that it need not be built again.

It lies beside the region file and is believed only while that is the one that it tells of: of the
same generation, time and length, with nothing learned beside it. Whoever loses it loses nothing but
time: contents are compared instead. It says nothing that whoever may write it could not say in the
region file too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash

from jessymem import osmem
from jessymem.ids import DimensionId
from jessymem.ingest.sources import PlannedLayer, Source
from jessymem.logger import logger
from jessymem.regions.arrays import NoDescription, read_description
from jessymem.regions.drafts import EncodedContent, LayerDraft
from jessymem.regions.layout import Edition

RECEIPT_FILE: Final = "build.json"

#: Of the rules by which a source becomes layers; another one, and nothing is believed.
_VERSION: Final = 1

_MAX_BYTES: Final = 2**26

#: A file that was changed so shortly before it was read may have been changed again, unseen: some
#: file systems count in steps of two seconds.
_UNSURE_NS: Final = 2 * 10**9


class Receipt(NamedTuple):
    """What was built: from what, and when that was looked at."""

    edition: Edition
    built: dict[str, Any]
    looked_ns: int

    def tells_of(self, source: Source, name: str, compress: str | None = None) -> bool:
        """Tell whether a source is still what was built, by length and time of each file.

        And in the way that is asked for, if any is.
        """
        said = describe(source, name, self.built.get("compress") if compress is None else compress)
        last = max((file.changed_ns for file in source.files), default=0)
        is_sure = last < self.looked_ns - _UNSURE_NS
        return "files" in said and said == self.built and is_sure

    def is_of(self, source: Source) -> bool:
        """Tell whether it is of the same source, whatever has become of that since."""
        return self.built.get("source") == _place_of(source)


def _place_of(source: Source) -> str:
    return os.path.realpath(source.path)


def describe(source: Source, name: str, compress: str | None = None) -> dict[str, Any]:
    """Say where a source is, and, where that can be told, what its layers depend on."""
    options = source.options
    known = {"version": _VERSION, "name": name, "source": _place_of(source)}
    if compress is not None:
        known["compress"] = compress
    if options is None:
        return known
    return {
        **known,
        "options": options,
        "files": [
            [file.name, str(file.path), file.n_bytes, file.changed_ns] for file in source.files
        ],
    }


def read_receipt(folder: Path) -> Receipt | None:
    """Read what lies beside a region file; None where there is nothing to be believed."""
    try:
        raw = osmem.read_file(folder / RECEIPT_FILE, _admit).data
        record = json.loads(bytes(raw))
        if not isinstance(record, dict) or record.pop("xxh3", None) != _checksum(record):
            return None
        edition = Edition(*map(int, record["edition"]))
        built, looked_ns = record["built"], record["looked_ns"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
    if not isinstance(built, dict) or type(looked_ns) is not int:
        return None
    return Receipt(edition, built, looked_ns)


def _admit(n_bytes: int) -> None:
    if n_bytes > _MAX_BYTES:
        raise ValueError(f"{n_bytes:,} bytes are no receipt")


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write it beside a region file; where that cannot be, the next build takes longer."""
    record = {**receipt._asdict(), "edition": list(receipt.edition)}
    raw = json.dumps({**record, "xxh3": _checksum(record)}).encode()
    temporary = folder / f".{RECEIPT_FILE}.tmp"
    try:
        osmem.remove_file(temporary)  # of a build that was killed
        with osmem.create_file(temporary) as file:
            osmem.write_pieces(file, temporary, [raw])
        osmem.replace_file(temporary, folder / RECEIPT_FILE)
    except OSError as error:
        with suppress(OSError):
            osmem.remove_file(temporary)
        path = str(folder / RECEIPT_FILE)
        logger.warning("cannot write %s: %s", path, error, extra={"path": path})


def remove_receipt(folder: Path) -> None:
    """Take it away, before the region file is another one."""
    with suppress(OSError):
        osmem.remove_file(folder / RECEIPT_FILE)


def now_ns() -> int:
    """Return the time as file systems tell it."""
    return time.time_ns()


# -- without a receipt -----------------------------------------------------------------------------


def is_in(
    table: Any,
    dimension: DimensionId,
    name: str,
    layers: Iterable[tuple[PlannedLayer, EncodedContent]],
    n_layers: int,
) -> bool:
    """Tell whether a region holds just these layers; what is left after a difference is not read.

    Parameters
    ----------
    table : MmapRegion or RegionChain
    dimension : DimensionId
    name : str
        The dimension's.
    layers : iterable of (PlannedLayer, EncodedContent)
        In any order.
    n_layers : int
        How many there are.
    """
    if table.name != name or table.n_layers != n_layers:
        return False
    for layer, encoded in layers:
        if not table.has_layer(layer.layer_id.layer):
            return False
        if not _is_same(table, table.find_row(layer.layer_id), layer.draft(encoded)):
            return False
        del encoded  # before the next is read
    return True


def _is_same(table: Any, row: int, draft: LayerDraft) -> bool:
    record = table.rows[row]
    start, end = table.extent_of(row)
    same = (
        end - start == len(draft.content)
        and record["encoding"] == draft.encoding
        and record["depth"] == draft.depth
        and record["frequency"] == np.float32(draft.frequency)
        and table.parent_of(row) == draft.parent
        and table.name_of(row).encode() == draft.name
        and [each.encode() for each in table.keywords_of(row)] == list(draft.keywords)
    )
    if not same or record["content_xxh3"] != xxhash.xxh3_64_intdigest(draft.content):
        return False
    try:
        form = read_description(draft.array_header) if draft.array_header else None
    except NoDescription:
        return False
    found = table.form_of(row)
    return (found is None and form is None) or (
        found is not None and form is not None and found[:3] == form[:3]
    )


def _checksum(record: dict[str, Any]) -> str:
    raw = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(raw)
