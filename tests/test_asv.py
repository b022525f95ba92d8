"""Every benchmark of the dashboards runs once, on small stores, so that none can rot."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import samples
from support.samples import sampled

ROOT = Path(__file__).parent.parent
SUITE = ROOT / "asv_bench"
KINDS = re.compile(r"(time|timeraw|track|peakmem)_")


def load_suite():
    """Import the benchmarks as asv does, with small stores; return their modules."""
    sys.path.insert(0, str(SUITE))
    os.environ["JESSYMEM_BENCHMARKS"] = "small"
    try:
        package = importlib.import_module("benchmarks")
        names = [name for _, name, _ in pkgutil.iter_modules(package.__path__, "benchmarks.")]
        return {name.partition(".")[2]: importlib.import_module(name) for name in names}
    finally:
        del os.environ["JESSYMEM_BENCHMARKS"]
        sys.path.remove(str(SUITE))


MODULES = load_suite()
CLASSES = {
    f"{module}.{name}": cls
    for module, loaded in MODULES.items()
    for name, cls in vars(loaded).items()
    if inspect.isclass(cls)
    and cls.__module__ == loaded.__name__
    and any(KINDS.match(attribute) for attribute in dir(cls))
}


def benchmarks_of(cls):
    return [name for name in dir(cls) if KINDS.match(name)]


def parameters_of(cls):
    """Return the parameters that are run: of many the first, all with `-m slow`."""
    params = getattr(cls, "params", [])
    lists = params if params and isinstance(params[0], list) else [params] if params else []
    product = list(itertools.product(*lists))
    return product if samples.is_whole() else product[:1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What each `setup_cache` returned, made in a directory that is kept, as asv does."""
    made = {}

    def of(cls):
        setup_cache = inspect.getattr_static(cls, "setup_cache", None)
        if setup_cache is None:
            return ()
        if setup_cache not in made:
            folder = tmp_path_factory.mktemp("cache")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                made[setup_cache] = folder, cls().setup_cache()
        return (made[setup_cache][1],)

    return of


def run_raw(statement):
    """Do what asv does with a `timeraw_` benchmark: through a string in a process of its own."""
    statement, setup = statement if isinstance(statement, tuple) else (statement, "")
    template = '"""{}"""'
    script = (
        "import textwrap, timeit\n"
        + "timeit.timeit(textwrap.dedent({}), textwrap.dedent({}), number=1)"
    )
    code = script.format(template.format(statement), template.format(setup))
    subprocess.run([sys.executable, "-c", code], check=True)


@sampled
@pytest.mark.parametrize("name", CLASSES)
def test_benchmark_runs(name, cache, tmp_path, monkeypatch):
    cls = CLASSES[name]
    cached = cache(cls)
    monkeypatch.chdir(tmp_path)
    skipped = []
    try:
        for parameters in parameters_of(cls):
            instance = cls()
            try:
                if hasattr(instance, "setup"):
                    instance.setup(*cached, *parameters)
            except NotImplementedError as error:
                skipped.append(str(error))
                continue
            try:
                for benchmark in benchmarks_of(cls):
                    result = getattr(instance, benchmark)(*cached, *parameters)
                    if benchmark.startswith("timeraw_"):
                        run_raw(result)
                    elif benchmark.startswith("track_"):
                        assert float(result) == result
            finally:
                if hasattr(instance, "teardown"):
                    instance.teardown(*cached, *parameters)
    finally:
        MODULES["common"].drop_kept()
    if len(skipped) == len(parameters_of(cls)):
        pytest.skip("; ".join(sorted(set(skipped))))


# -- what asv is told ------------------------------------------------------------------------------


def test_every_benchmark_carries_its_version():
    for name, cls in CLASSES.items():
        assert isinstance(getattr(cls, "version", None), str), name


def test_a_body_that_cannot_be_repeated_says_so():
    for name in ("crystallize.Crystallize_NMB", "crystallize.Learn_BesideNLayers"):
        assert (CLASSES[name].number, CLASSES[name].warmup_time) == (1, 0)


def test_asv_makes_its_environments_of_what_the_extra_names():
    util = pytest.importorskip("asv.util", reason="asv is not installed")
    settings = util.load_json(str(SUITE / "asv.conf.json"), js_comments=True)
    assert settings["branches"] == ["main"]
    assert settings["conda_environment_file"] == "IGNORE"
    peers = {"lmdb", "pyarrow", "safetensors"}
    assert settings["matrix"]["req"].keys() == {"numpy", "numba"} | peers
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["bench"]
    assert peers <= {re.match(r"[\w-]+", requirement)[0] for requirement in extra}


def test_the_page_of_each_plot_says_where_it_was_measured(tmp_path, monkeypatch):
    pytest.importorskip("asv", reason="asv is not installed")
    monkeypatch.syspath_prepend(SUITE)
    surroundings = importlib.import_module("surroundings")
    machines = tmp_path / "results" / "here"
    machines.mkdir(parents=True)
    machine = {"machine": "here", "cpu": "a CPU", "num_cpu": "2", "version": 1}
    (machines / "machine.json").write_text(json.dumps(machine))
    html = tmp_path / "html"
    html.mkdir()
    (html / "index.html").write_text("<html><head></head><body></body></html>")
    settings = SimpleNamespace(html_dir=str(html), results_dir=str(tmp_path / "results"))
    surroundings.Surroundings.publish(settings, None, {}, None, None)
    assert '<script src="surroundings.js"></script>' in (html / "index.html").read_text()
    assert (html / "surroundings.js").is_file()
    described = json.loads((html / "surroundings.json").read_text())
    assert described["machines"][0]["cpu"] == "a CPU"


def test_the_spread_is_half_of_the_interquartile_range_over_the_median(monkeypatch):
    pytest.importorskip("asv", reason="asv is not installed")
    monkeypatch.syspath_prepend(SUITE)
    surroundings = importlib.import_module("surroundings")
    stats = [{"q_25": 0.9, "q_75": 1.1, "repeat": 5}, None, {"q_25": 1, "q_75": 1, "repeat": 1}]
    result = SimpleNamespace(
        get_result_value=lambda name, params: [1.0, None, 1.0],
        get_result_stats=lambda name, params: stats,
    )
    assert surroundings.spread(result, "name", []) == pytest.approx(0.1)


def test_counts_are_read_from_what_callgrind_wrote(tmp_path):
    instructions = MODULES["instructions"]
    n_counted = 93 * instructions.N_TIMES
    head = "version: 1\ndesc: Trigger: Client Request: locate_many\nsummary: 0\n"
    (tmp_path / "out.1").write_text(f"{head}\nfn=(1) x\n0 {n_counted}\ntotals: {n_counted}\n")
    (tmp_path / "out").write_text("desc: Trigger: Program termination\ntotals: 0\n")
    (tmp_path / "out.2").write_text("desc: Trigger: Program termination\ntotals: 5\n")
    assert instructions.read_counts(tmp_path) == {"locate_many": 93.0}


def test_the_comparison_reads_what_asv_lists_as_slower(monkeypatch):
    monkeypatch.syspath_prepend(SUITE)
    table = """
| Change   | Before [c6833230] <bench>   | After [27cc73a8] <main~1>   |   Ratio | Benchmark (Parameter)          |
|----------|-----------------------------|-----------------------------|---------|--------------------------------|
| +        | 33.6+-10ms                  | 63.4+-20ms                  |    1.89 | read.Access.time_access('str') |
| -        | 2.00+-0ms                   | 1.00+-0ms                   |    0.50 | read.Access.time_quicker       |
|          | 2.00+-0ms                   | 2.00+-0ms                   |    1.00 | read.Access.time_same          |
"""  # noqa: E501 - as asv writes it
    slower = importlib.import_module("compare").SLOWER
    assert slower.findall(table) == ["read.Access.time_access('str')"]
