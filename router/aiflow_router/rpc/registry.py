"""`aiflow.registry.v1.RegistryService`: how servers take their place in the catalog."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from aiflow.registry.v1 import registry_pb2
from aiflow_router.balancing.census import Census
from aiflow_router.balancing.load import Loads
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.catalog.fields import violations
from aiflow_router.catalog.snapshot import Entry
from aiflow_router.rpc.visit import Context, Front, Unary, Visit
from aiflow_sdk import errors

SERVICE = "aiflow.registry.v1.RegistryService"

DEFAULT_TTL_MS = 2000
MIN_TTL_MS = 500
MAX_TTL_MS = 60_000
# Of the list, what is made at once: an entry is 10 us of work, a name in it less than 1.
LIST_STEPS = 4000
ENTRY_STEPS = 20

_PROTOCOLS = {
    Protocol.OIP: registry_pb2.PROTOCOL_OIP,
    Protocol.GRPC: registry_pb2.PROTOCOL_GRPC,
}
_STATES = {
    State.READY: registry_pb2.ENDPOINT_STATE_READY,
    State.DRAINING: registry_pb2.ENDPOINT_STATE_DRAINING,
    State.UNREACHABLE: registry_pb2.ENDPOINT_STATE_UNREACHABLE,
    State.UNHEALTHY: registry_pb2.ENDPOINT_STATE_UNHEALTHY,
    State.EJECTED: registry_pb2.ENDPOINT_STATE_EJECTED,
}

M = TypeVar("M", bound=Message)


def handlers(
    front: Front, *, catalog: Catalog, loads: Loads, census: Census
) -> Mapping[str, grpc.RpcMethodHandler[bytes, bytes]]:
    """The handlers by full method."""
    registry = _Registry(catalog=catalog, loads=loads, census=census)

    def handler(name: str, work: Unary, *, register: bool) -> grpc.RpcMethodHandler[bytes, bytes]:
        return front.unary(
            f"/{SERVICE}/{name}",
            work,
            right="register" if register else "call",
            label=SERVICE,
            quiet=True,
        )

    return {
        f"/{SERVICE}/Register": handler(
            "Register", _typed(registry_pb2.RegisterRequest, registry.register), register=True
        ),
        f"/{SERVICE}/Renew": handler(
            "Renew", _typed(registry_pb2.RenewRequest, registry.renew), register=True
        ),
        f"/{SERVICE}/Deregister": handler(
            "Deregister", _typed(registry_pb2.DeregisterRequest, registry.deregister), register=True
        ),
        f"/{SERVICE}/ListEndpoints": handler(
            "ListEndpoints",
            _typed(registry_pb2.ListEndpointsRequest, registry.list_endpoints),
            register=False,
        ),
    }


def _typed(kind: type[M], work: Callable[[M], Awaitable[bytes]]) -> Unary:
    async def raw(visit: Visit, request: bytes, context: Context) -> bytes:
        try:
            message = kind.FromString(request)
        except DecodeError as error:
            raise errors.BadInputError(
                f"the request is not a valid {kind.DESCRIPTOR.full_name}: {error}"
            ) from None
        answer = await work(message)
        context.set_trailing_metadata(visit.trailers())
        return answer

    return raw


class _Registry:
    def __init__(self, *, catalog: Catalog, loads: Loads, census: Census) -> None:
        self._catalog = catalog
        self._loads = loads
        self._census = census

    async def register(self, request: registry_pb2.RegisterRequest) -> bytes:
        ttl_ms = request.ttl_ms or DEFAULT_TTL_MS
        lease = self._catalog.register(
            _endpoint(request, ttl_ms=ttl_ms),
            ttl_s=ttl_ms / 1000,
        )
        await self._catalog.shown(lease.endpoint.key)
        return registry_pb2.RegisterResponse(lease_id=lease.id, ttl_ms=ttl_ms).SerializeToString()

    async def renew(self, request: registry_pb2.RenewRequest) -> bytes:
        if request.state in (
            registry_pb2.ENDPOINT_STATE_UNSPECIFIED,
            registry_pb2.ENDPOINT_STATE_READY,
        ):
            state = State.READY
        elif request.state == registry_pb2.ENDPOINT_STATE_DRAINING:
            state = State.DRAINING
        else:
            raise errors.BadInputError(
                "a server can be READY or DRAINING",
                violations={"state": "must be READY, DRAINING or unspecified"},
            )
        lease = self._catalog.renew(request.lease_id, state=state)
        await self._catalog.shown(lease.endpoint.key)
        return registry_pb2.RenewResponse(ttl_ms=round(lease.ttl_s * 1000)).SerializeToString()

    async def deregister(self, request: registry_pb2.DeregisterRequest) -> bytes:
        lease = self._catalog.deregister(request.lease_id)
        if lease is not None:
            await self._catalog.shown(lease.endpoint.key)
        return registry_pb2.DeregisterResponse().SerializeToString()

    async def list_endpoints(self, _request: registry_pb2.ListEndpointsRequest) -> bytes:
        """By backend and address; made in slices, between which other calls move on."""
        snapshot = self._catalog.snapshot
        left_s = self._catalog.leases_left_s()
        # Joined as strings they sort five times as fast as they do as pairs.
        ordered = sorted(snapshot.entries, key="\0".join)
        answer = registry_pb2.ListEndpointsResponse(version=snapshot.version)
        parts: list[bytes] = []
        steps = 0
        for key in ordered:
            entry = snapshot.entries[key]
            self._list(answer, entry, left_s=left_s.get(key, 0.0))
            steps += ENTRY_STEPS + len(entry.endpoint.models) + len(entry.endpoint.services)
            if steps >= LIST_STEPS:
                # Serialized messages joined end to end are the message with their lists joined.
                parts.append(answer.SerializeToString())
                answer, steps = registry_pb2.ListEndpointsResponse(), 0
                await asyncio.sleep(0)
        return b"".join((*parts, answer.SerializeToString()))

    def _list(
        self, answer: registry_pb2.ListEndpointsResponse, entry: Entry, *, left_s: float
    ) -> None:
        endpoint = entry.endpoint
        # It may have left since the list was begun.
        here = self._catalog.snapshot.entries.get(endpoint.key) is not None
        answer.entries.add(
            endpoint=registry_pb2.Endpoint(
                backend=endpoint.backend,
                address=endpoint.address,
                protocol=_PROTOCOLS[endpoint.protocol],
                models=endpoint.models,
                services=endpoint.services,
                weight=endpoint.weight,
                zone=endpoint.zone,
            ),
            state=_STATES[self._census.state(endpoint) if here else entry.state],
            inflight=self._loads[endpoint].inflight if here else 0,
            expires_in_ms=round(left_s * 1000),
        )


def _endpoint(request: registry_pb2.RegisterRequest, *, ttl_ms: int) -> Endpoint:
    """Raises BadInputError that names each field that is wrong."""
    asked = request.endpoint
    found = violations(
        backend=asked.backend,
        address=asked.address,
        protocol=asked.protocol,
        models=asked.models,
        services=asked.services,
        weight=asked.weight,
    )
    wrong = {f"endpoint.{field}": why for field, why in found.items()}
    if len(asked.zone) > 128:
        wrong["endpoint.zone"] = "must be at most 128 characters"
    if not MIN_TTL_MS <= ttl_ms <= MAX_TTL_MS:
        wrong["ttl_ms"] = f"must be {MIN_TTL_MS} to {MAX_TTL_MS}, or 0 for {DEFAULT_TTL_MS}"
    if wrong:
        listed = "; ".join(f"{field}: {why}" for field, why in wrong.items())
        raise errors.BadInputError(f"the endpoint cannot be registered: {listed}", violations=wrong)
    return Endpoint(
        backend=asked.backend,
        address=asked.address,
        protocol=Protocol(asked.protocol),
        models=tuple(dict.fromkeys(asked.models)),
        services=tuple(dict.fromkeys(asked.services)),
        weight=asked.weight or 1,
        zone=asked.zone,
    )
