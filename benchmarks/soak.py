"""Ten minutes at 70 % of what the router can do: its memory and descriptors must stay as they are.

    make soak                                    # 10 minutes
    python benchmarks/soak.py --seconds 60

Exits 1 where resident memory drifts by 2 % or more, where descriptors are left open, or where any
call ends otherwise than it must.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import sys
import tempfile
from pathlib import Path

import report
import soak_traffic
from router_backend import SLOW, TYPED
from router_ways import HERE, KEY, Way, running
from soak_traffic import MODELS, SERVICE, Traffic

from aiflow_router import heap

SHARE = 0.7  # Of capacity.
CAPACITY_S = 5.0
# Until then caches fill, the allocator finds its shape and every code path has been taken.
WARM_UP_SHARE, WARM_UP_AT_LEAST_S = 0.25, 25.0
MAX_DRIFT = 0.02
QUIET_WITHIN_S = 15.0
TOLD_EVERY_S = 10.0

# What malloc keeps of large messages is no leak, and hides one: the router has given it back then.
QUIET_FOR_S = heap.EVERY_S + 1.0

CONFIG = """\
listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}}
auth:
  mode: required
  keys: [{{name: soak, tenant: soak, sha256: {digest}, may: [call, register]}}]
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=600.0)
    seconds = arguments.parse_args().seconds
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend = stack.enter_context(
            running([sys.executable, str(HERE / "router_backend.py"), "0.0.0.0"])
        )
        config = folder / "aiflow.yaml"
        config.write_text(CONFIG.format(digest=hashlib.sha256(KEY.encode()).hexdigest()))
        aiflow = Path(sys.executable).with_name("aiflow")
        command = [str(aiflow), "router", "--config", str(config)]
        with Path("/dev/null").open("wb") as log:
            router = stack.enter_context(running(command, log=log.fileno()))
        problems = asyncio.run(soak(router, backend, seconds))
    for problem in problems:
        print(f"FAILED: {problem}")
    sys.exit(bool(problems))


async def soak(router: Way, backend: Way, seconds: float) -> list[str]:
    """Reports the figures; what is wrong with them."""
    traffic = Traffic(router=router.address, backend=backend.address)
    staying = asyncio.create_task(stay(traffic))
    await traffic.registered.wait()
    capacity = await traffic.run(seconds=CAPACITY_S, per_second=None)
    rate = SHARE * capacity
    print(f"capacity {capacity:.0f} calls/s of this mixture, soaking at {rate:.0f}", flush=True)
    warm_up_s = max(WARM_UP_AT_LEAST_S, WARM_UP_SHARE * seconds)
    await traffic.run(seconds=warm_up_s, per_second=rate)
    before = await quiet(router, traffic)
    print(f"warm after {warm_up_s:.0f} s: {told(before)}", flush=True)
    left_s = seconds - warm_up_s
    reached: list[float] = []
    while left_s > 0:
        reached.append(await traffic.run(seconds=min(TOLD_EVERY_S, left_s), per_second=rate))
        left_s -= TOLD_EVERY_S
        print(
            f"{max(0.0, left_s):.0f} s left, {traffic.sent.total()} calls, "
            f"{router.memory_bytes() / 1e6:.1f} MB",
            flush=True,
        )
    after = await quiet(router, traffic, descriptors=before[1])
    print(f"at the end: {told(after)}", flush=True)
    staying.cancel()
    await asyncio.wait([staying])
    await traffic.channel.close()
    drift = after[0] / before[0] - 1
    report.write(
        "soak",
        {
            "seconds": seconds,
            "calls": traffic.sent.total(),
            "capacity_per_s": capacity,
            "sent_per_s": sum(reached) / len(reached),
            "wrong": traffic.wrong.total(),
            "memory_mb": after[0] / 1e6,
            "memory_drift": drift,
            "descriptors_left_open": after[1] - before[1],
            "kinds": dict(traffic.sent),
        },
        wanted={"memory_drift": f"< {MAX_DRIFT}", "descriptors_left_open": "0", "wrong": "0"},
    )
    problems = [f"{count} x {what}" for what, count in traffic.wrong.items()]
    if abs(drift) >= MAX_DRIFT:
        problems.append(f"resident memory drifted by {drift:.1%}, allowed are {MAX_DRIFT:.0%}")
    if after[1] != before[1]:
        problems.append(
            f"{before[1]} descriptors were open after the warm-up, {after[1]} at the end"
        )
    return problems


async def stay(traffic: Traffic) -> None:
    """Keeps an endpoint for each model and service registered."""
    while True:
        for model in (*(f"m{number}" for number in range(MODELS)), SLOW):
            await traffic.join("127.0.0.1", model=model)
        for service in (TYPED, SERVICE):
            await traffic.join("127.0.0.1", service=service)
        traffic.registered.set()
        await asyncio.sleep(soak_traffic.LEASE_MS / 3000)


async def quiet(
    router: Way, traffic: Traffic, *, descriptors: int | None = None
) -> tuple[int, int]:
    """Resident bytes and open descriptors, when nothing has moved for `QUIET_FOR_S`.

    Waits for it to be so many `descriptors`, but not for long.
    """
    await traffic.clear()
    loop = asyncio.get_running_loop()
    end_s, still_since_s, seen = loop.time() + QUIET_WITHIN_S, loop.time(), -1
    while loop.time() < end_s:
        now = router.process.num_fds()
        if now != seen:
            still_since_s, seen = loop.time(), now
        elif loop.time() > still_since_s + QUIET_FOR_S and descriptors in (None, now):
            break
        await asyncio.sleep(0.1)
    return router.memory_bytes(), seen


def told(state: tuple[int, int]) -> str:
    return f"{state[0] / 1e6:.1f} MB, {state[1]} descriptors"


if __name__ == "__main__":
    main()
