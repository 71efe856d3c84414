"""Routes: how calls to one model or service are treated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from aiflow_router.config.cache import Cache
from aiflow_router.config.fallback import Fallback
from aiflow_router.config.price import Price, of_a_call
from aiflow_router.config.shadow import Shadow
from aiflow_router.config.split import Split
from aiflow_router.config.values import (
    Mode,
    ModelName,
    Percent,
    Section,
    ServiceName,
    Timeout,
    at,
    positive,
    seconds,
    written,
)
from aiflow_router.forwarding.retry import RetryPolicy
from aiflow_router.limits import overload as limits
from aiflow_router.routing.policy import Policy

# The strategies of balancing.pick.PICKS.
Balance = Literal["batch_aware", "least_request", "peak_ewma", "round_robin", "session"]


class Match(Section):
    model: ModelName | None = None
    service: ServiceName | None = None

    @model_validator(mode="after")
    def _one(self) -> Match:
        if (self.model is None) == (self.service is None):
            raise ValueError("match either a `model` or a `service`")
        return self


class Retry(Section):
    # Endpoints that are tried at most, the first included.
    attempts: Annotated[int, Field(ge=1, le=5)] = 2
    # How long a try may take while another endpoint is left to try.
    per_try_timeout: Timeout | None = None
    # Share of the calls in flight that may be retries or hedges, and how many always may.
    budget: Percent = 0.2
    budget_floor: Annotated[int, Field(ge=0, le=1000)] = 3
    mode: Mode = "enforce"

    @model_validator(mode="after")
    def _another(self) -> Retry:
        if self.mode == "off":
            self.without_effect("mode")
        if self.mode == "shadow" and self.attempts == 1:
            raise ValueError(
                "with `attempts: 1` there is no retry to count: say how many `mode: shadow` is to "
                "count by"
            )
        if self.per_try_timeout is not None and self.attempts == 1:
            raise ValueError("per_try_timeout has no effect with `attempts: 1`")
        return self

    def policy(self) -> RetryPolicy:
        return RetryPolicy(
            attempts=self.attempts if self.mode == "enforce" else 1,
            shadow=self.mode == "shadow",
            per_try_timeout_s=self.per_try_timeout,
            budget=self.budget,
            budget_floor=self.budget_floor,
        )


def _after(value: object) -> object:
    try:
        return value if value == "p95" else positive(seconds(value))
    except ValueError as error:
        raise ValueError(f"{error}; or `p95`") from None


def _after_written(value: float | str) -> str:
    return value if isinstance(value, str) else written(value)


class HedgePolicy(Section):
    # How long the first endpoint is waited for; "p95": the model's own 95th percentile.
    after: (
        Annotated[
            float | Literal["p95"],
            BeforeValidator(_after),
            PlainSerializer(_after_written, when_used="json"),
        ]
        | None
    ) = None
    mode: Mode = "enforce"

    @model_validator(mode="after")
    def _some(self) -> HedgePolicy:
        if self.mode == "off":
            self.without_effect("mode")
        elif self.after is None:
            raise ValueError("needs `after`, a time such as `after: 150ms`, or `after: p95`")
        return self

    @property
    def after_s(self) -> float | None:
        return self.after if isinstance(self.after, float) else None


def _limit(value: object) -> object:
    if value == "adaptive" or (type(value) is int and 1 <= value <= 100_000):
        return value
    raise ValueError("must be a number of calls, 1 to 100000, or `adaptive`")


class Overload(Section):
    # Calls in flight to one model or service; what else there is waits or is shed.
    limit: Annotated[int | Literal["adaptive"], BeforeValidator(_limit)] = 1024
    # What an adaptive limit moves between.
    min: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max: Annotated[int, Field(ge=1, le=100_000)] | None = None
    queue: Annotated[int, Field(ge=0, le=10_000)] = limits.DEFAULT.queue
    mode: Mode = "enforce"

    @model_validator(mode="after")
    def _consistent(self) -> Overload:
        if self.mode == "off":
            self.without_effect("mode")
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


class Route(Section):
    match: Match
    timeout: Timeout = 15.0
    retry: Retry = Retry()
    balance: Balance = "least_request"
    hedge: HedgePolicy | None = None
    overload: Overload = Overload()
    # For `batch_aware`: within what time answers shall come however full the batches.
    latency_aim: Timeout | None = None
    cache: Cache | None = None
    shadow: Shadow | None = None
    split: Split | None = None
    fallback: Fallback | None = None
    # In credits, which need `storage`; None: calls are free.
    price: Annotated[Price | None, BeforeValidator(of_a_call)] = None

    @model_validator(mode="after")
    def _courses(self) -> Route:
        model = self.match.model
        if model is None:
            for key in ("split", "fallback"):
                if getattr(self, key) is not None:
                    raise ValueError(f"`{key}` is for routes that match a `model`: leave it out")
            return self
        if self.split is not None:
            self.split.check(model)
        alone = self.split is None or model not in self.split.weights
        if self.fallback is not None and model in self.fallback.to and alone:
            raise ValueError(
                f'`fallback` leads to "{model}" itself, which has failed the call by then: name '
                "another model"
            )
        return self

    def policy(self) -> Policy:
        return Policy(
            timeout_s=self.timeout,
            balance=self.balance,
            retry=self.retry.policy(),
            hedged=self.hedge is not None and self.hedge.mode != "off",
            hedge_after_s=None if self.hedge is None else self.hedge.after_s,
            hedge_shadow=self.hedge is not None and self.hedge.mode == "shadow",
            overload=self.overload.record(),
            latency_aim_s=self.latency_aim,
            split=None if self.split is None else self.split.record(self.match.model or ""),
            fallback=None if self.fallback is None else self.fallback.record(),
            cache=None if self.cache is None else self.cache.rule(),
            shadow=None if self.shadow is None else self.shadow.rule(),
            price=None if self.price is None else self.price.record(),
        )

    @model_validator(mode="after")
    def _effective(self) -> Route:
        if (try_s := self.retry.per_try_timeout) is not None and try_s >= self.timeout:
            raise ValueError("retry.per_try_timeout is not shorter than the route's timeout")
        if self.hedge is not None and (self.hedge.after_s or 0.0) >= self.timeout:
            raise ValueError("hedge.after is not shorter than the route's timeout")
        return self

    @model_validator(mode="after")
    def _of_models(self) -> Route:
        for key, section in (("cache", self.cache), ("shadow", self.shadow)):
            if section is not None and self.match.service is not None:
                raise at(
                    key,
                    why="is for models: the router cannot tell which calls of a service it may "
                    f"treat so; remove `{key}`, or match a model",
                )
        if self.shadow is not None and self.shadow.to == self.match.model:
            raise at(
                *("shadow", "to"),
                why=f'"{self.shadow.to}" is the model of this route itself: name another one',
            )
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
