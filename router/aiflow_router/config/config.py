"""The whole of aiflow.yaml as one frozen `Config`; `file` reads it."""

from __future__ import annotations

from pydantic import model_validator

from aiflow_router.config.auth import Auth
from aiflow_router.config.discovery import Discovery, Embedded
from aiflow_router.config.health import Ejection, Health
from aiflow_router.config.limit import Limit
from aiflow_router.config.limits import Ground
from aiflow_router.config.listen import Listen
from aiflow_router.config.policy import PolicyDocument, PolicySources
from aiflow_router.config.redis import Redis
from aiflow_router.config.route import Route
from aiflow_router.config.storage import Storage
from aiflow_router.config.values import Duration, Section, Zone, at


class Config(Section):
    listen: Listen = Listen()
    discovery: Discovery = Discovery(embedded=Embedded())
    auth: Auth = Auth()
    # Where tenants, keys, credits and usage are; None for none but the keys here.
    storage: Storage | None = None
    # Where the buckets of limits are; None for in this process.
    redis: Redis | None = None
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
        return Ground(
            workers=self.listen.workers,
            redis=self.redis is not None,
            storage=self.storage is not None,
        )
