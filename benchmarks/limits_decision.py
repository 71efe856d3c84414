"""What one decision through three rules costs: in this process, in Redis, and by leases of it.

`decision_us_memory` is all that a call has to do with limits: rules found, buckets charged, what
was decided counted, settled. Round trips are those that Redis counts: commands that it ran.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import hiredis
from redis_process import running as redis_running

from aiflow_router.identity.caller import Caller
from aiflow_router.limits.buckets import Buckets
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.redis.buckets import RedisBuckets
from aiflow_router.limits.redis.link import Settings
from aiflow_router.limits.rule import Rule
from aiflow_router.rpc.admission import Admission
from aiflow_router.rpc.visit import Visit

ROUNDS = 5
CALLS = 20_000
IN_FLIGHT = 32
TENANTS = 100


def rules(*, lease_s: float = 0.0) -> list[Rule]:
    """Wide enough that nobody is refused: a refusal costs less."""
    wide = {"amount": 1e6, "burst": 1e6, "lease_s": lease_s}
    return [
        Rule(name="platform", **wide),  # type: ignore[arg-type]  # three floats
        Rule(name="tenant", per=("tenant",), **wide),  # type: ignore[arg-type]  # as above
        Rule(name="key", per=("key",), **wide),  # type: ignore[arg-type]  # as above
    ]


# Only a call that waits needs one.
NO_CONTEXT: Any = None
CALLERS = [
    Caller(name=f"k{n}", key=f"k{n}", tenant=f"t{n % TENANTS}", may=frozenset({"call"}))
    for n in range(10 * TENANTS)
]


async def decided(admission: Admission, first: int, calls: int) -> None:
    for number in range(first, first + calls):
        visit = Visit(method="/m", started_s=0.0, label="m", caller=CALLERS[number % len(CALLERS)])
        await admission.admit(visit, "model", "m", NO_CONTEXT, size_bytes=100)
        visit.code = "OK"
        admission.settle(visit)


async def nothing(first: int, calls: int) -> None:
    """What the loop and the visit cost without it."""
    for number in range(first, first + calls):
        visit = Visit(method="/m", started_s=0.0, label="m", caller=CALLERS[number % len(CALLERS)])
        visit.code = "OK"


async def in_memory() -> float:
    """Microseconds; the median of the rounds."""
    admission = Admission(Memory(), rules())
    await decided(admission, 0, CALLS)
    took_us = []
    for number in range(ROUNDS):
        began_s = time.perf_counter()
        await nothing(number, CALLS)
        middle_s = time.perf_counter()
        await decided(admission, number, CALLS)
        took_us.append((time.perf_counter() - 2 * middle_s + began_s) / CALLS * 1e6)
    return statistics.median(took_us)


class Counting:
    """Asks a Redis how many commands it ran."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def scripts(self) -> int:
        """Runs of a script since the last question."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            parser = hiredis.Reader()
            writer.write(b"INFO commandstats\r\nCONFIG RESETSTAT\r\n")
            answers: list[bytes] = []
            while len(answers) < 2:
                parser.feed(await reader.read(65536))
                while (answer := parser.gets()) is not False:
                    answers.append(answer)
        finally:
            writer.close()
        calls = 0
        for line in answers[0].decode().splitlines():
            if line.startswith(("cmdstat_evalsha", "cmdstat_eval:")):
                calls += int(line.partition("calls=")[2].partition(",")[0])
        return calls


async def in_redis(port: int, *, lease_s: float) -> tuple[float, float]:
    """Round trips a decision, and microseconds of one at a time."""
    local: Buckets = Memory()
    buckets = RedisBuckets(
        Settings(host="127.0.0.1", port=port, timeout_s=1.0), prefix=f"b{lease_s}", local=local
    )
    running = asyncio.create_task(buckets.run())
    admission = Admission(buckets, rules(lease_s=lease_s))
    counting = Counting(port)
    try:
        while buckets.state != "redis":  # noqa: ASYNC110 - it connects within milliseconds
            await asyncio.sleep(0.01)
        await decided(admission, 0, 2 * len(CALLERS))  # Leases get to know what they are for.
        await counting.scripts()
        share = CALLS // IN_FLIGHT
        await asyncio.gather(*(decided(admission, n * share, share) for n in range(IN_FLIGHT)))
        trips = await counting.scripts() / (share * IN_FLIGHT)
        began_s = time.perf_counter()
        await decided(admission, 0, 1000)
        alone_us = (time.perf_counter() - began_s) / 1000 * 1e6
    finally:
        running.cancel()
        await asyncio.wait((running,))
    return trips, alone_us


async def measured() -> dict[str, float]:
    found = {"decision_us_memory": await in_memory()}
    with redis_running() as port:
        for name, lease_s in (("exact", 0.0), ("leased", 0.5)):
            trips, alone_us = await in_redis(port, lease_s=lease_s)
            found[f"redis_round_trips_{name}"] = trips
            found[f"decision_us_redis_{name}"] = alone_us
    return found


if __name__ == "__main__":
    print(asyncio.run(measured()))
