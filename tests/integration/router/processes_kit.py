"""A router of several processes, as `listen.workers` makes it, and callers of it."""

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import psutil
from prometheus_client.parser import text_string_to_metric_families

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc

RUN = "import sys; from aiflow_router import command; getattr(command, sys.argv[1])(sys.argv[2:])"
TWO = "listen: {workers: 2, max_connection_age: 1s, drain_grace: 200ms, drain_timeout: 20s}\n"
# A channel of its own for each, as callers in different processes have.
ALONE = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Running:
    process: asyncio.subprocess.Process
    address: str
    http: str
    file: Path
    lines: list[bytes] = field(default_factory=list)

    def workers(self) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(self.process.pid).children()
            if "aiflow_router.processes.worker" in child.cmdline()
        ]

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address, options=ALONE)

    async def metrics(self) -> dict[str, float]:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{self.http}/metrics") as answer,
        ):
            text = await answer.text()
        return {
            sample.name + "".join(f" {k}={v}" for k, v in sorted(sample.labels.items())): (
                sample.value
            )
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def metric(self, name: str) -> float:
        return (await self.metrics()).get(name, 0.0)

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.lines) if line["event"] == event]


async def start(*arguments: str, cwd: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", RUN, *arguments),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def router(
    folder: Path, config: str = TWO, grpc: str = "127.0.0.1:0"
) -> AsyncIterator[Running]:
    file = folder / "aiflow.yaml"
    file.write_text(config)
    process = await start("router", "--grpc", grpc, "--http", "127.0.0.1:0", cwd=folder)
    assert process.stdout is not None
    assert process.stderr is not None
    said = json.loads(await process.stdout.readline())
    running = Running(process=process, address=said["grpc"], http=said["http"], file=file)

    async def read(stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            running.lines.append(line)

    reading = asyncio.create_task(read(process.stderr))
    workers = running.workers()
    try:
        yield running
    finally:
        workers += running.workers() if process.returncode is None else []
        for number in (signal.SIGTERM, signal.SIGINT):  # The second one ends it at once.
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        await process.wait()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        await reading


async def until(condition: Callable[[], Any], *, within_s: float = 40.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            holds = condition()
            if await holds if asyncio.iscoroutine(holds) else holds:
                return
            await asyncio.sleep(0.02)


async def register(channel: grpc.aio.Channel, address: str, service: str = "a.Echo") -> str:
    answer = await registry_pb2_grpc.RegistryServiceStub(channel).Register(
        registry_pb2.RegisterRequest(
            endpoint=registry_pb2.Endpoint(
                backend="b",
                address=address,
                protocol=registry_pb2.PROTOCOL_GRPC,
                services=[service],
            ),
            ttl_ms=60_000,
        )
    )
    return str(answer.lease_id)


def calls_at(worker: psutil.Process, address: str) -> int:
    """Connections that a worker has at the router's address."""
    port = int(address.rpartition(":")[2])
    return sum(
        c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port
        for c in worker.net_connections(kind="tcp")
    )


async def echo(channel: Any, method: str = "/a.Echo/Echo") -> bytes:
    answer: bytes = await channel.unary_unary(method)(b"x", timeout=15)
    return answer


@dataclass
class Traffic:
    """Calls on channels that live long, and on new ones all the time."""

    address: str
    ok: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    ended: bool = False

    async def long_lived(self) -> None:
        async with grpc.aio.insecure_channel(self.address, options=ALONE) as channel:
            while not self.ended:
                await self._call(channel, "long")

    async def new_ones(self) -> None:
        while not self.ended:
            async with grpc.aio.insecure_channel(self.address, options=ALONE) as channel:
                await self._call(channel, "new")

    async def _call(self, channel: grpc.aio.Channel, kind: str) -> None:
        try:
            await echo(channel)
            self.ok[kind] += 1
        except grpc.aio.AioRpcError as failure:
            self.failed.append(f"{kind}: {failure.code().name} {failure.details()}")
        await asyncio.sleep(0.01)


@asynccontextmanager
async def traffic(address: str) -> AsyncIterator[Traffic]:
    running = Traffic(address)
    tasks = [asyncio.create_task(running.long_lived()) for _ in range(3)]
    tasks += [asyncio.create_task(running.new_ones()) for _ in range(3)]
    try:
        yield running
    finally:
        running.ended = True
        await asyncio.gather(*tasks)
