"""One limit, as aiflow.yaml has it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from aiflow_router.catalog.fields import service_problem
from aiflow_router.config.values import (
    Duration,
    Mode,
    ModelName,
    Name,
    Section,
    Timeout,
    at,
    first_twice,
)
from aiflow_router.limits.rule import Away, Kind, Per, Rule, Unit

_RATE = re.compile(r"(?P<number>\d+(\.\d+)?)/(?P<unit>s|min|h)")
_RATE_S = {"s": 1.0, "min": 60.0, "h": 3600.0}
_QUOTA = re.compile(r"(?P<number>\d+(\.\d+)?)/(?P<unit>day|month)")
# Above it no counter is exact any more, and nobody means it.
MAX_AMOUNT = 1e12
MAX_PER_S = 1e9
# Each call in the log of a strict rule is remembered by itself.
MAX_STRICT = 1000
MAX_LEASE_S = 60.0
# Of a name: it is a label of metrics and a part of every bucket's name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_NEVER_BY_SERVICE = {
    "inference.GRPCInferenceService": "its calls are limited by the model that they name: match a "
    "model, or leave `match` out",
    "grpc.health.v1.Health": "the router answers it itself, and health checks are never limited",
    "grpc.reflection.v1.ServerReflection": "the router answers it itself, without limits",
    "grpc.reflection.v1alpha.ServerReflection": "the router answers it itself, without limits",
}


def _rate(value: object) -> object:
    if value is None or (isinstance(value, str) and _RATE.fullmatch(value)):
        return value
    raise ValueError('must be so many in a time, such as "100/s", "4/min" or "1000/h"')


def _quota(value: object) -> object:
    if value is None or (isinstance(value, str) and _QUOTA.fullmatch(value)):
        return value
    raise ValueError('must be so many a calendar day or month, such as "1000/day" or "20000/month"')


Rate = Annotated[str, BeforeValidator(_rate)]
Quota = Annotated[str, BeforeValidator(_quota)]
# "platform" is everybody together, which an empty list says too.
Whose = Literal["platform", "tenant", "department", "member", "key", "model", "session"]
Amount = Annotated[
    float,
    PlainSerializer(lambda value: int(value) if value == int(value) else value, when_used="json"),
]


class LimitMatch(Section):
    model: ModelName | None = None
    service: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> LimitMatch:
        if (self.model is None) == (self.service is None):
            raise ValueError("match either a `model` or a `service`; without `match` all calls")
        return self


class Limit(Section):
    """What all matching calls may have together; see `limits.rule.Rule`."""

    name: Name
    match: LimitMatch | None = None
    per: tuple[Whose, ...] = ()
    # One of these three.
    rate: Rate | None = None
    concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    quota: Quota | None = None
    # Of a rate: what a full bucket holds; None for what one period brings, and 1 at least.
    burst: Amount | None = None
    cost: Unit = "calls"
    # What a call costs that does not say; None: it is refused, where its cost has to be declared.
    assume: Amount | None = None
    # Of a rate: never more than that within any such time, with no burst beyond it.
    strict: bool = False
    mode: Mode = "enforce"
    wait: bool = False
    queue: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    ages: Timeout = 30.0
    # Without `redis:` these have no effect.
    away: Away = "share"
    lease: Duration = 0.0

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("must be 1 to 64 letters, digits, and - _ . : such as gpt-per-tenant")
        return value

    def rule(self) -> Rule:
        amount, period_s = self._amount()
        burst = 0.0
        if self._kind == "rate":
            burst = max(1.0, amount) if self.burst is None else self.burst
        match = self.match or LimitMatch.model_construct(model=None, service=None)
        return Rule(
            name=self.name,
            per=self._per(),
            model=match.model or "",
            service=match.service or "",
            kind=self._kind,
            amount=amount,
            period_s=period_s,
            burst=burst,
            unit=self.cost,
            assume=self.assume,
            mode=self.mode,
            wait=self.wait,
            queue=self.queue,
            ages_s=self.ages,
            away=self.away,
            lease_s=self.lease,
        )

    @property
    def _kind(self) -> Kind:
        if self.concurrency is not None:
            return "concurrency"
        if self.quota is not None:
            return "day" if self.quota.endswith("/day") else "month"
        return "strict" if self.strict else "rate"

    def _amount(self) -> tuple[float, float]:
        """With the seconds in which it may be had; those of a quota are a calendar's."""
        if self.concurrency is not None:
            return float(self.concurrency), 1.0
        number, _, unit = (self.quota or self.rate or "").partition("/")
        return float(number), _RATE_S.get(unit, 1.0)

    def _per(self) -> tuple[Per, ...]:
        return tuple(one for one in self.per if one != "platform")

    @model_validator(mode="after")
    def _one_kind(self) -> Limit:
        given = [key for key in ("rate", "concurrency", "quota") if getattr(self, key) is not None]
        if len(given) != 1:
            listed = " and ".join(f"`{key}`" for key in given) or "none of them"
            raise ValueError(
                f"needs one of `rate`, `concurrency` and `quota`, and has {listed}: write a limit "
                "of its own for each, all that match a call must pass"
            )
        amount, period_s = self._amount()
        if amount <= 0:
            raise at(given[0], why="must be more than 0: to forbid a model take it from the keys")
        if amount > MAX_AMOUNT or (given[0] == "rate" and amount / period_s > MAX_PER_S):
            raise at(
                given[0],
                why=f"is more than can be counted ({MAX_PER_S:g} a second, {MAX_AMOUNT:g} in all): "
                "leave the limit out if nothing shall be limited",
            )
        return self

    @model_validator(mode="after")
    def _of_its_kind(self) -> Limit:
        kind = self._kind
        if self.burst is not None and kind != "rate":
            raise at("burst", why=f"is for a `rate` that is not strict, and this is {_a(kind)}")
        if self.strict and self.rate is None:
            raise at("strict", why=f"is for a `rate`, and this is {_a(kind)}")
        if self.strict:
            self._check_strict()
        if kind == "concurrency" and self.cost != "calls":
            raise at("cost", why="of `concurrency` is a call each: leave it out")
        if self.wait and kind in ("day", "month"):
            raise at("wait", why="nobody waits for tomorrow: a used up quota refuses; remove it")
        if not self.wait:
            for key, default in (("queue", 1024), ("ages", 30.0)):
                if getattr(self, key) != default:
                    raise at(key, why="has an effect only with `wait: true`")
        return self

    @model_validator(mode="after")
    def _leased(self) -> Limit:
        if self.lease and self._kind != "rate":
            raise at(
                "lease",
                why=f"is for a `rate` that is not strict, and this is {_a(self._kind)}: remove it",
            )
        if self.lease > MAX_LEASE_S:
            raise at(
                "lease",
                why=f"must be {MAX_LEASE_S:g}s or less: by what comes in during that time the "
                "limit may be overshot",
            )
        return self

    def _check_strict(self) -> None:
        if self.cost != "calls":
            raise at("strict", why=f"counts calls, and this limit counts {self.cost}")
        amount, _ = self._amount()
        if amount > MAX_STRICT or amount != int(amount):
            raise at(
                "rate",
                why=f"of a strict limit is a whole number up to {MAX_STRICT}, for each call is "
                "remembered: without `strict` a rate may be any",
            )

    @model_validator(mode="after")
    def _costs(self) -> Limit:
        if self.assume is not None:
            if self.cost not in ("pixels", "tokens"):
                raise at("assume", why=f"is for what callers declare; {self.cost} are counted here")
            if self.assume < 0:
                raise at("assume", why="must be 0 or more: no call gives anything back")
        if self.burst is None:
            return self
        least = 1.0 if self.cost == "calls" else max(1.0, self.assume or 0.0)
        if self.burst < least:
            raise at("burst", why=f"must be {least:g} or more, or no call could ever pass")
        if self.burst > MAX_AMOUNT:
            raise at("burst", why=f"must be {MAX_AMOUNT:g} or less")
        return self

    @model_validator(mode="after")
    def _assumed_fits(self) -> Limit:
        rule = self.rule()
        holds = rule.burst if rule.kind == "rate" else rule.amount
        if self.assume is not None and self.assume > holds:
            raise at(
                "assume", why=f"is more than the {holds:g} that there ever are: no call would pass"
            )
        if self.cost == "calls" and holds < 1:
            raise ValueError("allows less than one call: no call could ever pass")
        return self

    @model_validator(mode="after")
    def _whose(self) -> Limit:
        if twice := first_twice(list(self.per)):
            raise at("per", why=f'has "{twice}" twice')
        if "platform" in self.per and len(self.per) > 1:
            raise at("per", why="`platform` is everybody together: write it alone, or the others")
        if "model" in self.per and self.match is not None:
            raise at("per", why="`match` leaves one model or service only: remove `model` here")
        if self.match is not None and self.match.service is not None:
            service = self.match.service
            why = _NEVER_BY_SERVICE.get(service)
            if service.startswith(("aiflow.admin.", "aiflow.registry.")):
                why = "the router answers it itself, and what administers it is never limited"
            if why is not None:
                raise at("match", "service", why=f'no call to "{service}" is limited: {why}')
            if problem := service_problem(service):
                raise at("match", "service", why=f"no endpoint can ever serve it: {problem}")
        return self


def _a(kind: Kind) -> str:
    if kind in ("day", "month"):
        return "a `quota`"
    return "`concurrency`" if kind == "concurrency" else "a strict `rate`"
