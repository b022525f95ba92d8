"""`jessymem bench`: every row of the table is there, measured or with its reason, and judged."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.internals import hide_footprint, let_turns_be_short

from jessymem import LayerId, cli
from jessymem.bench import data, footprint, loops, peers, run, starting, timing
from jessymem.bench.setting import NotThere, Setting, require_cpus
from jessymem.bench.table import LINES, Line, NotRun, Outcome, Row, Target
from jessymem.kernels import _jit
from jessymem.terminal import measuring, wording

ROOT = Path(__file__).parent.parent

#: Where every round is short and every store small; the figures mean nothing.
SMALL = {
    "is_quick": True,
    "text_mb": 16,
    "n_contents": 200,
    "n_full": 1,
    "n_threads": 4,
    "n_many": 100,
}

NEEDS_COMPILED = {"allocate.compiled", "allocate.threads", "scan.sum", "scan.sum.cores"}


def keys_of(family):
    return [line.key for line in LINES if line.key.partition(".")[0] == family]


# -- the table -------------------------------------------------------------------------------------


def test_the_table_has_every_row_that_was_promised():
    expected = """
        read.one read.one.status read.batch read.batch.lmdb read.million
        read.threads read.threads.lmdb read.cores
        allocate.compiled allocate.threads allocate.python allocate.many
        start.manager start.load start.load.full start.core
        start.nth start.all start.all.cold start.cold start.learn start.block
        scan.rare scan.common scan.cores scan.sum scan.sum.cores
        write.1 write.10 write.100 write.beside write.first write.first.new
        learn.plain learn.lmdb learn.hundredth learn.read learn.batch hold.open hold.shared
    """.split()
    assert [line.key for line in LINES if line.target is not None] == expected
    assert len({line.key for line in LINES}) == len(LINES)
    assert {line.key.partition(".")[0] for line in LINES} == set(run.FAMILIES)


@pytest.mark.parametrize("family", run.FAMILIES)
def test_every_row_is_measured_or_says_why_not(family, tmp_path, monkeypatch):
    let_turns_be_short(monkeypatch)
    monkeypatch.setattr(starting, "MAX_LAYERS", 1_000)
    rows = list(run.measure_family(family, Setting(tmp_path, **SMALL, mb=2**14)))
    assert [row.line.key for row in rows] == keys_of(family)
    for row in rows:
        if isinstance(row.outcome, NotRun):
            assert row.verdict == "not run"
            assert is_excused(row), row
            continue
        assert row.outcome.ours > 0 or row.line.key == "hold.open"
        has_peer = bool(row.line.peer) and "lmdb open" not in row.line.peer
        assert math.isfinite(row.outcome.theirs) or not has_peer
        if row.line.of == "ours":
            assert row.value == row.outcome.ours
        else:
            assert row.value > 0


def is_excused(row):
    reason = row.outcome.reason
    excuses = ["not installed", "CPUs are needed", "no /proc", "has no"]
    if row.line.key in NEEDS_COMPILED and _jit.is_disabled():
        excuses.append("compilation is disabled")
    return any(excuse in reason for excuse in excuses)


@pytest.mark.compiled_only
def test_a_peer_that_is_not_installed_is_not_run(tmp_path, monkeypatch):
    let_turns_be_short(monkeypatch)
    for package in ("lmdb", "pyarrow", "safetensors"):
        monkeypatch.setitem(sys.modules, package, None)
    rows = {row.line.key: row for row in run.measure_family("read", Setting(tmp_path, **SMALL))}
    for key, package in (
        ("read.one", "lmdb"),
        ("read.one.pyarrow", "pyarrow"),
        ("read.batch.lmdb", "lmdb"),
        ("read.threads.lmdb", "lmdb"),
    ):
        assert rows[key].outcome == NotRun(f"{package} is not installed")
        assert rows[key].verdict == "not run"
    assert rows["read.one.dict"].verdict == "for scale"
    assert rows["read.threads"].verdict in ("met", "missed")


@pytest.mark.parametrize("name", peers.SYSTEMS)
def test_every_system_returns_what_was_put_in(name, tmp_path):
    contents = list(data.numbered(50, 64))
    system = peers.SYSTEMS[name]
    try:
        system.build(tmp_path, contents)
    except peers.NotInstalled as error:
        pytest.skip(str(error))
    with system.open(tmp_path, len(contents)) as opened:
        for number in (0, 17, 49):
            assert bytes(opened.get(opened.key_of(number))) == contents[number]


def test_verdicts():
    at_most, at_least = Target("<=", 1.3), Target(">=", 1.85)
    absolute = Target("<=", 1.0, is_absolute=True)
    for target, value, verdict in (
        (at_most, 1.3, "met"),
        (at_most, 1.31, "missed"),
        (at_least, 1.85, "met"),
        (at_least, 1.84, "missed"),
        (absolute, 1.0, "met (abs)"),
        (absolute, 1.1, "missed (abs)"),
        (None, 1.0, "for scale"),
    ):
        row = Row(Line("x.y", "what", "peer", target), Outcome(1.0, 1.0, value))
        assert row.verdict == verdict
    unrun = Row(Line("x.y", "what", "peer", at_most), NotRun("because"))
    assert unrun.verdict == "not run"
    assert math.isnan(unrun.value)


def test_a_quick_run_has_fewer_rounds_and_never_none(tmp_path):
    assert Setting(tmp_path).n_rounds(31) == 31
    assert Setting(tmp_path, is_quick=True).n_rounds(31) == 10
    assert Setting(tmp_path, is_quick=True).n_rounds(5) == 3


def test_more_cpus_than_there_are(tmp_path):
    with pytest.raises(NotThere, match="100000 CPUs are needed"):
        require_cpus(100_000)


# -- measuring -------------------------------------------------------------------------------------


def test_a_race_is_run_in_turns():
    calls = []
    both = timing.race(lambda: calls.append("a"), lambda: calls.append("b"), n_rounds=4)
    assert len(both.rounds) == 4
    assert set(calls) == {"a", "b"}
    assert timing.Race(((1.0, 2.0), (3.0, 4.0), (9.0, 3.0))).seconds(0) == 3.0
    assert timing.Race(((1.0, 2.0), (3.0, 4.0), (9.0, 3.0))).ratio(0, to=1) == 0.75


def test_a_race_of_single_calls_prepares_and_cleans_up_each():
    done = []

    def contestant(name):
        def prepare():
            done.append(f"prepare {name}")
            return lambda: done.append(f"do {name}"), lambda: done.append(f"clean {name}")

        return prepare

    both = timing.race_once(contestant("a"), contestant("b"), n_rounds=2)
    assert len(both.rounds) == 2  # and one to warm up
    assert done.count("do a") == done.count("clean b") == 3
    assert done[:3] == ["prepare a", "do a", "clean a"]
    assert done[6:9] == ["prepare b", "do b", "clean b"]  # who begins takes turns


def test_what_a_thread_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        timing.run_in_threads([lambda: None, lambda: 1 / 0])


def test_text_is_real_seeded_and_as_long_as_asked_for(tmp_path, monkeypatch):
    text = data.real_text()
    assert b"def " in text
    dimensions = data.build_text(tmp_path, 17)
    assert len(dimensions) == 2
    with data.open_manager(tmp_path) as manager:
        for dimension in dimensions:
            manager.load_dimension(dimension)
        sizes = [len(manager.access_layer(layer)) for layer in manager.list_layers()]
        first, second = (manager.access_layer(LayerId(each, 0)) for each in dimensions)
        assert bytes(first) in text and bytes(second) in text * 2 and first != second
    assert sum(sizes) == 32 * 2**20
    monkeypatch.setattr(data, "library_sources", lambda folder: {})
    assert len(data.real_text()) > 2**20
    for needle in itertools.chain(*data.NEEDLES.values()):
        assert needle not in text


def test_plain_copies_lead_to_the_same_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_LAYERS", 64)
    dimensions = data.build_tables(tmp_path, 40, 3)
    with data.open_manager(tmp_path) as manager:
        for dimension in dimensions:
            manager.load_dimension(dimension)
        for layer in data.all_layers(dimensions, 64).tolist():
            assert manager.access_layer(layer)[0] == layer & 0xFFFF


@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_loops_do_what_they_say(tmp_path):
    from jessymem.pools.allocator import PoolAllocator

    allocator = PoolAllocator([(1, 4_096)], limit_mb=4)
    assert loops.pairs()(allocator.words, 4_096, 100) == 0
    assert allocator.usage[0] == 0
    allocator.close()
    assert loops.empty_pairs()(4_096, 10) == 0
    data.build(tmp_path, 20, data.numbered(10, 64))
    with data.open_manager(tmp_path) as manager:
        manager.load_dimension(20)
        layer_ids = data.all_layers([20], 10)
        assert loops.locate_each()(manager.store(), layer_ids) == 640


def test_a_loop_is_not_measured_uncompiled(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(loops.NotCompiled):
        loops.compile_loop(lambda: 0)


def test_a_child_answers_and_says_what_it_cannot(tmp_path, monkeypatch):
    data.build(tmp_path, 20, data.numbered(10, 64))
    with footprint.Child() as child:
        assert child.ask("open", str(tmp_path), [20]) == 0
        assert child.ask("read") == sum(range(10))
        try:
            assert child.ask("proportional") > 2**20
        except footprint.NotMeasurable as error:
            assert "no /proc" in str(error)
    hide_footprint(monkeypatch, tmp_path / "missing")
    for measure in (footprint.resident_bytes, footprint.proportional_bytes):
        with pytest.raises(footprint.NotMeasurable):
            measure()


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch):
    """Run the command on rows that are given, each with its value."""

    def bench(*arguments, exit_code=0, columns="140", **values):
        monkeypatch.setenv("COLUMNS", columns)

        def run_bench(families, **options):
            rows = []
            for line in LINES:
                value = values.get(line.key.replace(".", "_"), 1.0)
                if line.target is not None and line.key.replace(".", "_") not in values:
                    value = line.target.value
                ours = value if line.of == "ours" else 1e-6
                outcome = NotRun(value) if isinstance(value, str) else Outcome(ours, 2e-6, value)
                rows.append(Row(line, outcome))
            return run.BenchReport(tuple(rows), 1.5, options["is_quick"], run.surroundings())

        monkeypatch.setattr(measuring, "run_bench", run_bench)
        result = CliRunner().invoke(cli.main, ["bench", *arguments])
        assert result.exit_code == exit_code, result.output
        return result.stdout

    return bench


@pytest.fixture
def known(monkeypatch):
    """Make these misses known ones."""

    def known(**evidence):
        found = {key.replace("_", "."): text for key, text in evidence.items()}
        for module in (run, sys.modules["jessymem.terminal.records"]):
            monkeypatch.setattr(module, "accepted_misses", lambda: found)

    return known


def test_bench_shows_every_row_and_its_verdict(bench, known):
    known()
    output = bench(columns="200")
    for line in LINES:
        assert line.what in output
    targets = [line.target for line in LINES if line.target is not None]
    assert output.count(" met ") == len(targets)
    assert output.count(" met (abs) ") == sum(target.is_absolute for target in targets)
    assert output.rstrip().endswith("Every ratio is met.")
    assert "numba" in output


def test_bench_on_a_narrow_terminal_leaves_out_what_each_took(bench, known):
    known()
    assert "Peer took" in bench()
    narrow = bench(columns="80")
    assert "Peer took" not in narrow
    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert "..." not in narrow and "\u2026" not in narrow


def test_bench_checks(bench, known):
    known()
    output = bench("--check", exit_code=1, start_cold=1.6)
    assert output.rstrip().endswith("Missed, and not known to be: start.cold")
    bench(start_cold=1.6)
    bench("--check", start_manager=1.0)  # absolute: tells of the machine
    output = bench("--check", read_one="lmdb is not installed")
    assert "Not run: read.one: lmdb is not installed" in output
    assert output.rstrip().endswith("Every ratio that was measured is met.")
    known(start_cold="Evidence.")
    output = bench("--check", start_cold=1.6)
    assert "missed, known" in output
    bench("--check", exit_code=1, start_cold=1.6, write_1=9.0)


def test_bench_as_json(bench, known):
    known(start_cold="Evidence.")
    record = json.loads(bench("--json", "--quick", start_cold=1.6, read_one="why", write_1=9.0))
    assert record["is_quick"] is True
    assert record["missed"] == ["write.1"]
    assert {"cpu", "python", "numpy", "numba", "lmdb"} <= record["surroundings"].keys()
    rows = {row["key"]: row for row in record["rows"]}
    assert list(rows) == [line.key for line in LINES]
    assert rows["start.cold"]["evidence"] == "Evidence."
    assert rows["start.cold"]["target"] == ["<=", 1.3]
    assert (rows["read.one"]["verdict"], rows["read.one"]["reason"]) == ("not run", "why")
    assert rows["read.one"]["ours"] is None


def test_only_what_is_asked_for_is_measured(monkeypatch, tmp_path):
    asked = []

    def measure_family(family, setting):
        asked.append((family, setting.is_quick, setting.folder.parent == tmp_path))
        return []

    monkeypatch.setattr(run, "measure_family", measure_family)
    arguments = [
        "bench",
        "--quick",
        "--only",
        "write",
        "--only",
        "read",
        "--scratch",
        str(tmp_path),
    ]
    assert CliRunner().invoke(cli.main, arguments).exit_code == 0
    assert asked == [("read", True, True), ("write", True, True)]
    assert list(tmp_path.iterdir()) == []


def test_amounts_and_targets_in_words():
    assert wording.show_amount(2.7e-7, "seconds") == "270 ns"
    assert wording.show_amount(2.7e-3, "seconds") == "2.70 ms"
    assert wording.show_amount(13.24e9, "bytes per second") == "13.2 GB/s"
    assert wording.show_amount(4.1e6, "per second") == "4.1 million/s"
    assert wording.show_amount(4 * 2**20, "bytes") == "4.0 MB"
    assert wording.show_amount(math.nan, "seconds") == ""
    lines = {line.key: line for line in LINES}
    assert wording.show_target(lines["read.one"]) == "<= 0.8 x"
    assert wording.show_target(lines["start.manager"]) == "<= 2.00 ms"
    assert wording.show_target(lines["read.one.dict"]) == ""
    assert wording.show_ratio(Row(lines["read.batch.lmdb"], Outcome(1, 1, 123.4))) == "123 x"


# -- the pages -------------------------------------------------------------------------------------


def run_pages():
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    try:
        import bench_pages
    finally:
        sys.path.remove(str(ROOT / "tests" / "benchmarks"))
    return bench_pages


def test_misses_that_are_accepted_are_lines_and_stand_on_the_page_with_their_evidence():
    pages = run_pages()
    with_target = {line.key for line in LINES if line.target and not line.target.is_absolute}
    assert run.accepted_misses().keys() <= with_target
    assert all(evidence.endswith(".") for evidence in run.accepted_misses().values())
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert pages.fill(page, "misses", pages.missed_list()) == page


def test_the_table_of_the_page_is_one_that_the_script_made(bench, known):
    pages = run_pages()
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    record = json.loads(bench("--json"))
    filled = pages.fill(page, "bench", pages.bench_table(record))
    for line in LINES:
        assert f"\n| {line.what} | {line.peer} | " in filled
        assert f"\n| {line.what} | {line.peer} | " in page, "run tests/benchmarks/bench_pages.py"
    with pytest.raises(ValueError, match="no section marked"):
        pages.fill(page, "nowhere", "")


def test_the_readme_has_a_few_rows_of_that_table():
    pages = run_pages()
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = pages.short_table(page)
    assert len(table.splitlines()) - 2 == len(pages.SHOWN) <= 10
    assert pages.fill(readme, "bench", table) == readme, "run tests/benchmarks/bench_pages.py"
