"""What every test shares."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
from support import samples
from support.kernels import TIERS, running

# Out of the source tree, and before anything imports numba, which reads it once.
os.environ.setdefault("NUMBA_CACHE_DIR", os.path.join(tempfile.gettempdir(), "jessymem-kernels"))

from jessymem import MmapManager, PoolAllocator, RegionBuilder, osmem
from jessymem.kernels import _jit

#: Tests with threads of their own gain nothing from more processes beside them.
MAX_PROCESSES = 4


def pytest_configure(config: pytest.Config) -> None:
    samples.begin(config.option.markexpr)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the whole suite in a process for each core; parts of it, and measurements, in one."""
    is_whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    if not is_whole or config.getoption("benchmark_enable") or config.getoption("usepdb"):
        return 0
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(n_cores or 1, MAX_PROCESSES)


def pytest_xdist_setupnodes() -> None:
    """Compile every kernel, so that the processes of the suite find them in the cache.

    The allocator's take as long as all others: hence two processes.
    """
    code = "import sys; from jessymem.kernels import _jit; [*map(_jit.promote, sys.argv[1:])]"
    others = [group for group in _jit.MODULES if group != _jit.MEMORY]
    commands = [[sys.executable, "-c", code, *groups] for groups in ([_jit.MEMORY], others)]
    for process in [subprocess.Popen(command) for command in commands]:
        assert process.wait() == 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Let every other process begin at the last file, so that no two rewrite the same assertions.

    In a fresh checkout that takes 7 s; what one has rewritten the others find.
    """
    if int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2:
        for path in sorted(Path(__file__).parent.glob("test_*.py"), reverse=True):
            with suppress(Exception, pytest.skip.Exception):  # which come again, to be told
                import_module(path.stem)


#: Files whose tests run kernels: what a run with bounds checked needs, `-m kernels`.
KERNELS = frozenset(
    """
    test_allocation test_answers test_applied_kernels test_atomics test_batches test_bitmap
    test_block_views test_budget_kernels test_compressed_reads test_extension test_fuzz
    test_layout test_leases test_lookup test_nodes test_parse test_pool_machine test_pool_misuse
    test_pool_pages test_pool_stress test_pool_supply test_pool_views test_pools test_pressure
    test_release test_reload test_round_trips test_scans test_schema test_search test_store
    test_tally test_tiers
    """.split()
)
#: Files whose tests start processes, measure, let threads crowd, or make every system call fail: as
#: plain Python they cost much and cover nothing more. The run for coverage leaves them out,
#: `-m "not compiled_only"`.
COMPILED_ONLY = frozenset(
    """
    test_address_space test_alloc test_array_reads test_asv test_batch test_build_memory
    test_cold test_concurrency test_crowd test_crystallize test_crystallize_faults
    test_descriptors test_docs test_eviction_memory test_eviction_policies_script
    test_first_blocks test_first_read test_forks test_interrupts test_jit test_kernel_cache
    test_kills test_lock_rules test_parallel_kernels test_pool_exit test_pool_memory
    test_pool_processes test_pool_reentry test_pool_stress test_processes test_project test_read
    test_reentrance test_refusals test_rewritten_files test_scan test_site test_tiers
    test_warming test_write_faults test_write_order
    """.split()
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if samples.is_whole() and item.get_closest_marker("sampled"):
            item.add_marker("slow")
        starts_processes = item.get_closest_marker("processes") is not None
        if item.path.stem in KERNELS and not starts_processes:
            item.add_marker("kernels")
        if item.path.stem in COMPILED_ONLY or starts_processes:
            item.add_marker("compiled_only")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile the allocator's kernels, and let no collection of garbage look at the tests.

    Nor at what they have imported: there are some hundred collections, each of which took 0.4 s.
    Where compilation is disabled the same tests see plain kernels; `test_plain_blocks` sees both.
    """
    if not session.config.option.collectonly:
        _jit.promote(_jit.MEMORY)
    gc.collect()
    gc.freeze()


@pytest.fixture
def frozen() -> Iterator[None]:
    """Let the collector look at nothing but what a test makes: for who calls it by the hundred.

    By then tests have left a heap that takes a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture
def intercept() -> Iterator[Callable[[Callable[..., None]], None]]:
    """Set the function that every system call passes first; it is taken out again afterwards."""

    def install(function: Callable[..., None]) -> None:
        osmem.intercept = function

    yield install
    osmem.intercept = None


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where the system has such, for tests that write files by the thousand.

    What a sync is worth no test can see on a real disk either.
    """
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory with D01 (layers 0 to 3, a chain of parents) and D20 (numbers with gaps)."""
    builder = RegionBuilder("D01", "Emotion")
    for number in range(4):
        builder.add_layer(
            number,
            f"layer {number} of emotion\n" * (number + 1),
            name=f"part {number}",
            frequency=1.0 + number / 2,
            depth=number,
            keywords=["joy", f"word{number}"],
            parent=f"L01-{number - 1:02d}" if number else None,
        )
    builder.build_to_file(tmp_path / "D01" / "region.mmap")
    builder = RegionBuilder("D20", "Sparse")
    for number in (5, 65_535, 0, 300):
        builder.add_layer(number, bytes([number % 251]) * (number + 1), parent="L01-00")
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    return tmp_path


@pytest.fixture
def manager(store: Path) -> Iterator[MmapManager]:
    """A manager that has loaded everything in `store`."""
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D01")
        manager.load_dimension("D20")
        yield manager


@pytest.fixture(params=TIERS)
def tier(request):
    """Run the kernels of the allocator as plain Python, then as compiled code."""
    with running(request.param) as tier:
        yield tier


@pytest.fixture
def plain():
    """Run the kernels of the allocator as plain Python."""
    with running("plain") as tier:
        yield tier


@pytest.fixture
def allocator():
    """Pools of 256 x 4 KiB, 16 x 64 KiB and 8 x 256 KiB, far from any threshold."""
    made = PoolAllocator([(1, 4 * 2**10), (1, 64 * 2**10), (2, 256 * 2**10)], limit_mb=100)
    yield made
    assert made.validate() == []
    made.close()


@pytest.fixture
def status_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's processes put their files, for this test alone."""
    root = tmp_path / "run"
    root.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(root))
    return root / "jessymem"
