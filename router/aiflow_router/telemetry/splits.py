"""How the calls of split models are shared, read when it is scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric


class SplitsAtScrape:
    def __init__(self, shares: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        self._shares = shares

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "aiflow_split_share",
            "Part of a split model's new calls that is sent to a model, 0 to 1.",
            labels=("model", "to"),
        )
        for model, parts in self._shares().items():
            for to, part in parts.items():
                family.add_metric((model, to), part)
        return (family,)
