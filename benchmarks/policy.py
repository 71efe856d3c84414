"""What a change of the policy costs the calls: how long the event loop is held by it.

A router with many models, each with a route of its own; every route is changed, again and again,
while a task beside measures how late the loop wakes it. Writes .cache/bench/policy.json.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from report import write

from aiflow_router.catalog.endpoint import Endpoint, Protocol
from aiflow_router.config.file import parse, parse_policy
from aiflow_router.garbage import kept_short
from aiflow_router.main import serving
from aiflow_router.policy.edition import Edition, edition
from aiflow_router.running import Router

MODELS = 1000
ROUNDS = 12
TICK_S = 0.001
ANY_PORT = "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}\n"


def document(models: int, number: int) -> str:
    """Every route differs from that of the number before in all that is remembered by name."""
    balance = ("least_request", "peak_ewma")[number % 2]
    return "routes:\n" + "".join(
        f"- match: {{model: m{index}}}\n  timeout: {number + 1}s\n  balance: {balance}\n"
        f"  retry: {{budget: {number % 50 + 1}%}}\n  overload: {{limit: {number + 10}}}\n"
        for index in range(models)
    )


def read(text: str) -> Edition:
    return edition(parse_policy(text), source="admin", origin="", since_s=time.time())


class Lag:
    """How late the event loop wakes who has slept; `worst_s` since the last `begin`."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    def begin(self) -> None:
        self.worst_s = 0.0

    async def run(self) -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.worst_s = max(self.worst_s, time.perf_counter() - began_s - TICK_S)


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Router, Lag]]:
    async with serving(parse(ANY_PORT), access_write=lambda _: None) as router:
        names = tuple(f"m{index}" for index in range(MODELS))
        router.catalog.register(
            Endpoint(
                backend="b", address="127.0.0.1:1", protocol=Protocol.OIP, models=names, services=()
            ),
            ttl_s=600.0,
        )
        await router.catalog.settled()
        lag = Lag()
        task = asyncio.create_task(lag.run())
        try:
            with kept_short(router.catalog.follow):
                yield router, lag
        finally:
            task.cancel()


async def measured() -> dict[str, float]:
    async with running() as (router, lag):
        idle_s: list[float] = []
        swap_s: list[float] = []
        whole_s: list[float] = []
        took_s: list[float] = []
        for number in range(ROUNDS):
            lag.begin()
            await asyncio.sleep(0.2)
            idle_s.append(lag.worst_s)
            text = document(MODELS, number)
            lag.begin()
            began_s = time.perf_counter()
            found = await asyncio.to_thread(read, text)
            whole_s.append(lag.worst_s)
            lag.begin()
            await router.policies.put(found)
            took_s.append(time.perf_counter() - began_s)
            swap_s.append(lag.worst_s)
    return {
        "models": MODELS,
        "changes": ROUNDS,
        "idle_lag_p50_ms": 1000 * statistics.median(idle_s),
        "parse_lag_p50_ms": 1000 * statistics.median(whole_s),
        "swap_lag_p50_ms": 1000 * statistics.median(swap_s),
        "swap_lag_max_ms": 1000 * max(swap_s),
        "change_p50_ms": 1000 * statistics.median(took_s),
        "change_max_ms": 1000 * max(took_s),
    }


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    figures = asyncio.run(measured())
    write("policy", figures, wanted={"swap_lag_p50_ms": "<= 10", "change_max_ms": "<= 1000"})


if __name__ == "__main__":
    main()
