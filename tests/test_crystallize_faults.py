"""A manager whose crystallizing fails at any call: what it shows meanwhile, and trying again.

`test_write_faults` looks at what is left on the disk. Here the manager lives on.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import samples
from support.crystallizations import CRYSTALLIZATIONS, Crystallization
from support.internals import allocator_of, region_of
from support.samples import sampled
from support.system import open_files, opened_since
from support.system_calls import (
    Failing,
    Intercept,
    each_fault,
    intercepted,
    refuse_to_sync_directories,
    writing_in_chunks,
)
from support.writes import BASE, DIMENSION, files_in, layers_of, target_in

from jessymem import InvalidAccess, JessyMemoryError, MmapManager, osmem
from jessymem.regions.metadata import ContentLocation, LayerState

each_case = pytest.mark.parametrize("name", CRYSTALLIZATIONS)


@contextmanager
def learning(case: Crystallization, folder: Path) -> Iterator[MmapManager]:
    """Prepare a folder; give a manager that has learned the case's layers, not crystallized."""
    if not (folder / BASE).exists():
        folder.mkdir(exist_ok=True)
        case.prepare(folder)
    with MmapManager(base_path=folder / BASE) as manager:
        case.load(manager)
        case.learn(manager)
        yield manager


def crystallize(case: Crystallization, manager: MmapManager, *intercepts: Intercept) -> str:
    """Crystallize; return the class of the error that came out, "" where none did."""
    try:
        with writing_in_chunks(), intercepted(case.refuse, *intercepts):
            case.crystallize(manager)
    except JessyMemoryError as error:
        return type(error).__name__
    return ""


def refuse_to_map_what_was_renamed() -> Intercept:
    renamed = []

    def refuse(operation: str, path: str, *details: object) -> None:
        if operation == "rename":
            renamed.append(path)
        elif operation == "map" and renamed:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    return refuse


def refuse_to_sync_names(operation: str, path: str, *details: object) -> None:
    """Refuse what makes the names in D07 durable, not what makes D07's own."""
    if Path(path).name == str(DIMENSION):
        refuse_to_sync_directories(operation, path)


def states_of(case: Crystallization, manager: MmapManager) -> set[LayerState]:
    """Return the states of what is learned; what holds no content is *created*, not *active*."""
    states = {manager.get_layer_info(layer_id).state for layer_id in case.learned}
    return states - {LayerState.CREATED} or states


def whole_files_in(folder: Path) -> set[Path]:
    """Return the files that are no deltas."""
    return files_in(folder) - set(target_in(folder).parent.glob("region.d*.mmap"))


def n_blocks(manager: MmapManager) -> int:
    return sum(pool.used_blocks for pool in manager.get_stats().per_pool.values())


def check_consistent(case: Crystallization, manager: MmapManager) -> None:
    """Check what holds at every instant: readers see all that was learned, the counts agree."""
    assert layers_of(manager) == case.after
    allocator_of(manager).validate()
    stats = manager.get_stats()
    in_blocks = sum(pool.used_blocks * pool.block_size for pool in stats.per_pool.values())
    base = region_of(manager, DIMENSION)
    assert base is not None
    mapped = sum(osmem.round_to_pages(file.size) for file in base.members)
    assert stats.total_allocated_bytes == in_blocks + mapped
    assert stats.waiting_bytes == 0
    assert stats.layers_loaded == len(case.after)
    assert stats.dimensions_loaded == 1
    json.dumps(manager.dump_state())


def check_outcome(case: Crystallization, manager: MmapManager) -> None:
    """Check what holds once everything is on disk, and read from there."""
    check_consistent(case, manager)
    assert states_of(case, manager) == {LayerState.PERMANENT}
    for layer_id in case.learned:
        assert manager.get_layer_info(layer_id).location is ContentLocation.MMAP
    assert n_blocks(manager) == 0
    files = region_of(manager, DIMENSION).members
    assert manager.get_stats().total_used_bytes == sum(file.size for file in files)


def check_failed(case: Crystallization, manager: MmapManager, state: str) -> None:
    """Check what holds after an error that left the file `state`."""
    check_consistent(case, manager)
    expected = LayerState.ACTIVE if state == "old" else LayerState.CRYSTALLIZED
    assert states_of(case, manager) <= {expected, LayerState.CREATED}


def state_on_disk(case: Crystallization, folder: Path) -> str:
    """Return "old" or "new" as another process finds it, in a copy: looking tidies."""
    copy = folder.with_name(f"{folder.name}-seen")
    shutil.copytree(folder, copy)
    state = case.check(copy)
    shutil.rmtree(copy)
    return state


@each_case
@each_fault
@sampled
def test_every_call_of_crystallizing_failed_in_turn(name, number, for_good, memory_path):
    step = samples.number(3, of=1)
    case = CRYSTALLIZATIONS[name]
    prepared = memory_path / "prepared"
    prepared.mkdir()
    case.prepare(prepared)
    seen = set()
    n_calls, is_over = 0, False
    while not is_over:
        folder = memory_path / str(n_calls)
        shutil.copytree(prepared, folder)
        before = files_in(folder)
        failing, descriptors = Failing(n_calls, number, for_good), open_files()
        with learning(case, folder) as manager:
            blocks, used = n_blocks(manager), manager.get_stats().total_allocated_bytes
            n_open = len(open_files())
            error = crystallize(case, manager, failing)
            is_over = not failing.failed
            if error:
                assert len(open_files()) <= n_open  # the mapped file's name may have changed
                state = state_on_disk(case, folder)
                check_failed(case, manager, state)
                assert n_blocks(manager) == blocks
                assert manager.get_stats().total_allocated_bytes == used
                if state == "old" and "remove" not in failing.failed:
                    assert files_in(folder) == before
                seen.add((error, state))
                assert crystallize(case, manager) == ""
            check_outcome(case, manager)
            assert manager.crystallize_dimension(DIMENSION) == []
        assert not opened_since(descriptors)
        assert case.check(folder) == "new"
        assert whole_files_in(folder) == {target_in(folder)}
        n_calls += step
    assert {("RegionIOError", "old"), ("RegionIOError", "new")} <= seen


@each_case
@sampled
def test_every_call_failed_in_turn_after_a_sync_of_the_directory_that_failed(name, memory_path):
    step = samples.number(4, of=1)
    # The second attempt finds its own layers on disk, and fails as well.
    case = CRYSTALLIZATIONS[name]
    n_calls, is_over = 0, False
    while not is_over:
        folder = memory_path / str(n_calls)
        failing = Failing(n_calls, errno.EIO, for_good=False)
        with learning(case, folder) as manager:
            if not case.before:
                (folder / BASE / str(DIMENSION)).mkdir(parents=True)

            assert crystallize(case, manager, refuse_to_sync_names) == "RegionIOError"
            check_failed(case, manager, "new")
            error = crystallize(case, manager, failing)
            is_over = not failing.failed
            if error:
                assert state_on_disk(case, folder) == "new"
                check_failed(case, manager, "new")
                assert crystallize(case, manager) == ""
            check_outcome(case, manager)
        assert case.check(folder) == "new"
        assert whole_files_in(folder) == {target_in(folder)}
        n_calls += step


@each_case
def test_blocks_of_a_failed_attempt_wait_for_views_only_after_the_next(name, memory_path):
    case = CRYSTALLIZATIONS[name]
    with learning(case, memory_path / "it") as manager:
        views = [manager.access_layer(layer_id) for layer_id in case.learned]
        contents = [bytes(view) for view in views]
        assert crystallize(case, manager, Failing(8, errno.EIO, for_good=True)) != ""
        check_failed(case, manager, "old")
        assert crystallize(case, manager) == ""
        assert layers_of(manager) == case.after
        assert manager.get_stats().waiting_bytes > 0
        assert [bytes(view) for view in views] == contents
        views.clear()
        gc.collect()
        check_outcome(case, manager)


@each_case
def test_a_layer_that_is_on_disk_already_may_not_be_changed(name, memory_path):
    case = CRYSTALLIZATIONS[name]
    with learning(case, memory_path / "it") as manager:
        assert crystallize(case, manager, refuse_to_map_what_was_renamed()) == "RegionIOError"
        check_failed(case, manager, "new")
        for layer_id in case.learned:
            changes = [
                lambda: manager.update_proto_dimension(layer_id, "other"),  # noqa: B023
                lambda: manager.discard_proto_dimension(layer_id),  # noqa: B023
                lambda: manager.overlay_layer(layer_id, "more"),  # noqa: B023
                lambda: manager.drop_overlay(layer_id),  # noqa: B023
            ]
            for change in changes:
                with pytest.raises((PermissionError, InvalidAccess)):
                    change()
        check_failed(case, manager, "new")
        if case.before and case.refuse is None:
            assert manager.refresh(DIMENSION)
        else:
            assert crystallize(case, manager) == ""
        check_outcome(case, manager)
