"""Routers with a database, and stubs of TenancyService that call with a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Mesh, mesh

from aiflow.admin.v1 import tenancy_pb2 as pb
from aiflow.admin.v1 import tenancy_pb2_grpc
from aiflow.registry.v1 import registry_pb2
from aiflow_sdk import errors, status

ECHO = "/a.Echo/Echo"


class Admin:
    """TenancyService as whoever has `key` calls it; `admin.GetTenant(tenant="acme")`."""

    def __init__(self, channel: grpc.aio.Channel, key: str = "") -> None:
        self._stub: Any = tenancy_pb2_grpc.TenancyServiceStub(channel)
        self._metadata = [("x-api-key", key)] if key else []
        self.key = key

    def __getattr__(self, method: str) -> Any:
        async def call(**fields: Any) -> Any:
            request = getattr(pb, f"{method}Request")(**fields)
            return await getattr(self._stub, method)(request, metadata=self._metadata, timeout=20)

        return call


@dataclass
class Town:
    """A router with a database, and its platform's admin."""

    mesh: Mesh
    root: Admin

    def admin(self, key: str) -> Admin:
        return Admin(self.mesh.channel, key)

    async def tenant(self, name: str) -> Admin:
        """With a tenant admin, by whose key it calls."""
        await self.root.CreateTenant(tenant=name)
        return await self.member(name, "boss", role="tenant_admin")

    async def member(self, tenant: str, name: str, **fields: Any) -> Admin:
        await self.root.CreateMember(tenant=tenant, member=name, **fields)
        made = await self.root.CreateKey(tenant=tenant, member=name, name="k")
        return self.admin(made.secret)

    async def register(self, address: str) -> None:
        """A server of a.Echo."""
        endpoint = registry_pb2.Endpoint(
            backend="echo",
            address=address,
            protocol=registry_pb2.PROTOCOL_GRPC,
            services=["a.Echo"],
        )
        await self.mesh.registry.Register(
            registry_pb2.RegisterRequest(endpoint=endpoint, ttl_ms=60_000),
            metadata=[("x-api-key", self.root.key)],
        )

    async def echo(self, key: str) -> str:
        """How a call with `key` ends."""
        return await echo(self.mesh.channel, key)


@asynccontextmanager
async def town(folder: Path, config: str = "", url: str = "") -> AsyncIterator[Town]:
    url = url or f"sqlite:///{folder / 'aiflow.db'}"
    file = folder / "admin.key"
    auth = "" if "auth:" in config else f"auth: {{admin_key_file: '{file}'}}\n"
    async with mesh(f"storage: {{url: '{url}'}}\n{auth}{config}") as running:
        key = await asyncio.to_thread(file.read_text)
        yield Town(mesh=running, root=Admin(running.channel, key.strip()))


async def echo(channel: Any, key: str) -> str:
    call = channel.unary_unary(ECHO)(b"x", metadata=[("x-api-key", key)], timeout=10)
    return str((await call.code()).name)


async def refused(call: Any) -> errors.AiflowError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return status.from_rpc_error(caught.value)
