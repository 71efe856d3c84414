"""The registries that a server may register at, each as the contract sees it."""

from __future__ import annotations

import asyncio
import urllib.error
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from fixtures.consul import Agent
from fixtures.ports import free_address
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from aiflow.registry.v1 import registry_pb2
from aiflow_router.config.file import parse
from aiflow_router.main import serving as serving_router
from aiflow_sdk import AsyncClient
from aiflow_servers.runtime.consul_registrar import ConsulRegistrar
from aiflow_servers.runtime.lease_registrar import LeaseRegistrar
from aiflow_servers.runtime.registrar import Registrar
from aiflow_servers.runtime.registration import Registration

# Short, so that what has to happen within it is waited for in a test.
TTL_S = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An endpoint as the registry tells it to whoever asks."""

    models: tuple[str, ...]
    weight: int
    zone: str
    version: str
    device: str
    state: str  # READY, DRAINING, or CRITICAL where it gets no calls for another reason


class Registry(Protocol):
    def registrar(self) -> Registrar: ...

    async def seen(self, backend: str) -> dict[str, Seen]:
        """By address; nothing while the registry is away."""
        ...

    async def start(self) -> None:
        """With empty state."""
        ...

    async def stop(self) -> None: ...


class AtRouter:
    """The router's own registry."""

    def __init__(self) -> None:
        self._address = free_address()
        self._router: AsyncExitStack | None = None

    def registrar(self) -> Registrar:
        return LeaseRegistrar(router=self._address, ttl_s=TTL_S)

    async def seen(self, backend: str) -> dict[str, Seen]:
        if self._router is None:
            return {}
        async with AsyncClient(self._address) as client:
            listed = await client.endpoints()
        return {
            each.address: Seen(
                models=each.models,
                weight=each.weight,
                zone=each.zone,
                version=each.version,
                device=each.device,
                state=each.state if each.state in ("READY", "DRAINING") else "CRITICAL",
            )
            for each in listed
            if each.backend == backend
        }

    async def start(self) -> None:
        self._router = AsyncExitStack()
        listen = f"grpc: '{self._address}', http: '127.0.0.1:0', drain_grace: 0s"
        # Whether endpoints answer is not what is looked at here.
        config = parse(f"listen: {{{listen}}}\nhealth: {{active: false}}\n")
        await self._router.enter_async_context(serving_router(config))

    async def stop(self) -> None:
        if self._router is not None:
            await self._router.aclose()
            self._router = None


class AtConsul:
    """A real agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def registrar(self) -> Registrar:
        return ConsulRegistrar(consul=self.agent.address, ttl_s=TTL_S)

    async def seen(self, backend: str) -> dict[str, Seen]:
        try:
            path = f"/v1/health/service/{backend}"
            listed = await asyncio.to_thread(self.agent.ask, "GET", path)
        except (OSError, urllib.error.HTTPError):
            return {}
        return dict(self._seen(one) for one in listed)

    def _seen(self, one: Any) -> tuple[str, Seen]:
        service, meta = one["Service"], one["Service"]["Meta"]
        checks = {check["CheckID"]: check["Status"] for check in one["Checks"]}
        fit = all(status == "passing" for status in checks.values())
        drains = f"_service_maintenance:{service['ID']}" in checks
        models = [tag.removeprefix("model=") for tag in service["Tags"] if tag[:6] == "model="]
        return f"{service['Address']}:{service['Port']}", Seen(
            models=tuple(models),
            weight=service["Weights"]["Passing"],
            zone=meta["zone"],
            version=meta["version"],
            device=meta["device"],
            state="DRAINING" if drains else "READY" if fit else "CRITICAL",
        )

    async def start(self) -> None:
        await asyncio.to_thread(self.agent.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self.agent.kill)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server with grpc.health.v1 and nothing else, for it is what Consul asks."""

    address: str
    health: health.aio.HealthServicer

    async def says(self, status: int) -> None:
        await self.health.set("", status)


@asynccontextmanager
async def serving_health() -> AsyncIterator[Served]:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    served = Served(address=f"127.0.0.1:{port}", health=servicer)
    await served.says(health_pb2.HealthCheckResponse.SERVING)
    try:
        yield served
    finally:
        await server.stop(0)


@asynccontextmanager
async def registered(
    registry: Registry, served: Served, backend: str, **options: Any
) -> AsyncIterator[Registration]:
    endpoint = registry_pb2.Endpoint(
        backend=backend,
        address=served.address,
        protocol=registry_pb2.PROTOCOL_OIP,
        **({"models": ["detector"]} | options),
    )
    registration = Registration(registrar=registry.registrar(), endpoint=endpoint)
    await registration.start()
    try:
        yield registration
    finally:
        await registration.close()


async def until_seen(
    registry: Registry, backend: str, expected: dict[str, str], *, within_s: float = 10.0
) -> None:
    """Returns when the registry tells exactly these states, by address."""
    seen: dict[str, str] = {}
    try:
        async with asyncio.timeout(within_s):
            while True:
                seen = {a: one.state for a, one in (await registry.seen(backend)).items()}
                if seen == expected:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {expected}, but {seen}") from None
