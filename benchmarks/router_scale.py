"""What many models and endpoints cost: a call, and the event loop while the catalog changes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import load
from router_program import address
from router_unary import INFER, message
from router_ways import HERE, Way, running

MODELS = 1000
ENDPOINTS = 10_000
CALLERS = 64
CALLS = 5000
CHURN_S = 3.0
CHURN_CALLERS = 8
LONGEST_S = 120


@contextlib.contextmanager
def started() -> Iterator[Mapping[str, Way]]:
    """Routers of few and of many endpoints, the same program; every endpoint has been called.

    Each endpoint has a connection, and 10,000 that are used in turn cost more than 3 whatever is
    at the end of them. So there is a third router, whose many endpoints are at the 3 addresses of
    the few: what it costs more is the router's own doing. And there is the bare pass-through with 3
    and with 10,000 connections: what that costs more is gRPC's and the kernel's doing.
    """
    sizes = {
        "few": (1, 3, 3),
        "many_same_connections": (MODELS, ENDPOINTS, 3),
        "many": (MODELS, ENDPOINTS, ENDPOINTS),
    }
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(backend())
        ways = {}
        for name, (models, endpoints, addresses) in sizes.items():
            command = [
                *(sys.executable, str(HERE / "router_program.py"), "--port", str(port)),
                *("--models", str(models), "--endpoints", str(endpoints)),
                *("--addresses", str(addresses)),
            ]
            with Path("/dev/null").open("wb") as log:
                ways[name] = stack.enter_context(running(command, log=log.fileno()))
        port = stack.enter_context(backend())  # Another: 20,000 connections are too many for one.
        for name, count in (("bare_few", 3), ("bare_many", ENDPOINTS)):
            backends = [address(place, port) for place in range(count)]
            command = [sys.executable, str(HERE / "passthrough.py"), *backends]
            ways[name] = stack.enter_context(running(command))
        print(f"calling each of {ENDPOINTS} endpoints once, to connect", flush=True)
        calls(ways["many"], models=MODELS, count=ENDPOINTS + MODELS)
        calls(ways["many_same_connections"], models=MODELS, count=CALLS)
        calls(ways["few"], models=1, count=CALLS)
        calls(ways["bare_many"], models=1, count=ENDPOINTS + MODELS)
        calls(ways["bare_few"], models=1, count=CALLS)
        yield ways


@contextlib.contextmanager
def backend() -> Iterator[int]:
    """The port of one that listens at every address of this machine."""
    with running([sys.executable, str(HERE / "router_backend.py"), "0.0.0.0"]) as way:
        yield int(way.address.rpartition(":")[2])


def one_round(ways: Mapping[str, Way]) -> dict[str, float]:
    """CPU time a call, what is resident, and how long many endpoints' changes held the loop."""
    seen: dict[str, float] = {}
    for name, figure in (
        ("few", "few_endpoints_cpu_us"),
        ("many", "many_endpoints_cpu_us"),
        ("many_same_connections", "many_same_connections_cpu_us"),
        ("bare_few", "bare_few_cpu_us"),
        ("bare_many", "bare_many_cpu_us"),
    ):
        before_s = ways[name].cpu_s()
        calls(ways[name], models=MODELS if name.startswith("many") else 1, count=CALLS)
        seen[figure] = (ways[name].cpu_s() - before_s) / CALLS * 1e6
    quiet = asyncio.run(held(ways["many"], 0.0))
    churned = asyncio.run(held(ways["many"], CHURN_S))
    return seen | {
        "quiet_stall_ms": quiet["held_ms"],
        "swap_stall_ms": churned["held_ms"],
        "swap_longest_callback_ms": churned["callback_ms"],
        "swap_stall_wall_ms": churned["held_wall_ms"],
        "swap_changes_per_s": churned["changes"] / CHURN_S,
        "few_endpoints_mb": ways["few"].memory_bytes() / 1e6,
        "many_endpoints_mb": ways["many"].memory_bytes() / 1e6,
    }


def calls(way: Way, *, models: int, count: int) -> None:
    """`count` calls to the models in turn."""
    requests = [message(100, model=f"m{number}") for number in range(models)]
    result = asyncio.run(
        load.in_turn(
            way.address, f"/{INFER}", itertools.cycle(requests), callers=CALLERS, count=count
        )
    )
    if result.failed:
        raise SystemExit(f"{result.failed} of {count} calls to {way.address} failed")


async def held(way: Way, churn_s: float) -> dict[str, float]:
    """What the router says of its loop under load, while its catalog changes for `churn_s`."""
    requests = (message(100, model=f"m{number % MODELS}") for number in itertools.count())
    loop = asyncio.get_running_loop()
    way.tell(f"{churn_s}")
    answer = loop.run_in_executor(None, way.hear)
    loading = asyncio.create_task(
        load.in_turn(way.address, f"/{INFER}", requests, callers=CHURN_CALLERS, count=sys.maxsize)
    )
    if not churn_s:
        await asyncio.sleep(CHURN_S)
        way.tell("")
    async with asyncio.timeout(LONGEST_S):
        said = json.loads(await answer)
    loading.cancel()
    await asyncio.wait([loading])
    return {name: float(value) for name, value in said.items()}
