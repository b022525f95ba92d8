"""Arrays of every kind, descriptions that lie, and what it means that an array came back."""

import struct

import numpy as np
import pytest

from jessymem import RegionBuilder
from support import naive
from support.naive import put, resign, set_row_field

# -- arrays ----------------------------------------------------------------------------------------

NESTED = np.dtype(
    [("x", "<f8"), ("y", [("z", ">i2", (2, 3)), ("\u5730", "<U3")]), ("t", "<M8[ns]")]
)
ALIGNED = np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True)
SPREAD = np.dtype(
    {"names": ["a", "b"], "formats": ["<i4", "<i2"], "offsets": [4, 12], "itemsize": 20}
)

KINDS = {
    "bool": np.array([True, False]),
    "half": np.arange(5, dtype="f2"),
    "big-endian": np.arange(5, dtype=">i4"),
    "complex": np.arange(3) + 1j,
    "long double": np.arange(3, dtype=np.longdouble),
    "text": np.array(["", "a\u5730", "b"]),
    "bytes": np.array([b"", b"abc", b"a\0b"]),
    "void": np.array([b"ab", b"cd"], "V2"),
    "dates": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "date steps": np.arange(3).astype("m8[25s]"),
    "nested": np.zeros(3, NESTED),
    "aligned": np.ones((2, 2), ALIGNED),
    "gaps between fields": np.ones(2, SPREAD),
    "titles": np.zeros(2, [(("a title", "name"), "<f8"), ("other", "<i4")]),
    "a name that is no text": np.zeros(1, [("a\ud800", "f8")]),
    "no fields": np.zeros(3, []),
    "no bytes an item": np.ndarray((4,), "S0"),
    "no axes": np.array(7.5),
    "no elements": np.zeros((3, 0, 2)),
    "no rows": np.zeros((0, 5), ">f4"),
    "Fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "Fortran of three axes": np.arange(24).reshape(2, 3, 4).T,
    "64 axes": np.ones((1,) * 64),
    "many elements": np.arange(100_000, dtype="u1"),
}
OTHER_STRIDES = {
    "every second": np.arange(20.0)[::2],
    "backwards": np.arange(20)[::-1],
    "swapped axes": np.arange(24).reshape(2, 3, 4).swapaxes(0, 1),
    "a column": np.arange(12).reshape(3, 4)[:, 1],
    "one for all": np.broadcast_to(np.float32(2), (3, 4)),
    "off its alignment": np.frombuffer(bytes(33), np.uint8)[1:].view("f8"),
}


def order_of(array):
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def check_same(found, wanted):
    """Check that an array came back as it went in, and can only be read."""
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert found.dtype.str == wanted.dtype.str
    assert order_of(found) == (order_of(wanted) if wanted.flags.forc else "C")
    assert found.tobytes() == np.asarray(wanted).tobytes()
    assert not found.flags.writeable and found.flags.forc
    with pytest.raises(ValueError):
        found.flags.writeable = True


# -- descriptions ----------------------------------------------------------------------------------


def describing(text, version=(1, 0), content=8, told=None):
    """Make a region whose layer 3 has `text` as its description, with checksums that hold."""
    text = (
        text if isinstance(text, bytes) else text.encode("utf-8" if version[0] == 3 else "latin-1")
    )
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text) if told is None else told)
    return holding(b"\x93NUMPY" + bytes(version) + length + text, content)


def holding(description, content=8):
    """Make a region whose layer 3 has a description that nobody has looked at."""
    builder = RegionBuilder(1, "Name")
    builder.add_array(3, np.zeros(content, "u1"), name="x" * len(description))
    raw = bytes(builder.build_to_memory().data)
    start = naive.get_field(raw, "heap_offset")
    raw = put(raw, start, description)
    raw = set_row_field(raw, 0, "name_size", 0)
    raw = set_row_field(set_row_field(raw, 0, "array_offset", 0), 0, "array_size", len(description))
    return resign(raw)


GOOD = "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }"


def telling(descr="'<f8'", order="False", shape="(1,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


HOSTILE = {
    "nothing but a byte": holding(b"x"),
    "half a magic": holding(b"\x93NUM"),
    "a magic alone": holding(b"\x93NUMPY"),
    "no length": holding(b"\x93NUMPY\1\0\1"),
    "another magic": holding(b"\x94NUMPY\1\0\1\0{"),
    "version 0": describing(GOOD, (0, 0)),
    "version 1.1": describing(GOOD, (1, 1)),
    "version 4": describing(GOOD, (4, 0)),
    "a length too short": describing(GOOD, told=len(GOOD) - 1),
    "a length too long": describing(GOOD, told=len(GOOD) + 1),
    "a length of 2**16 - 1": describing(GOOD, told=2**16 - 1),
    "a length of 2**32 - 1": describing(GOOD, (2, 0), told=2**32 - 1),
    "no text": describing(""),
    "no literal": describing("{'descr': f(), 'fortran_order': False, 'shape': (1,)}"),
    "an import": describing("__import__('os').abort()"),
    "no UTF-8": describing(b"{'descr': '\xff'}", (3, 0)),
    "zeros": describing(b"\0" * 60),
    "another literal": describing("[1, 2]"),
    "a key that cannot be": describing("{[]: 1}"),
    "a key is missing": describing("{'descr': '<f8', 'shape': (1,)}"),
    "a key too many": describing(telling()[:-1] + ", 'more': 1}"),
    "a literal of Python 2": describing(telling(shape="(1L,)")),
    "an invalid escape": describing(telling(r"'\d'")),
    "objects": describing(telling("'|O'")),
    "objects of 8 bytes": describing(telling("'|O8'")),
    "objects by name": describing(telling("'object'")),
    "objects in a field": describing(telling("[('a', '|O')]")),
    "objects deeper": describing(telling("[('a', [('b', '<i4'), ('c', '|O')], (2,))]")),
    "pickled data": describing(telling("'|O'"), content=200),
    "a type by name": describing(telling("'float64'")),
    "a dtype without a byte order": describing(telling("'f8'")),
    "a list in text": describing(telling("'<f4,<f4'")),
    "a repeated list in text": describing(telling("'9999999999f8'")),
    "a dictionary of fields": describing(telling("{'names': ['a'], 'formats': ['<f8']}")),
    "a pair with a shape": describing(telling("('<f8', (1,))")),
    "a dtype that is a number": describing(telling("8")),
    "a dtype that is nothing": describing(telling("None")),
    "a float of 3 bytes": describing(telling("'<f3'")),
    "a text of 2**31 characters": describing(telling("'<U2147483647'")),
    "a void of 99999999999": describing(telling("'|V99999999999'")),
    "a void of 2**31 - 1": describing(telling("'|V2147483647'")),
    "a unit that is none": describing(telling("'<M8[year]'")),
    "a unit with a divisor": describing(telling("'<M8[ns/3]'")),
    "fields of one name": describing(telling("[('a', '<f4'), ('a', '<f4')]")),
    "a field that is no pair": describing(telling("['<f8']")),
    "a field of four": describing(telling("[('a', '<f8', (1,), 1)]")),
    "a field named by a number": describing(telling("[(1, '<f8')]")),
    "a field of a negative shape": describing(telling("[('a', '<f8', (-1,))]")),
    "a field of a giant shape": describing(telling("[('a', '<f8', (2**31,))]")),
    "a field of 2**62 items": describing(telling(f"[('a', '<f8', ({2**62},))]")),
    "fields within fields": describing(telling("[('a', " * 110 + "'<f8'" + ")]" * 110)),
    "a shape that is a list": describing(telling(shape="[1]")),
    "a shape that is a number": describing(telling(shape="1")),
    "a shape of a float": describing(telling(shape="(1.0,)")),
    "a shape of a truth": describing(telling(shape="(True,)")),
    "a negative axis": describing(telling(shape="(-1,)")),
    "two negative axes": describing(telling(shape="(-1, -1)")),
    "an axis of 2**63": describing(telling(shape=f"({2**63},)")),
    "a product of 2**64 + 8": describing(telling("'|u1'", shape=f"({2**61 + 1}, 8)")),
    "a product of 0 modulo 2**64": describing(telling("'|u1'", shape=f"({2**32}, {2**32})")),
    "an axis of 5,000 digits": describing(telling(shape=f"({'9' * 5_000},)")),
    "an axis of 4,000 digits": describing(telling(shape=f"({'9' * 4_000},)")),
    "an axis of 8,000 hexadecimal digits": describing(telling(shape=f"(0x{'f' * 8_000},)")),
    "an order of as many": describing(telling(order=f"0x{'f' * 8_000}")),
    "a field's shape of as many": describing(telling(f"[('a', '<f8', (0x{'f' * 8_000},))]")),
    "empty and too large": describing(telling(shape=f"(0, {2**62})"), content=0),
    "no bytes and too many": describing(telling("'|S0'", shape=f"({2**63},)"), content=0),
    "65 axes": describing(telling(shape=str((1,) * 65))),
    "4,000 axes": describing(telling(shape="(" + "1," * 4_000 + ")")),
    "an order that is a number": describing(telling(order="0")),
    "an order that is nothing": describing(telling(order="None")),
    "one element too few": describing(telling(shape="(0,)")),
    "one element too many": describing(telling(shape="(2,)")),
    "parentheses": describing("(" * 9_000),
    "parentheses that are closed": describing("(" * 4_000 + ")" * 4_000),
    "lists within lists": describing("[" * 150 + "]" * 150),
    "dictionaries within dictionaries": describing("{1:" * 150 + "1" + "}" * 150),
    "minus signs": describing("-" * 9_000 + "1"),
    "tildes": describing("~" * 9_000 + "1"),
    "sums": describing("1" + "+1" * 4_000),
    "calls": describing("()" * 4_000),
    "lambdas": describing("lambda:" * 1_200 + "1"),
    "attributes": describing("a" + ".a" * 4_000),
    "the longest text": describing("9" * 9_990),
}
