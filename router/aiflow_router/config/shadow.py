"""A route's `shadow`: another model gets copies of its calls, and the answers are compared."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from aiflow_router.config.values import ModelName, Section
from aiflow_router.routing.shadow import ShadowRule


def _percent(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100:
        return float(value)
    raise ValueError(
        "must be a number above 0 and up to 100, such as 10; to copy no calls leave `shadow` out"
    )


class Shadow(Section):
    to: ModelName
    percent: Annotated[float, BeforeValidator(_percent)]
    # Copies under way at once, in each worker; further ones are dropped.
    max_in_flight: Annotated[int, Field(ge=1, le=1000)] = 16

    def rule(self) -> ShadowRule:
        return ShadowRule(to=self.to, share=self.percent / 100, max_in_flight=self.max_in_flight)
