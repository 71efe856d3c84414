"""The worlds that buckets live in: one whose clock a test moves, and one with Redis's own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fixtures.redis import Server

from aiflow_router.limits.buckets import Buckets, Verdict
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.redis.buckets import RedisBuckets
from aiflow_router.limits.redis.link import Settings
from aiflow_router.limits.rule import Ask, Rule

_count = itertools.count()


class World(Protocol):
    """Buckets, and time."""

    @property
    def buckets(self) -> Buckets: ...

    def now_s(self) -> float: ...

    async def passes(self, time_s: float) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._now_s = 1000.0
        # In the middle of a month and of a day.
        self.buckets = Memory(clock=self.now_s, wall=lambda: 1_763_200_000.0 + self._now_s)

    def now_s(self) -> float:
        return self._now_s

    async def passes(self, time_s: float) -> None:
        self._now_s += time_s


class InRedis:
    def __init__(self, buckets: RedisBuckets) -> None:
        self.buckets = buckets

    def now_s(self) -> float:
        return time.monotonic()

    async def passes(self, time_s: float) -> None:
        await asyncio.sleep(time_s)


@asynccontextmanager
async def redis_buckets(
    server: Server, *, prefix: str = "", timeout_s: float = 5.0, **given: Any
) -> AsyncIterator[RedisBuckets]:
    """Connected; with a prefix that no other test has, and more patience than the machine needs."""
    buckets = RedisBuckets(
        Settings(port=server.port, timeout_s=timeout_s),
        prefix=prefix or f"test{next(_count)}-{time.time_ns()}",
        local=Memory(),
        **given,
    )
    running = asyncio.create_task(buckets.run())
    try:
        await buckets.link.tried()
        yield buckets
        await buckets.leave()
    finally:
        running.cancel()
        await asyncio.wait((running,))


def rule(name: str = "r", *, amount: float = 20.0, **fields: Any) -> Rule:
    """20 a second, with a burst of 3."""
    fields.setdefault("burst", 3.0)
    return Rule(name=name, amount=amount, **fields)


def ask(of: Rule, cost: float = 1.0, *, bucket: str = "") -> Ask:
    return Ask(rule=of, bucket=bucket or of.name, cost=cost)


async def granted(buckets: Buckets, *asks: Ask, holder: str = "") -> bool:
    return (await taken(buckets, *asks, holder=holder)).granted


async def taken(buckets: Buckets, *asks: Ask, holder: str = "") -> Verdict:
    return await buckets.take(asks, holder=holder or f"call{next(_count)}")
