"""The parts of a router, each as its configuration says; `main` puts them together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.balancing.ejection import Outliers
from aiflow_router.balancing.load import Loads
from aiflow_router.balancing.pool import Preference
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.leases import Leases
from aiflow_router.config.config import Config
from aiflow_router.forwarding.health_check import HealthChecks
from aiflow_router.forwarding.link import Links
from aiflow_router.forwarding.sender import Sender
from aiflow_router.identity import first_key
from aiflow_router.identity.directory import Directory
from aiflow_router.identity.jwks import JwksFile
from aiflow_router.identity.keeping import keeping
from aiflow_router.identity.keys import Keys, Source
from aiflow_router.identity.tokens import Tokens
from aiflow_router.limits import kept_quotas
from aiflow_router.limits.buckets import Buckets
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.redis.buckets import RedisBuckets
from aiflow_router.limits.rule import Rule
from aiflow_router.policy.guards import Guards
from aiflow_router.policy.policies import Policies
from aiflow_router.routing.guard import Stop
from aiflow_router.routing.split import OnStop
from aiflow_router.routing.table import Policy, Table
from aiflow_router.rpc.admission import Admission
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.shadow import Shadows
from aiflow_router.storage.database import opened
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


def _stops(metrics: Metrics, guards: Guards) -> OnStop:
    """Tells of a side of a split that its guard stopped."""

    def told(model: str, side: str, stop: Stop) -> None:
        if stop.shadow:
            metrics.split_would_stop(model, side, stop.reason)()
            _log.warning("a split's side would be stopped", model=model, side=side, why=stop.why)
        else:
            metrics.split_stopped(model, side, stop.reason)()
            _log.error("a split's side is stopped", model=model, side=side, why=stop.why)
            guards.stopped(model, side, stop)

    return told


def table(
    config: Config, policies: Policies, *, loads: Loads, metrics: Metrics, guards: Guards
) -> Table:
    return Table(
        loads=loads,
        policies=policies.current.policies,
        default=Policy(),
        clock=CLOCK,
        preference=Preference(zone=config.zone, slow_start_s=config.slow_start),
        on_stop=_stops(metrics, guards),
    )


def _buckets(config: Config) -> Buckets:
    """Those of the limits; in Redis they have to be run."""
    local = Memory(clock=CLOCK)
    if config.redis is None:
        return local
    return RedisBuckets(
        config.redis.settings(),
        prefix=config.redis.prefix,
        local=local,
        workers=config.listen.workers,
        clock=CLOCK,
    )


def admission(config: Config, policies: Policies, *, metrics: Metrics) -> Admission:
    return Admission(
        _buckets(config),
        policies.current.rules,
        clock=CLOCK,
        waited=lambda label, waited_s: metrics.queue_wait(label)(waited_s),
    )


@asynccontextmanager
async def quotas(
    admission: Admission, engine: AsyncEngine | None, metrics: Metrics
) -> AsyncIterator[None]:
    """Keeps what is used of quotas until the block ends, where there is a database for it.

    Raises StorageError.
    """
    if engine is None or not isinstance(admission.buckets, Memory):
        yield
        return
    async with kept_quotas.keeping(admission.buckets, engine) as kept:
        metrics.watch_quotas(kept.age_s)
        yield


def warn_of_quotas(rules: Iterable[Rule], *, kept: bool) -> None:
    """Says which quotas begin anew with each start of the router, for nothing keeps them."""
    lost = [rule.name for rule in rules if rule.kind in ("day", "month") and rule.mode != "off"]
    if lost and not kept:
        _log.warning(
            "these quotas begin anew when the router does: set `storage` to have them kept",
            limits=lost,
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
    keys: Keys,
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
        admission=admission,
        keys=keys,
        table=table,
        sender=sender,
        shadows=Shadows(table=table, sender=sender, metrics=metrics),
        metrics=metrics,
        journal=journal,
        limit_bytes=limit_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What knows who calls; the directory is there where there is a database."""

    keys: Keys
    directory: Directory | None
    jwks: JwksFile | None


def identity(config: Config, metrics: Metrics) -> Identity:
    """Knows the keys of the file, and those of the database once `storage` is open."""
    auth = config.auth
    directory = jwks = None
    sources: list[Source] = []
    if config.storage is not None:
        directory = Directory(names_members=auth.jwt is not None)
        sources.append(directory)
        if auth.jwt is not None:
            jwks = JwksFile(path=Path(auth.jwt.jwks_file))
            jwks.read()
            sources.append(Tokens(auth.jwt.trust(), jwks=jwks, directory=directory))
        metrics.watch_identity(
            directory, jwks_problem=None if jwks is None else lambda: jwks.problem
        )
    records = [key.record() for key in auth.keys]
    keys = Keys(records, required=auth.mode == "required", sources=sources)
    return Identity(keys=keys, directory=directory, jwks=jwks)


@asynccontextmanager
async def storage(
    config: Config, *, first: bool, identity: Identity | None = None
) -> AsyncIterator[AsyncEngine | None]:
    """The database until the block ends, None where there is none. Raises StorageError.

    Args:
        config: the router's.
        first: sees to it that there is an admin's key: one of several processes does.
        identity: is kept as the database is.
    """
    if config.storage is None:
        yield None
        return
    async with opened(config.storage.url) as engine:
        if first:
            file = config.auth.admin_key_file
            await first_key.make(engine, Path(file) if file else first_key.default_path(engine))
        if identity is None or identity.directory is None:
            yield engine
            return
        async with keeping(identity.directory, engine, jwks=identity.jwks):
            yield engine
