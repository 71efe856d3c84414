"""Which endpoints are left out: by active checks, and by what becomes of their calls."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from aiflow_router.balancing.ejection import EjectionPolicy
from aiflow_router.balancing.verdict import HealthPolicy
from aiflow_router.config.values import Mode, Section, Timeout


def _not_off(value: object) -> object:
    if value is False or value == "off":
        raise ValueError("is enforce or shadow; `active: false` switches the checks off")
    return value


class Health(Section):
    """Active checks by grpc.health.v1 of the endpoints in use."""

    active: bool = True
    mode: Annotated[Literal["enforce", "shadow"], BeforeValidator(_not_off)] = "enforce"
    interval: Timeout = 5.0
    # An answer takes no longer than this, or the check has failed.
    timeout: Timeout = 2.0
    # Failed checks in a row that take an endpoint out, and passed ones that bring it back.
    unhealthy_after: Annotated[int, Field(ge=1, le=100)] = 2
    healthy_after: Annotated[int, Field(ge=1, le=100)] = 2

    @model_validator(mode="after")
    def _apart(self) -> Health:
        if not self.active:
            self.without_effect("active")
        if self.timeout > self.interval:
            raise ValueError("timeout is longer than interval: a check would outlive the next one")
        return self

    def policy(self) -> HealthPolicy:
        return HealthPolicy(
            interval_s=self.interval,
            timeout_s=self.timeout,
            unhealthy_after=self.unhealthy_after,
            healthy_after=self.healthy_after,
            shadow=self.mode == "shadow",
        )


class Ejection(Section):
    """See balancing.ejection.EjectionPolicy."""

    mode: Mode = "enforce"
    consecutive_faults: Annotated[int, Field(ge=1, le=1000)] = 5
    interval: Timeout = 10.0
    failure_percentage: Annotated[float, Field(gt=0, le=100)] = 85.0
    failure_percentage_requests: Annotated[int, Field(ge=1)] = 50
    success_rate_sigmas: Annotated[float, Field(gt=0, le=100)] = 1.9
    success_rate_hosts: Annotated[int, Field(ge=2)] = 5
    success_rate_requests: Annotated[int, Field(ge=1)] = 100
    base_time: Timeout = 30.0
    max_time: Timeout = 300.0
    max_percent: Annotated[float, Field(gt=0, le=100)] = 50.0

    @model_validator(mode="after")
    def _longest(self) -> Ejection:
        if self.mode == "off":
            self.without_effect("mode")
        if self.max_time < self.base_time:
            raise ValueError("max_time is shorter than base_time, so it could never apply")
        return self

    def policy(self) -> EjectionPolicy:
        return EjectionPolicy(
            mode=self.mode,
            consecutive_faults=self.consecutive_faults,
            interval_s=self.interval,
            failure_percentage=self.failure_percentage,
            failure_percentage_requests=self.failure_percentage_requests,
            success_rate_sigmas=self.success_rate_sigmas,
            success_rate_hosts=self.success_rate_hosts,
            success_rate_requests=self.success_rate_requests,
            base_s=self.base_time,
            max_s=self.max_time,
            max_percent=self.max_percent,
        )
