"""What one decision through three rules costs in this process.

It is all that a call has to do with limits: rules found, buckets charged, what was decided counted,
settled.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from aiflow_router.identity.caller import Caller
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.rule import Rule
from aiflow_router.rpc.admission import Admission
from aiflow_router.rpc.visit import Visit

ROUNDS = 5
CALLS = 20_000
TENANTS = 100


# Wide enough that nobody is refused, for a refusal costs less, and so slow to fill that no bucket
# is forgotten between two calls.
WIDE = 1e6
RULES = [
    Rule(name="platform", amount=1.0, burst=WIDE),
    Rule(name="tenant", per=("tenant",), amount=1.0, burst=WIDE),
    Rule(name="key", per=("key",), amount=1.0, burst=WIDE),
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


async def measured() -> float:
    """Microseconds; the median of the rounds."""
    admission = Admission(Memory(), RULES)
    await decided(admission, 0, CALLS)
    took_us = []
    for number in range(ROUNDS):
        began_s = time.process_time()
        await nothing(number, CALLS)
        middle_s = time.process_time()
        await decided(admission, number, CALLS)
        took_us.append((time.process_time() - 2 * middle_s + began_s) / CALLS * 1e6)
    return statistics.median(took_us)


if __name__ == "__main__":
    print(f"{asyncio.run(measured()):.1f} us")
