"""What a server tells Prometheus about itself."""

from __future__ import annotations

from collections.abc import Iterator

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aiflow_servers.runtime.registration import Registration, RegistrationState
from aiflow_servers.runtime.workers import Workers

prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series nobody reads

# CPU algorithms answer within milliseconds to tens of seconds.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60)


class Metrics:
    """The metrics of one running server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        self.requests = prometheus.Counter(
            "aiflow_server_requests",
            "Calls finished, by gRPC status code.",
            ["service", "method", "code"],
            registry=self.registry,
        )
        self.duration = prometheus.Histogram(
            "aiflow_server_request_duration_seconds",
            "From the call's arrival to its end.",
            ["service", "method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.inflight = prometheus.Gauge(
            "aiflow_server_inflight", "Calls running now.", registry=self.registry
        )
        self.queue_wait = prometheus.Histogram(
            "aiflow_workers_queue_wait_seconds",
            "How long jobs waited for a worker process.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def observe(self, workers: Workers, registration: Registration | None) -> None:
        """Adds what is read off the workers and the registration when Prometheus asks."""
        self.registry.register(_State(workers, registration))

    def page(self) -> bytes:
        return prometheus.generate_latest(self.registry)


class _State(Collector):
    def __init__(self, workers: Workers, registration: Registration | None) -> None:
        self._workers = workers
        self._registration = registration

    def collect(self) -> Iterator[Metric]:
        workers = self._workers
        yield GaugeMetricFamily("aiflow_workers", "Worker processes wanted.", workers.size)
        yield GaugeMetricFamily("aiflow_workers_busy", "Those that run a job now.", workers.busy)
        yield GaugeMetricFamily(
            "aiflow_workers_queue_depth", "Jobs that wait for a worker process.", workers.queued
        )
        restarts = CounterMetricFamily(
            "aiflow_workers_restarts", "Worker processes replaced, by why.", labels=["cause"]
        )
        for cause, count in workers.restarts.items():
            restarts.add_metric([cause], count)
        yield restarts
        if self._registration is not None:
            yield from _registration_state(self._registration)


def _registration_state(registration: Registration) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "aiflow_registration_state", "1 for what the router knows of us now.", labels=["state"]
    )
    for each in RegistrationState:
        state.add_metric([each.value], float(each is registration.state))
    yield state
    yield CounterMetricFamily(
        "aiflow_registration_failures",
        "Tries to register or renew that failed.",
        registration.failures_total,
    )
