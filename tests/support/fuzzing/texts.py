"""Texts and arguments that others may hand over, valid ones and mutations: all but region files."""

from __future__ import annotations

import functools
import math
import random
import struct
from typing import Any

import numpy as np

from jessymem.regions import arrays
from support.fuzzing.files import INTERESTING, LITERALS

# -- descriptions of arrays ------------------------------------------------------------------------

_DTYPES = (
    "<f8",
    ">i2",
    "|b1",
    "<U3",
    "|S7",
    "<M8[25us]",
    "<m8",
    "|V5",
    [("a", "<f8"), ("b", [("c", ">i2"), ("d", "<M8[s]")], (2,))],
    [("\u5730", "<f4"), ("", "|u1")],
    [(("title", "name"), "<c16")],
    {"names": ["x", "y"], "formats": ["<i4", "<i4"], "offsets": [4, 12], "itemsize": 20},
)
_SHAPES = ((), (0,), (3,), (2, 3), (1, 0, 4))


@functools.cache
def descriptions() -> tuple[bytes, ...]:
    """Make valid descriptions."""
    made = [
        arrays.describe_array(np.zeros(shape, np.dtype(dtype)), "it")[0]
        for dtype in _DTYPES
        for shape in _SHAPES
    ]
    return (*made, arrays.describe_array(np.asfortranarray(np.zeros((4, 5))), "it")[0])


def mutate_description(rng: random.Random) -> bytes:
    raw = rng.choice(descriptions())
    version, text = raw[6:8], raw[10 if raw[6] == 1 else 12 :]
    for _ in range(rng.choice([1, 1, 2, 4])):
        text = _mutate_text(text, rng, LITERALS, descriptions())
    if rng.random() < 0.1:
        version = rng.choice([b"\1\0", b"\2\0", b"\3\0", b"\1\1", b"\0\0"])
    length = len(text) if rng.random() < 0.9 else rng.choice(INTERESTING)
    form = struct.Struct("<H" if version == b"\1\0" else "<I")
    length %= 2 ** (8 * form.size)
    made = b"\x93NUMPY" + version + form.pack(length) + text
    return made if rng.random() < 0.95 else _mutate_text(made, rng, LITERALS, descriptions())


def _mutate_text(
    text: bytes, rng: random.Random, words: list[bytes], others: tuple[bytes, ...]
) -> bytes:
    """Cut something out of a text, or put something in."""
    at = rng.randrange(len(text) + 1)
    end = min(len(text), at + rng.choice([0, 0, 1, 1, 2, 5, 20]))
    other = rng.choice(others)
    start = rng.randrange(len(other) + 1)
    piece = rng.choice(
        [
            b"",
            rng.choice(words),
            rng.choice(words),
            bytes([rng.randrange(256)]),
            text[at : at + 10] * rng.choice([2, 50]),
            str(rng.choice(INTERESTING)).encode(),
            other[start : start + rng.choice([3, 12, 40])],
        ]
    )
    return text[:at] + piece + text[end:]


# -- manifests -------------------------------------------------------------------------------------

MANIFESTS = (
    b"""name = "Technical"
[layers."00-tools.md"]
name = "Tools"
layer = 3
frequency = 1.2
depth = 1
keywords = ["hammer", "loom"]
parent = "L07-00"
[layers.b]
parent = 0
""",
    b'layers = {a = {layer = 1, keywords = []}, "b.c" = {frequency = 1e300, name = ""}}\r\n',
    b"name = '''x'''\n[layers]\n",
    b"",
)
_TOML = [b"[", b"]", b"[[", b'"', b"'", b'"""', b"=", b"=1", b"\n", b"{", b"}", b"#", b"."]
_TOML += [b"\\u0000", b"\\ud800", b"inf", b"nan", b"-1", b"1979-05-27T07:32:00Z", b"0x", b"1e999"]
_TOML += [b"9" * 5000, b"[" * 2000, b"a." * 500, b"{a=" * 500, b"true", b"layers", b"L07-00"]
_TOML += [b"name=", b"layer=", b"keywords=", b"parent=", b"65536", b"\xff", b"\xef\xbb\xbf"]


def mutate_manifest(rng: random.Random) -> bytes:
    raw = rng.choice(MANIFESTS)
    for _ in range(rng.choice([1, 1, 2, 3])):
        raw = _mutate_text(raw, rng, _TOML, MANIFESTS)
    return raw


# -- rows, and what exports and builds note --------------------------------------------------------

RECORDS = (
    b"""{"name": "notes", "layers": {"a": {"layer": 3, "name": "A", "frequency": 1.5, "depth": 1,
"keywords": ["k"], "parent": "L07-00", "encoding": "npy"}, "b": {"parent": 0}}}""",
    b'{"text": "a", "name": "n", "tags": ["x", "y"]}\n{"text": null, "tags": "x, y"}\n',
    b'{"layers": {}}',
    b'text,name,keywords\n"a ""b"", c",n,"x, y"\nd,,\n',
    b'{"edition": [1, 2, 3], "built": {"files": []}, "looked_ns": 1, "xxh3": "0"}',
)
_JSON = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\r", b"null", b"true", b"NaN", b"1e999"]
_JSON += [b"-1", b"65536", b"9" * 5000, b"[" * 2000, b'{"a":' * 500, b"\\ud800", b"\\u0000", b"\0"]
_JSON += [b"layers", b"text", b"layer", b"L07-00", b"\xff", b"\xef\xbb\xbf", b'""', b"1.5", b"inf"]


def mutate_record(rng: random.Random) -> bytes:
    raw = rng.choice(RECORDS)
    for _ in range(rng.choice([0, 1, 1, 2])):
        raw = _mutate_text(raw, rng, _JSON, RECORDS)
    return raw


# -- arguments -------------------------------------------------------------------------------------

_NAN = math.nan
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**15, 2**16, 2**31, 2**32, 2**63, 2**64, 2**200, -(2**63), 1.0, _NAN,
    math.inf, 1j, "", "\0", "a", "D01", "L01-00", "L1-0", "L01-65536", "\ud800", "/", "/dev/null",
    "/dev/zero", "x" * 5000, b"", b"a", (), (1,), (1, 2, 3), ("a", "b", "c"), ([], {}, set()), [],
    {}, set(), np.int64(1), np.float64(1), np.array([1, 2, 3]), np.array(1), np.array("x"),
    range(3), object, print,
)  # fmt: skip
