"""The router put together: `serving(config)` runs one inside the caller's event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
import structlog
from aiohttp import web

from aiflow_router import heap, parts, services, storing
from aiflow_router.catalog import consul
from aiflow_router.catalog.mirror import Mirror
from aiflow_router.config.config import Config
from aiflow_router.limits.buckets import Buckets
from aiflow_router.limits.redis.buckets import RedisBuckets
from aiflow_router.parts import Parts
from aiflow_router.policy.edition import Edition
from aiflow_router.policy.keeping import Watched
from aiflow_router.rpc import health, http, inside, listener, oip, reflection, usage
from aiflow_router.rpc.door import Door
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.server import grpc_server, listen_grpc, listen_http, listen_inside
from aiflow_router.rpc.uploads import LOOK_EVERY_S as UPLOADS_EVERY_S
from aiflow_router.running import Router, Shared
from aiflow_router.tasks import beside
from aiflow_router.telemetry.access import to_stderr
from aiflow_router.telemetry.grpc_log import leave_out_callers_bytes
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
    leave_out_callers_bytes()
    made = parts.made(config or Config(), write=access_write, watched=watched, shared=shared)
    config, front = made.config, made.front
    _follow(made)

    async with AsyncExitStack() as stack:
        # Closed last of all: whatever ends may still have something to write.
        engine = await stack.enter_async_context(storing.everything(made, first=shared is None))
        stack.callback(made.journal.settle)
        for close in (made.links.close, made.kinds.close, made.batches.close, front.shadows.close):
            stack.push_async_callback(close)
        if (trim := heap.malloc_trim()) is not None:
            await stack.enter_async_context(beside(heap.given_back(trim), "giving memory back"))
        await stack.enter_async_context(beside(made.outliers.run(), "judging outliers"))
        if config.health.active:
            await stack.enter_async_context(beside(parts.checks(made).run(), "checking health"))
        await _sharing(stack, front.admission.buckets, made.metrics)
        stack.callback(made.catalog.close)
        discovery = await _discovered(stack, made)
        await made.catalog.settled()
        watchers, registering = services.registering(made, shared)
        policy_watchers, administering, changing = await stack.enter_async_context(
            services.administering(made, watched=watched, shared=shared)
        )
        await stack.enter_async_context(beside(made.guards.run(changing), "writing stops"))
        server = grpc_server(config.listen, shared=shared is not None)
        door = Door(
            front,
            {
                **oip.handlers(front),
                **registering,
                **administering,
                **services.tenants(made, engine, shared),
                **usage.handlers(front, engine, front.admission.payments.ledger),
                **services.explaining(made, shared),
                **reflection.handlers(front),
            },
            kinds=made.kinds,
            elsewhere=frozenset({health.SERVICE}),
        )
        server.add_generic_rpc_handlers((door, health.handler(made.healths)))
        grpc_address = listen_grpc(server, config.listen)
        stack.push_async_callback(_stopped, server, front)
        app = _application(made, discovery)
        if shared is None:
            http_address = await listen_http(stack, app, config.listen.http)
        else:
            port = int(grpc_address.rpartition(":")[2])
            http_address = await _listen_inside(stack, app, made, shared, port=port)
        await server.start()
        watching = front.uploads.watch(every_s=UPLOADS_EVERY_S)
        await stack.enter_async_context(beside(watching, "ending slow uploads"))
        yield Router(
            grpc_address=grpc_address,
            http_address=http_address,
            config=config,
            front=front,
            health=made.healths,
            view=made.catalog,
            kinds=made.kinds,
            batches=made.batches,
            watchers=(watchers, policy_watchers),
            policies=made.policies,
            metrics=made.metrics,
            directory=made.identity.directory,
            engine=engine,
        )


async def _stopped(server: grpc.aio.Server, front: Front) -> None:
    # After a drain the last answers are handed over but may not be on the wire yet.
    await server.stop(LAST_ANSWERS_S if front.draining else None)


def _application(made: Parts, discovery: consul.Discovery | None) -> web.Application:
    async def text() -> bytes:
        return made.metrics.text()

    return http.application(
        ready=lambda: not made.front.leaving,
        known=lambda: discovery is None or discovery.known,
        report=lambda: {
            **made.census.served(),
            **({} if discovery is None else {"discovery": discovery.report()}),
        },
        metrics=text,
    )


async def _listen_inside(
    stack: AsyncExitStack, app: web.Application, made: Parts, shared: Shared, *, port: int
) -> str:
    """The HTTP side of a process that has a supervisor."""
    listener.end_steering(port)  # Of one that was killed.
    made.metrics.mirrors(shared.following, shared.lost)
    inside.add_routes(
        app,
        mirror=shared.mirror,
        policies=shared.policies,
        directory=made.identity.directory,
        census=made.census,
        loads=made.loads,
        journal=made.journal,
        stop_listening=lambda index, of: listener.stop_listening(port, index=index, of=of),
        end_steering=lambda: listener.end_steering(port),
        leave=shared.leave,
    )
    return await listen_inside(stack, app, shared.http)


async def _discovered(stack: AsyncExitStack, made: Parts) -> consul.Discovery | None:
    """What feeds this process's own catalog, where something does."""
    catalog, settings = made.catalog, made.config.discovery.consul
    if isinstance(catalog, Mirror) or settings is None:
        return None
    discovery = await stack.enter_async_context(consul.discovering(settings.settings(), catalog))
    made.metrics.discovers(discovery)
    return discovery


async def _sharing(stack: AsyncExitStack, buckets: Buckets, metrics: Metrics) -> None:
    """Connects to the Redis that has the buckets, where they are there; it may be away."""
    if not isinstance(buckets, RedisBuckets):
        metrics.watch_store(None)
        return
    metrics.watch_store(buckets)
    await stack.enter_async_context(beside(buckets.run(), "asking Redis for limits"))
    stack.push_async_callback(buckets.leave)
    await buckets.link.tried()


def _follow(made: Parts) -> None:
    """Lets calls go by what is in the catalog and in the policy, and tells what that is."""
    config, metrics, policies = made.config, made.metrics, made.policies
    admission, table, batches = made.front.admission, made.front.table, made.batches
    keeps = config.storage is not None or config.redis is not None
    metrics.watch(made.census, undescribed=made.kinds.pending)
    metrics.watch_gates(table.gates, admission.waiting.lines)
    metrics.watch_limits(lambda: admission.counts, admission.waits, admission.forgotten)
    metrics.watch_caches(table.caches)
    metrics.watch_splits(table.split_shares)
    metrics.watch_batches(unknown=batches.unknown, fillings=table.fillings)
    metrics.watch_policy(lambda: (policies.current.version, policies.current.source))

    async def put(found: Edition) -> None:
        await table.swap(found.policies)
        admission.swap(found.rules, found.policies)
        storing.warn_of_quotas(found.rules, kept=keeps)
        await batches.change(found.batched)
        made.healths.policy_changed()

    storing.warn_of_quotas(policies.current.rules, kept=keeps)
    policies.follow(put)
    # In this order: the table reads loads, health reads the table. Links go last, so that a
    # channel closes only when no plan names its address any more and nobody asks it anything.
    for follower in (made.loads, table, made.healths, made.kinds, batches, made.links):
        made.catalog.follow(follower.follow)
