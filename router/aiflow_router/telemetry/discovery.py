"""Metrics of where the endpoints come from, for whichever process asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

AGE = "Time since discovery was last heard: a registered server, or Consul."


class Book(Protocol):
    @property
    def errors(self) -> Mapping[str, int]: ...

    @property
    def watches(self) -> int: ...


class Discovery(Protocol):
    """What the scrape reads of a source of endpoints: see catalog.consul.Discovery."""

    @property
    def book(self) -> Book: ...

    @property
    def from_disk(self) -> bool: ...

    @property
    def held(self) -> int: ...


class DiscoveryAtScrape(Collector):
    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery

    def collect(self) -> Iterable[Metric]:
        errors = CounterMetricFamily(
            "aiflow_discovery_errors",
            "Failures of discovery, by kind; calls go on with the last view.",
            labels=("kind",),
        )
        for kind, count in self._discovery.book.errors.items():
            errors.add_metric((kind,), count)
        yield errors
        yield GaugeMetricFamily(
            "aiflow_discovery_watches",
            "Questions that wait at Consul for changes.",
            value=self._discovery.book.watches,
        )
        yield GaugeMetricFamily(
            "aiflow_discovery_from_disk",
            "Whether the view began as the last one on disk and is not told anew yet.",
            value=int(self._discovery.from_disk),
        )
        yield GaugeMetricFamily(
            "aiflow_discovery_held_endpoints",
            "Endpoints called though Consul, after trouble, tells bad news of them.",
            value=self._discovery.held,
        )
