"""A build says which of its files no manager with default settings can load."""

from __future__ import annotations

import json
import os

import pytest
from support.command_line import run

from jessymem import DimensionId, LimitExceeded, MmapManager
from jessymem.config import CORE_HEADROOM_MB, MIB
from jessymem.core_dimensions import SLOTS
from jessymem.ingest.building import fault_by_default

D14 = DimensionId(14)


def make_source(folder, name, n_bytes):
    source = folder / "src" / name
    source.mkdir(parents=True)
    with open(source / "00-large", "wb") as file:
        os.truncate(file.fileno(), n_bytes)
    return source.parent


def test_a_core_file_beyond_slot_and_headroom_is_written_with_a_warning(tmp_path):
    source = make_source(tmp_path, "D14-Security", SLOTS[D14] + CORE_HEADROOM_MB * MIB)
    data = tmp_path / "data"
    result = run("build", source, "--data", data)
    assert "1 region file written" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Warning: D14: ")
    assert "could never be loaded" in line
    assert "of the core headroom" in line
    with (
        MmapManager(base_path=data) as manager,
        pytest.raises(LimitExceeded, match="core headroom"),
    ):
        manager.load_dimension(D14)
    result = run("build", source, "--data", data, "--force", "--json")
    assert len(json.loads(result.stdout)["dimensions"]) == 1
    assert result.stderr.splitlines() == [line]


def test_what_is_too_large_by_default_is_intact_and_can_be_shown(tmp_path):
    source = make_source(tmp_path, "D14-Security", SLOTS[D14] + CORE_HEADROOM_MB * MIB)
    data = tmp_path / "data"
    run("build", source, "--data", data)
    result = run("verify", "--data", data)
    assert result.exit_code == 0
    assert "1 of 1 region file intact" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Note: D14: ")
    assert "of the core headroom" in line
    assert run("inspect", "D14", "--data", data).stderr.splitlines() == [line]
    assert len(run("cat", "L14-00", "--data", data).stdout) == SLOTS[D14] + CORE_HEADROOM_MB * MIB


def test_what_fits_is_written_without_a_word(tmp_path):
    source = make_source(tmp_path, "D14-Security", SLOTS[D14] + (CORE_HEADROOM_MB - 1) * MIB)
    result = run("build", source, "--data", tmp_path / "data")
    assert result.stderr == ""
    with MmapManager(base_path=tmp_path / "data") as manager:
        manager.load_dimension(D14)


@pytest.mark.parametrize(("number", "n_mb"), [(14, 4 + 20), (1, 16 + 20), (15, 280), (40_000, 280)])
def test_the_limits_are_those_of_a_manager(number, n_mb):
    dimension = DimensionId(number)
    assert fault_by_default(dimension, n_mb * MIB) is None
    fault = fault_by_default(dimension, n_mb * MIB + 1)
    assert fault is not None
    assert fault.startswith(f"{dimension}: ")
