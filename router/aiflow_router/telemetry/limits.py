"""What a scrape reads of the limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, Metric


class LimitsAtScrape:
    def __init__(self, counts: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        decisions = CounterMetricFamily(
            "aiflow_ratelimit",
            "Calls that a limit was asked about, by what it said.",
            labels=("rule", "result"),
        )
        for found, count in self._counts().items():
            decisions.add_metric(found, count)
        return (decisions,)
