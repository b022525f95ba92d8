"""Region files, valid ones and mutations of them: of fields, of texts, of bytes.

Each mutation is known by its generator of random numbers, so that it can be made again. Checksums
and lengths are put right again in most, as malice would: else nothing behind them were tried.
"""

from __future__ import annotations

import functools
import random
import re
import struct
from collections.abc import Iterator

import numpy as np

from jessymem import LayerId, RegionBuilder
from support import naive
from support.naive import Draft, resign, set_field, write_plain

# -- files to begin with ---------------------------------------------------------------------------


def _built(*numbers: int, name: str = "Name") -> bytes:
    builder = RegionBuilder(1, name)
    for number in numbers:
        builder.add_layer(
            number,
            bytes([number % 251]) * (number * 13 % 150) if number % 3 else f"text {number}",
            name=f"layer {number}",
            frequency=number / 7,
            depth=number % 256,
            keywords=["word", f"k{number}", "\u5730"][: number % 4],
            parent=LayerId(1, numbers[0]) if number != numbers[0] else None,
        )
    return bytes(builder.build_to_memory().data)


def _plain(*numbers: int) -> bytes:
    return write_plain(
        [
            Draft(number, bytes([number % 251]) * (number % 40), number % 256, number / 7, words)
            for number in numbers
            for words in [[b"word", b"", "\u5730".encode()][: number % 4]]
        ],
        name=b"plain",
        tail=b"tail",
    )


def _arrays() -> bytes:
    builder = RegionBuilder(1, "arrays")
    builder.add_array(0, np.arange(6, dtype="<i2").reshape(2, 3), name="plain")
    builder.add_array(1, np.asfortranarray(np.arange(6.0).reshape(2, 3)), keywords=["k"])
    fields = np.dtype([("a", "<f8"), ("b", [("c", ">i2"), ("d", "<M8[s]")], (2,))])
    builder.add_array(4, np.zeros(3, fields))
    builder.add_layer(5, "text")
    builder.add_array(9, np.zeros((0, 2), "<U3"))
    builder.add_array(300, np.array([1.5], [("\u5730", "<f4")]))
    return bytes(builder.build_to_memory().data)


def _compressed() -> bytes:
    builder = RegionBuilder(1, "compressed")
    builder.add_layer(0, b"river and stone " * 40, name="text", keywords=["k"])
    builder.add_layer(2, "plain")
    builder.add_array(5, np.zeros((20, 9), "<i4"))
    builder.add_layer(9, bytes(range(256)) * 3 + bytes(5_000))
    return bytes(builder.build_to_memory(compress="zstd").data)


@functools.cache
def bases() -> tuple[bytes, ...]:
    """Make the valid files that mutations begin with."""
    return (
        _built(0, 1, 2, 3),
        _built(3, 9, 300, 65_535),
        _built(),
        _built(7, name="\u5730" * 21 + "x"),
        _built(*range(20)),
        _plain(5, 2, 65_535, 0),
        _plain(),
        _plain(*range(30, 10, -1)),
        _arrays(),
        _arrays(),
        _compressed(),
        _compressed(),
    )


def _walk(raw: bytes) -> Iterator[tuple[int, int]]:
    fields = {**naive.HEADER_FIELDS, **naive.EXTENSION_FIELDS}
    for at, code in fields.values():
        yield at, min(struct.calcsize(code), 8)
    n_layers = naive.get_field(raw, "layer_count")
    if naive.get_field(raw, "extension_magic") == b"JMX1":
        for row in range(n_layers):
            for field, (_, code) in naive.ROW_FIELDS.items():
                yield naive.field_offset(raw, row, field), struct.calcsize(code)
        first = naive.get_field(raw, "frames_offset")
        for frame in range(naive.get_field(raw, "n_frames")):
            for at, code in naive.FRAME_FIELDS.values():
                yield first + frame * naive.FRAME_BYTES + at, struct.calcsize(code)
    at = naive.HEADER.size
    for layer in naive.read_plain(raw).layers:
        yield from ((at, 2), (at + 2, 1), (at + 3, 4), (at + 7, 4))
        at += naive.ENTRY.size
        for keyword in layer.keywords:
            yield at, 4
            at += 4 + len(keyword)
        yield from ((at, 8), (at + 8, 4))
        at += naive.EXTENT.size


@functools.cache
@functools.cache
def fields_of(raw: bytes) -> list[tuple[int, int]]:
    """Return offset and width of every field of a valid file."""
    return list(_walk(raw))


# -- mutations -------------------------------------------------------------------------------------

_NUMBERS = [0, 1, 2, 3, 4, 7, 23, 63, 64, 65, 255, 256, 257, 4_095, 4_096, 4_097, 0x7F800000]
LITERALS = [b"O", b"<", b">", b"'", b"(", b")", b"[", b"{", b"-", b"-1", b"0", b"9" * 20, b"L"]
LITERALS += [b"True", b"False", b"|O", b"|V0", b"<U9", b"<M8[ns]", b"((((", b"[" * 99, b"\\", b"\n"]
INTERESTING = sorted(
    {*_NUMBERS, *(2**power + step for power in (7, 15, 16, 24, 31, 32, 63, 64) for step in (-1, 0))}
)


def _set_number(raw: bytearray, rng: random.Random, base: bytes) -> None:
    at, width = rng.choice(fields_of(base))
    held = int.from_bytes(raw[at : at + width], "little")
    other_at, other_width = rng.choice(fields_of(base))
    other = int.from_bytes(base[other_at : other_at + other_width], "little")
    number = rng.choice(
        [
            rng.choice(INTERESTING),
            rng.choice(INTERESTING),
            held + rng.choice([-64, -8, -1, 1, 8, 64]),
            len(raw) + rng.randrange(-2, 3),
            other,
            other_at,
        ]
    )
    raw[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")


def _flip_bits(raw: bytearray, rng: random.Random, base: bytes) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def _set_bytes(raw: bytearray, rng: random.Random, base: bytes) -> None:
    at, n_bytes = rng.randrange(len(raw)), rng.choice([1, 2, 4, 8, 64])
    piece = rng.choice([bytes(n_bytes), b"\xff" * n_bytes, rng.randbytes(n_bytes)])
    raw[at : at + n_bytes] = piece[: len(raw) - at]


def _splice(raw: bytearray, rng: random.Random, base: bytes) -> None:
    source = rng.choice([base, rng.choice(bases())])
    start = rng.randrange(len(source))
    piece = source[start : start + rng.choice([1, 4, 23, 64, 200])]
    at = rng.randrange(len(raw))
    raw[at : at + rng.choice([0, len(piece), len(piece)])] = piece


def _describe(raw: bytearray, rng: random.Random, base: bytes) -> None:
    """Change the text of an array's description, at its length."""
    offsets = [match.start() for match in re.finditer(b"\x93NUMPY", raw)]
    if not offsets:
        return _set_number(raw, rng, base)
    at = rng.choice(offsets) + rng.choice([rng.randrange(128), rng.randrange(10, 80)])
    piece = rng.choice([*LITERALS, bytes([rng.randrange(256)])])
    raw[at : at + len(piece)] = piece[: len(raw) - at]


def _cut(raw: bytearray, rng: random.Random, base: bytes) -> None:
    at = rng.randrange(len(raw))
    del raw[at : rng.choice([len(raw), at + 1, at + 4, at + 64])]


def _append(raw: bytearray, rng: random.Random, base: bytes) -> None:
    raw += rng.choice([bytes(64), rng.randbytes(30), base[rng.randrange(len(base)) :]])


MUTATIONS = [_set_number] * 5 + [_flip_bits] * 2 + [_set_bytes, _splice, _cut, _append, _describe]


def mutate(rng: random.Random) -> bytes:
    """Make a valid file, changed, with checksums that hold or not."""
    base = rng.choice(bases())
    raw = bytearray(base)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if raw:
            rng.choice(MUTATIONS)(raw, rng, base)
    return repair(bytes(raw), rng)


def repair(raw: bytes, rng: random.Random) -> bytes:
    """Put length and checksums right, or leave some of them."""
    if len(raw) < naive.HEADER.size:
        return raw
    if rng.random() < 0.6:
        raw = set_field(raw, "total_size", len(raw))
    if rng.random() < 0.7 and naive.get_field(raw, "extension_magic") == b"JMX1":
        start, n_layers = (naive.get_field(raw, name) for name in ("table_offset", "layer_count"))
        has_table = naive.HEADER.size <= start and start + 64 * n_layers <= len(raw)
        raw = resign(raw, contents=has_table and rng.random() < 0.4)
    return raw
