"""Calls that keep the GIL do what Python's own do; and how often a write lets go of it."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.handovers import needs_one_core, places_of_handovers
from support.internals import region_of
from support.processes import run_python
from support.system import open_files, opened_since
from support.system_calls import Calls, intercepted, make_calls_plain
from support.write_cases import WRITE_CASES
from support.writes import act

from jessymem import MmapManager, RegionBuilder, osmem, short_calls
from jessymem.short_calls import PLAIN, HeldCalls, PlainCalls, calls_in

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"),
    reason="calls are made as Python makes them",
)


_CLOSED = 1_000_000  # no descriptor has that number


@pytest.fixture(scope="module")
def held() -> HeldCalls:
    return HeldCalls()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, a link to it, a link that leads nowhere and a directory."""
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    return tmp_path


def answer(do: Callable[[], Any]) -> Any:
    """Return what a call answers, or what it raises."""
    try:
        return do()
    except OSError as error:
        return type(error), error.errno, error.strerror, error.filename


def ask_status(ask: Callable[[Any], Any], which: Any) -> list[Any]:
    status = ask(which)
    return [getattr(status, field) for field in short_calls.Status._fields]


# -- the same answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file", "link", "lost", "directory", "nothing", "file/below"])
def test_what_is_asked_of_a_path(name, folder, held):
    path = folder / name

    def answers(calls: PlainCalls) -> list[Any]:
        found = [answer(partial(ask_status, ask, path)) for ask in (calls.stat, calls.lstat)]
        found.append(answer(lambda: calls.read_link(path)))
        found.append(answer(lambda: sorted(calls.list_names(path))))
        found.append(answer(lambda: calls.list_attributes(path)))
        found.append(answer(lambda: calls.open(path, os.O_RDONLY) > 0))
        return found

    assert answers(held) == answers(PLAIN)


@pytest.mark.parametrize("follows", [True, False])
def test_many_paths_are_looked_at_as_each_by_itself(folder, held, follows):
    paths = [str(folder / name) for name in ("file", "link", "lost", "directory", "nothing")]

    def answers(calls: PlainCalls, paths: list[str]) -> list[Any]:
        found = calls.look_at(paths, follows=follows)
        statuses = enumerate(found)
        return [None if each is None else ask_status(found.__getitem__, i) for i, each in statuses]

    for asked in (paths, paths[:2], paths[:1], []):
        assert answers(held, asked) == answers(PLAIN, asked)
    look = held.stat if follows else held.lstat
    assert answers(held, paths[:2]) == [ask_status(look, path) for path in paths[:2]]
    wrong = [*paths[:1], str(folder / "file" / "below")]
    refusal = answer(lambda: held.look_at(wrong, follows=follows))
    assert refusal == answer(lambda: PLAIN.look_at(wrong, follows=follows))
    assert refusal[0] is NotADirectoryError


def test_a_file_is_written_read_and_moved(folder, held):
    path, descriptors = folder / "new", open_files()
    file = held.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    assert not os.get_inheritable(file)
    assert held.write(file, [memoryview(b"ab"), memoryview(b"\0c")]) == 4
    held.set_mode(file, 0o600)
    assert ask_status(held.fstat, file) == ask_status(os.fstat, file)
    os.lseek(file, 1, os.SEEK_SET)
    buffer = bytearray(8)
    assert held.read(file, memoryview(buffer)[2:]) == 3
    assert buffer == b"\0\0b\0c\0\0\0"
    file.close()
    file.close()
    held.replace(path, folder / "file")
    assert (folder / "file").read_bytes() == b"ab\0c" and not path.exists()
    held.remove(folder / "file")
    assert not (folder / "file").exists()
    held.make_directory(folder / "made")
    (folder / "like").mkdir()
    assert (folder / "made").stat().st_mode == (folder / "like").stat().st_mode
    assert not opened_since(descriptors)


def test_what_is_refused_is_refused_alike(folder, held):
    def refusals(calls: PlainCalls) -> list[Any]:
        file = calls.open(folder / "file", os.O_RDONLY)
        return [
            answer(lambda: calls.open(folder / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)),
            answer(lambda: calls.write(file, [memoryview(b"x")])),
            answer(lambda: calls.read(_CLOSED, bytearray(1))),
            answer(lambda: calls.fstat(_CLOSED)),
            answer(lambda: calls.set_mode(_CLOSED, 0o600)),
            answer(lambda: calls.lock(_CLOSED, fcntl.LOCK_EX)),
            answer(lambda: calls.remove(folder / "nothing")),
            answer(lambda: calls.make_directory(folder / "file")),
            answer(lambda: calls.make_directory(folder / "nothing" / "below")),
            answer(lambda: calls.replace(folder / "nothing", folder / "file"))[:3],
        ]

    assert refusals(held) == refusals(PLAIN)


def test_a_name_that_another_has_is_given_to_nobody(folder, held):
    for calls in (held, PLAIN):
        new = folder / type(calls).__name__
        (folder / "source").write_bytes(b"new")
        for taken in ("file", "link", "lost", "directory"):
            with pytest.raises(FileExistsError):
                calls.rename_new(folder / "source", folder / taken)
        assert (folder / "file").read_bytes() == b"0123456789"
        calls.rename_new(folder / "source", new)
        assert new.read_bytes() == b"new" and not (folder / "source").exists()
        with pytest.raises(FileNotFoundError):
            calls.rename_new(folder / "source", folder / "other")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_a_system_that_renames_over_anything_makes_a_second_name_first(
    number, folder, held, monkeypatch
):
    monkeypatch.setattr(held, "_renameat2", lambda *arguments: -1)
    monkeypatch.setattr(held, "_errno", lambda: number)
    with pytest.raises(FileExistsError):
        held.rename_new(folder / "file", folder / "link")
    held.rename_new(folder / "file", folder / "new")
    assert (folder / "new").read_bytes() == b"0123456789" and not (folder / "file").exists()


def test_a_lock_keeps_others_out(folder, held):
    mine, others = (held.open(folder / "file", os.O_RDWR) for _ in range(2))
    held.lock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(BlockingIOError):
        PLAIN.lock(others, fcntl.LOCK_EX | fcntl.LOCK_NB)
    held.lock(mine, fcntl.LOCK_UN)
    PLAIN.lock(others, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_all_names_of_a_large_directory(tmp_path, held):
    names = [b"%d-" % i + b"n" * (i % 200) for i in range(500)] + [b"\xff", "\u00e4".encode()]
    for name in names:
        os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT))
    assert sorted(map(os.fsencode, held.list_names(tmp_path))) == sorted(names)


def test_attributes_are_named(folder, held):
    try:
        os.setxattr(folder / "file", "user.origin", b"x")
    except OSError:
        pytest.skip("no attributes here")
    assert held.list_attributes(folder / "file") == os.listxattr(folder / "file")
    assert held.list_attributes(held.open(folder / "file", os.O_RDONLY)) == ["user.origin"]


def test_a_call_that_a_signal_interrupts_is_made_again(folder, held, monkeypatch):
    real, n_made = held._rename, 0

    def interrupted(*arguments: bytes) -> int:
        nonlocal n_made
        n_made += 1
        return -1 if n_made < 3 else real(*arguments)

    monkeypatch.setattr(held, "_rename", interrupted)
    monkeypatch.setattr(held, "_errno", lambda: errno.EINTR)
    held.replace(folder / "file", folder / "moved")
    assert n_made == 3 and (folder / "moved").exists()


def test_what_may_wait_for_the_medium_does_not_keep_the_gil(folder, held, monkeypatch):
    written = []
    monkeypatch.setattr(os, "writev", lambda file, buffers: written.append(buffers) or 1)
    file = held.open(folder / "file", os.O_RDWR)
    most = memoryview(bytes(short_calls.MAX_HELD_BYTES))
    assert held.write(file, [most]) == len(most) and not written
    assert held.write(file, [most, most[:1]]) == 1 and written == [[most, most[:1]]]


# -- where they are made so ------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    """As before anything was looked at."""
    monkeypatch.setattr(short_calls, "_by_directory", {})


def test_a_directory_is_looked_at_once_and_with_those_above_that_are_missing(
    tmp_path, fresh, monkeypatch
):
    asked = []
    real = HeldCalls.kind_of
    monkeypatch.setattr(
        HeldCalls, "kind_of", lambda self, path: asked.append(path) or real(self, path)
    )
    missing = tmp_path / "a" / "b"
    assert calls_in(missing) is PLAIN
    osmem.prepare_writing(missing)
    osmem.prepare_writing(missing)
    # Where the name of the first one is that is there, is looked at too: it will be synced.
    assert asked == list(map(str, (missing, *list(missing.parents)[:3])))
    for directory in (missing, *list(missing.parents)[:3]):
        assert calls_in(directory) is calls_in(missing)
    assert calls_in(tmp_path / "other") is PLAIN


@pytest.mark.parametrize(("kind", "is_held"), [(0xEF53, True), (0x6969, False), (-1, False)])
def test_only_file_systems_of_this_machine(kind, is_held, tmp_path, fresh, monkeypatch):
    monkeypatch.setattr(HeldCalls, "kind_of", lambda self, path: kind)
    osmem.prepare_writing(tmp_path)
    assert isinstance(calls_in(tmp_path), HeldCalls) == is_held


def test_a_system_without_these_calls(tmp_path, fresh, monkeypatch):
    monkeypatch.setattr(short_calls, "_held", None)
    osmem.prepare_writing(tmp_path)
    assert calls_in(tmp_path) is PLAIN


@pytest.mark.parametrize("name", sorted(WRITE_CASES))
def test_every_step_passes_the_seam_either_way(name, memory_path, monkeypatch):
    def steps_in(folder: Path) -> list[str]:
        folder.mkdir()
        calls = Calls(hints=True)
        WRITE_CASES[name].prepare(folder)
        with intercepted(calls):
            act(WRITE_CASES[name], folder)
        assert WRITE_CASES[name].check(folder) == "new"
        return calls.operations

    steps_in(memory_path / "first")  # which imports what it needs, and starts over
    steps = steps_in(memory_path / "held")
    make_calls_plain(monkeypatch)
    assert steps_in(memory_path / "plain") == steps


# -- how often a write gives up the GIL ------------------------------------------------------------


def learned(manager: MmapManager) -> Any:
    return manager.create_proto_dimension("D20", b"x" * 1_000)


@needs_one_core
def test_calls_of_python_let_go_and_held_ones_do_not(folder, held):
    def look(calls: PlainCalls) -> list[str]:
        return places_of_handovers(
            lambda: [calls.stat(folder), calls.lstat(folder), calls.list_names(folder)]
        )

    # The other thread may miss one: it is never seen where there is none.
    if not any(len(look(PLAIN)) >= 2 for _ in range(100)):
        assert os.geteuid(), "nothing may hide them from who goes first"
        pytest.skip("other work on this core hides them")
    assert look(held) == []


@needs_one_core
def test_a_crystallization_lets_go_three_times_between_the_bytes_and_their_publication(tmp_path):
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.crystallize_proto_dimension(learned(manager))
        layer = learned(manager)
        old = region_of(manager, "D20").generation
        ready = []

        def note(operation: str, *details: object) -> None:
            if operation == "create":
                ready.append(operation)

        with intercepted(note):
            places = places_of_handovers(
                lambda: manager.crystallize_proto_dimension(layer),
                lambda: bool(ready) and region_of(manager, "D20").generation == old,
            )
        assert region_of(manager, "D20").generation > old
    assert ready and len(places) <= 3, places


@needs_one_core
def test_a_layer_beside_a_file_lets_go_three_times_in_all(tmp_path):
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, bytes(200_000))
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        for _ in range(3):  # one file, two of them, a chain
            layer = learned(manager)
            places = places_of_handovers(partial(manager.crystallize_proto_dimension, layer))
            assert len(places) <= 3, places
        assert len(list((tmp_path / "D20").iterdir())) == 4


@needs_one_core
def test_the_first_write_lets_go_for_its_syncs_and_a_mapping_alone(tmp_path):
    with MmapManager(64, base_path=tmp_path / "new" / "store") as manager:
        layer = learned(manager)
        syncs = Calls()
        with intercepted(syncs):
            places = places_of_handovers(partial(manager.crystallize_proto_dimension, layer))
    n_syncs = sum(operation.startswith("sync") for operation in syncs.operations)
    assert len(places) <= n_syncs + 1, places


@needs_one_core
@pytest.mark.parametrize("n_bytes", [1_000, 3 * short_calls.MAX_HELD_BYTES])
def test_a_file_is_put_in_place_with_three_releases(n_bytes, tmp_path):
    def build(content: bytes) -> None:
        builder = RegionBuilder("D20", "Name")
        builder.add_layer(0, content)
        builder.build_to_file(tmp_path / "region.mmap")

    build(b"old")
    ready: list[str] = []

    def note(operation: str, *details: object) -> None:
        if operation == "create":
            ready.append(operation)
        elif operation == "map":
            ready.clear()

    with intercepted(note):
        places = places_of_handovers(lambda: build(b"x" * n_bytes), lambda: bool(ready))
    assert len(places) <= 3, places


FIRST_CRYSTALLIZATION = """
import sys
from jessymem import MmapManager
with MmapManager(64, base_path=sys.argv[1]) as manager:
    layer = manager.create_proto_dimension("D20", "learned")
    before = set(sys.modules)
    manager.crystallize_proto_dimension(layer)
    print(*set(sys.modules) - before)
"""


def test_the_first_crystallization_imports_nothing(tmp_path):
    assert run_python(FIRST_CRYSTALLIZATION, str(tmp_path), COVERAGE_PROCESS_CONFIG="") == ""
