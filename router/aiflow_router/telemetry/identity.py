"""What a router knows of keys, and how old that is; read at the scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Known(Protocol):
    def __len__(self) -> int:
        """Keys."""

    def age_s(self) -> float: ...


class IdentityAtScrape(Collector):
    def __init__(self, known: Known, jwks_problem: Callable[[], str] | None) -> None:
        """`jwks_problem` says what is wrong with the file of keys for tokens; None for none."""
        self._known = known
        self._jwks_problem = jwks_problem

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "aiflow_identity_age_seconds",
            "How old is what is known of tenants and keys: above 1 the database does not answer.",
            value=self._known.age_s(),
        )
        yield GaugeMetricFamily(
            "aiflow_identity_keys",
            "API keys out of the database that are known, the revoked ones included.",
            value=len(self._known),
        )
        if self._jwks_problem is not None:
            yield GaugeMetricFamily(
                "aiflow_identity_jwks_refused",
                "1 while the file of keys that sign tokens is not in order.",
                value=int(bool(self._jwks_problem())),
            )
