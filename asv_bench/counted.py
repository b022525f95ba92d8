"""Runs each loop whose instructions are counted; `benchmarks/instructions.py` starts it.

Outside valgrind the requests do nothing, and the process only fills the cache of compiled code.
"""

import ctypes
import mmap
import sys
import tempfile
from pathlib import Path

import numpy as np

from jessymem import PoolAllocator
from jessymem.bench import data, loops
from jessymem.warming import warmup

# From valgrind's callgrind.h: 'C' and 'T' name the tool, then the requests in their order.
BASE = (ord("C") << 24) + (ord("T") << 16)
DUMP_STATS_AT, START, STOP = BASE + 3, BASE + 4, BASE + 5

# valgrind.h's request on x86-64, as a function of the address of six words.
REQUEST = bytes.fromhex(
    "48 89 f8"  # mov rax, rdi: where the words are
    "31 d2"  # xor edx, edx: the answer where there is no valgrind
    "48 c1 c7 03 48 c1 c7 0d 48 c1 c7 3d 48 c1 c7 33"  # rol rdi by 3, 13, 61, 51: by nothing
    "48 87 db"  # xchg rbx, rbx: the mark that valgrind looks for
    "48 89 d0 c3"  # mov rax, rdx; ret
)
code = mmap.mmap(-1, len(REQUEST), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(REQUEST)
entry = ctypes.addressof(ctypes.c_char.from_buffer(code))
request = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(entry)


def ask(code, argument=0):
    words = (ctypes.c_uint64 * 6)(code, argument)
    request(ctypes.addressof(words))


def count(name, work, *arguments):
    """Count one call's instructions, after one that is not counted."""
    work(*arguments)
    ask(START)
    work(*arguments)
    ask(STOP)
    title = ctypes.create_string_buffer(name.encode())
    ask(DUMP_STATS_AT, ctypes.addressof(title))


def main(n_times):
    warmup()
    ask(STOP)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        path = data.build(base, 20, data.numbered(n_times, 64))
        plain = data.make_plain(path, base / "plain.mmap")
        layer_ids = data.all_layers([20], n_times)
        with data.open_manager(base, zero_on_reuse=False) as manager:

            def load_plain():
                manager.load_dimension(20, plain)
                manager.unload_dimension(20)

            count("load_plain", load_plain)
            manager.load_dimension(20)
            if hasattr(manager, "locate_many"):
                count("locate_many", manager.locate_many, layer_ids)
                count("gather", manager.gather, layer_ids)
                count("locate_compiled", loops.locate_each(), manager.store(), layer_ids)
            allocator = PoolAllocator(zero_on_reuse=False)
            count("pairs", loops.pairs(), allocator.words, 4_096, n_times)
            sizes = np.full(min(n_times, 5_000), 64)

            def allocate_many():
                for _ in range(n_times // len(sizes)):
                    manager.deallocate_many(manager.allocate_many(sizes))

            count("allocate_many", allocate_many)


if __name__ == "__main__":
    main(int(sys.argv[1]))
