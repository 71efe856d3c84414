"""What a scrape reads of the routes that are balanced by their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class Filled(Protocol):
    """What the scrape reads of a model whose batches are filled."""

    @property
    def model(self) -> str: ...

    @property
    def filled(self) -> int: ...

    @property
    def spread(self) -> int: ...


class BatchesAtScrape:
    def __init__(
        self,
        unknown: Callable[[], Mapping[str, int]],
        fillings: Callable[[], Iterable[Filled]],
    ) -> None:
        self._unknown = unknown
        self._fillings = fillings

    def collect(self) -> Iterable[Metric]:
        picks = CounterMetricFamily(
            "aiflow_batch_aware_picks",
            "Attempts that went to an endpoint to fill its batch, or to the least busy one.",
            labels=("model", "how"),
        )
        unknown = GaugeMetricFamily(
            "aiflow_endpoints_batch_unknown",
            "Endpoints of a batch_aware route that have not told the size of the model's batches.",
            labels=("model",),
        )
        counts = self._unknown()
        for filling in self._fillings():
            picks.add_metric((filling.model, "filled"), filling.filled)
            picks.add_metric((filling.model, "spread"), filling.spread)
            unknown.add_metric((filling.model,), counts.get(filling.model, 0))
        return (picks, unknown)
