"""Literals of array descriptions: what is read, what is refused, and how deep it may be."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from jessymem import RegionBuilder
from jessymem.regions.literals import MAX_DEPTH, read_literal

READ = [
    "()",
    "(3,)",
    "( 3 , 4 )",
    "(3)",
    "[]",
    "[1, 'a', True, False, (), [[0]]]",
    "{}",
    "{'a': 1, \"b\": (2,),}",
    " \t\n{'a'\n:\n1} \n",
    r"'it\'s \\ \n \x41 \u00e4 \U0001f600'",
    '"it\'s"',
    "'\u00e4'",
    "9223372036854775807",
]

REFUSED = {
    "nothing": "",
    "a sign": "-1",
    "a number and more": "1L",
    "a number with zeros in front": "007",
    "a number in hex": "0x10",
    "a fraction": "1.5",
    "a number too long": "1" * 20,
    "None": "None",
    "a name": "descr",
    "a name that begins well": "Trueish",
    "a call": "list()",
    "a sum": "1 + 1",
    "bytes": "b'a'",
    "a string without end": "'a",
    "a string with a line break": "'a\nb'",
    "a string with a carriage return": "'a\rb'",
    "a string with a null": "'a\0b'",
    "two strings": "'a' 'b'",
    "an unknown escape": r"'\N{DIGIT ONE}'",
    "an octal escape": r"'\101'",
    "an escape that is cut": r"'\x4'",
    "a character that is none": r"'\U00110000'",
    "two values": "1 2",
    "a comma alone": "(,)",
    "two commas": "[1,,]",
    "no comma": "[1 2]",
    "brackets that differ": "(1]",
    "an open bracket": "[1,",
    "a key without a value": "{'a'}",
    "a key without a colon": "{'a' 1}",
    "a key that is no string": "{1: 1}",
    "a comment": "1 # one",
}

HOSTILE = {
    "minus signs": "-" * 9_000 + "1",
    "plus signs": "+" * 9_000 + "1",
    "tildes": "~" * 9_000 + "1",
    "nots": "not " * 2_000 + "True",
    "powers": "2**" * 3_000 + "2",
    "sums": "1+" * 4_500 + "1j",
    "conditions": "1 if 1 else " * 700 + "1",
    "lambdas": "lambda:" * 1_200 + "1",
    "attributes": "a" + ".a" * 4_500,
    "calls": "a" + "()" * 4_500,
    "lists": "[" * 4_500 + "]" * 4_500,
    "tuples": "(" * 4_500 + ")" * 4_500,
    "dictionaries": "{'a':" * 1_500 + "1" + "}" * 1_500,
    "open lists": "[" * 9_000,
    "backslashes": "'" + "\\" * 8_999,
    "quotes": "'" * 9_000,
    "blanks": " " * 9_000 + "x",
    "digits": "9" * 9_000,
    "commas": "(" + "," * 9_000,
    "f-strings": "f'{" * 3_000,
}


@pytest.mark.parametrize("text", READ)
def test_what_numpy_writes_is_read_as_python_reads_it(text):
    assert repr(read_literal(text)) == repr(ast.literal_eval(text.strip()))


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        read_literal(text)


@settings(deadline=None, max_examples=500)
@given(st.text("'\"\\{}[](),: \n01x4TrueFals-.b", max_size=30))
@example("{'descr': [(('t', 'a'), '<i4', (2,))], 'fortran_order': False, 'shape': (3,), }")
def test_what_is_read_python_reads_alike(text):
    try:
        value = read_literal(text)
    except ValueError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes
        assert repr(ast.literal_eval(text.strip(" \t\n\r\f"))) == repr(value)


@given(st.recursive(st.text() | st.integers(0, 2**63) | st.booleans(), st.lists, max_leaves=9))
def test_what_python_writes_comes_back(value):
    assert read_literal(repr(value)) == value


def test_brackets_may_be_nested_up_to_the_limit():
    assert read_literal("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="brackets within one another"):
        read_literal("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_reading_does_not_recurse():
    depth = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 20)
    try:
        assert read_literal("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    finally:
        sys.setrecursionlimit(depth)


def nested(n_times):
    dtype = np.dtype("<i4")
    for _ in range(n_times):
        dtype = np.dtype([("a", dtype)])
    return np.zeros(2, dtype)


def test_dtypes_may_be_nested_in_dtypes_and_not_without_end():
    builder = RegionBuilder("D01", "Nested")
    builder.add_array(0, nested(90))
    region = builder.build_to_memory()
    assert region.read_array("L01-00").dtype == nested(90).dtype
    with pytest.raises(TypeError, match="would come back as another"):
        builder.add_array(1, nested(101))


IN_A_SMALL_STACK = """
    import json, sys, threading
    import numpy as np
    import xxhash
    from jessymem import RegionBuilder, RegionFormatError
    from jessymem.kernels import schema as s
    from jessymem.regions.region import MmapRegion

    def region_with(text):
        # Its array's description is as long as the hostile one, which takes its place.
        builder = RegionBuilder("D01", "Hostile")
        builder.add_array(7, np.zeros(1, [("n" * len(text), "<i4")]))
        raw = bytearray(builder.build_to_memory().data)
        at = raw.index(b"{'descr'")
        end = raw.index(b"\\n", at)
        raw[at:end] = f"{{'descr': {text}".ljust(end - at)[: end - at].encode()
        extension = raw[s.RESERVED_OFFSET : s.HEADER_BYTES]
        record = np.frombuffer(extension, s.EXTENSION).copy()
        metadata = raw[s.HEADER_BYTES : int(record["content_start"][0])]
        record["metadata_xxh3"] = xxhash.xxh3_64_intdigest(metadata)
        raw[s.RESERVED_OFFSET : s.HEADER_BYTES] = record.tobytes()
        checked = xxhash.xxh3_64_intdigest(raw[: s.CHECKED_HEADER_BYTES])
        raw[s.CHECKED_HEADER_BYTES : s.HEADER_BYTES] = checked.to_bytes(8, "little")
        return raw

    def read(raw):
        region = MmapRegion(1, None, np.frombuffer(bytes(raw), np.uint8), s.REGION_COPIED, None)
        assert region.layout.is_extended
        for verb in (region.read_array, region.get_layer_info):
            try:
                verb(1 << 16 | 7)
            except RegionFormatError as error:
                print(error.field)

    threading.stack_size(512 * 1024)
    for name, text in json.load(sys.stdin).items():
        print(name, flush=True)  # the last is the one that has ended the process
        raw = region_with(text)
        read(raw)
        thread = threading.Thread(target=read, args=(raw,))
        thread.start()
        thread.join()
"""


def test_hostile_descriptions_are_refused_in_a_small_stack():
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(IN_A_SMALL_STACK)],
        input=json.dumps(HOSTILE),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    told = [line for name in HOSTILE for line in (name, *["layer 7 array"] * 4)]
    assert result.stdout.splitlines() == told


def test_headers_of_numpy_itself_are_read(tmp_path):
    path = tmp_path / "array.npy"
    np.save(path, np.zeros((2, 3), [("a\u00e4", "<f8"), ("b", [("c", "|S3")], (2,))]))
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that field names are not latin-1
        version = npy.read_magic(file)
        length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
        text = file.read(length).decode("latin-1" if version < (3, 0) else "utf-8")
    assert read_literal(text) == ast.literal_eval(text)
