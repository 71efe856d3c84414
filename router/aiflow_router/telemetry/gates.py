"""What a scrape reads of gates and of the lines of limits: who waits, and calls that were shed."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class Gate(Protocol):
    """What the scrape reads of a gate: see limits.gate.Gate."""

    @property
    def limit(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def refused(self) -> Mapping[tuple[str, str], int]: ...

    @property
    def would_refuse(self) -> Mapping[tuple[str, str], int]: ...


class Gates(Protocol):
    @property
    def unary(self) -> Gate: ...

    @property
    def limited(self) -> bool: ...

    def each(self) -> Iterable[Gate]: ...


class Lines(Protocol):
    """What the scrape reads of those who wait for limits: see limits.line.Lines."""

    @property
    def refused(self) -> Mapping[tuple[str, str, str], int]: ...

    def labels(self) -> Iterable[str]: ...


class GatesAtScrape:
    """What a model and a service of the same name have is added up, as what waits for whatever."""

    def __init__(self, gates: Callable[[], Iterable[tuple[str, Gates]]], lines: Lines) -> None:
        self._gates = gates
        self._lines = lines

    def collect(self) -> Iterable[Metric]:
        depths: Count[str] = Count()
        limits: Count[str] = Count()
        depths.update(self._lines.labels())
        shed: Count[tuple[str, str, str]] = Count(self._lines.refused)
        watched: Count[tuple[str, str, str]] = Count()
        for name, gates in self._gates():
            if not gates.limited:
                continue
            limits[name] += gates.unary.limit
            for gate in gates.each():
                depths[name] += gate.waiting
                shed.update(_named(name, gate.refused))
                watched.update(_named(name, gate.would_refuse))
        depth = GaugeMetricFamily(
            "aiflow_queue_depth", "Calls that wait for their turn.", labels=("model",)
        )
        limit = GaugeMetricFamily(
            "aiflow_concurrency_limit", "Calls that may be in flight at once.", labels=("model",)
        )
        for name in limits.keys() | depths.keys():
            depth.add_metric((name,), depths[name])
        for name, most in limits.items():
            limit.add_metric((name,), most)
        families: list[Metric] = [depth, limit]
        for metric, text, counts in (
            ("aiflow_shed", "Calls that did not get their turn.", shed),
            ("aiflow_shed_shadow", "Calls that would have been shed.", watched),
        ):
            family = CounterMetricFamily(metric, text, labels=("model", "priority", "reason"))
            for found, count in counts.items():
                family.add_metric(found, count)
            families.append(family)
        return families


def _named(name: str, counts: Mapping[tuple[str, str], int]) -> Mapping[tuple[str, str, str], int]:
    return {(name, *labels): count for labels, count in counts.items()}
