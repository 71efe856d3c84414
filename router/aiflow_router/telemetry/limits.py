"""What a scrape reads of the limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class LimitsAtScrape:
    def __init__(
        self,
        counts: Callable[[], Mapping[tuple[str, str], int]],
        waiting: Callable[[], Mapping[str, int]],
    ) -> None:
        self._counts = counts
        self._waiting = waiting

    def collect(self) -> Iterable[Metric]:
        decisions = CounterMetricFamily(
            "aiflow_ratelimit",
            "Calls that a limit was asked about, by what it said.",
            labels=("rule", "result"),
        )
        for found, count in self._counts().items():
            decisions.add_metric(found, count)
        waiting = GaugeMetricFamily(
            "aiflow_ratelimit_waiting", "Calls that wait for a limit.", labels=("rule",)
        )
        for rule, count in self._waiting().items():
            waiting.add_metric((rule,), count)
        return (decisions, waiting)
