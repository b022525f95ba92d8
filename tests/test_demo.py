"""The demo: it builds what it says, finds a byte that differs, and measures like against like."""

import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jessymem import (
    DuplicateDimension,
    LayerId,
    LayerNotFound,
    MemoryConfig,
    MmapManager,
    MmapRegion,
)
from jessymem.demo import crowd, measurements
from jessymem.demo import run as demo
from jessymem.demo.crowd import CrowdReport, measure_crowd
from jessymem.demo.library import TOP_LEVEL, library_folder, library_sources
from jessymem.demo.run import STEPS, differing_layers, run_demo
from jessymem.ids import DimensionId
from jessymem.regions.paths import region_path

MODULES = {
    "json/__init__.py": "import this\n",
    "json/decoder.py": "# decoder\n" * 40,
    "json/tool/__init__.py": "",
    "json/tool/deep.py": "x = 1\n",
    "email/latin.py": b"# -*- coding: latin-1 -*-\n# gr\xfcn\n",
    "abc.py": "a = 1\n",
    "zlib.py": "z = 1\n",
}

LEFT_OUT = {
    "test/test_json.py": "t",
    "json/tests/test_decoder.py": "t",
    "json/__pycache__/decoder.py": "t",
    "idlelib/run.py": "t",
    "site-packages/numpy/core.py": "t",
    "config-3.11/python-config.py": "t",
    "lib-dynload/math.so": b"\x7fELF",
    "json/notes.txt": "t",
    "empty/data.bin": b"\0",
    "LICENSE.txt": "t",
}

KEYS = {
    "identical",
    "initialization",
    "load",
    "access",
    "statistics",
    "allocate",
    "crystallize",
    "scan",
    "threads",
    "zero_copy",
    "allocation",
    "memory",
}


@pytest.fixture
def library(tmp_path):
    """A small standard library, with what a real one has beside its modules."""
    root = tmp_path / "lib"
    for name, content in (MODULES | LEFT_OUT).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def quick(data, library, **options):
    return run_demo(data, library=library, n_threads=4, window_seconds=0.001, **options)


def by_key(report):
    return {each.key: each for each in report.measurements}


def flip_last_byte(data, layer_id):
    """Change one byte of a layer's content on disk."""
    path = region_path(data, layer_id.dimension)
    info = MmapRegion.from_file(layer_id.dimension, path).get_layer_info(layer_id)
    raw = bytearray(path.read_bytes())
    raw[info.offset + info.size - 1] ^= 1
    path.write_bytes(raw)


# -- the sources -----------------------------------------------------------------------------------


def test_sources_are_modules_by_package_without_tests_and_what_is_installed(library):
    found = library_sources(library)
    assert list(found) == ["email", "json", TOP_LEVEL]
    names = {path.relative_to(library).as_posix() for paths in found.values() for path in paths}
    assert names == MODULES.keys()
    assert all(paths == sorted(paths) for paths in found.values())


def test_source_that_cannot_be_read_is_left_out(library, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path.name != "decoder.py")
    names = {path.name for path in library_sources(library)["json"]}
    assert names == {"__init__.py", "deep.py"}


def test_library_that_is_missing_has_no_sources(tmp_path):
    assert library_sources(tmp_path / "python311.zip") == {}


def test_this_python_has_sources():
    assert "json" in library_sources(library_folder())


# -- the whole -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The demo once, on two real packages, with its announcements."""
    data = tmp_path_factory.mktemp("demo")
    steps = []
    options = {"packages": ("json", "email"), "n_threads": 100, "window_seconds": 0.02}
    return data, run_demo(data, announce=steps.append, **options), steps


def test_demo_builds_the_core_and_a_dimension_per_package(real):
    data, report, _ = real
    with MmapManager(MemoryConfig(base_path=data, simulation="never")) as manager:
        loaded = manager.load_all()
        assert loaded.loaded == tuple(map(DimensionId, range(1, 17)))
        assert report.n_dimensions == 16
        assert report.n_layers == len(manager)
        sizes = [len(manager.access_layer(layer)) for layer in manager.list_layers()]
        assert report.n_bytes == sum(sizes)
        assert report.n_file_bytes == manager.get_stats().total_used_bytes
        contexts = manager.load_contexts([LayerId(16, 0), LayerId(16, 1)])
        assert [context.dimension_name for context in contexts] == ["json", "json"]
        package, module = contexts
        folder = library_folder()
        assert package.content == (folder / package.name).read_bytes()
        second = sorted((folder / "json").glob("*.py"))[1]  # another one from Python 3.14 on
        assert module.content == second.read_bytes()
        assert (package.name, package.depth, package.parent) == ("json/__init__.py", 1, None)
        assert (module.depth, module.parent) == (1, package.layer_id)
        assert module.keywords == ("json", "decoder")


def test_demo_reports_each_step_and_each_target(real):
    _, report, announced = real
    assert announced == list(STEPS) == [step.name for step in report.steps]
    assert by_key(report).keys() == KEYS
    assert all(step.seconds >= 0 for step in report.steps)
    assert all(each.what and each.target for each in report.measurements)


def test_demo_finds_every_layer_equal_and_uncopied(real):
    _, report, _ = real
    found = by_key(report)
    assert report.differing == ()
    assert found["identical"].value == report.n_layers
    assert f"{found['zero_copy'].value:,.0f}" == found["zero_copy"].target.removeprefix("all ")
    for key in ("identical", "zero_copy", "allocation", "memory"):
        assert found[key].is_met
    assert not any(each.is_met for each in report.missed)


@pytest.mark.compiled_only
def test_demo_without_a_library_has_the_core(data, tmp_path):
    report = quick(data, tmp_path / "gone")
    assert (report.n_dimensions, report.differing) == (14, ())


def test_empty_layers_are_compared_and_read(data, library):
    report = quick(data, library, packages=["json"])
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D15")
        names = [manager.get_layer_info(layer).name for layer in manager.list_layers()]
        empty = manager.list_layers()[names.index("json/tool/__init__.py")]
        deep = manager.list_layers()[names.index("json/tool/deep.py")]
        assert manager.access_layer(empty) == b""
        assert manager.get_layer_info(empty).parent == LayerId(15, 0)
        assert manager.get_layer_info(deep).parent == empty
    assert by_key(report)["zero_copy"].value == report.n_layers - 1


@pytest.mark.compiled_only
@pytest.mark.parametrize("layer", [LayerId(1, 2), LayerId(15, 1)])
def test_one_byte_that_differs_is_found(data, library, monkeypatch, layer):
    build = demo.build_library

    def build_and_tamper(*arguments):
        sources = build(*arguments)
        flip_last_byte(data, layer)
        return sources

    monkeypatch.setattr(demo, "build_library", build_and_tamper)
    report = quick(data, library, packages=["json"])
    assert report.differing == (layer,)
    assert "identical" in {each.key for each in report.missed}
    assert by_key(report)["identical"].value == report.n_layers - 1


def test_source_that_changed_missing_layers_and_unknown_ones_differ(data, library):
    sources = demo.build_library(data, library, ["json"])
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D15")
        assert differing_layers(manager, sources) == []
        (library / "json" / "decoder.py").write_text("other")
        shorter = {layer: source for layer, source in sources.items() if layer.layer != 3}
        changed = shorter | {LayerId(15, 99): b"", LayerId(77, 0): b"x"}
        expected = [LayerId(15, 1), LayerId(15, 3), LayerId(15, 99), LayerId(77, 0)]
        assert differing_layers(manager, changed) == expected


def test_prefix_of_a_source_differs(data, library):
    sources = demo.build_library(data, library, ["json"])
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D15")
        for text in (b"import this", b"import this\n\0", b""):
            changed = sources | {LayerId(15, 0): text}
            assert differing_layers(manager, changed) == [LayerId(15, 0)]


@pytest.mark.compiled_only
def test_demo_touches_no_region_files_that_are_there(data, library):
    quick(data, library)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    with pytest.raises(DuplicateDimension, match=r"D01: .* is there already"):
        quick(data, library)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


# -- the measurements ------------------------------------------------------------------------------


def test_view_of_a_mapping_is_inside_it_and_a_copy_is_not(store):
    for load_mode, is_inside in (("map", True), ("copy", False)):
        with MmapManager(MemoryConfig(base_path=store, load_mode=load_mode)) as manager:
            manager.load_dimension("D01")
            view = manager.access_layer("L01-02")
            assert measurements.is_inside_mapping(view) is is_inside
            report = measurements.measure_zero_copy(manager, manager.list_layers())
            assert (report.is_met, report.value) == (is_inside, 4 * is_inside)
    assert not measurements.is_inside_mapping(memoryview(b"bytes"))
    copied = np.memmap(store / "D01" / "region.mmap", np.uint8, "r").copy()
    assert not measurements.is_inside_mapping(memoryview(copied))


def test_part_lies_inside_the_whole():
    whole = np.zeros(10, np.uint8)[1:9]
    outer = whole.base
    for start, end, is_inside in ((1, 9, True), (2, 5, True), (0, 5, False), (5, 10, False)):
        assert measurements.lies_inside(outer[start:end], whole) is is_inside
    assert not measurements.lies_inside(whole.copy(), whole)


class CopyingManager(MmapManager):
    """Hands out copies."""

    def access_layer(self, layer_id):
        return memoryview(bytes(super().access_layer(layer_id)))


def test_read_that_copies_is_found_by_what_it_allocates(store):
    for manager_type, is_met in ((MmapManager, True), (CopyingManager, False)):
        with manager_type(base_path=store) as manager:
            manager.load_dimension("D20")
            report = measurements.measure_allocation(manager, manager.list_layers())
            assert report.is_met is is_met
            assert "65,536" in report.what


def test_a_miss_says_that_others_had_the_cpu():
    def wait():
        threading.Event().wait(0.02)

    waited = measurements.time_each(wait, [()] * 2)
    assert waited.share < 0.5
    assert "others had the CPU for" in measurements.judge_initialization(1, waited.waited).why
    assert measurements.Series([1.0], 1.0).waited == ""


@pytest.mark.parametrize(
    ("loss", "spread", "is_met", "why"),
    [
        (-1.4, 0.0, True, ""),
        (0.05, 0.9, True, ""),
        (0.2, 0.15, False, "within the noise"),
        (0.2, 0.05, False, "beyond the noise"),
    ],
)
def test_a_loss_is_told_with_its_noise(monkeypatch, loss, spread, is_met, why):
    found = CrowdReport(4, 1.0, 1.0 - loss, loss, spread)
    monkeypatch.setattr(measurements, "measure_crowd", lambda *arguments: found)
    report = measurements.measure_loss(None, [], 4, 0.1)
    assert (report.is_met, report.spread) == (is_met, spread)
    assert why in report.why


def test_targets_are_judged_by_their_bounds():
    assert measurements.judge_initialization(0.0999).is_met
    assert not measurements.judge_initialization(0.1).is_met
    loads = {DimensionId(3): 0.049, DimensionId(4): 0.051}
    slowest = measurements.judge_loads(loads)
    assert (slowest.value, slowest.is_met) == (0.051, False)
    assert "D04" in slowest.what
    assert measurements.judge_loads({DimensionId(3): 0.049}).is_met
    assert not measurements.judge_identity(3, [LayerId(1, 0)]).is_met


def test_scan_takes_the_largest_dimension(manager):
    assert "D20" in measurements.measure_scan(manager).what


def test_memory_is_judged_by_the_peak(manager):
    report = measurements.judge_memory(manager.get_stats())
    assert report.value == manager.get_stats().peak_usage_bytes
    assert (report.is_met, report.target) == (True, "<= 280 MB")


class CountingManager:
    """Counts reads per thread."""

    def __init__(self):
        self.counts = {}

    def access_layer(self, layer_id):
        self.counts.setdefault(threading.current_thread(), []).append(layer_id)
        return b"x"


def test_crowd_reads_the_same_number_of_layers_in_each_pass_and_each_thread_reads():
    manager = CountingManager()
    layers = [LayerId(1, number) for number in range(10)]
    report = measure_crowd(manager, layers, n_threads=5, window_seconds=0.0, n_rounds=1)
    lengths = [len(reads) for reads in manager.counts.values()]
    assert len(lengths) == 1 + 5 + 1
    assert len(set(lengths)) == 1  # no window: one pass each, and the same warm-up
    assert len({tuple(reads) for reads in manager.counts.values()}) >= 5  # each its own order
    assert all(set(reads) == set(layers) for reads in manager.counts.values())
    assert report.n_threads == 5
    assert report.loss == pytest.approx(1 - report.together_per_second / report.alone_per_second)
    assert report.spread == 0  # of one round


def test_a_loss_is_told_by_cpu_time_where_others_have_the_cpu(manager, monkeypatch):
    """Alone it had a CPU for a fourth of the time, together for half of it."""
    found = {1: crowd.Throughput(1e6, 4e6), 3: crowd.Throughput(1.8e6, 3.6e6)}
    monkeypatch.setattr(
        crowd, "measure_throughput", lambda passes, n_threads, window: found[n_threads]
    )
    layers = manager.list_layers()
    report = measurements.measure_loss(manager, layers, 3, 0.0)
    assert report.value == pytest.approx(0.1)
    assert "CPU time" in report.what
    found[1] = crowd.Throughput(3.6e6, 4e6)
    report = measurements.measure_loss(manager, layers, 3, 0.0)
    assert report.value == pytest.approx(0.5)
    assert "against one" in report.what


def test_error_in_one_thread_of_the_crowd_is_raised(manager):
    with pytest.raises(LayerNotFound, match="L77-00"):
        measure_crowd(manager, [LayerId(77, 0)], 8, 0.0, n_rounds=1)
    assert threading.active_count() < 8


def test_measuring_leaves_tracemalloc_as_it_was(manager):
    filled = [layer for layer in manager.list_layers() if manager.access_layer(layer)]
    assert not tracemalloc.is_tracing()
    measurements.measure_allocation(manager, filled)
    assert not tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        measurements.measure_allocation(manager, filled)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


def test_default_library_is_that_of_this_python():
    assert library_folder() == Path(sys.modules["os"].__file__).parent
