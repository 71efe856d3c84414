"""The router's Prometheus metrics.

Names of models and services become labels only once the catalog or a route knows them, so callers
cannot make the number of series grow. Children are cached here: `labels()` costs more than `inc()`.
What is a count of things that exist (in flight, endpoints) is read when it is scraped and costs a
call nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from aiflow_router.telemetry import policy
from aiflow_router.telemetry.accounts import AccountsAtScrape, Ledger, Usage
from aiflow_router.telemetry.batches import BatchesAtScrape, Filled
from aiflow_router.telemetry.caches import Cached, CachesAtScrape
from aiflow_router.telemetry.discovery import AGE, Discovery, DiscoveryAtScrape
from aiflow_router.telemetry.gates import Gates, GatesAtScrape, Lines
from aiflow_router.telemetry.histograms import Histograms
from aiflow_router.telemetry.identity import IdentityAtScrape, Known
from aiflow_router.telemetry.limits import LimitsAtScrape, StoreAtScrape
from aiflow_router.telemetry.limits import Shared as SharedBuckets
from aiflow_router.telemetry.splits import SplitsAtScrape

T = TypeVar("T")

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series nobody reads

# Label of a call that named nothing the router knows.
UNKNOWN = "unknown"

_DURATION_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
_OVERHEAD_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)


class Catalogued(Protocol):
    """What the scrape reads of the catalog."""

    def inflight(self) -> Mapping[str, int]:
        """Calls in flight by backend."""

    def endpoints(self) -> Mapping[tuple[str, str], int]:
        """Endpoints by backend and state."""

    def panics(self) -> Mapping[str, int]:
        """Models and services for which endpoints are used that are not fit, by backend."""

    def age_s(self) -> float: ...


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._settle: Callable[[], None] = lambda: None
        ProcessCollector(registry=self.registry)
        requests = Counter(
            "aiflow_requests",
            "Calls answered, by status code.",
            ("tenant", "model", "code"),
            registry=self.registry,
        )
        duration = self._histograms(
            "aiflow_request_duration_seconds",
            "Time from a call's arrival to its end.",
            _DURATION_BUCKETS_S,
            label="model",
        )
        overhead = self._histograms(
            "aiflow_overhead_seconds",
            "Time a unary call spent in the router alone.",
            _OVERHEAD_BUCKETS_S,
        )
        attempts = Counter(
            "aiflow_attempts",
            "Calls sent, or tried to be sent, to endpoints.",
            ("backend", "outcome"),
            registry=self.registry,
        )
        hedges = Counter(
            "aiflow_hedges",
            "Second endpoints asked beside a slow first one, by what came of it.",
            ("model", "result"),
            registry=self.registry,
        )
        would_hedge = Counter(
            "aiflow_hedges_shadow",
            "Second endpoints that `hedge.mode: shadow` did not ask.",
            ("model",),
            registry=self.registry,
        )
        would_retry = Counter(
            "aiflow_retries_shadow",
            "Retries that `retry.mode: shadow` did not make.",
            ("model", "reason"),
            registry=self.registry,
        )
        would_fail = Counter(
            "aiflow_health_shadow",
            "Endpoints that `health.mode: shadow` did not take out.",
            ("backend", "reason"),
            registry=self.registry,
        )
        budget_spent = Counter(
            "aiflow_retry_budget_exhausted",
            "Calls that failed because too many others were retrying already.",
            ("model",),
            registry=self.registry,
        )
        queue_wait = self._histograms(
            "aiflow_queue_wait_seconds",
            "Time that calls which had to wait for their turn waited, those that got in.",
            _DURATION_BUCKETS_S,
            label="model",
        )
        ejections = Counter(
            "aiflow_ejections",
            "Endpoints left out because of how their calls ended.",
            ("backend", "reason"),
            registry=self.registry,
        )
        would_eject = Counter(
            "aiflow_ejections_shadow",
            "Ejections that `ejection.mode: shadow` did not make.",
            ("backend", "reason"),
            registry=self.registry,
        )
        shadows = Counter(
            "aiflow_shadow",
            "Copies of calls for another model, by what came of them beside the real ones.",
            ("model", "to", "outcome"),
            registry=self.registry,
        )
        shadow_s = Histogram(
            "aiflow_shadow_seconds",
            "Time until backends answered, of calls that were answered on both sides.",
            ("model", "to", "side"),
            buckets=_DURATION_BUCKETS_S,
            registry=self.registry,
        )
        fallbacks = Counter(
            "aiflow_fallback",
            "Calls that went on to another model because one failed them.",
            ("from", "to", "reason"),
            registry=self.registry,
        )
        would_fall_back = Counter(
            "aiflow_fallback_shadow",
            "Calls that a fallback in shadow would have sent on.",
            ("from", "to", "reason"),
            registry=self.registry,
        )
        splits = Counter(
            "aiflow_split",
            "Calls to a model that is split, by the model that they were sent to.",
            ("model", "to"),
            registry=self.registry,
        )
        would_split = Counter(
            "aiflow_split_shadow",
            "Calls that a split in shadow would have sent there.",
            ("model", "to"),
            registry=self.registry,
        )
        stops = Counter(
            "aiflow_split_stopped",
            "Times that a guard stopped a side of a split.",
            ("model", "to", "reason"),
            registry=self.registry,
        )
        would_stop = Counter(
            "aiflow_split_stopped_shadow",
            "Times that a guard in shadow would have stopped a side.",
            ("model", "to", "reason"),
            registry=self.registry,
        )
        checks = Counter(
            "aiflow_health_checks",
            "Answers to the router's own health checks, and endpoints that gave none.",
            ("backend", "result"),
            registry=self.registry,
        )
        load_errors = Counter(
            "aiflow_config_load_errors",
            "Configurations that were refused since the start.",
            registry=self.registry,
        )
        self.requests = _cached(lambda *labels: requests.labels(*labels).inc)
        self.duration = _cached(lambda *labels: duration.labels(*labels).observe)
        self.attempts = _cached(lambda *labels: attempts.labels(*labels).inc)
        self.queue_wait = _cached(lambda *labels: queue_wait.labels(*labels).observe)
        self.ejected = _cached(lambda *labels: ejections.labels(*labels).inc)
        self.would_eject = _cached(lambda *labels: would_eject.labels(*labels).inc)
        self.checked = _cached(lambda *labels: checks.labels(*labels).inc)
        self.fallback = _cached(lambda *labels: fallbacks.labels(*labels).inc)
        self.fallback_shadow = _cached(lambda *labels: would_fall_back.labels(*labels).inc)
        self.split = _cached(lambda *labels: splits.labels(*labels).inc)
        self.split_shadow = _cached(lambda *labels: would_split.labels(*labels).inc)
        self.split_stopped = _cached(lambda *labels: stops.labels(*labels).inc)
        self.split_would_stop = _cached(lambda *labels: would_stop.labels(*labels).inc)
        self.overhead = overhead.labels().observe
        self.shadowed = _cached(lambda *labels: shadows.labels(*labels).inc)
        self.shadow_s = _cached(lambda *labels: shadow_s.labels(*labels).observe)
        self.load_error = load_errors.inc
        self.hedges = _cached(lambda *labels: hedges.labels(*labels).inc)
        self.would_hedge = _cached(lambda model: would_hedge.labels(model).inc)
        self.would_retry = _cached(lambda *labels: would_retry.labels(*labels).inc)
        self.would_fail = _cached(lambda *labels: would_fail.labels(*labels).inc)
        self.budget_spent = _cached(lambda model: budget_spent.labels(model).inc)

    def _histograms(
        self, name: str, text: str, bounds_s: Sequence[float], *, label: str = ""
    ) -> Histograms:
        found = Histograms(name, text, bounds_s, label=label)
        self.registry.register(found)
        return found

    def watch(self, catalogued: Catalogued, *, undescribed: Callable[[], int]) -> None:
        self.registry.register(_AtScrape(catalogued))
        Gauge(
            "aiflow_endpoints_undescribed",
            "Endpoints that have not yet answered which methods they have.",
            registry=self.registry,
        ).set_function(undescribed)

    def watch_gates(self, gates: Callable[[], Iterable[tuple[str, Gates]]], lines: Lines) -> None:
        """`gates` gives those of each model and service, by name; `lines` are those of limits."""
        self.registry.register(GatesAtScrape(gates, lines))

    def watch_caches(self, caches: Callable[[], Iterable[tuple[str, Cached]]]) -> None:
        """`caches` gives those of models whose routes have one, by name."""
        self.registry.register(CachesAtScrape(caches))

    def watch_store(self, shared: SharedBuckets | None) -> None:
        """Where the buckets of limits are; None: in this process."""
        self.registry.register(StoreAtScrape(shared))

    def watch_limits(
        self,
        counts: Callable[[], Mapping[tuple[str, str], int]],
        waiting: Callable[[], Mapping[str, int]],
        forgotten: Callable[[], int],
    ) -> None:
        """`counts` gives decisions by rule and result."""
        self.registry.register(LimitsAtScrape(counts, waiting, forgotten))

    def watch_accounts(self, ledger: Ledger, usage: Usage) -> None:
        self.registry.register(AccountsAtScrape(ledger, usage))

    def watch_quotas(self, age_s: Callable[[], float]) -> None:
        """`age_s` gives the time since what is used of quotas was written."""
        Gauge(
            "aiflow_quotas_age_seconds",
            "Since what is used of quotas was written: above 2 the database does not take it.",
            registry=self.registry,
        ).set_function(age_s)

    def watch_policy(self, in_force: Callable[[], tuple[str, str]]) -> None:
        """`in_force` gives the version, and the kind of its source."""
        self.registry.register(_PolicyAtScrape(in_force))

    def watch_policy_store(self, age_s: Callable[[], float]) -> None:
        policy.watch_store(self.registry, age_s)

    def watch_splits(self, shares: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """`shares` gives the parts of each split model's calls, by the model they go to."""
        self.registry.register(SplitsAtScrape(shares))

    def watch_batches(
        self,
        *,
        unknown: Callable[[], Mapping[str, int]],
        fillings: Callable[[], Iterable[Filled]],
    ) -> None:
        """Of routes with `balance: batch_aware`; `unknown` counts endpoints by model."""
        self.registry.register(BatchesAtScrape(unknown, fillings))

    def discovers(self, discovery: Discovery) -> None:
        """For a catalog that this process fills from elsewhere."""
        self.registry.register(DiscoveryAtScrape(discovery))

    def mirrors(self, following: Callable[[], bool], lost: Callable[[], int]) -> None:
        """For a catalog that another process owns."""
        self.registry.register(_Mirrored(following, lost))

    def watch_identity(self, known: Known, *, jwks_problem: Callable[[], str] | None) -> None:
        """`jwks_problem` says what is wrong with the keys of tokens; None where there are none."""
        self.registry.register(IdentityAtScrape(known, jwks_problem))

    def before_scrape(self, settle: Callable[[], None]) -> None:
        """`settle` counts what was noted and not counted yet."""
        self._settle = settle

    def text(self) -> bytes:
        self._settle()
        return generate_latest(self.registry)


class _AtScrape:
    """Reads what exists at the moment of the scrape."""

    def __init__(self, catalogued: Catalogued) -> None:
        self._catalogued = catalogued

    def collect(self) -> Iterable[Metric]:
        inflight = GaugeMetricFamily(
            "aiflow_inflight", "Calls in flight to endpoints.", labels=("backend",)
        )
        for backend, count in self._catalogued.inflight().items():
            inflight.add_metric((backend,), count)
        endpoints = GaugeMetricFamily(
            "aiflow_endpoints", "Endpoints in the catalog.", labels=("backend", "state")
        )
        for labels, count in self._catalogued.endpoints().items():
            endpoints.add_metric(labels, count)
        panics = GaugeMetricFamily(
            "aiflow_panic",
            "Models and services without a fit endpoint, for which all endpoints are used.",
            labels=("backend",),
        )
        for backend, count in self._catalogued.panics().items():
            panics.add_metric((backend,), count)
        age = GaugeMetricFamily(
            "aiflow_discovery_age_seconds",
            AGE,
            value=self._catalogued.age_s(),
        )
        return (inflight, endpoints, panics, age)


class _PolicyAtScrape:
    def __init__(self, policy: Callable[[], tuple[str, str]]) -> None:
        self._policy = policy

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "aiflow_policy_info",
            "The policy in force, by version and by what it came from.",
            labels=("version", "source"),
        )
        info.add_metric(self._policy(), 1)
        return (info,)


class _Mirrored:
    def __init__(self, following: Callable[[], bool], lost: Callable[[], int]) -> None:
        self._following = following
        self._lost = lost

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "aiflow_workers_following",
            "Workers that are told of changes of the catalog; the others keep their last view.",
            value=int(self._following()),
        )
        yield CounterMetricFamily(
            "aiflow_catalog_lost",
            "Times that a worker lost the supervisor's word on the catalog.",
            value=self._lost(),
        )


def _cached(make: Callable[..., T]) -> Callable[..., T]:
    return lru_cache(maxsize=4096)(make)
