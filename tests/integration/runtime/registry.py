"""A router's registry that remembers what it was told, for the tests of registration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_sdk import errors, status

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Registry(registry_pb2_grpc.RegistryServiceServicer):
    address: str = ""
    leases: dict[str, registry_pb2.Endpoint] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    heard: list[str] = field(default_factory=list)  # names of the calls, in order
    keys: set[str | bytes] = field(default_factory=set)  # values of `authorization`
    ttls_ms: list[int] = field(default_factory=list)
    refusal: errors.AiflowError | None = None

    @property
    def endpoints(self) -> list[registry_pb2.Endpoint]:
        return list(self.leases.values())

    async def Register(  # noqa: N802 - gRPC's name
        self, request: registry_pb2.RegisterRequest, context: Context
    ) -> registry_pb2.RegisterResponse:
        await self._hear("Register", context)
        for lease_id, known in list(self.leases.items()):
            if (known.backend, known.address) == (
                request.endpoint.backend,
                request.endpoint.address,
            ):
                del self.leases[lease_id]
        lease_id = f"lease-{len(self.heard)}"
        self.leases[lease_id] = request.endpoint
        self.ttls_ms.append(request.ttl_ms)
        return registry_pb2.RegisterResponse(lease_id=lease_id, ttl_ms=request.ttl_ms)

    async def Renew(  # noqa: N802 - gRPC's name
        self, request: registry_pb2.RenewRequest, context: Context
    ) -> registry_pb2.RenewResponse:
        await self._hear("Renew", context)
        if request.lease_id not in self.leases:
            await _abort(context, errors.NotFoundError("no lease", reason="LEASE_NOT_FOUND"))
        if request.state == registry_pb2.ENDPOINT_STATE_DRAINING:
            self.draining.add(request.lease_id)
        return registry_pb2.RenewResponse(ttl_ms=self.ttls_ms[-1])

    async def Deregister(  # noqa: N802 - gRPC's name
        self, request: registry_pb2.DeregisterRequest, context: Context
    ) -> registry_pb2.DeregisterResponse:
        await self._hear("Deregister", context)
        self.leases.pop(request.lease_id, None)
        return registry_pb2.DeregisterResponse()

    async def ListEndpoints(  # noqa: N802 - gRPC's name
        self, request: registry_pb2.ListEndpointsRequest, context: Context
    ) -> registry_pb2.ListEndpointsResponse:
        entry = registry_pb2.ListEndpointsResponse.Entry
        return registry_pb2.ListEndpointsResponse(
            entries=[entry(endpoint=endpoint) for endpoint in self.endpoints]
        )

    async def WatchEndpoints(  # noqa: N802 - gRPC's name
        self, request: registry_pb2.WatchEndpointsRequest, context: Context
    ) -> AsyncIterator[registry_pb2.WatchEndpointsResponse]:
        entry = registry_pb2.WatchEndpointsResponse.Entry
        yield registry_pb2.WatchEndpointsResponse(
            complete=True, entries=[entry(endpoint=endpoint) for endpoint in self.endpoints]
        )

    async def _hear(self, name: str, context: Context) -> None:
        self.heard.append(name)
        self.keys.add(dict(context.invocation_metadata() or ()).get("authorization", ""))
        if self.refusal is not None:
            await _abort(context, self.refusal)


async def _abort(context: Context, error: errors.AiflowError) -> None:
    await context.abort(status.status_code(error), error.message, tuple(status.to_trailers(error)))


@asynccontextmanager
async def serving_registry(
    registry: Registry | None = None, address: str = "127.0.0.1:0"
) -> AsyncIterator[Registry]:
    registry = registry or Registry()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port(address)
    registry.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield registry
    finally:
        await server.stop(0)
