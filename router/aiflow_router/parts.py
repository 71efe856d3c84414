"""The parts of a router, each as its configuration says; `main` puts them together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from aiflow_router.balancing.census import Census
from aiflow_router.balancing.ejection import Outliers
from aiflow_router.balancing.load import Loads
from aiflow_router.balancing.pool import Preference
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.leases import Leases
from aiflow_router.catalog.mirror import Mirror
from aiflow_router.config.config import Config
from aiflow_router.forwarding.batches import Batches
from aiflow_router.forwarding.health_check import HealthChecks
from aiflow_router.forwarding.kinds import Kinds
from aiflow_router.forwarding.link import Links
from aiflow_router.forwarding.sender import Sender
from aiflow_router.identity.directory import Directory
from aiflow_router.identity.jwks import JwksFile
from aiflow_router.identity.keys import Keys, Source
from aiflow_router.identity.tokens import Tokens
from aiflow_router.limits.buckets import Buckets
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.redis.buckets import RedisBuckets
from aiflow_router.policy.guards import Guards
from aiflow_router.policy.keeping import Watched, of_the_file
from aiflow_router.policy.policies import Policies
from aiflow_router.routing.guard import Stop
from aiflow_router.routing.split import OnStop
from aiflow_router.routing.table import Policy, Table
from aiflow_router.rpc.admission import Admission
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.health import Health
from aiflow_router.rpc.payment import Payments
from aiflow_router.rpc.shadow import Shadows
from aiflow_router.running import Shared
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


def _outliers(config: Config, *, loads: Loads, metrics: Metrics) -> Outliers:
    shadow = config.ejection.mode == "shadow"
    ejections = metrics.would_eject if shadow else metrics.ejected
    return Outliers(
        config.ejection.policy(),
        loads=loads,
        count=lambda backend, reason: ejections(backend, reason)(),
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


def _table(
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


def _admission(config: Config, policies: Policies, *, metrics: Metrics) -> Admission:
    return Admission(
        _buckets(config),
        policies.current.rules,
        payments=Payments(policies.current.policies),
        clock=CLOCK,
        waited=lambda label, waited_s: metrics.queue_wait(label)(waited_s),
    )


def _front(
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


def _identity(config: Config, metrics: Metrics) -> Identity:
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


def _policies(config: Config, metrics: Metrics, watched: Watched | None) -> Policies:
    origin = "" if watched is None else str(watched.path)
    first = of_the_file(config, origin=origin, since_s=time.time())
    return Policies(first, refused=metrics.load_error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that a router is made of, before it runs."""

    config: Config
    metrics: Metrics
    journal: Journal
    catalog: Catalog | Mirror
    loads: Loads
    links: Links
    kinds: Kinds
    policies: Policies
    batches: Batches
    outliers: Outliers
    guards: Guards
    identity: Identity
    front: Front
    healths: Health
    census: Census


def made(
    config: Config,
    *,
    write: Callable[[bytes], object],
    watched: Watched | None,
    shared: Shared | None,
) -> Parts:
    """The parts; `write` takes the lines of the access log, and of `shared` is what others own."""
    metrics, guards = Metrics(), Guards()
    journal = Journal(metrics=metrics, write=write)
    loads = Loads(clock=CLOCK, slow_start_s=config.slow_start)
    links = Links(max_message_bytes=config.listen.max_message_bytes())
    policies = _policies(config, metrics, watched) if shared is None else shared.policies
    outliers = _outliers(config, loads=loads, metrics=metrics)
    table = _table(config, policies, loads=loads, metrics=metrics, guards=guards)
    identity = _identity(config, metrics)
    front = _front(
        config,
        admission=_admission(config, policies, metrics=metrics),
        table=table,
        links=links,
        outliers=outliers,
        journal=journal,
        metrics=metrics,
        keys=identity.keys,
    )
    if (directory := identity.directory) is not None:
        directory.on_change = lambda: front.streams.end(directory.withdrawn)
    found = catalog(config) if shared is None else shared.mirror
    return Parts(
        config=config,
        metrics=metrics,
        journal=journal,
        catalog=found,
        loads=loads,
        links=links,
        kinds=Kinds(links=links),
        policies=policies,
        batches=Batches(links=links, loads=loads, models=policies.current.batched),
        outliers=outliers,
        guards=guards,
        identity=identity,
        front=front,
        healths=Health(table=table),
        census=Census(catalog=found, loads=loads, panics=table.panics),
    )


def checks(made: Parts) -> HealthChecks:
    """Looks after the endpoints while it runs."""
    metrics = made.metrics
    return HealthChecks(
        made.config.health.policy(),
        links=made.links,
        loads=made.loads,
        count=lambda backend, result: metrics.checked(backend, result)(),
        count_shadow=lambda backend, reason: metrics.would_fail(backend, reason)(),
    )
