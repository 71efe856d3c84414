"""What a scrape reads of the caches of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class Cached(Protocol):
    """What the scrape reads of a model's cache."""

    @property
    def counts(self) -> Mapping[Any, int]: ...

    @property
    def store(self) -> Stored: ...


class Stored(Protocol):
    @property
    def size_bytes(self) -> int: ...

    @property
    def evicted(self) -> Mapping[str, int]: ...


class CachesAtScrape:
    def __init__(self, caches: Callable[[], Iterable[tuple[str, Cached]]]) -> None:
        self._caches = caches

    def collect(self) -> Iterable[Metric]:
        calls = CounterMetricFamily(
            "aiflow_cache",
            "Calls to models with a cache, by what became of them there.",
            labels=("model", "result"),
        )
        size = GaugeMetricFamily(
            "aiflow_cache_bytes", "Of the answers that are kept.", labels=("model",)
        )
        evicted = CounterMetricFamily(
            "aiflow_cache_evictions",
            "Answers that are not kept any more, for want of room or because of their age.",
            labels=("model", "reason"),
        )
        for name, cache in self._caches():
            size.add_metric((name,), cache.store.size_bytes)
            for result, count in cache.counts.items():
                calls.add_metric((name, result), count)
            for reason, count in cache.store.evicted.items():
                evicted.add_metric((name, reason), count)
        return (calls, size, evicted)
