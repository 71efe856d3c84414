"""`aiflow.registry.v1.RegistryService`: how servers take their place in the catalog."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from aiflow.registry.v1 import registry_pb2
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.endpoint import Endpoint, Key, State
from aiflow_router.catalog.fields import violations
from aiflow_router.rpc.endpoints import STATES, from_proto, to_proto
from aiflow_router.rpc.front import Front, Stream, Unary
from aiflow_router.rpc.visit import Context, Visit
from aiflow_router.rpc.watch import Relays, Watchers
from aiflow_sdk import errors

SERVICE = "aiflow.registry.v1.RegistryService"

DEFAULT_TTL_MS = 2000
MIN_TTL_MS = 500
MAX_TTL_MS = 60_000
LIST = f"/{SERVICE}/ListEndpoints"
WATCH = f"/{SERVICE}/WatchEndpoints"
# The owner is a process on this machine; one that hangs must not hang the caller.
RELAY_WITHIN_S = 5.0
# Of the list, what is made at once: an entry is 10 us of work, a name in it less than 1.
LIST_STEPS = 4000
ENTRY_STEPS = 20

M = TypeVar("M", bound=Message)


Handlers = Mapping[str, "grpc.RpcMethodHandler[bytes, bytes]"]
Seen = Callable[[Endpoint], tuple[State, int]]
"""How an endpoint is doing, and the calls in flight to it."""


def handlers(front: Front, *, registry: Registry, watchers: Watchers) -> Handlers:
    """The handlers by full method, of a router that has the catalog itself."""
    works = {name: typed(kind, work) for name, (kind, work) in registry.works().items()}
    return _handlers(front, works, watchers.handle)


def relayed(front: Front, *, owner: grpc.aio.Channel, relays: Relays) -> Handlers:
    """The same for a router whose catalog is a mirror: its `owner` decides and answers."""
    names = ("Register", "Renew", "Deregister", "ListEndpoints")
    works = {name: relay(owner, f"/{SERVICE}/{name}") for name in names}
    return _handlers(front, works, relays.handle)


def relay(owner: grpc.aio.Channel, method: str) -> Unary:
    """The work of a unary method that the owner does."""
    # Raw bytes; the stubs infer Never from the missing serializers.
    ask: Any = owner.unary_unary(method)

    async def raw(visit: Visit, request: bytes, context: Context) -> bytes:
        answer: bytes = await ask(request, timeout=RELAY_WITHIN_S)
        context.set_trailing_metadata(visit.trailers())
        return answer

    return raw


def _handlers(front: Front, works: Mapping[str, Unary], watch: Stream) -> Handlers:
    found = {
        f"/{SERVICE}/{name}": front.unary(
            f"/{SERVICE}/{name}",
            work,
            right="call" if name == "ListEndpoints" else "register",
            label=SERVICE,
            quiet=True,
        )
        for name, work in works.items()
    }
    found[WATCH] = front.stream(WATCH, watch, label=SERVICE, quiet=True)
    return found


def typed(kind: type[M], work: Callable[[M], Awaitable[bytes]]) -> Unary:
    """The work of a unary method that takes a message of `kind`."""

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


class Registry:
    """What each call does to the catalog.

    Args:
        seen: how the endpoints are doing, asked once a list.
        shown: returns when what was last said of a key is where calls look for it.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        seen: Callable[[], Awaitable[Seen]],
        shown: Callable[[Key], Awaitable[None]],
    ) -> None:
        self._catalog = catalog
        self._seen = seen
        self._shown = shown

    def works(self) -> Mapping[str, tuple[type[Message], Callable[[Any], Awaitable[bytes]]]]:
        """What takes which request, by name of method."""
        return {
            "Register": (registry_pb2.RegisterRequest, self.register),
            "Renew": (registry_pb2.RenewRequest, self.renew),
            "Deregister": (registry_pb2.DeregisterRequest, self.deregister),
            "ListEndpoints": (registry_pb2.ListEndpointsRequest, self.list_endpoints),
        }

    async def register(self, request: registry_pb2.RegisterRequest) -> bytes:
        ttl_ms = request.ttl_ms or DEFAULT_TTL_MS
        lease = self._catalog.register(
            _endpoint(request, ttl_ms=ttl_ms),
            ttl_s=ttl_ms / 1000,
        )
        await self._shown(lease.endpoint.key)
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
        await self._shown(lease.endpoint.key)
        return registry_pb2.RenewResponse(ttl_ms=round(lease.ttl_s * 1000)).SerializeToString()

    async def deregister(self, request: registry_pb2.DeregisterRequest) -> bytes:
        lease = self._catalog.deregister(request.lease_id)
        if lease is not None:
            await self._shown(lease.endpoint.key)
        return registry_pb2.DeregisterResponse().SerializeToString()

    async def list_endpoints(self, _request: registry_pb2.ListEndpointsRequest) -> bytes:
        """By backend and address; made in slices, between which other calls move on."""
        snapshot = self._catalog.snapshot
        seen = await self._seen()
        left_s = self._catalog.leases_left_s()
        # Joined as strings they sort five times as fast as they do as pairs.
        ordered = sorted(snapshot.entries, key="\0".join)
        answer = registry_pb2.ListEndpointsResponse(version=snapshot.version)
        parts: list[bytes] = []
        steps = 0
        for key in ordered:
            entry = snapshot.entries[key]
            endpoint = entry.endpoint
            # It may have left since the list was begun.
            here = key in self._catalog.snapshot.entries
            state, inflight = seen(endpoint) if here else (entry.state, 0)
            answer.entries.add(
                endpoint=to_proto(endpoint),
                state=STATES[state],
                inflight=inflight,
                expires_in_ms=round(left_s.get(key, 0.0) * 1000),
            )
            steps += ENTRY_STEPS + len(endpoint.models) + len(endpoint.services)
            if steps >= LIST_STEPS:
                # Serialized messages joined end to end are the message with their lists joined.
                parts.append(answer.SerializeToString())
                answer, steps = registry_pb2.ListEndpointsResponse(), 0
                await asyncio.sleep(0)
        return b"".join((*parts, answer.SerializeToString()))


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
        zone=asked.zone,
        version=asked.version,
        device=asked.device,
    )
    wrong = {f"endpoint.{field}": why for field, why in found.items()}
    if not MIN_TTL_MS <= ttl_ms <= MAX_TTL_MS:
        wrong["ttl_ms"] = f"must be {MIN_TTL_MS} to {MAX_TTL_MS}, or 0 for {DEFAULT_TTL_MS}"
    if wrong:
        listed = "; ".join(f"{field}: {why}" for field, why in wrong.items())
        raise errors.BadInputError(f"the endpoint cannot be registered: {listed}", violations=wrong)
    return from_proto(asked)
