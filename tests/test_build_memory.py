"""A build holds about one copy of the longest of what it reads, whatever that is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.processes import with_support

from jessymem import LayerId
from jessymem.ingest import contents
from jessymem.ingest.contents import is_text, read_content

MIB = 2**20
N_BYTES = 32 * MIB

#: The most that a process ever held. `getrusage` would count what its parent held, too.
HIGH_WATER = "VmHWM:"

BUILD = f"""
import sys
from pathlib import Path
import jessymem

jessymem.build(sys.argv[1], sys.argv[2])
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("{HIGH_WATER}"):
        print(int(line.split()[1]) * 1024)
"""

LINE = b"a line of plain text\n"
ASCII = (LINE * (N_BYTES // len(LINE) + 1))[:N_BYTES]


def write_ascii(folder):
    (folder / "a").write_bytes(ASCII)


def write_one_emoji(folder):
    (folder / "a").write_bytes(ASCII[:-4] + "\U0001f600".encode())


def write_binary(folder):
    (folder / "a").write_bytes(np.random.default_rng(1).bytes(N_BYTES))


def write_late_binary(folder):
    (folder / "a").write_bytes(ASCII[:-1] + b"\xff")


def write_array(folder):
    np.save(folder / "a.npy", np.ones(N_BYTES // 8))


def write_many(folder):
    for i in range(8):
        (folder / f"a{i}").write_bytes(ASCII[: N_BYTES // 8])


def write_more(folder):
    for i in range(32):
        (folder / f"a{i}").write_bytes(ASCII[: N_BYTES // 8])


def write_byte(folder):
    (folder / "a").write_bytes(b"x")


def write_row(folder):
    (folder.parent / "a.jsonl").write_bytes(b'{"text": "x"}\n')


def write_number(folder):
    np.savez(folder.parent / "a.npz", a=np.ones(1))


def peak_of_build(tmp_path, name, write, given="."):
    source = tmp_path / name / "notes"
    source.mkdir(parents=True)
    write(source)
    where = [str(source.parent / given), str(tmp_path / f"{name}-data")]
    command = [sys.executable, "-c", BUILD, *where]
    environment = with_support({"COVERAGE_PROCESS_CONFIG": ""})
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def write_rows(folder):
    row = b'{"text": "' + ASCII[: MIB // 2].replace(b"\n", b" ") + b'"}\n'
    (folder.parent / "a.jsonl").write_bytes(row * (4 * N_BYTES // len(row)))


def write_archive(folder):
    np.savez(folder.parent / "a.npz", **{f"a{i}": np.ones(N_BYTES // 64) for i in range(32)})


told = pytest.mark.skipif(
    not os.path.exists("/proc/self/status")
    or HIGH_WATER not in Path("/proc/self/status").read_text(encoding="utf-8"),
    reason="the system does not tell what a process held at most",
)


@told
@pytest.mark.parametrize(
    ("write", "source", "n_largest"),
    [
        (write_more, "notes", N_BYTES // 8),
        pytest.param(write_rows, "a.jsonl", MIB // 2, marks=pytest.mark.slow),
        (write_archive, "a.npz", N_BYTES // 8),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_build_holds_about_one_content_however_many_there_are(write, source, n_largest, tmp_path):
    """128 MiB in all: at once there are the largest, and what waits to be written."""
    write_smallest = {"notes": write_byte, "a.jsonl": write_row, "a.npz": write_number}[source]
    base = peak_of_build(tmp_path, "small", write_smallest, source)
    peak = peak_of_build(tmp_path, "large", write, source) - base
    assert peak < 48 * MIB + 2 * n_largest, peak / MIB


@told
def test_a_build_holds_about_one_copy(tmp_path):
    base = peak_of_build(tmp_path, "small", write_byte)
    kinds = (write_ascii, write_one_emoji, write_binary, write_late_binary, write_array, write_many)
    copies = {
        write.__name__: (peak_of_build(tmp_path, write.__name__, write) - base) / N_BYTES
        for write in kinds
    }
    assert max(copies.values()) < 1.5, copies


# -- text or not, piece by piece -------------------------------------------------------------------

PIECES = [
    b"",
    b"plain",
    "\u00e9".encode(),
    "\U0001f600".encode(),
    "\U0001f600\u00e9x".encode() * 7,
    b"\xff",
    b"plain\xff",
    b"\xed\xa0\x80",  # a surrogate
    b"\xc3",
    b"plain \xf0\x9f\x98",
    b"\xf0\x9f\x98 plain",
    b"\x80" * 40,
    b"\xf4\x90\x80\x80",  # beyond the last character
    b"\xc0\x80",  # longer than it need be
    b"\0" * 9,
]


@pytest.mark.parametrize("n_together", [4, 5, 6, 7, 1000])
def test_text_is_what_decodes_wherever_it_is_cut(n_together, monkeypatch):
    monkeypatch.setattr(contents, "_PIECE_BYTES", n_together)
    for first in PIECES:
        for second in PIECES:
            content = first + second
            try:
                content.decode()
            except UnicodeDecodeError:
                assert not is_text(memoryview(content)), content
            else:
                assert is_text(memoryview(content)), content


def test_a_file_is_read_without_a_second_copy(tmp_path):
    (tmp_path / "a").write_bytes(ASCII[:MIB])
    encoded = read_content(tmp_path / "a", LayerId(15, 0))
    assert isinstance(encoded.data, memoryview)
    assert encoded.data == ASCII[:MIB]
