"""What aiflow.yaml may say, as one frozen `Config`; `config_file` reads it.

A key exists here only when the router really does what it says, so nothing a person wrote down is
silently without effect.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from aiflow_router.catalog.endpoint import Endpoint, Protocol
from aiflow_router.catalog.fields import address_problem, violations
from aiflow_router.forwarding.retry import RetryPolicy
from aiflow_router.identity.keys import KeyRecord
from aiflow_router.limits import overload as limits

DEFAULT_CONNECTION_AGE_S = 30.0

_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(value: object) -> float:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration with its unit, such as "150ms", "2s" or "5m"')
    return float(match["number"]) * _UNIT_S[match["unit"]]


def _written(value_s: float) -> str:
    """As `_seconds` reads it, whatever its size."""
    return f"{value_s:.9f}".rstrip("0").rstrip(".") + "s"


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be longer than 0")
    return value


def _share(value: object) -> float:
    match = re.fullmatch(r"(\d+(\.\d+)?)%", value) if isinstance(value, str) else None
    if match is None or not 0 <= float(match[1]) <= 100:
        raise ValueError('must be a share of 0% to 100%, such as "20%"')
    return float(match[1]) / 100


def _listen_address(value: str) -> str:
    if problem := address_problem(value, lowest_port=0):
        raise ValueError(problem)
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(
            "must be the SHA-256 of the key as 64 lower-case hex digits: "
            "`printf %s KEY | sha256sum` prints it"
        )
    return value


def _first_twice(items: list[Any]) -> Any:
    """The first item that is there twice; None when each is there once."""
    seen: set[Any] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    PlainSerializer(_written, when_used="json"),
]
Timeout = Annotated[Duration, AfterValidator(_positive)]
Percent = Annotated[
    float,
    BeforeValidator(_share),
    PlainSerializer(lambda value: f"{value * 100:g}%", when_used="json"),
]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
# The strategies of balancing.pick.PICKS.
Balance = Literal["batch_aware", "least_request", "peak_ewma", "round_robin", "session"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Listen(_Section):
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

    def connection_age_s(self) -> float | None:
        """How old a connection may become; None where it may for ever."""
        if self.max_connection_age is None and self.workers > 1:
            return DEFAULT_CONNECTION_AGE_S
        return self.max_connection_age


class Embedded(_Section):
    pass


class StaticEndpoint(_Section):
    backend: str
    address: str
    protocol: Literal["oip", "grpc"]
    models: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    weight: Annotated[int, Field(ge=1, le=1000)] = 1

    @model_validator(mode="after")
    def _fields(self) -> StaticEndpoint:
        wrong = violations(
            backend=self.backend,
            address=self.address,
            protocol=Protocol[self.protocol.upper()],
            models=self.models,
            services=self.services,
            weight=self.weight,
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
        )


class Discovery(_Section):
    embedded: Embedded | None = None
    static: tuple[StaticEndpoint, ...] = ()

    @model_validator(mode="after")
    def _some(self) -> Discovery:
        if self.embedded is None and not self.static:
            raise ValueError("name a source of endpoints: `embedded: {}` or `static: [...]`")
        keys = [(item.backend, item.address) for item in self.static]
        if twice := _first_twice(keys):
            raise ValueError(f"endpoint {'@'.join(twice)} is listed twice")
        return self


class Key(_Section):
    name: Name
    tenant: Name
    sha256: Annotated[str, AfterValidator(_sha256)] = Field(repr=False)
    may: Annotated[tuple[Literal["call", "register"], ...], Field(min_length=1)] = ("call",)

    def record(self) -> KeyRecord:
        return KeyRecord(
            name=self.name, tenant=self.tenant, sha256=self.sha256, may=frozenset(self.may)
        )


class Auth(_Section):
    mode: Literal["required", "optional"] = "optional"
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _usable(self) -> Auth:
        if self.mode == "required" and not self.keys:
            raise ValueError("mode is `required` but there are no keys: nobody could call")
        if twice := _first_twice([key.name for key in self.keys]):
            raise ValueError(f'two keys are named "{twice}"')
        if _first_twice([key.sha256 for key in self.keys]):
            raise ValueError("two entries of keys are the same key")
        return self


class Match(_Section):
    model: Name | None = None
    service: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> Match:
        if (self.model is None) == (self.service is None):
            raise ValueError("match either a `model` or a `service`")
        return self


class Retry(_Section):
    # Endpoints that are tried at most, the first included.
    attempts: Annotated[int, Field(ge=1, le=5)] = 2
    # How long a try may take while another endpoint is left to try.
    per_try_timeout: Timeout | None = None
    # Share of the calls in flight that may be retries or hedges, and how many always may.
    budget: Percent = 0.2
    budget_floor: Annotated[int, Field(ge=0, le=1000)] = 3

    @model_validator(mode="after")
    def _another(self) -> Retry:
        if self.per_try_timeout is not None and self.attempts == 1:
            raise ValueError("per_try_timeout has no effect with `attempts: 1`")
        return self

    def policy(self) -> RetryPolicy:
        return RetryPolicy(
            attempts=self.attempts,
            per_try_timeout_s=self.per_try_timeout,
            budget=self.budget,
            budget_floor=self.budget_floor,
        )


class HedgePolicy(_Section):
    # How long the first endpoint is waited for; "p95": the model's own 95th percentile.
    after: Literal["p95"] | Timeout

    @property
    def after_s(self) -> float | None:
        return None if self.after == "p95" else self.after


def _limit(value: object) -> object:
    if value == "adaptive" or (type(value) is int and 1 <= value <= 100_000):
        return value
    raise ValueError("must be a number of calls, 1 to 100000, or `adaptive`")


def _off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class Overload(_Section):
    # Calls in flight to one model or service; what else there is waits or is shed.
    limit: Annotated[int | Literal["adaptive"], BeforeValidator(_limit)] = 1024
    # What an adaptive limit moves between.
    min: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max: Annotated[int, Field(ge=1, le=100_000)] | None = None
    queue: Annotated[int, Field(ge=0, le=10_000)] = limits.DEFAULT.queue
    mode: Annotated[Literal["enforce", "shadow", "off"], BeforeValidator(_off)] = "enforce"

    @model_validator(mode="after")
    def _consistent(self) -> Overload:
        # By value, for the printed configuration names every default and must be read again.
        others = set(type(self).model_fields) - {"mode"}
        if self.mode == "off" and any(
            getattr(self, name) != type(self).model_fields[name].default for name in others
        ):
            raise ValueError("mode is `off`, so nothing else here has an effect: leave it out")
        if self.limit != "adaptive":
            if self.min is not None or self.max is not None:
                raise ValueError("`min` and `max` are for `limit: adaptive`; this limit is fixed")
        elif self.mode == "shadow":
            raise ValueError(
                "an adaptive limit learns from what it lets in, so it cannot be watched without "
                "being enforced: give a number as `limit`, or `mode: enforce`"
            )
        elif self.record().lowest > self.record().highest:
            raise ValueError(f"`min` {self.record().lowest} is above `max` {self.record().highest}")
        return self

    def record(self) -> limits.Overload:
        return limits.Overload(
            limit=None if self.limit == "adaptive" else self.limit,
            lowest=limits.DEFAULT.lowest if self.min is None else self.min,
            highest=limits.DEFAULT.highest if self.max is None else self.max,
            queue=self.queue,
            mode=self.mode,
        )


class Route(_Section):
    match: Match
    timeout: Timeout = 15.0
    retry: Retry = Retry()
    balance: Balance = "least_request"
    hedge: HedgePolicy | None = None
    overload: Overload = Overload()
    # For `batch_aware`: within what time answers shall come however full the batches.
    latency_aim: Timeout | None = None

    @model_validator(mode="after")
    def _effective(self) -> Route:
        if (try_s := self.retry.per_try_timeout) is not None and try_s >= self.timeout:
            raise ValueError("retry.per_try_timeout is not shorter than the route's timeout")
        if self.hedge is not None and (self.hedge.after_s or 0.0) >= self.timeout:
            raise ValueError("hedge.after is not shorter than the route's timeout")
        return self

    @model_validator(mode="after")
    def _aim(self) -> Route:
        if self.balance != "batch_aware":
            if self.latency_aim is not None:
                raise ValueError(
                    "`latency_aim` is for `balance: batch_aware` only: remove it, or balance so"
                )
            return self
        if self.match.service is not None:
            raise ValueError(
                "`balance: batch_aware` is for models: the router knows no batches of a service"
            )
        if self.latency_aim is None:
            raise ValueError(
                "`balance: batch_aware` needs `latency_aim`, the time within which answers shall "
                "come, such as `latency_aim: 200ms`"
            )
        if self.latency_aim >= self.timeout:
            raise ValueError(
                f"`latency_aim` must be shorter than `timeout`, which is {self.timeout:g}s: a call "
                "that takes longer than that has failed"
            )
        return self


class Config(_Section):
    listen: Listen = Listen()
    discovery: Discovery = Discovery(embedded=Embedded())
    auth: Auth = Auth()
    routes: tuple[Route, ...] = ()

    @model_validator(mode="after")
    def _once(self) -> Config:
        matches = [(route.match.model, route.match.service) for route in self.routes]
        if twice := _first_twice(matches):
            kind, name = ("model", twice[0]) if twice[0] else ("service", twice[1])
            raise ValueError(f'routes: two routes match {kind} "{name}"; only one could apply')
        return self
