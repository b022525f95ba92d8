"""Metrics: what Prometheus' own parser and server make of them, and that counters never go back."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, exposition, start_http_server
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.internals import evict
from support.processes import checked_in_child

from jessymem import LayerNotFound, MmapManager
from jessymem.metric_families import FAMILIES
from jessymem.metrics import collector
from jessymem.openmetrics import CONTENT_TYPE


def values_of(text):
    """Every sample by its name and labels."""
    parsed = text_string_to_metric_families(text)
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value
        for family in parsed
        for each in family.samples
    }


def read_from(manager):
    return values_of(manager.metrics_text())


def test_their_parser_reads_the_text(manager):
    manager.access_layer("L01-00")
    text = manager.metrics_text()
    parsed = list(text_string_to_metric_families(text))
    assert [each.name for each in parsed] == [each.name for each in FAMILIES]
    for mine, theirs in zip(FAMILIES, parsed, strict=True):
        assert (theirs.type, theirs.unit, theirs.documentation) == (mine.kind, mine.unit, mine.help)
        assert theirs.samples or mine.labels == ("node",)  # nobody asked
    assert text.endswith("\n# EOF\n")


def test_the_text_says_what_the_stats_say(manager):
    manager.create_proto_dimension(20, b"learned")
    stats, found = manager.get_stats(), read_from(manager)

    def value(name, **labels):
        return found[f"jessymem_{name}", tuple(sorted(labels.items()))]

    assert value("limit_bytes") == stats.total_limit_bytes
    classes = {name: usage.allocated_bytes for name, usage in stats.per_class.items()}
    assert {name: value("allocated_bytes", **{"class": name}) for name in classes} == classes
    assert sum(classes.values()) == stats.total_allocated_bytes
    assert value("used_bytes") == stats.total_used_bytes
    assert value("peak_bytes") == stats.peak_usage_bytes
    assert value("utilization_ratio") == stats.utilization
    assert value("threshold_ratio", threshold="warning") == 0.75
    assert value("dimensions", state="memory") == stats.active_regions
    assert value("layers") == stats.layers_loaded
    assert value("allocations_total") == stats.total_allocations == 1
    assert value("fragmentation_ratio") == stats.fragmentation_ratio
    blocks = {pool.block_size: pool for pool in stats.per_pool.values()}
    for size, pool in blocks.items():
        used = value("pool_bytes", block_size=str(size), state="used")
        free = value("pool_bytes", block_size=str(size), state="free")
        assert (used, used + free) == (pool.used_blocks * size, pool.total_blocks * size)
    assert value("pools", kind="fixed") == len(stats.per_pool)
    loads = stats.latencies["load"]
    assert value("latency_seconds_count", operation="load") == loads.n_samples == 2
    assert value("latency_seconds_sum", operation="load") == loads.total_seconds


def test_buckets_rise_to_the_number_of_samples(manager):
    for _ in range(50):
        manager.load_contexts(["L01-00"])
    found = read_from(manager)
    batches = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in found.items()
        if name == "jessymem_latency_seconds_bucket" and dict(labels)["operation"] == "batch"
    ]
    bounds, counts = zip(*batches, strict=True)
    assert list(bounds) == sorted(bounds)
    assert list(counts) == sorted(counts)
    assert (bounds[-1], counts[-1]) == (float("inf"), 50)


def test_a_registry_says_the_same_as_the_text(manager):
    registry = CollectorRegistry()
    registry.register(collector(manager))
    theirs = openmetrics_exposition.generate_latest(registry).decode()
    assert values_of(theirs) == read_from(manager)
    plain = exposition.generate_latest(registry).decode()
    assert 'jessymem_dimensions{state="memory"} 2.0' in plain


def test_several_managers_have_a_label(manager, store):
    hostile = 'b"\\\n{}'
    with MmapManager(base_path=store) as other:
        registry = CollectorRegistry()
        registry.register(collector({"a": manager, hostile: other}))
        theirs = values_of(openmetrics_exposition.generate_latest(registry).decode())
    assert theirs["jessymem_layers", (("manager", "a"),)] == len(manager)
    assert theirs["jessymem_layers", (("manager", hostile),)] == 0


def test_two_collectors_of_one_name_are_refused(manager):
    registry = CollectorRegistry()
    registry.register(collector(manager))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(collector(manager))


@pytest.mark.parametrize("wrong", [None, 3, {"a": 3}, {3: None}])
def test_what_is_no_manager_is_refused(wrong):
    with pytest.raises(TypeError, match="managers, by name"):
        collector(wrong)


def test_their_server_serves_it(manager):
    registry = CollectorRegistry()
    registry.register(collector(manager))
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        address = f"http://127.0.0.1:{server.server_port}/metrics"
        asked = urllib.request.Request(address, headers={"Accept": CONTENT_TYPE})
        with urllib.request.urlopen(asked) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            theirs = values_of(answer.read().decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert theirs == read_from(manager)


COUNTERS = [f"{each.name}_total" for each in FAMILIES if each.kind == "counter"]


def counters_of(manager):
    found = read_from(manager)
    counted = {name: found[name, ()] for name in COUNTERS}
    for (name, labels), value in found.items():
        if name.endswith("_seconds_count"):
            counted[name, labels] = value
    return counted


def test_counters_never_go_back(manager):
    seen = [counters_of(manager)]

    def look():
        seen.append(counters_of(manager))
        before, now = seen[-2:]
        assert all(now[name] >= before[name] for name in before)

    offset = manager.allocate(100)
    look()
    manager.deallocate(offset)
    look()
    grown = manager.allocate(300 * 2**20 // 10)
    look()
    manager.deallocate(grown)
    manager.trim()  # the pool that was made for it is gone
    look()
    manager.allocate_array(100)
    gc.collect()
    look()
    layer = manager.create_proto_dimension(20, b"x")
    manager.crystallize_proto_dimension(layer)
    look()
    evict(manager, 1)
    manager.access_layer("L01-00")
    look()
    with pytest.raises(LayerNotFound):
        manager.access_layer("L01-99")
    manager.unload_dimension("D20")
    look()
    checked_in_child(lambda: counters_of(manager) == seen[-1])
    manager.close()
    look()
    assert seen[-1]["jessymem_allocations_total"] >= 4
    assert seen[-1]["jessymem_evictions_total"] == seen[-1]["jessymem_reloads_total"] == 1


def test_the_text_needs_no_library():
    program = """
import sys
sys.modules["prometheus_client"] = None
from jessymem import MmapManager
with MmapManager(base_path="nowhere") as manager:
    assert manager.metrics_text().endswith("# EOF\\n")
try:
    import jessymem.metrics
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == (
        "ConfigError metrics: prometheus-client is not installed; python -m pip install"
        " 'jessymem[metrics]'\n"
    ), done.stderr


def test_the_documents_list_every_metric():
    page = (Path(__file__).parent.parent / "docs" / "monitoring.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `jessymem_")]
    listed = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}
    suffix = {"counter": "_total", "info": "_info"}
    for family in FAMILIES:
        name = family.name + suffix.get(family.kind, "")
        labels = ", ".join(f"`{label}`" for label in family.labels)
        assert listed.pop(name) == [family.kind, labels, family.help]
    assert not listed


def test_the_dashboard_asks_for_metrics_that_there_are(manager):
    text = (Path(__file__).parent.parent / "examples" / "grafana.json").read_text()
    panels = json.loads(text)["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"jessymem_\w+", target["expr"])
    }
    there = {name for name, _ in read_from(manager)}
    assert asked and asked <= there
    assert [panel["title"] for panel in panels] == list(dict.fromkeys(p["title"] for p in panels))


def test_the_ten_lines_of_the_documents_serve_it(store, tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "monitoring.md").read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "REGISTRY" in block
    ]
    served = []
    registry = CollectorRegistry()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    monkeypatch.setattr(prometheus_client, "start_http_server", served.append)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(store)
    names = {}
    exec(code, names)  # it is ours
    with names["manager"]:
        assert served == [9464]
        assert registry.get_sample_value("jessymem_layers") == 8.0
    assert len(code.strip().splitlines()) <= 10
