"""What a router says about itself: endpoints and health, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk.errors import DeadlineExceededError

State = Literal["READY", "DRAINING", "UNREACHABLE", "UNHEALTHY", "EJECTED", "UNKNOWN"]

_PROTOCOLS = {registry_pb2.PROTOCOL_OIP: "oip", registry_pb2.PROTOCOL_GRPC: "grpc"}
_STATES: dict[int, State] = {
    registry_pb2.ENDPOINT_STATE_READY: "READY",
    registry_pb2.ENDPOINT_STATE_DRAINING: "DRAINING",
    registry_pb2.ENDPOINT_STATE_UNREACHABLE: "UNREACHABLE",
    registry_pb2.ENDPOINT_STATE_UNHEALTHY: "UNHEALTHY",
    registry_pb2.ENDPOINT_STATE_EJECTED: "EJECTED",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address of one running server, as the router sees it."""

    backend: str
    address: str
    protocol: str
    """"oip" (routed by model) or "grpc" (routed by service)."""
    models: tuple[str, ...]
    services: tuple[str, ...]
    state: State
    weight: int
    zone: str
    version: str
    """Of what it serves; empty where it does not say."""
    device: str
    """What it computes on, such as cpu or gpu:0."""
    inflight: int
    """Calls this router has in flight to it."""
    expires_in_s: float
    """Time to the expiry of its lease unless it is renewed; 0 without one, by configuration."""


def to_endpoints(response: registry_pb2.ListEndpointsResponse) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(
            backend=entry.endpoint.backend,
            address=entry.endpoint.address,
            protocol=_PROTOCOLS.get(entry.endpoint.protocol, "unknown"),
            models=tuple(entry.endpoint.models),
            services=tuple(entry.endpoint.services),
            state=_STATES.get(entry.state, "UNKNOWN"),
            weight=entry.endpoint.weight or 1,
            zone=entry.endpoint.zone,
            version=entry.endpoint.version,
            device=entry.endpoint.device,
            inflight=entry.inflight,
            expires_in_s=entry.expires_in_ms / 1000,
        )
        for entry in response.entries
    )


def ready_models(endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """Models that an endpoint serves now, sorted."""
    return tuple(sorted({m for e in endpoints if e.state == "READY" for m in e.models}))


def not_ready(missing: Sequence[str], *, router: str, timeout_s: float) -> DeadlineExceededError:
    names = ", ".join(name or "the router itself" for name in missing)
    return DeadlineExceededError(
        f"not ready at {router} after {timeout_s:g} s: {names}; `aiflow status` shows what is",
        reason="NOT_READY",
        metadata={"missing": names},
    )
