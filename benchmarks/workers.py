"""What `listen.workers` brings and costs: throughput, reloads under traffic, metrics.

    make bench-workers

Throughput: h2load through one and through two workers to the same echoing backend, in turns. All of
it shares the machine's cores, so on two cores two workers cannot do twice the work of one: the
backend and the load take their part, which the CPU time a call of each shows.

Reloads: callers with channels that live long, and with a new channel for each call, while SIGHUP
replaces both workers again and again. Every call that fails is counted, and the slowest is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import report
import router_load
import router_peers
from router_unary import INFER, message
from router_ways import KEY, READY_S, free_port, running

ROUNDS = 3
CALLS = 5000
CONNECTIONS = 16
IN_FLIGHT = 64
RELOADS = 3
LONG_LIVED, NEW_ONES = 4, 4

CONFIG = """\
listen: {{grpc: '127.0.0.1:0', http: '{http}', workers: {workers}, max_connection_age: {age}}}
auth: {{keys: [{{name: bench, tenant: bench, sha256: {digest}}}]}}
discovery: {{static: [{{backend: m, address: '{backend}', protocol: oip, models: [m]}}]}}
"""

# 18 buckets, as the duration of a call has.
OBSERVE = """
import timeit
from prometheus_client import CollectorRegistry, Histogram
registry = CollectorRegistry()
buckets = [2.0**n for n in range(-10, 7)]
observe = Histogram("h", "h", ("m",), buckets=buckets, registry=registry).labels("m").observe
print(min(timeit.repeat(lambda: observe(0.01), number=50_000, repeat=5)) / 50_000 * 1e6)
"""


@contextlib.contextmanager
def router(
    folder: Path, backend: str, *, workers: int, age: str = "10m", http: str = "127.0.0.1:0"
) -> Iterator[tuple[str, psutil.Process]]:
    """A router's address and process."""
    config = folder / f"aiflow-{workers}.yaml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    config.write_text(
        CONFIG.format(http=http, workers=workers, age=age, backend=backend, digest=digest)
    )
    aiflow = Path(sys.executable).with_name("aiflow")
    with (
        (folder / "log").open("ab") as log,
        running([str(aiflow), "router", "--config", str(config)], log=log.fileno()) as way,
    ):
        yield way.address, way.process


def spent_s(process: psutil.Process) -> float:
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)


def throughput(folder: Path, h2load: Path, backend: str) -> dict[str, float]:
    seen: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        routers = {n: stack.enter_context(router(folder, backend, workers=n)) for n in (1, 2)}
        for number in range(ROUNDS + 1):
            for workers, (address, process) in routers.items():
                before_s, began_s = spent_s(process), time.monotonic()
                router_load.calls(
                    *(h2load, f"http://{address}/{INFER}", [message(100)]),
                    count=CALLS if number else CALLS // 10,
                    in_flight=IN_FLIGHT,
                    key=KEY,
                    folder=folder,
                    connections=CONNECTIONS,
                )
                took_s = time.monotonic() - began_s
                if number:  # The first round is for warmth.
                    seen.setdefault(f"calls_per_s_{workers}", []).append(CALLS / took_s)
                    cpu_us = (spent_s(process) - before_s) / CALLS * 1e6
                    seen.setdefault(f"router_cpu_us_{workers}", []).append(cpu_us)
    figures = {name: statistics.median(values) for name, values in seen.items()}
    figures["two_vs_one_throughput"] = figures["calls_per_s_2"] / figures["calls_per_s_1"]
    figures["two_vs_one_cpu_a_call"] = figures["router_cpu_us_2"] / figures["router_cpu_us_1"]
    return figures


class Traffic:
    """Callers, until `ended`: what they saw."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.ended = False
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.slowest_ms = 0.0

    async def long_lived(self) -> None:
        async with self._channel() as one:
            while not self.ended:
                await self._call(one, "long-lived")

    async def new_ones(self) -> None:
        while not self.ended:
            async with self._channel() as one:
                await self._call(one, "new")

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)])

    async def _call(self, channel: Any, kind: str) -> None:
        began_s = time.monotonic()
        try:
            await channel.unary_unary(f"/{INFER}")(message(100), timeout=15)
            self.answered[kind] += 1
        except grpc.aio.AioRpcError as failure:
            self.failed[f"{kind}: {failure.code().name} {failure.details()}"] += 1
        self.slowest_ms = max(self.slowest_ms, (time.monotonic() - began_s) * 1000)


async def reloads(address: str, http: str, process: psutil.Process) -> dict[str, float]:
    traffic = Traffic(address)
    tasks = [asyncio.create_task(traffic.long_lived()) for _ in range(LONG_LIVED)]
    tasks += [asyncio.create_task(traffic.new_ones()) for _ in range(NEW_ONES)]
    began_s = time.monotonic()
    for number in range(1, RELOADS + 1):
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(READY_S):
            while await asyncio.to_thread(reloaded, http) < number:  # noqa: ASYNC110 - polls
                await asyncio.sleep(0.1)
    took_s = time.monotonic() - began_s
    traffic.ended = True
    await asyncio.gather(*tasks)
    for what, count in traffic.failed.items():
        print(f"failed {count} times: {what}")
    return {
        "reloads": RELOADS,
        "reload_s": took_s / RELOADS,
        "reload_new_channels": traffic.answered["new"],
        "reload_long_lived_calls": traffic.answered["long-lived"],
        "reload_failed_calls": traffic.failed.total(),
        "reload_slowest_ms": traffic.slowest_ms,
    }


def reloaded(http: str) -> float:
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("aiflow_reloads_total "):
                return float(line.split()[1])
    return 0.0


def observe_us(folder: Path | None) -> float:
    """An observation in a histogram, in memory or in files that processes share."""
    shared = {} if folder is None else {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", OBSERVE],
        env={**os.environ, **shared},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def main() -> None:
    h2load = router_peers.h2load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        echo = [sys.executable, str(Path(__file__).with_name("router_backend.py"))]
        with running(echo) as backend:
            figures = throughput(folder, h2load, backend.address)
            http = f"127.0.0.1:{free_port()}"
            with router(folder, backend.address, workers=2, age="1s", http=http) as (at, process):
                figures |= asyncio.run(reloads(at, http, process))
        figures["observe_us"] = observe_us(None)
        figures["observe_shared_files_us"] = observe_us(folder)
    report.write("workers", figures, wanted={"reload_failed_calls": "0"})


if __name__ == "__main__":
    main()
