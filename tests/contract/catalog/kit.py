"""One way in for each source of endpoints: servers that register, a list, Consul."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import grpc
import pytest
from fixtures.consul import Agent
from integration.router import consul_kit
from integration.router.kit import Mesh, infer, mesh

from aiflow.registry.v1 import registry_pb2
from aiflow_router.catalog import endpoint as catalog
from aiflow_router.config.file import ConfigError, parse
from aiflow_sdk.consul_entry import Entry, to_service

_PROTOCOLS = {"oip": registry_pb2.PROTOCOL_OIP, "grpc": registry_pb2.PROTOCOL_GRPC}


class Source(Protocol):
    """A place where endpoints are made known; each method returns when it is told, not shown."""

    @property
    def can_drain(self) -> bool: ...

    async def put(self, entry: Entry) -> None:
        """The endpoint is there, or is now as `entry` says."""

    async def drain(self, entry: Entry) -> None: ...

    async def leave(self, entry: Entry) -> None: ...

    async def put_wrong(self, address: str) -> None:
        """Tries to make an endpoint known whose model has a space in its name."""


class Embedded:
    can_drain = True

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._leases: dict[str, str] = {}

    async def put(self, entry: Entry) -> None:
        answer = await self._mesh.registry.Register(self._request(entry))
        self._leases[entry.id] = answer.lease_id

    async def drain(self, entry: Entry) -> None:
        await self._mesh.registry.Renew(
            registry_pb2.RenewRequest(
                lease_id=self._leases[entry.id], state=registry_pb2.ENDPOINT_STATE_DRAINING
            )
        )

    async def leave(self, entry: Entry) -> None:
        lease_id = self._leases.pop(entry.id)
        await self._mesh.registry.Deregister(registry_pb2.DeregisterRequest(lease_id=lease_id))

    async def put_wrong(self, address: str) -> None:
        entry = Entry(backend="wrong", address=address, protocol="oip", models=("a b",))
        with pytest.raises(grpc.aio.AioRpcError, match="not a name"):
            await self._mesh.registry.Register(self._request(entry))

    def _request(self, entry: Entry) -> registry_pb2.RegisterRequest:
        fields = {name: getattr(entry, name) for name in _FIELDS}
        endpoint = registry_pb2.Endpoint(protocol=_PROTOCOLS[entry.protocol], **fields)
        return registry_pb2.RegisterRequest(endpoint=endpoint, ttl_ms=60_000)


class Static:
    """The list, changed as a reload of aiflow.yaml does it."""

    can_drain = False

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._listed = {item.endpoint().key: item for item in mesh.router.config.discovery.static}
        self._entries = {key: item.endpoint() for key, item in self._listed.items()}

    async def put(self, entry: Entry) -> None:
        endpoint = catalog.Endpoint(
            protocol=catalog.Protocol[entry.protocol.upper()],
            **{name: getattr(entry, name) for name in _FIELDS},
        )
        self._entries[endpoint.key] = endpoint
        self._mesh.router.catalog.list_static(self._entries.values())

    async def drain(self, entry: Entry) -> None:
        raise AssertionError("a list knows no draining")

    async def leave(self, entry: Entry) -> None:
        del self._entries[entry.backend, entry.address]
        self._mesh.router.catalog.list_static(self._entries.values())

    async def put_wrong(self, address: str) -> None:
        item = f"{{backend: wrong, address: '{address}', protocol: oip, models: ['a b']}}"
        with pytest.raises(ConfigError, match="not a name"):
            parse(f"discovery: {{static: [{item}]}}")


class Consul:
    can_drain = True

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._there: dict[str, Entry] = {}

    async def put(self, entry: Entry) -> None:
        self._there[entry.id] = entry
        await consul_kit.register(self._agent, entry)

    async def drain(self, entry: Entry) -> None:
        await consul_kit.maintain(self._agent, entry)

    async def leave(self, entry: Entry) -> None:
        del self._there[entry.id]
        await consul_kit.deregister(self._agent, entry)

    async def put_wrong(self, address: str) -> None:
        entry = Entry(backend="wrong", address=address, protocol="oip", models=("fine",))
        self._there[entry.id] = entry
        service = to_service(entry)
        service["Tags"] = [tag.replace("fine", "a b") for tag in service["Tags"]]
        await asyncio.to_thread(self._agent.ask, "PUT", "/v1/agent/service/register", service)

    async def clean(self) -> None:
        for entry in list(self._there.values()):
            await self.leave(entry)


_FIELDS = ("backend", "address", "models", "services", "weight", "zone", "version", "device")
# A list is never empty.
_PLACEHOLDER = (
    "discovery: {static: [{backend: nobody, address: '127.0.0.1:9', protocol: grpc, "
    "services: [nobody.Calls]}]}\n"
)


@asynccontextmanager
async def router_of(kind: str, agent: Agent) -> AsyncIterator[tuple[Mesh, Source]]:
    if kind == "consul":
        source = Consul(agent)
        async with mesh(consul_kit.discovery(agent.address)) as running:
            try:
                yield running, source
            finally:
                await source.clean()
    elif kind == "static":
        async with mesh(_PLACEHOLDER) as running:
            yield running, Static(running)
    else:
        async with mesh() as running:
            yield running, Embedded(running)


async def status_of(mesh: Mesh, model: str) -> str:
    """How a call ends: OK, or the reason it was refused for."""
    call: Any = mesh.channel.unary_unary(consul_kit.INFER)
    try:
        await call(infer(model), timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def comes_to(mesh: Mesh, model: str, expected: str) -> None:
    """Returns when calls end so."""
    async with asyncio.timeout(5):
        while (found := await status_of(mesh, model)) != expected:
            assert found in ("OK", "NOT_FOUND", "UNAVAILABLE")
            await asyncio.sleep(0.01)


def changed(entry: Entry, **fields: Any) -> Entry:
    return replace(entry, **fields)
