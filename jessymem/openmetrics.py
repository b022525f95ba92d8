"""OpenMetrics text, written without any library.

The format: https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from jessymem.config import MemoryConfig
from jessymem.histograms import LatencyHistogram
from jessymem.metric_families import FAMILIES, Family, Sample, buckets, samples
from jessymem.stats import MemoryStats

#: What a server says that the text is.
CONTENT_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def metrics_text(stats: MemoryStats, config: MemoryConfig) -> str:
    """Return all metrics of a manager as OpenMetrics text."""
    values = samples(stats, config)
    lines = [line for family in FAMILIES for line in _lines(family, values[family.name])]
    return "\n".join([*lines, "# EOF", ""])


def _lines(family: Family, found: Sequence[Sample]) -> Iterator[str]:
    yield f"# TYPE {family.name} {family.kind}"
    if family.unit:
        yield f"# UNIT {family.name} {family.unit}"
    yield f"# HELP {family.name} {_escaped(family.help)}"
    suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
    for sample in found:
        labels = list(zip(family.labels, sample.labels, strict=True))
        if isinstance(sample.value, LatencyHistogram):
            for bound, n_samples in buckets(sample.value):
                yield f"{family.name}_bucket{_label_set([*labels, ('le', bound)])} {n_samples}"
            yield f"{family.name}_count{_label_set(labels)} {sample.value.n_samples}"
            yield f"{family.name}_sum{_label_set(labels)} {sample.value.total_seconds!r}"
        else:
            yield f"{family.name}{suffix}{_label_set(labels)} {sample.value!r}"


def _label_set(labels: Sequence[tuple[str, str]]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
