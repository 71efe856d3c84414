"""A router that runs, and how it leaves without failing a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.mirror import Mirror
from aiflow_router.config.config import Config
from aiflow_router.forwarding.batches import Batches
from aiflow_router.forwarding.kinds import Kinds
from aiflow_router.identity.directory import Directory
from aiflow_router.policy.policies import Policies
from aiflow_router.rpc import health, listener
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.watch import Closing
from aiflow_router.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

# gRPC spreads the age of connections by a tenth; the rest is for what is on its way.
OLDEST_AGES = 1.1
OLDEST_SPARE_S = 1.0
GONE_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What a router has that is one of several processes at one address.

    Attributes:
        name: its own among them.
        mirror: the catalog, as its owner tells it.
        policies: the policy, as its owner tells it.
        owner: answers RegistryService and PolicyService.
        http: the Unix socket of the HTTP side.
        leave: set when another process takes this one's place.
        following: whether the owner is heard now.
        lost: times that it was lost.
    """

    name: str
    mirror: Mirror
    policies: Policies
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
        directory: of keys, where there is a database, as there is `engine` then.
    """

    grpc_address: str
    http_address: str
    config: Config
    front: Front
    health: health.Health
    view: Catalog | Mirror
    kinds: Kinds
    batches: Batches
    watchers: Sequence[Closing]
    policies: Policies
    metrics: Metrics
    directory: Directory | None
    engine: AsyncEngine | None

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
        self._end_watches()
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
        self._end_watches()
        self.health.close()
        # Only now, when it refuses nobody: the front tells of calls that end while it drains, and
        # their answers still get to the wire.
        self.front.draining = True
        await self._idle()

    def _end_watches(self) -> None:
        for watchers in self.watchers:
            watchers.close()

    @property
    def _port(self) -> int:
        return int(self.grpc_address.rpartition(":")[2])

    async def _idle(self) -> None:
        try:
            async with asyncio.timeout(self.config.listen.drain_timeout):
                await self.front.idle()
        except TimeoutError:
            _log.warning("drain timeout: calls are cut off", in_flight=self.front.active)
