"""Many bytes at once: which of 64 positions, or whether any of 256, may be where a needle begins.

The plain functions say what is computed; their compiled forms compare whole vectors, which LLVM
brings to whatever width the machine has. Called by `search`. The probes of a NEEDLE are compared
all at once, so what is read from an address on reaches as far as the last of their offsets does.
Where a probe is a letter that is searched for in either case, the bit of its case is set in what is
read before the two are compared.
"""

from __future__ import annotations

import ctypes
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels._jit import Int
from jessymem.kernels.instructions import llvm, on_values, pointer
from jessymem.kernels.schema import N_PROBES, NEEDLE, word_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Positions that `match_many`, `match_few` and `match_any` look at together.
MANY: Final = 64
FEW: Final = 16
ANY: Final = 256

_OFFSETS: Final = word_of(NEEDLE, "offsets")
_VALUES: Final = word_of(NEEDLE, "values")
_FOLDS: Final = word_of(NEEDLE, "folds")


def _match(builder: Any, address: Any, needle: Any, n_positions: int, n_vectors: int = 1) -> Any:
    """Emit the comparison of every probe at `n_vectors` times `n_positions` positions.

    One vector's result is a mask; of several it is whether any bit is set in any of them.
    """
    ir = llvm()
    word, byte, lane = ir.IntType(64), ir.IntType(8), ir.IntType(32)
    vector, mask = ir.VectorType(byte, n_positions), ir.IntType(n_positions)
    undefined = ir.Constant(vector, ir.Undefined)
    all_first = ir.Constant(ir.VectorType(lane, n_positions), [0] * n_positions)
    words = pointer(builder, needle, 64)

    def field(first: int, probe: int) -> Any:
        return builder.load(builder.gep(words, [lane(first + probe)]), align=8)

    def spread(value: Any) -> Any:
        single = builder.insert_element(undefined, builder.trunc(value, byte), lane(0))
        return builder.shuffle_vector(single, undefined, all_first)

    def equal(first: Any, value: Any, fold: Any, start: int) -> Any:
        block = builder.inttoptr(builder.add(first, word(start)), vector.as_pointer())
        there = builder.or_(builder.load(block, align=1), fold)
        return builder.icmp_unsigned("==", there, value)

    probes = [
        (
            builder.add(address, field(_OFFSETS, i)),
            spread(field(_VALUES, i)),
            spread(field(_FOLDS, i)),
        )
        for i in range(N_PROBES)
    ]
    found = [
        reduce(builder.and_, [equal(*probe, i * n_positions) for probe in probes])
        for i in range(n_vectors)
    ]
    bits = builder.bitcast(reduce(builder.or_, found), mask)
    if n_vectors > 1:
        return builder.icmp_unsigned("!=", bits, mask(0))
    return bits if n_positions == 64 else builder.zext(bits, word)


@on_values("int64", lambda b, address, needle: _match(b, address, needle, MANY))
def match_many(address: Int, needle: Int) -> Int:
    """Return 64 bits, the lowest for `address`: set where every probe of the needle is."""
    return _as_word(_compare(address, needle, MANY))


@on_values("int64", lambda b, address, needle: _match(b, address, needle, FEW))
def match_few(address: Int, needle: Int) -> Int:
    """Do as `match_many` for 16 positions; the other bits are 0."""
    return _as_word(_compare(address, needle, FEW))


@on_values("boolean", lambda b, address, needle: _match(b, address, needle, MANY, ANY // MANY))
def match_any(address: Int, needle: Int) -> bool:
    """Tell whether every probe of the needle is at any of 256 positions from `address` on."""
    return bool(_compare(address, needle, ANY).any())


def _compare(address: Int, needle: Int, n_positions: int) -> NDArray[np.bool_]:
    words = (ctypes.c_int64 * (NEEDLE.itemsize // 8)).from_address(int(needle))
    found = np.ones(n_positions, np.bool_)
    for i in range(N_PROBES):
        bytes_there = ctypes.string_at(int(address) + words[_OFFSETS + i], n_positions)
        folded = np.frombuffer(bytes_there, np.uint8) | np.uint8(words[_FOLDS + i])
        found &= folded == words[_VALUES + i]
    return found


def _as_word(found: NDArray[np.bool_]) -> Int:
    bits = int.from_bytes(np.packbits(found, bitorder="little").tobytes(), "little")
    return np.int64(bits - 2**64 if bits >= 2**63 else bits)
