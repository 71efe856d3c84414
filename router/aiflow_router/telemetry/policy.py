"""The metric of a store of the policy that routers share, for whichever process reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge


def watch_store(registry: CollectorRegistry, age_s: Callable[[], float]) -> None:
    Gauge(
        "aiflow_policy_age_seconds",
        "Time since Consul last said what policy lies there, or that nothing new does.",
        registry=registry,
    ).set_function(age_s)
