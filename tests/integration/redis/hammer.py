"""A process that asks one bucket as fast as it can, and tells what it was granted.

Arguments: port, prefix, seconds, rate, burst, lease_s, at once. Says "ready", then after a line on
its standard input asks for so many seconds, and tells it as JSON: of each grant, when it was asked
for and when it was told.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import structlog

from aiflow_router.limits.memory import Memory
from aiflow_router.limits.redis.buckets import RedisBuckets
from aiflow_router.limits.redis.link import Settings
from aiflow_router.limits.rule import Ask, Rule


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    port, prefix, *numbers = sys.argv[1:]
    for_s, rate, burst, lease_s, at_once = map(float, numbers)
    buckets = RedisBuckets(Settings(port=int(port), timeout_s=5.0), prefix=prefix, local=Memory())
    running = asyncio.create_task(buckets.run())
    await buckets.link.tried()
    ask = Ask(rule=Rule(name="r", amount=rate, burst=burst, lease_s=lease_s), bucket="r", cost=1.0)
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    before = buckets.link.sent
    end_s = time.monotonic() + for_s
    granted: list[tuple[float, float]] = []
    calls = 0

    async def caller(name: int) -> None:
        nonlocal calls
        while time.monotonic() < end_s:
            calls += 1
            asked = time.time()
            if (await buckets.take([ask], holder=f"{name}.{calls}")).granted:
                granted.append((asked, time.time()))
            await asyncio.sleep(0.002)

    await asyncio.gather(*(caller(name) for name in range(int(at_once))))
    sent = buckets.link.sent - before
    running.cancel()
    say(json.dumps({"granted": granted, "calls": calls, "sent": sent}))


asyncio.run(main())
