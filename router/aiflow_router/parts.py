"""The parts of a router, each as its configuration says; `main` puts them together."""

from __future__ import annotations

import time

import structlog

from aiflow_router.balancing.ejection import Outliers
from aiflow_router.balancing.load import Loads
from aiflow_router.balancing.pool import Preference
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.leases import Leases
from aiflow_router.config.config import Config
from aiflow_router.forwarding.health_check import HealthChecks
from aiflow_router.forwarding.link import Links
from aiflow_router.forwarding.sender import Sender
from aiflow_router.identity.keys import Keys
from aiflow_router.limits.memory import Memory
from aiflow_router.policy.policies import Policies
from aiflow_router.routing.guard import Stop
from aiflow_router.routing.split import OnStop
from aiflow_router.routing.table import Policy, Table
from aiflow_router.rpc.admission import Admission
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.shadow import Shadows
from aiflow_router.telemetry.journal import Journal
from aiflow_router.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

# The event loop's own clock, without its call into Python.
CLOCK = time.monotonic


def catalog(config: Config) -> Catalog:
    return Catalog(
        static=[item.endpoint() for item in config.discovery.static],
        leases=None if config.discovery.embedded is None else Leases(),
        source=config.discovery.source(),
    )


def outliers(config: Config, *, loads: Loads, metrics: Metrics) -> Outliers:
    shadow = config.ejection.mode == "shadow"
    ejections = metrics.would_eject if shadow else metrics.ejected
    return Outliers(
        config.ejection.policy(),
        loads=loads,
        count=lambda backend, reason: ejections(backend, reason)(),
    )


def checks(config: Config, *, links: Links, loads: Loads, metrics: Metrics) -> HealthChecks:
    return HealthChecks(
        config.health.policy(),
        links=links,
        loads=loads,
        count=lambda backend, result: metrics.checked(backend, result)(),
        count_shadow=lambda backend, reason: metrics.would_fail(backend, reason)(),
    )


def _stops(metrics: Metrics) -> OnStop:
    """Tells of a side of a split that its guard stopped."""

    def told(model: str, side: str, stop: Stop) -> None:
        if stop.shadow:
            metrics.split_would_stop(model, side, stop.reason)()
            _log.warning("a split's side would be stopped", model=model, side=side, why=stop.why)
        else:
            metrics.split_stopped(model, side, stop.reason)()
            _log.error("a split's side is stopped", model=model, side=side, why=stop.why)

    return told


def table(config: Config, policies: Policies, *, loads: Loads, metrics: Metrics) -> Table:
    return Table(
        loads=loads,
        policies=policies.current.policies,
        default=Policy(),
        clock=CLOCK,
        preference=Preference(zone=config.zone, slow_start_s=config.slow_start),
        on_stop=_stops(metrics),
    )


def admission(policies: Policies, *, metrics: Metrics) -> Admission:
    return Admission(
        Memory(clock=CLOCK),
        policies.current.rules,
        clock=CLOCK,
        waited=lambda label, waited_s: metrics.queue_wait(label)(waited_s),
    )


def front(
    config: Config,
    *,
    admission: Admission,
    table: Table,
    links: Links,
    outliers: Outliers,
    journal: Journal,
    metrics: Metrics,
) -> Front:
    limit_bytes = config.listen.max_message_bytes()
    sender = Sender(
        links=links,
        outliers=outliers,
        journal=journal,
        metrics=metrics,
        clock=CLOCK,
        limit_bytes=limit_bytes,
    )
    return Front(
        keys=Keys(
            [key.record() for key in config.auth.keys], required=config.auth.mode == "required"
        ),
        admission=admission,
        table=table,
        sender=sender,
        shadows=Shadows(table=table, sender=sender, metrics=metrics),
        metrics=metrics,
        journal=journal,
        limit_bytes=limit_bytes,
    )
