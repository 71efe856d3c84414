"""Where the router listens, and what it takes there."""

from __future__ import annotations

import sys
from typing import Annotated

from pydantic import Field, model_validator

from aiflow_router.config.values import Duration, ListenAddress, Section, Timeout

DEFAULT_CONNECTION_AGE_S = 30.0


class TLS(Section):
    """PEM files, read anew when they change; of listen.grpc."""

    cert: str
    key: str
    # Callers need a certificate that this one has signed; None lets anybody connect.
    client_ca: str | None = None


class Listen(Section):
    grpc: ListenAddress = "127.0.0.1:7600"
    http: ListenAddress = "127.0.0.1:7601"
    # None for plain text.
    tls: TLS | None = None
    # Processes that share listen.grpc.
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    # When a caller's connection is asked to be made anew; None: never with one worker, with more
    # after DEFAULT_CONNECTION_AGE_S, for by this connections move from a worker to its successor.
    max_connection_age: Timeout | None = None
    max_message_mb: Annotated[int, Field(ge=1, le=512)] = 64
    # Calls that one connection may have open at once; the caller's gRPC holds further ones back.
    max_concurrent_streams: Annotated[int, Field(ge=1, le=100_000)] = 1024
    # Above it a new connection is closed at once.
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    # Whether compressed requests are taken; without it they are UNIMPLEMENTED, and a small request
    # cannot grow to a thousand times its size in the router's memory.
    compression: bool = True
    # After shutdown is announced and before new calls are refused: time for callers to notice.
    drain_grace: Duration = 1.0
    # How long calls in flight may take to end after that.
    drain_timeout: Duration = 30.0

    @model_validator(mode="after")
    def _possible(self) -> Listen:
        if self.workers > 1 and sys.platform != "linux":
            raise ValueError("workers: more than 1 is possible on Linux only; remove it here")
        return self

    def max_message_bytes(self) -> int:
        return self.max_message_mb * 1024 * 1024

    def connection_age_s(self) -> float | None:
        """How old a connection may become; None where it may for ever."""
        if self.max_connection_age is None and self.workers > 1:
            return DEFAULT_CONNECTION_AGE_S
        return self.max_connection_age
