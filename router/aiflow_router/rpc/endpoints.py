"""Endpoints as `aiflow.registry.v1` writes them."""

from __future__ import annotations

from aiflow.registry.v1 import registry_pb2
from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.catalog.snapshot import Entry

_PROTOCOLS = {
    Protocol.OIP: registry_pb2.PROTOCOL_OIP,
    Protocol.GRPC: registry_pb2.PROTOCOL_GRPC,
}
STATES = {
    State.READY: registry_pb2.ENDPOINT_STATE_READY,
    State.DRAINING: registry_pb2.ENDPOINT_STATE_DRAINING,
    State.UNREACHABLE: registry_pb2.ENDPOINT_STATE_UNREACHABLE,
    State.UNHEALTHY: registry_pb2.ENDPOINT_STATE_UNHEALTHY,
    State.EJECTED: registry_pb2.ENDPOINT_STATE_EJECTED,
}


def to_proto(endpoint: Endpoint) -> registry_pb2.Endpoint:
    return registry_pb2.Endpoint(
        backend=endpoint.backend,
        address=endpoint.address,
        protocol=_PROTOCOLS[endpoint.protocol],
        models=endpoint.models,
        services=endpoint.services,
        weight=endpoint.weight,
        zone=endpoint.zone,
        version=endpoint.version,
        device=endpoint.device,
    )


def from_proto(endpoint: registry_pb2.Endpoint) -> Endpoint:
    """An endpoint whose fields were checked."""
    return Endpoint(
        backend=endpoint.backend,
        address=endpoint.address,
        protocol=Protocol(endpoint.protocol),
        models=tuple(dict.fromkeys(endpoint.models)),
        services=tuple(dict.fromkeys(endpoint.services)),
        weight=endpoint.weight or 1,
        zone=endpoint.zone,
        version=endpoint.version,
        device=endpoint.device,
    )


def entry_from_proto(entry: registry_pb2.WatchEndpointsResponse.Entry) -> Entry:
    return Entry(endpoint=from_proto(entry.endpoint), state=State(entry.state))
