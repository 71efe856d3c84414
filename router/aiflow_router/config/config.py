"""The whole of aiflow.yaml as one frozen `Config`; `file` reads it."""

from __future__ import annotations

import sys
from typing import Annotated

from pydantic import Field, model_validator

from aiflow_router.config.auth import Auth
from aiflow_router.config.discovery import Discovery, Embedded
from aiflow_router.config.health import Ejection, Health
from aiflow_router.config.limit import Limit
from aiflow_router.config.limits import Ground
from aiflow_router.config.policy import PolicyDocument, PolicySources
from aiflow_router.config.route import Route
from aiflow_router.config.storage import Storage
from aiflow_router.config.values import Duration, ListenAddress, Section, Timeout, Zone, at

DEFAULT_CONNECTION_AGE_S = 30.0


class Listen(Section):
    grpc: ListenAddress = "127.0.0.1:7600"
    http: ListenAddress = "127.0.0.1:7601"
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


class Config(Section):
    listen: Listen = Listen()
    discovery: Discovery = Discovery(embedded=Embedded())
    auth: Auth = Auth()
    # Where tenants, keys, credits and usage are; None for none but the keys here.
    storage: Storage | None = None
    # What of it may change while the router runs: `routes` and `limits`.
    policy: PolicySources = PolicySources()
    routes: tuple[Route, ...] = ()
    # All that match a call must pass, or none is charged.
    limits: tuple[Limit, ...] = ()
    # The router's own; empty for no preference.
    zone: Zone = ""
    slow_start: Duration = 10.0
    health: Health = Health()
    ejection: Ejection = Ejection()

    @model_validator(mode="after")
    def _zoned(self) -> Config:
        zones = {item.zone for item in self.discovery.static}
        if self.zone and not self.discovery.grows() and self.zone not in zones:
            raise ValueError(
                f'zone: no static endpoint is in zone "{self.zone}" and none can register, so it '
                "would have no effect"
            )
        return self

    @model_validator(mode="after")
    def _somebody_can_call(self) -> Config:
        auth, stored = self.auth, self.storage is not None
        if auth.mode == "required" and not auth.keys and not stored:
            raise at(
                "auth",
                why="mode is `required` but there are no keys: nobody could call; list some, or "
                "add `storage` to have keys made by `aiflow key create`",
            )
        if auth.jwt is not None and not stored:
            raise at(
                "auth",
                "jwt",
                why="tokens are for members, and there are none: add `storage` to have some",
            )
        if auth.admin_key_file is not None and not stored:
            raise at(
                "auth",
                "admin_key_file",
                why="has no effect without `storage`: the first key is that of a new database",
            )
        return self

    def policy_document(self) -> PolicyDocument:
        """What of it may change while the router runs."""
        return PolicyDocument(routes=self.routes, limits=self.limits)

    def ground(self) -> Ground:
        """What a policy has to stand on here."""
        return Ground(workers=self.listen.workers, storage=self.storage is not None)
