"""The router put together: `serving(config)` runs one inside the caller's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import structlog

from aiflow_router.balancing.census import Census
from aiflow_router.balancing.load import Loads
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.leases import Leases
from aiflow_router.catalog.mirror import Mirror
from aiflow_router.config import Config
from aiflow_router.forwarding.batches import Batches
from aiflow_router.forwarding.kinds import Kinds
from aiflow_router.forwarding.link import Links
from aiflow_router.forwarding.sender import Sender
from aiflow_router.identity.keys import Keys
from aiflow_router.routing.table import Policy, Table
from aiflow_router.rpc import health, http, inside, listener, oip, reflection, registry
from aiflow_router.rpc.door import Door
from aiflow_router.rpc.server import grpc_server, listen_grpc, listen_http, listen_inside
from aiflow_router.rpc.uploads import LOOK_EVERY_S as UPLOADS_EVERY_S
from aiflow_router.rpc.visit import Front
from aiflow_router.rpc.watch import Relays, Watchers
from aiflow_router.telemetry.access import AccessLog, to_stderr
from aiflow_router.telemetry.grpc_log import leave_out_callers_bytes
from aiflow_router.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

LAST_ANSWERS_S = 0.5
# gRPC spreads the age of connections by a tenth; the rest is for what is on its way.
OLDEST_AGES = 1.1
OLDEST_SPARE_S = 1.0
GONE_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What a router has that is one of several processes at one address.

    Attributes:
        mirror: the catalog, as its owner tells it.
        owner: answers RegistryService.
        http: the Unix socket of the HTTP side.
        leave: set when another process takes this one's place.
        following: whether the owner is heard now.
        lost: times that it was lost.
    """

    mirror: Mirror
    owner: grpc.aio.Channel
    http: Path
    leave: asyncio.Event
    following: Callable[[], bool]
    lost: Callable[[], int]


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
    view: Catalog | Mirror
    kinds: Kinds
    batches: Batches
    watchers: Watchers | Relays
    metrics: Metrics

    @property
    def catalog(self) -> Catalog:
        """Its own, where no other process has it."""
        assert isinstance(self.view, Catalog)  # noqa: S101 - who asks knows what was started
        return self.view

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
        self.watchers.close()
        _log.info("draining: new calls are refused", in_flight=self.front.active)
        await self._idle()

    async def stop_listening(self) -> None:
        """Takes no new connections; other processes at this address may."""
        await listener.stop_listening(self._port)

    async def leave(self) -> None:
        """Leaves its callers to the other processes at this address; no call is refused.

        To be called when nobody listens here any more. Connections come to their age one by one,
        and are made anew elsewhere; then what is left in flight may end.
        """
        _log.info("leaving: another worker takes over", in_flight=self.front.active)
        loop = asyncio.get_running_loop()
        age_s = self.config.listen.connection_age_s() or 0.0
        oldest_s = loop.time() + age_s * OLDEST_AGES + OLDEST_SPARE_S
        while listener.connections(self._port) and loop.time() < oldest_s:  # noqa: ASYNC110 - Linux tells nobody
            await asyncio.sleep(GONE_POLL_S)
        # Watches have no end of their own, and no new call can come over a connection so old.
        self.watchers.close()
        self.health.close()
        await self._idle()

    @property
    def _port(self) -> int:
        return int(self.grpc_address.rpartition(":")[2])

    async def _idle(self) -> None:
        try:
            async with asyncio.timeout(self.config.listen.drain_timeout):
                await self.front.idle()
        except TimeoutError:
            _log.warning("drain timeout: calls are cut off", in_flight=self.front.active)


@asynccontextmanager
async def serving(
    config: Config | None = None,
    *,
    access_write: Callable[[bytes], object] = to_stderr,
    shared: Shared | None = None,
) -> AsyncIterator[Router]:
    """A router that listens until the block ends; then calls in flight are cut off.

    Args:
        config: the defaults where there is none.
        access_write: takes the lines of the access log.
        shared: None where this is the only process at its address.

    Raises AddressInUseError.
    """
    config = config or Config()
    leave_out_callers_bytes()
    loop = asyncio.get_running_loop()
    limit_bytes = config.listen.max_message_mb * 1024 * 1024
    metrics = Metrics()
    access = AccessLog(write=access_write)
    catalog: Catalog | Mirror = _catalog(config) if shared is None else shared.mirror
    loads = Loads(clock=loop.time)
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
    table = _table(config, loads=loads, clock=loop.time)
    front = Front(
        keys=Keys(
            [key.record() for key in config.auth.keys], required=config.auth.mode == "required"
        ),
        table=table,
        sender=Sender(links=links, metrics=metrics, clock=loop.time, limit_bytes=limit_bytes),
        metrics=metrics,
        access=access,
        limit_bytes=limit_bytes,
    )
    healths = health.Health(table=table)
    census = Census(catalog=catalog, loads=loads)
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
        stack.callback(catalog.close)
        await catalog.settled()
        watchers, registering = _registering(front, catalog, census, loads, shared)
        server = grpc_server(config.listen, shared=shared is not None)
        door = Door(
            front,
            {
                **oip.handlers(front),
                **registering,
                **reflection.handlers(front),
            },
            kinds=kinds,
            elsewhere=frozenset({health.SERVICE}),
        )
        server.add_generic_rpc_handlers((door,))
        server.add_generic_rpc_handlers((health.handler(healths),))
        grpc_address = listen_grpc(server, config.listen.grpc)

        async def stop() -> None:
            # After a drain the last answers are handed over but may not be on the wire yet.
            await server.stop(LAST_ANSWERS_S if front.draining else None)

        stack.push_async_callback(stop)

        async def text() -> bytes:
            return metrics.text()

        app = http.application(ready=lambda: not front.leaving, report=census.served, metrics=text)
        if shared is None:
            http_address = await listen_http(stack, app, config.listen.http)
        else:
            port = int(grpc_address.rpartition(":")[2])
            listener.end_steering(port)  # Of one that was killed.
            metrics.mirrors(shared.following, shared.lost)
            inside.add_routes(
                app,
                mirror=shared.mirror,
                census=census,
                loads=loads,
                stop_listening=lambda index, of: listener.stop_listening(port, index=index, of=of),
                end_steering=lambda: listener.end_steering(port),
                leave=shared.leave,
            )
            http_address = await listen_inside(stack, app, shared.http)
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
            view=catalog,
            kinds=kinds,
            batches=batches,
            watchers=watchers,
            metrics=metrics,
        )


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


def _catalog(config: Config) -> Catalog:
    return Catalog(
        static=[item.endpoint() for item in config.discovery.static],
        leases=None if config.discovery.embedded is None else Leases(),
    )


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
    )
