"""The router put together: `serving(config)` runs one inside the caller's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
import structlog
from aiohttp import web

from aiflow_router import parts
from aiflow_router.balancing.census import Census
from aiflow_router.balancing.load import Loads
from aiflow_router.catalog import consul
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.mirror import Mirror
from aiflow_router.config.config import Config
from aiflow_router.explaining.explainer import Explainer
from aiflow_router.explaining.limits import Limits
from aiflow_router.forwarding.batches import Batches
from aiflow_router.forwarding.kinds import Kinds
from aiflow_router.forwarding.link import Links
from aiflow_router.identity.directory import Directory
from aiflow_router.limits.buckets import Buckets
from aiflow_router.limits.redis.buckets import RedisBuckets
from aiflow_router.parts import CLOCK
from aiflow_router.policy.edition import Edition
from aiflow_router.policy.guards import Changing, Guards
from aiflow_router.policy.keeping import Watched, keeping, of_the_file
from aiflow_router.policy.policies import Policies
from aiflow_router.routing.table import Table
from aiflow_router.rpc import (
    explain,
    health,
    http,
    inside,
    listener,
    oip,
    policy,
    reflection,
    registry,
)
from aiflow_router.rpc.admission import Admission
from aiflow_router.rpc.door import Door
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.server import grpc_server, listen_grpc, listen_http, listen_inside
from aiflow_router.rpc.uploads import LOOK_EVERY_S as UPLOADS_EVERY_S
from aiflow_router.rpc.watch import Closing, Relays, Watchers
from aiflow_router.running import Router, Shared
from aiflow_router.telemetry.access import to_stderr
from aiflow_router.telemetry.grpc_log import leave_out_callers_bytes
from aiflow_router.telemetry.journal import Journal
from aiflow_router.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

LAST_ANSWERS_S = 0.5


@asynccontextmanager
async def serving(
    config: Config | None = None,
    *,
    access_write: Callable[[bytes], object] = to_stderr,
    shared: Shared | None = None,
    watched: Watched | None = None,
) -> AsyncIterator[Router]:
    """A router that listens until the block ends; then calls in flight are cut off.

    Args:
        config: the defaults where there is none.
        access_write: takes the lines of the access log.
        shared: None where this is the only process at its address.
        watched: the file whose changes are taken while it runs; None for none.

    Raises AddressInUseError, CertificateError, StorageError, and ConsulRefusedError where files for
    TLS to Consul cannot be used.
    """
    config = config or Config()
    leave_out_callers_bytes()
    metrics = Metrics()
    journal = Journal(metrics=metrics, write=access_write)
    catalog: Catalog | Mirror = parts.catalog(config) if shared is None else shared.mirror
    loads = Loads(clock=CLOCK, slow_start_s=config.slow_start)
    links = Links(max_message_bytes=config.listen.max_message_bytes())
    kinds = Kinds(links=links)
    policies = _policies(config, metrics, watched) if shared is None else shared.policies
    batches = Batches(links=links, loads=loads, models=policies.current.batched)
    outliers = parts.outliers(config, loads=loads, metrics=metrics)
    guards, identity = Guards(), parts.identity(config, metrics)
    table = parts.table(config, policies, loads=loads, metrics=metrics, guards=guards)
    admission = parts.admission(config, policies, metrics=metrics)
    front = parts.front(
        config,
        admission=admission,
        table=table,
        links=links,
        outliers=outliers,
        journal=journal,
        metrics=metrics,
        keys=identity.keys,
    )
    healths = health.Health(table=table)
    census = Census(catalog=catalog, loads=loads, panics=table.panics)
    metrics.watch(census, undescribed=kinds.pending)
    # In this order: the table reads loads, health reads the table. Links go last, so that a
    # channel closes only when no plan names its address any more and nobody asks it anything.
    _follow_policies(
        policies,
        table=table,
        admission=admission,
        batches=batches,
        healths=healths,
        metrics=metrics,
        keeps=config.storage is not None or config.redis is not None,
    )
    for follower in (loads, table, healths, kinds, batches, links):
        catalog.follow(follower.follow)

    async with AsyncExitStack() as stack:
        # Closed last of all: whatever ends may still have something to write.
        engine = await stack.enter_async_context(
            parts.storage(config, first=shared is None, identity=identity)
        )
        await stack.enter_async_context(parts.quotas(admission, engine, metrics))
        stack.callback(journal.settle)
        for close in (links.close, kinds.close, batches.close, front.shadows.close):
            stack.push_async_callback(close)
        _started(stack, outliers.run())
        if config.health.active:
            _started(stack, parts.checks(config, links=links, loads=loads, metrics=metrics).run())
        await _sharing(stack, admission.buckets, metrics)
        stack.callback(catalog.close)
        discovery = await _discovered(stack, config, catalog, metrics)
        await catalog.settled()
        watchers, registering = _registering(front, catalog, census, loads, shared)
        policy_watchers, administering, changing = await stack.enter_async_context(
            _administering(front, policies, config=config, watched=watched, shared=shared)
        )
        _started(stack, guards.run(changing))
        server = grpc_server(config.listen, shared=shared is not None)
        door = Door(
            front,
            {
                **oip.handlers(front),
                **registering,
                **administering,
                **reflection.handlers(front),
                **_explaining(
                    front,
                    catalog=catalog,
                    loads=loads,
                    kinds=kinds,
                    journal=journal,
                    shared=shared,
                ),
            },
            kinds=kinds,
            elsewhere=frozenset({health.SERVICE}),
        )
        server.add_generic_rpc_handlers((door, health.handler(healths)))
        grpc_address = listen_grpc(server, config.listen)

        stack.push_async_callback(_stopped, server, front)
        app = _application(front, census=census, discovery=discovery, metrics=metrics)
        if shared is None:
            http_address = await listen_http(stack, app, config.listen.http)
        else:
            port = int(grpc_address.rpartition(":")[2])
            http_address = await _listen_inside(
                stack,
                app,
                shared,
                port=port,
                census=census,
                loads=loads,
                journal=journal,
                metrics=metrics,
                directory=identity.directory,
            )
        await server.start()
        _started(stack, front.uploads.watch(every_s=UPLOADS_EVERY_S))
        yield Router(
            grpc_address=grpc_address,
            http_address=http_address,
            config=config,
            front=front,
            health=healths,
            view=catalog,
            kinds=kinds,
            batches=batches,
            watchers=(watchers, policy_watchers),
            policies=policies,
            metrics=metrics,
            directory=identity.directory,
            engine=engine,
        )


async def _stopped(server: grpc.aio.Server, front: Front) -> None:
    # After a drain the last answers are handed over but may not be on the wire yet.
    await server.stop(LAST_ANSWERS_S if front.draining else None)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


def _started(stack: AsyncExitStack, work: Coroutine[None, None, None]) -> None:
    """Runs until the stack unwinds."""
    task = asyncio.create_task(work)
    task.add_done_callback(_report)
    stack.push_async_callback(_cancelled, task)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a task of the router that should never end did", exc_info=error)


def _application(
    front: Front, *, census: Census, discovery: consul.Discovery | None, metrics: Metrics
) -> web.Application:
    async def text() -> bytes:
        return metrics.text()

    return http.application(
        ready=lambda: not front.leaving,
        known=lambda: discovery is None or discovery.known,
        report=lambda: {
            **census.served(),
            **({} if discovery is None else {"discovery": discovery.report()}),
        },
        metrics=text,
    )


async def _listen_inside(
    stack: AsyncExitStack,
    app: web.Application,
    shared: Shared,
    *,
    port: int,
    census: Census,
    loads: Loads,
    journal: Journal,
    metrics: Metrics,
    directory: Directory | None,
) -> str:
    """The HTTP side of a process that has a supervisor."""
    listener.end_steering(port)  # Of one that was killed.
    metrics.mirrors(shared.following, shared.lost)
    inside.add_routes(
        app,
        mirror=shared.mirror,
        policies=shared.policies,
        directory=directory,
        census=census,
        loads=loads,
        journal=journal,
        stop_listening=lambda index, of: listener.stop_listening(port, index=index, of=of),
        end_steering=lambda: listener.end_steering(port),
        leave=shared.leave,
    )
    return await listen_inside(stack, app, shared.http)


async def _discovered(
    stack: AsyncExitStack, config: Config, catalog: Catalog | Mirror, metrics: Metrics
) -> consul.Discovery | None:
    """What feeds this process's own catalog, where something does."""
    if isinstance(catalog, Mirror) or config.discovery.consul is None:
        return None
    discovery = await stack.enter_async_context(
        consul.discovering(config.discovery.consul.settings(), catalog)
    )
    metrics.discovers(discovery)
    return discovery


async def _sharing(stack: AsyncExitStack, buckets: Buckets, metrics: Metrics) -> None:
    """Connects to the Redis that has the buckets, where they are there; it may be away."""
    if not isinstance(buckets, RedisBuckets):
        metrics.watch_store(None)
        return
    metrics.watch_store(buckets)
    _started(stack, buckets.run())
    stack.push_async_callback(buckets.leave)
    await buckets.link.tried()


def _policies(config: Config, metrics: Metrics, watched: Watched | None) -> Policies:
    origin = "" if watched is None else str(watched.path)
    first = of_the_file(config, origin=origin, since_s=time.time())
    return Policies(first, refused=metrics.load_error)


def _registering(
    front: Front,
    catalog: Catalog | Mirror,
    census: Census,
    loads: Loads,
    shared: Shared | None,
) -> tuple[Watchers | Relays, registry.Handlers]:
    """Who watches, and the handlers of RegistryService: its own, or its owner's passed on."""
    if isinstance(catalog, Mirror):
        assert shared is not None  # noqa: S101 - a mirror is somebody's
        relays = Relays(shared.owner, registry.WATCH)
        return relays, registry.relayed(front, owner=shared.owner, relays=relays)

    async def seen() -> registry.Seen:
        return lambda endpoint: (census.state(endpoint), loads[endpoint].inflight)

    watchers = Watchers()
    catalog.follow(watchers.follow)
    own = registry.Registry(catalog=catalog, seen=seen, shown=catalog.shown)
    return watchers, registry.handlers(front, registry=own, watchers=watchers)


def _explaining(
    front: Front,
    *,
    catalog: Catalog | Mirror,
    loads: Loads,
    kinds: Kinds,
    journal: Journal,
    shared: Shared | None,
) -> registry.Handlers:
    explainer = Explainer(
        table=front.table,
        snapshot=lambda: catalog.snapshot,
        loads=loads,
        kinds=kinds,
        clock=CLOCK,
    )
    admission = front.admission
    limits = Limits(
        rules=lambda: admission.rules, buckets=admission.buckets, waiting=admission.waits
    )
    if shared is None:
        return explain.handlers(front, explainer=explainer, limits=limits, journal=journal)
    return explain.shared(
        front, explainer=explainer, limits=limits, owner=shared.owner, worker=shared.name
    )


def _follow_policies(
    policies: Policies,
    *,
    table: Table,
    admission: Admission,
    batches: Batches,
    healths: health.Health,
    metrics: Metrics,
    keeps: bool,
) -> None:
    """Lets calls go by the policy that is in force, and tells which it is."""
    metrics.watch_gates(table.gates, admission.waiting.lines)
    metrics.watch_limits(lambda: admission.counts, admission.waits)
    metrics.watch_caches(table.caches)
    metrics.watch_splits(table.split_shares)
    metrics.watch_batches(unknown=batches.unknown, fillings=table.fillings)
    metrics.watch_policy(lambda: (policies.current.version, policies.current.source))

    async def put(found: Edition) -> None:
        await table.swap(found.policies)
        admission.swap(found.rules)
        parts.warn_of_quotas(found.rules, kept=keeps)
        await batches.change(found.batched)
        healths.policy_changed()

    parts.warn_of_quotas(policies.current.rules, kept=keeps)
    policies.follow(put)


@asynccontextmanager
async def _administering(
    front: Front,
    policies: Policies,
    *,
    config: Config,
    watched: Watched | None,
    shared: Shared | None,
) -> AsyncIterator[tuple[Closing, registry.Handlers, Changing]]:
    """Who watches, the handlers of PolicyService, and its desk: its own, or its owner's."""
    if shared is not None:
        relays = Relays(shared.owner, policy.WATCH)
        handlers = policy.relayed(front, owner=shared.owner, relays=relays)
        yield relays, handlers, policy.OwnersDesk(shared.owner)
        return
    async with keeping(policies, running=lambda: config, watched=watched) as kept:
        if (store := kept.store) is not None:
            front.metrics.watch_policy_store(lambda: store.age_s)
        service = policy.Service(kept.desk)
        yield service, policy.handlers(front, service=service), kept.desk
