"""Four routers with their limits in one Redis, asked for three times what they may let through.

    python benchmarks/limits_redis.py [--seconds 65]

What was let through is compared with burst + rate x t, from before the first call to after the last
one that passed: in exact mode it may not be one call more. A strict limit of 4 a minute is asked
once a second beside it. Round trips are what the routers say that they asked Redis, a call.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import report
from prometheus_client.parser import text_string_to_metric_families
from router_unary import INFER
from router_ways import free_port, running

HERE = Path(__file__).resolve().parent
ROUTERS = 4
RATE, BURST = 120.0, 60.0
LEASE_S = 1.0
ASKED = 3.0
STRICT, PERIOD_S = 4, 60.0

CONFIG = """\
listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:{http}'}}
discovery: {{static: [
  {{backend: m, address: '{backend}', protocol: oip, models: [exact, leased, tiny]}}]}}
redis: {{url: 'redis://127.0.0.1:{redis}', timeout: 1s}}
limits:
  - {{name: exact, match: {{model: exact}}, rate: {rate:g}/s, burst: {burst:g}, away: closed}}
  - {{name: leased, match: {{model: leased}}, rate: {rate:g}/s, burst: {burst:g}, away: closed,
     lease: {lease:g}s}}
  - {{name: tiny, match: {{model: tiny}}, rate: {strict}/min, strict: true, away: closed}}
"""


@dataclass
class Passed:
    """Calls to one model; `times` are when those that passed were sent and answered."""

    calls: int = 0
    times: list[tuple[float, float]] = field(default_factory=list)
    others: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Router:
    address: str
    http: str

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }


@contextlib.contextmanager
def redis(folder: Path, log: int) -> Iterator[int]:
    """Its port."""
    deploy = HERE.parent / "deploy" / "redis.sh"
    found = subprocess.run([str(deploy)], check=True, capture_output=True, text=True)
    port = free_port()
    with running(
        [found.stdout.strip(), "--port", str(port), "--save", "", "--dir", str(folder)],
        port=port,
        log=log,
    ):
        yield port


@contextlib.contextmanager
def routers(folder: Path) -> Iterator[list[Router]]:
    with (folder / "log").open("ab") as log, contextlib.ExitStack() as stack:
        port = stack.enter_context(redis(folder, log.fileno()))
        backend = stack.enter_context(
            running([sys.executable, str(HERE / "router_backend.py")], log=log.fileno())
        )
        found = []
        for number in range(ROUTERS):
            http = free_port()
            file = folder / f"aiflow-{number}.yaml"
            file.write_text(
                CONFIG.format(
                    http=http,
                    backend=backend.address,
                    redis=port,
                    rate=RATE,
                    burst=BURST,
                    lease=LEASE_S,
                    strict=STRICT,
                )
            )
            aiflow = Path(sys.executable).with_name("aiflow")
            way = stack.enter_context(
                running([str(aiflow), "router", "--config", str(file)], log=log.fileno())
            )
            found.append(Router(way.address, f"127.0.0.1:{http}"))
        yield found


async def call(channel: Any, model: str, met: Passed) -> None:
    met.calls += 1
    began_s = time.monotonic()
    request = b"\x0a" + bytes([len(model)]) + model.encode()
    try:
        await channel.unary_unary(f"/{INFER}")(request, timeout=20)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            met.others.add(f"{error.code().name}: {error.details()}")
    else:
        met.times.append((began_s, time.monotonic()))


async def load(channels: list[Any], model: str, *, per_s: float, seconds: float) -> Passed:
    """So many calls a second, in turns to all routers, whatever becomes of them."""
    met = Passed()
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(per_s * seconds)):
            await asyncio.sleep(max(0.0, began_s + number / per_s - time.monotonic()))
            tasks.create_task(call(channels[number % len(channels)], model, met))
    return met


def spent(found: list[Router]) -> float:
    return sum(router.metrics()["aiflow_limits_redis_questions_total"] for router in found)


def over(met: Passed, *, more_s: float = 0.0) -> float:
    """Calls that passed beyond what the limit gives in that time."""
    spent_s = max(done for _, done in met.times) - min(began for began, _ in met.times)
    return max(0.0, len(met.times) - BURST - RATE * (spent_s + more_s))


def share(met: Passed) -> float:
    """What passed of what could have, in the time in which calls were sent."""
    spent_s = met.times[-1][0] - met.times[0][0]
    return len(met.times) / (BURST + RATE * spent_s)


def crossings(met: Passed) -> int:
    """Calls that passed less than a period after the one that was so many before, for certain."""
    times = sorted(met.times)
    pairs = zip(times, times[STRICT:], strict=False)
    return sum(late[1] - early[0] < PERIOD_S for early, late in pairs)


async def measured(found: list[Router], seconds: float) -> dict[str, float]:
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(router.address))
            for router in found
        ]
        tiny = asyncio.create_task(load(channels, "tiny", per_s=1.0, seconds=2 * seconds))
        before = spent(found)
        exact = await load(channels, "exact", per_s=ASKED * RATE, seconds=seconds)
        between = spent(found)
        leased = await load(channels, "leased", per_s=ASKED * RATE, seconds=seconds)
        after = spent(found)
        strict = await tiny
    if others := exact.others | leased.others | strict.others:
        raise SystemExit(f"calls failed otherwise: {others}")
    # Beside those to these models there were calls to the third, and each router says it lives.
    beside = seconds * (1.0 + ROUTERS / 2.0)
    return {
        "seconds": seconds,
        "redis_round_trips_exact": (between - before - beside) / exact.calls,
        "redis_round_trips_leased": max(0.0, after - between - beside) / leased.calls,
        "granted_exact": len(exact.times),
        "over_grant_exact": over(exact),
        "granted_share_exact": share(exact),
        "granted_leased": len(leased.times),
        "over_grant_leased": over(leased, more_s=LEASE_S),
        "granted_share_leased": share(leased),
        "strict_granted": len(strict.times),
        "strict_crossings": crossings(strict),
    }


WANTED = {
    "redis_round_trips_exact": "1",
    "redis_round_trips_leased": "<= 0.1",
    "over_grant_exact": "0",
    "granted_share_exact": ">= 0.99",
    "over_grant_leased": "0",
    "strict_crossings": "0",
}


def figures(seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, routers(Path(folder)) as found:
        return asyncio.run(measured(found, seconds))


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("--seconds", type=float, default=65.0)
    report.write("limits_redis", figures(asked.parse_args().seconds), wanted=WANTED)
