"""What a scrape reads of the limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

STATES = ("memory", "redis", "away")
DECIDERS = ("redis", "lease", "open", "closed", "share")


class Link(Protocol):
    """What the scrape reads of the connection to Redis: see limits.redis.link.Link."""

    @property
    def sent(self) -> int: ...

    @property
    def errors(self) -> Mapping[str, int]: ...


class Shared(Protocol):
    """What the scrape reads of buckets in Redis: see limits.redis.buckets.RedisBuckets."""

    @property
    def link(self) -> Link: ...

    @property
    def state(self) -> str: ...

    @property
    def decided(self) -> Mapping[str, int]: ...

    @property
    def untold(self) -> int: ...

    @property
    def routers(self) -> int: ...


class LimitsAtScrape:
    def __init__(
        self,
        counts: Callable[[], Mapping[tuple[str, str], int]],
        waiting: Callable[[], Mapping[str, int]],
        forgotten: Callable[[], int],
    ) -> None:
        self._counts = counts
        self._waiting = waiting
        self._forgotten = forgotten

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
        forgotten = CounterMetricFamily(
            "aiflow_limits_forgotten",
            "Buckets that were forgotten though they were in use, for there were too many.",
            value=self._forgotten(),
        )
        return (decisions, waiting, forgotten)


class StoreAtScrape:
    """Where the buckets are, and who decides while they cannot be reached."""

    def __init__(self, shared: Shared | None) -> None:
        """None where they are in this process."""
        self._shared = shared

    def collect(self) -> Iterable[Metric]:
        store = GaugeMetricFamily(
            "aiflow_limits_store",
            "Processes by where the buckets of their limits are; away: in a Redis that is away.",
            labels=("state",),
        )
        shared = self._shared
        now = "memory" if shared is None else shared.state
        for state in STATES:
            store.add_metric((state,), int(state == now))
        return (store,) if shared is None else (store, *_of_redis(shared))


def _of_redis(shared: Shared) -> Iterable[Metric]:
    decided = CounterMetricFamily(
        "aiflow_limits_decided",
        "Calls that limits were asked about, by what decided.",
        labels=("by",),
    )
    for by in DECIDERS:
        decided.add_metric((by,), shared.decided.get(by, 0))
    errors = CounterMetricFamily(
        "aiflow_limits_redis_errors",
        "Times that Redis could not be asked any more, or not be reached, by why.",
        labels=("kind",),
    )
    for kind in ("unreachable", "closed", "timeout", "refused"):
        errors.add_metric((kind,), shared.link.errors.get(kind, 0))
    return (
        decided,
        errors,
        CounterMetricFamily(
            "aiflow_limits_redis_questions",
            "Commands sent to Redis, each a round trip.",
            value=shared.link.sent,
        ),
        CounterMetricFamily(
            "aiflow_limits_untold",
            "Calls whose true cost Redis was not told, for it was away.",
            value=shared.untold,
        ),
        GaugeMetricFamily(
            "aiflow_limits_routers",
            "Processes of routers that share the limits, this one among them.",
            value=shared.routers,
        ),
    )
