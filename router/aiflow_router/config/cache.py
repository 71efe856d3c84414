"""A route's `cache`: its model answers equal requests alike, so an answer may be given again."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from aiflow_router.caching.cache import CacheRule
from aiflow_router.config.values import Mode, Section, Timeout


class Cache(Section):
    # How long an answer may be given again.
    ttl: Timeout | None = None
    # Of all answers that are kept, in MiB, in each worker.
    max_mb: Annotated[int, Field(ge=1, le=65_536)] = 64
    mode: Mode = "enforce"

    @model_validator(mode="after")
    def _complete(self) -> Cache:
        if self.mode == "off":
            self.without_effect("mode")
        elif self.ttl is None:
            raise ValueError(
                "needs `ttl`, the time for which an answer may be given again, such as `ttl: 60s`"
            )
        return self

    def rule(self) -> CacheRule | None:
        if self.ttl is None:
            return None
        return CacheRule(
            ttl_s=self.ttl, max_bytes=self.max_mb * 1024 * 1024, shadow=self.mode == "shadow"
        )
