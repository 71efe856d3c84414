"""Calls through a router that pay, and whose limits are in a Redis that dies again and again.

What they are told is compared with the ledger by `benchmarks/ledger.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from fixtures.redis import Server
from integration.accounts.paying import INFER, Paying, paying
from integration.router.kit import Seen, infer
from ledger_traffic import CALLERS, Told

from aiflow_router.accounts.account import micro

TENANT = "acme"
DEATHS = 3
# Each rule goes another way while Redis is away.
CONFIG = """
redis: {url: '%s'}
limits:
  - {name: share, match: {model: m}, rate: 200/s, burst: 50}
  - {name: open, match: {model: t}, concurrency: 4, away: open}
  - {name: closed, match: {service: a.Echo}, rate: 200/s, away: closed}
routes:
  - match: {model: m}
    price: 2
  - match: {model: t}
    price: 1
  - match: {service: a.Echo}
    price: 0.5
"""
CALLS = ((INFER, infer("m")), (INFER, infer("t")), ("/a.Echo/Echo", b"x"))


async def answer(_: Seen, context: Any) -> None:
    """A backend of which some calls fail."""
    message = await context.read()
    if random.random() < 0.2:  # noqa: S311 - a load, no secret
        await context.abort(grpc.StatusCode.INTERNAL, "broken")
    await context.write(message)


async def call(found: Paying, told: Told, number: int) -> None:
    method, request = CALLS[number % len(CALLS)]
    name = f"call-{number}"
    told.unknown.add(name)
    asked = found.mesh.channel.unary_unary(method)(
        request, metadata=found.metadata(request_id=name), timeout=10
    )
    ends = await asked.code()
    told.unknown.discard(name)
    if ends is grpc.StatusCode.OK:
        paid = dict(tuple(await asked.trailing_metadata()))["x-aiflow-credits"]
        told.answered[name] = micro(str(paid))
    else:
        told.failed.add(name)
        await asyncio.sleep(0.01)


async def traffic(url: str, folder: Path, *, every_s: float) -> Told:
    """Kills and starts Redis so often while callers call; what they were told."""
    told, over = Told(), asyncio.Event()
    numbers = itertools.count()
    server = Server(folder / "redis")
    server.start()
    methods: dict[str, Any] = {"ModelInfer": answer, "Echo": answer}
    try:
        async with paying(
            url, folder, pool=1_000_000, routes=CONFIG % server.url, **methods
        ) as found:

            async def calls() -> None:
                while not over.is_set():
                    await call(found, told, next(numbers))

            callers = asyncio.gather(*(calls() for _ in range(CALLERS)))
            for _ in range(DEATHS):
                await asyncio.sleep(every_s)
                server.kill()
                await asyncio.sleep(every_s / 2)
                await asyncio.to_thread(server.start)
            await asyncio.sleep(every_s)
            over.set()
            await callers
            await found.settled()
            text = await found.mesh.metrics()
    finally:
        server.kill()
    for by in ("redis", "share", "open", "closed"):
        if f'aiflow_limits_decided_total{{by="{by}"}} 0.0' in text:
            raise SystemExit(f"no call was decided by {by}: Redis was not away, or never there")
    return told
