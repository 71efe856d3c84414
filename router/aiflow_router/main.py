"""The router put together: `serving(config)` runs one inside the caller's event loop."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import structlog
from aiohttp import web

from aiflow_router.balancing.census import Census
from aiflow_router.balancing.ejection import Outliers
from aiflow_router.balancing.load import Loads
from aiflow_router.balancing.pool import Preference
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.leases import Leases
from aiflow_router.config import Config, Listen
from aiflow_router.forwarding.batches import Batches
from aiflow_router.forwarding.health_check import HealthChecks
from aiflow_router.forwarding.kinds import Kinds
from aiflow_router.forwarding.link import TRANSPORT, Links
from aiflow_router.forwarding.sender import Sender
from aiflow_router.identity.keys import Keys
from aiflow_router.routing.table import Policy, Table
from aiflow_router.rpc import health, http, oip, reflection, registry
from aiflow_router.rpc.door import Door
from aiflow_router.rpc.uploads import LOOK_EVERY_S as UPLOADS_EVERY_S
from aiflow_router.rpc.visit import Front
from aiflow_router.telemetry.access import AccessLog, to_stderr
from aiflow_router.telemetry.grpc_log import leave_out_callers_bytes
from aiflow_router.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

LAST_ANSWERS_S = 0.5
KEEPALIVE_MS = 20_000
# gRPC's keepalive timeout has no effect while this one is at its minute.
PING_TIMEOUT_MS = 5_000
HANDSHAKE_MS = 10_000
IDLE_MS = 300_000


class AddressInUseError(Exception):
    """An address to listen on is taken; the message says which and what to do."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """A running router.

    Attributes:
        grpc_address: "host:port" with the real port.
        http_address: the same for `/healthz`, `/readyz` and `/metrics`.
        config: what it runs by.
    """

    grpc_address: str
    http_address: str
    config: Config
    front: Front
    health: health.Health
    catalog: Catalog
    kinds: Kinds
    batches: Batches

    async def drain(self) -> None:
        """Leaves without failing a call.

        Says so, waits the grace, refuses new calls, lets those in flight end.
        """
        listen = self.config.listen
        self.health.drain()
        self.front.leaving = True
        _log.info("draining: not ready, still serving", grace_s=listen.drain_grace)
        await asyncio.sleep(listen.drain_grace)
        self.front.draining = True
        _log.info("draining: new calls are refused", in_flight=self.front.active)
        try:
            async with asyncio.timeout(listen.drain_timeout):
                await self.front.idle()
        except TimeoutError:
            _log.warning("drain timeout: calls are cut off", in_flight=self.front.active)


@asynccontextmanager
async def serving(
    config: Config | None = None, *, access_write: Callable[[bytes], object] = to_stderr
) -> AsyncIterator[Router]:
    """A router that listens until the block ends; then calls in flight are cut off.

    Args:
        config: the defaults where there is none.
        access_write: takes the lines of the access log.

    Raises AddressInUseError.
    """
    config = config or Config()
    leave_out_callers_bytes()
    loop = asyncio.get_running_loop()
    limit_bytes = config.listen.max_message_mb * 1024 * 1024
    metrics = Metrics()
    access = AccessLog(write=access_write)
    catalog = Catalog(
        static=[item.endpoint() for item in config.discovery.static],
        leases=None if config.discovery.embedded is None else Leases(),
    )
    loads = Loads(clock=loop.time, slow_start_s=config.slow_start)
    links = Links(max_message_bytes=limit_bytes)
    kinds = Kinds(links=links)
    batches = Batches(
        links=links,
        loads=loads,
        models=frozenset(
            route.match.model
            for route in config.routes
            if route.balance == "batch_aware" and route.match.model is not None
        ),
    )
    shadow = config.ejection.mode == "shadow"
    ejections = metrics.would_eject if shadow else metrics.ejected
    outliers = Outliers(
        config.ejection.policy(),
        loads=loads,
        count=lambda backend, reason: ejections(backend, reason)(),
    )
    table = _table(config, loads=loads, clock=loop.time)
    front = Front(
        keys=Keys(
            [key.record() for key in config.auth.keys], required=config.auth.mode == "required"
        ),
        table=table,
        sender=Sender(
            links=links,
            outliers=outliers,
            metrics=metrics,
            clock=loop.time,
            limit_bytes=limit_bytes,
        ),
        metrics=metrics,
        access=access,
        limit_bytes=limit_bytes,
    )
    healths = health.Health(table=table)
    census = Census(catalog=catalog, loads=loads, panics=table.panics)
    metrics.watch(census, undescribed=kinds.pending)
    metrics.watch_gates(table.gates)
    metrics.watch_batches(unknown=batches.unknown, fillings=table.fillings)
    # In this order: the table reads loads, health reads the table. Links go last, so that a
    # channel closes only when no plan names its address any more and nobody asks it anything.
    followers = (loads, table, healths, kinds, batches, links)
    for follower in followers:
        catalog.follow(follower.follow)

    async with AsyncExitStack() as stack:
        stack.callback(access.flush)
        stack.push_async_callback(links.close)
        stack.push_async_callback(kinds.close)
        stack.push_async_callback(batches.close)
        stack.push_async_callback(_cancelled, _started(outliers.run()))
        if config.health.active:
            checks = HealthChecks(
                config.health.policy(),
                links=links,
                loads=loads,
                count=lambda backend, result: metrics.checked(backend, result)(),
            )
            stack.push_async_callback(_cancelled, _started(checks.run()))
        stack.callback(catalog.close)
        await catalog.settled()
        server = _server(config.listen)
        door = Door(
            front,
            {
                **oip.handlers(front),
                **registry.handlers(front, catalog=catalog, loads=loads, census=census),
                **reflection.handlers(front),
            },
            kinds=kinds,
            elsewhere=frozenset({health.SERVICE}),
        )
        server.add_generic_rpc_handlers((door,))
        server.add_generic_rpc_handlers((health.handler(healths),))
        grpc_address = _listen_grpc(server, config.listen.grpc)

        async def stop() -> None:
            # After a drain the last answers are handed over but may not be on the wire yet.
            await server.stop(LAST_ANSWERS_S if front.draining else None)

        stack.push_async_callback(stop)
        app = http.application(
            ready=lambda: not front.leaving, report=census.served, metrics=metrics.text
        )
        http_address = await _listen_http(stack, app, config.listen.http)
        await server.start()
        stack.push_async_callback(
            _cancelled, asyncio.create_task(front.uploads.watch(every_s=UPLOADS_EVERY_S))
        )
        yield Router(
            grpc_address=grpc_address,
            http_address=http_address,
            config=config,
            front=front,
            health=healths,
            catalog=catalog,
            kinds=kinds,
            batches=batches,
        )


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


def _started(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    task.add_done_callback(_report)
    return task


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the router no longer looks after its endpoints", exc_info=error)


def _table(config: Config, *, loads: Loads, clock: Callable[[], float]) -> Table:
    policies = [
        (
            route.match,
            Policy(
                timeout_s=route.timeout,
                balance=route.balance,
                retry=route.retry.policy(),
                hedged=route.hedge is not None,
                hedge_after_s=None if route.hedge is None else route.hedge.after_s,
                overload=route.overload.record(),
                latency_aim_s=route.latency_aim,
            ),
        )
        for route in config.routes
    ]
    return Table(
        loads=loads,
        models={match.model: policy for match, policy in policies if match.model},
        services={match.service: policy for match, policy in policies if match.service},
        default=Policy(),
        clock=clock,
        preference=Preference(zone=config.zone, slow_start_s=config.slow_start),
    )


def _server(listen: Listen) -> grpc.aio.Server:
    return grpc.aio.server(
        options=[
            # Twice the real limit: the router itself refuses what is between with a clear error.
            ("grpc.max_receive_message_length", 2 * listen.max_message_mb * 1024 * 1024),
            ("grpc.max_send_message_length", -1),
            *TRANSPORT,
            *(() if listen.compression else (("grpc.compression_enabled_algorithms_bitset", 1),)),
            # Else a second router on the same port would silently take half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", listen.max_concurrent_streams),
            ("grpc.max_allowed_incoming_connections", listen.max_connections),
            # Who connects and says nothing, or says it a byte at a time, is let go.
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ("grpc.http2.settings_timeout", HANDSHAKE_MS),
            # Callers connect again by themselves, so a connection without calls costs only memory.
            ("grpc.max_connection_idle_ms", IDLE_MS),
            # Finds a caller that vanished without a word: a stream may have no deadline to end it.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),  # Silent streams too, as often.
            # Callers may ping as they like. Where gRPC counts pings and says "too many", a flood of
            # them costs 1 KB of memory each; without that they are bounded by unread answers.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )


def _listen_grpc(server: grpc.aio.Server, address: str) -> str:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise _in_use(address, "gRPC", "--grpc HOST:PORT", "listen.grpc", error) from None
    return f"{address.rpartition(':')[0]}:{port}"


async def _listen_http(stack: AsyncExitStack, app: web.Application, address: str) -> str:
    host, _, port = address.rpartition(":")
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, host.strip("[]"), int(port))
    try:
        await site.start()
    except OSError as error:
        raise _in_use(address, "HTTP", "--http HOST:PORT", "listen.http", error) from None
    bound = runner.addresses[0]
    return f"{host}:{bound[1]}"


def _in_use(address: str, what: str, flag: str, key: str, error: Exception) -> AddressInUseError:
    why = (
        "is already in use"
        if isinstance(error, RuntimeError) or getattr(error, "errno", 0) == errno.EADDRINUSE
        else f"cannot be listened on ({error})"
    )
    return AddressInUseError(
        f"{what} address {address} {why}: stop what listens there, or choose another with "
        f"`{flag}` or `{key}` in aiflow.yaml (port 0 takes any free one)"
    )
