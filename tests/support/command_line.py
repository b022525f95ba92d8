"""Commands, run in this process or in one of their own, and what they are shown."""

from __future__ import annotations

import subprocess
import sys

from click.testing import CliRunner

from jessymem import MmapRegion, RegionBuilder, cli
from support.processes import with_support

HOSTILE = "a\x1b[31m[red]b[/red]\x9b1m\u202e\n:x:"
SHOWN = r"a\x1b[31m[red]b[/red]\x9b1m\u202e\n:x:"


def run(*arguments, exit_code=0, columns=120):
    """Run a command in this process."""
    runner = CliRunner(env={"COLUMNS": str(columns)})
    result = runner.invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit)
    return result


def start(*arguments, module=("-m", "jessymem"), **options):
    """Run a command in a process of its own."""
    command = [sys.executable, *module, *map(str, arguments)]
    environment = with_support(options.pop("env", {}))
    return subprocess.run(command, capture_output=True, env=environment, timeout=120, **options)


def error_of(result):
    """The one line that an error is."""
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in result.output
    return line


def assert_harmless(output):
    """Nothing in it acts on a terminal."""
    assert output.replace("\n", "").isprintable()
    assert "\x1b" not in output


def tamper(path, layer):
    """Flip one bit of a layer's content."""
    region = MmapRegion.from_file(layer.dimension, path)
    info = region.get_layer_info(layer)
    raw = bytearray(path.read_bytes())
    raw[info.offset] ^= 1
    path.write_bytes(raw)


def make_source(tmp_path):
    """A folder to build from, with a name that would like to be more than a name."""
    root = tmp_path / "src"
    (root / "D07-Tools").mkdir(parents=True)
    (root / "D07-Tools" / "00-hammer.md").write_text("A hammer.\n")
    (root / "D07-Tools" / "raw.bin").write_bytes(bytes(range(256)))
    (root / "notes").mkdir()
    (root / "notes" / "one.txt").write_text("1")
    (root / "notes" / ".hidden").write_text("h")
    return root


def build_hostile(tmp_path):
    """A region file whose every text is hostile."""
    builder = RegionBuilder("D15", HOSTILE)
    text = HOSTILE.replace("\n", "")
    builder.add_layer(0, HOSTILE, name=HOSTILE, keywords=[HOSTILE, "[bold]", text])
    path = tmp_path / "hostile" / "D15" / "region.mmap"
    builder.build_to_file(path)
    return path
