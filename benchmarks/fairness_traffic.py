"""Tenants that call a router, at random times or so many calls at once, and what these met."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from fairness_backend import WORK
from router_unary import INFER

# Longer than any line.
PATIENCE_S = 20.0
_OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A call that was; `worked_s` is the backend's part of `took_s`."""

    tenant: str
    priority: str
    sent_s: float
    took_s: float
    worked_s: float

    @property
    def waited_s(self) -> float:
        """With what the way takes there and back."""
        return self.took_s - self.worked_s

    @property
    def answered_s(self) -> float:
        return self.sent_s + self.took_s


@dataclass(slots=True, kw_only=True)
class Met:
    """What the calls to one model met; `refused` counts those sent away, by tenant."""

    answered: list[Answered] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def of(self, tenant: str, priority: str = "normal") -> list[Answered]:
        return [one for one in self.answered if (one.tenant, one.priority) == (tenant, priority)]


class Tenant:
    """Calls with its key, over a connection of its own."""

    def __init__(self, name: str, key: str, channel: Any) -> None:
        self.name = name
        self._key = key
        self._call = channel.unary_unary(f"/{INFER}")

    async def one(self, model: str, met: Met, *, work_s: float, priority: str = "normal") -> None:
        request = b"\x0a" + bytes([len(model)]) + model.encode()
        metadata = (
            ("x-api-key", self._key),
            ("x-aiflow-priority", priority),
            (WORK, f"{work_s:.6f}"),
        )
        sent_s = time.monotonic()
        try:
            await self._call(request, metadata=metadata, timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            met.refused[self.name] += 1
            return
        met.answered.append(
            Answered(
                tenant=self.name,
                priority=priority,
                sent_s=sent_s,
                took_s=time.monotonic() - sent_s,
                worked_s=work_s,
            )
        )

    async def at_random(
        self, model: str, met: Met, *, per_s: float, seconds: float, mean_s: float, seed: str
    ) -> None:
        """So many calls a second, whatever becomes of them; with the same `seed` the same ones."""
        rng = random.Random(seed)  # noqa: S311 - spreads calls
        began_s = due_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while (due_s := due_s + rng.expovariate(per_s)) < began_s + seconds:
                work_s = length_s(rng, mean_s)
                # Behind its time it catches up, so a busy machine gets no fewer calls.
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                tasks.create_task(self.one(model, met, work_s=work_s))

    async def at_once(
        self,
        model: str,
        met: Met,
        *,
        calls: int,
        more: Callable[[], bool],
        mean_s: float,
        priority: str = "normal",
    ) -> None:
        """So many calls all the time, each followed by the next one as long as there is `more`."""
        rng = random.Random(1)  # noqa: S311 - spreads lengths

        async def again() -> None:
            while more():
                await self.one(model, met, work_s=length_s(rng, mean_s), priority=priority)

        await asyncio.gather(*(again() for _ in range(calls)))


@asynccontextmanager
async def calling(address: str, name: str, key: str) -> AsyncIterator[Tenant]:
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        yield Tenant(name, key, channel)


def length_s(rng: random.Random, mean_s: float) -> float:
    """Of a call, as in the simulation."""
    return mean_s * rng.uniform(0.5, 1.5)
