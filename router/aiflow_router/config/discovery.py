"""Where the endpoints come from: servers that register here, a list, Consul."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aiflow_router.catalog.consul import Settings
from aiflow_router.catalog.endpoint import Endpoint, Protocol
from aiflow_router.catalog.fields import violations
from aiflow_router.config.values import Duration, Section, Timeout, Zone, first_twice
from aiflow_sdk.consul import DEFAULT_ADDRESS, address_problem


class Embedded(Section):
    pass


class StaticEndpoint(Section):
    backend: str
    address: str
    protocol: Literal["oip", "grpc"]
    models: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    zone: Zone = ""
    # What `aiflow status` shows.
    version: str = ""
    device: str = ""

    @model_validator(mode="after")
    def _fields(self) -> StaticEndpoint:
        wrong = violations(
            backend=self.backend,
            address=self.address,
            protocol=Protocol[self.protocol.upper()],
            models=self.models,
            services=self.services,
            weight=self.weight,
            version=self.version,
            device=self.device,
        )
        if wrong:
            raise ValueError("; ".join(f"{field}: {why}" for field, why in wrong.items()))
        return self

    def endpoint(self) -> Endpoint:
        return Endpoint(
            backend=self.backend,
            address=self.address,
            protocol=Protocol[self.protocol.upper()],
            models=tuple(dict.fromkeys(self.models)),
            services=tuple(dict.fromkeys(self.services)),
            weight=self.weight,
            zone=self.zone,
            version=self.version,
            device=self.device,
        )


class Consul(Section):
    address: str = DEFAULT_ADDRESS
    # Read anew when it changes.
    token_file: str | None = None
    datacenter: str | None = None
    # PEM files, for an https address.
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    # A file that the last view is written to, and read from where Consul is away at the start.
    last_known: str | None = None
    # How long Consul may let a question wait: the age of the view grows up to it.
    wait: Timeout = 10.0
    # How long an endpoint stays that is missing after Consul was away or lost its state.
    grace: Duration = 60.0
    # Questions that wait at once; more backends than that take turns. An agent's own limit
    # (http_max_conns_per_client, 200) has to leave room for it.
    max_connections: Annotated[int, Field(ge=2, le=10_000)] = 128

    @model_validator(mode="after")
    def _usable(self) -> Consul:
        if problem := address_problem(self.address):
            raise ValueError(f"address: {problem}")
        if not 0.05 <= self.wait <= 300:
            raise ValueError("wait: must be 50ms to 5m")
        if (self.cert is None) != (self.key is None):
            raise ValueError("`cert` and `key` belong together: give both or none")
        given = [name for name in ("ca", "cert", "key") if getattr(self, name) is not None]
        if given and not self.address.startswith("https:"):
            raise ValueError(
                f"`{given[0]}` has no effect with {self.address}: write https:// there, or leave "
                "it out"
            )
        return self

    def settings(self) -> Settings:
        return Settings(
            address=self.address,
            token_file=self.token_file,
            datacenter=self.datacenter or "",
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            last_known=self.last_known,
            wait_s=self.wait,
            grace_s=self.grace,
            max_connections=self.max_connections,
        )


class Discovery(Section):
    embedded: Embedded | None = None
    consul: Consul | None = None
    static: tuple[StaticEndpoint, ...] = ()

    @model_validator(mode="after")
    def _some(self) -> Discovery:
        if not self.grows() and not self.static:
            raise ValueError(
                "name a source of endpoints: `embedded: {}`, `consul: {}` or `static: [...]`"
            )
        if self.embedded is not None and self.consul is not None:
            raise ValueError(
                "`embedded` and `consul` exclude each other: servers register at one place only; "
                "remove one of them"
            )
        keys = [(item.backend, item.address) for item in self.static]
        if twice := first_twice(keys):
            raise ValueError(f"endpoint {'@'.join(twice)} is listed twice")
        return self

    def source(self) -> str:
        """Where endpoints come from that neither are listed nor register here; empty for none."""
        return "" if self.consul is None else f"Consul at {self.consul.address}"

    def grows(self) -> bool:
        """Whether endpoints can come that are not listed."""
        return self.embedded is not None or self.consul is not None

    def only_models(self) -> frozenset[str] | None:
        """The models that there ever can be; None where servers register themselves."""
        if self.grows():
            return None
        return frozenset(model for item in self.static for model in item.models)

    def only_services(self) -> frozenset[str] | None:
        """The services that there ever can be; None as for models."""
        if self.grows():
            return None
        return frozenset(service for item in self.static for service in item.services)
