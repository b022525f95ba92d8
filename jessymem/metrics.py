"""The metrics of managers for prometheus-client; needs the extra `metrics`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jessymem.errors import ConfigError
from jessymem.histograms import LatencyHistogram
from jessymem.manager import MmapManager
from jessymem.metric_families import FAMILIES, Family, Sample, buckets, samples

try:
    from prometheus_client import core
except ModuleNotFoundError as error:
    if error.name != "prometheus_client":
        raise
    raise ConfigError(
        "metrics: prometheus-client is not installed; python -m pip install 'jessymem[metrics]'",
        field="metrics",
        value="prometheus_client",
    ) from None

__all__ = ["Collector", "collector"]


class Collector(Protocol):
    """What a registry of prometheus-client asks."""

    def collect(self) -> Iterator[Any]:
        """Yield each metric with its values of this moment."""

    def describe(self) -> Iterator[Any]:
        """Yield each metric without values."""


def collector(managers: MmapManager | Mapping[str, MmapManager]) -> Collector:
    """Return what a registry of prometheus-client can register.

    Parameters
    ----------
    managers : MmapManager, or mapping of str to MmapManager
        Of several, each metric has a label `manager` with the names given here. They may be closed
        meanwhile: their counters stay as they were then.

    Returns
    -------
    Collector
        It keeps the managers for as long as it is registered, and asks them when it is asked.

    Raises
    ------
    ConfigError
        If prometheus-client is not installed: this module cannot be imported then.
    TypeError
        If that is no manager.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry
    >>> from jessymem.metrics import collector
    >>> registry = CollectorRegistry()
    >>> registry.register(collector(manager))
    >>> registry.get_sample_value("jessymem_dimensions", {"state": "memory"})
    2.0
    """
    is_one = isinstance(managers, MmapManager) or not isinstance(managers, Mapping)
    # A manager is a mapping too.
    named: dict[Any, Any] = {"": managers} if is_one else dict(managers)
    for name, manager in named.items():
        if not isinstance(name, str) or not isinstance(manager, MmapManager):
            raise TypeError(f"a collector is of managers, by name: not {manager!r}")
    return _Collector(named, () if is_one else ("manager",))


class _Collector:
    """Makes metrics of managers; the further label tells them apart."""

    def __init__(self, managers: Mapping[str, MmapManager], label: tuple[str, ...]) -> None:
        self._managers = managers
        self._label = label

    def describe(self) -> Iterator[Any]:
        """Yield each metric without values."""
        for family in FAMILIES:
            yield self._made(family)

    def collect(self) -> Iterator[Any]:
        """Yield each metric with its values of this moment."""
        found = {
            name: samples(manager.get_stats(), manager.config)
            for name, manager in self._managers.items()
        }
        for family in FAMILIES:
            metric = self._made(family)
            for name, values in found.items():
                for sample in values[family.name]:
                    self._add(metric, family, name, sample)
            yield metric

    def _made(self, family: Family) -> Any:
        labels = (*self._label, *(() if family.kind == "info" else family.labels))
        unit = family.unit
        if family.kind == "counter":
            return core.CounterMetricFamily(family.name, family.help, labels=labels, unit=unit)
        if family.kind == "histogram":
            return core.HistogramMetricFamily(family.name, family.help, labels=labels, unit=unit)
        if family.kind == "info":
            return core.InfoMetricFamily(family.name, family.help, labels=labels)
        return core.GaugeMetricFamily(family.name, family.help, labels=labels, unit=unit)

    def _add(self, metric: Any, family: Family, manager: str, sample: Sample) -> None:
        mine = (manager,) if self._label else ()
        if family.kind == "info":
            metric.add_metric(mine, dict(zip(family.labels, sample.labels, strict=True)))
        elif isinstance(sample.value, LatencyHistogram):
            counts = buckets(sample.value)
            metric.add_metric((*mine, *sample.labels), counts, sample.value.total_seconds)
        else:
            metric.add_metric((*mine, *sample.labels), sample.value)
