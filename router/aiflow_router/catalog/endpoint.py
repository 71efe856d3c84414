"""One address of one running server, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Protocol(IntEnum):
    """What an endpoint speaks; the numbers of `aiflow.registry.v1.Protocol`."""

    OIP = 1
    GRPC = 2


class State(IntEnum):
    """Whether an endpoint takes new calls; the numbers of `aiflow.registry.v1.EndpointState`."""

    READY = 1
    DRAINING = 2
    UNREACHABLE = 3
    UNHEALTHY = 4
    EJECTED = 5


Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What a server says of itself.

    Attributes:
        backend: name of the group of endpoints that serve the same.
        address: "host:port" or "[v6]:port".
        models: each once, as are services.
        weight: relative share of calls, 1 to 1000.
        zone: failure zone.
        version: of what it serves, for operators to read.
        device: what it computes on, such as cpu or gpu:0, for operators to read.
    """

    backend: str
    address: str
    protocol: Protocol
    models: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    weight: int = 1
    zone: str = ""
    version: str = ""
    device: str = ""

    @property
    def key(self) -> Key:
        """What identifies an endpoint: registering the same key again replaces it."""
        return (self.backend, self.address)
