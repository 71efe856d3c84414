"""How soon a server that registers at Consul is called, and how soon one that died no more is.

    make bench-discovery
    python benchmarks/discovery.py --rounds 10

A real agent, a real router and, round for round, a new server process of a backend that the router
has not heard of. Callers ask without a pause for its own model, until the first call is answered,
which is timed from the moment when the server began to register. Then it is killed with SIGKILL
while callers keep the model busy that it shares with one other server: it was still sent calls for
as long as a call failed or needed a second attempt, by the end of the last such call. 0 means that
not one did: the connection broke before a call was sent.

Beside it: how long Consul itself takes to call the killed server critical, which is what a router
goes by that had no connection to it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import report
from consul_process import Agent
from router_ways import running

HERE = Path(__file__).parent
INFER = "/inference.GRPCInferenceService/ModelInfer"
SHARED = "shared"
CALLERS = 4
# Between two calls of a caller: a steady load that leaves the machine time for everybody else.
PAUSE_S = 0.005
# After a kill calls are watched for so long; more than what is aimed at.
WATCHED_S = 2.0
FIRST_CALL_WITHIN_S = 10.0
CONFIG = """\
listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}}
discovery: {{consul: {{address: '{consul}'}}}}
slow_start: 0s
"""


@dataclass(slots=True)
class Server:
    """A server process that listens."""

    model: str
    address: str
    process: asyncio.subprocess.Process

    async def register(self) -> float:
        """When it began to."""
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        assert self.process.stdout is not None  # noqa: S101 - as above
        self.process.stdin.write(b"\n")
        return float(await self.process.stdout.readline())


@dataclass(slots=True)
class Seen:
    """What the callers of the shared model met.

    Attributes:
        troubled_s: when each call ended that failed or needed more than one attempt.
        failed: calls without an answer.
    """

    calls: int = 0
    failed: int = 0
    troubled_s: list[float] = field(default_factory=list)


class Callers:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.unary_unary(INFER)
        self.seen = Seen()

    async def keep_calling(self) -> None:
        request = infer(SHARED)
        while True:
            call = self._call(request, timeout=5)
            try:
                await call
                attempts = dict(iter(await call.trailing_metadata()))["x-aiflow-attempts"]
                troubled = attempts != "1"
            except grpc.aio.AioRpcError:
                self.seen.failed += 1
                troubled = True
            self.seen.calls += 1
            if troubled:
                self.seen.troubled_s.append(time.monotonic())
            await asyncio.sleep(PAUSE_S)

    async def first_answer(self, model: str) -> float:
        """When a call of `model` was answered at last."""
        request = infer(model)
        async with asyncio.timeout(FIRST_CALL_WITHIN_S):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._call(request, timeout=5)
                    return time.monotonic()
                await asyncio.sleep(0.002)


def infer(model: str) -> bytes:
    """A ModelInferRequest that names `model`."""
    name = model.encode()
    return b"\x0a" + bytes([len(name)]) + name


async def main(rounds: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((folder / "log").open("wb"))
        consul = Agent(log.fileno())
        stack.callback(consul.kill)
        consul.start()
        config = folder / "aiflow.yaml"
        config.write_text(CONFIG.format(consul=consul.address))
        aiflow = str(Path(sys.executable).with_name("aiflow"))
        router = stack.enter_context(
            running([aiflow, "router", "--config", str(config)], log=log.fileno())
        )
        figures = await measured(consul.address, router.address, rounds=rounds)
    report.write(
        "discovery",
        figures,
        wanted={"register_to_call_p99_s": "<= 0.3", "kill_to_quiet_p99_s": "<= 1.5"},
    )


async def measured(consul: str, router: str, *, rounds: int) -> dict[str, float]:
    called_s: list[float] = []
    quiet_s: list[float] = []
    critical_s: list[float] = []
    async with (
        serving(consul, "stays") as stays,
        serving(consul, "warm") as warm,
        grpc.aio.insecure_channel(router) as channel,
    ):
        callers = Callers(channel)
        for server in (stays, warm):
            await server.register()
            await callers.first_answer(server.model)
        keep = [asyncio.create_task(callers.keep_calling()) for _ in range(CALLERS)]
        victim = warm
        async with contextlib.AsyncExitStack() as stack:
            for number in range(rounds):
                following = await stack.enter_async_context(serving(consul, f"round-{number}"))
                # Killed, and watched while the next one registers.
                callers.seen.troubled_s.clear()
                killed_s = time.monotonic()
                victim.process.kill()
                critical = asyncio.create_task(seen_critical(consul, victim, killed_s))
                await asyncio.sleep(WATCHED_S)
                quiet_s.append(max(callers.seen.troubled_s, default=killed_s) - killed_s)
                begun_s = await following.register()
                called_s.append(await callers.first_answer(following.model) - begun_s)
                critical_s.append(await critical)
                victim = following
                print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
        for task in keep:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return {
        "rounds": rounds,
        "register_to_call_p50_s": percentile(called_s, 0.5),
        "register_to_call_p99_s": percentile(called_s, 0.99),
        "kill_to_quiet_p50_s": percentile(quiet_s, 0.5),
        "kill_to_quiet_p99_s": percentile(quiet_s, 0.99),
        "kill_to_critical_p50_s": percentile(critical_s, 0.5),
        "kill_to_critical_p99_s": percentile(critical_s, 0.99),
        "calls": callers.seen.calls,
        "failed_calls": callers.seen.failed,
    }


async def seen_critical(consul: str, victim: Server, killed_s: float) -> float:
    """Seconds from the kill until Consul tells the server's TTL as run out."""
    async with asyncio.timeout(FIRST_CALL_WITHIN_S):
        while True:
            checks = await asyncio.to_thread(asked, f"{consul}/v1/health/checks/{victim.model}")
            if any(check["Status"] == "critical" for check in checks):
                return time.monotonic() - killed_s
            await asyncio.sleep(0.02)


def asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own agent
        return json.loads(answer.read())


@contextlib.asynccontextmanager
async def serving(consul: str, model: str) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "discovery_server.py"), consul, SHARED, model),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        address = (await process.stdout.readline()).decode().strip()
        yield Server(model, address, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def percentile(values: list[float], share: float) -> float:
    """The smallest that is not below `share` of them."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    asyncio.run(main(parser.parse_args().rounds))
