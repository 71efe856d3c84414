"""A router, and callers of it, as processes of their own: looked at from outside, and not slowed
by the test that does them harm."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
from integration.router.kit import OPTIONS

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_router import heap

_RUN = "import sys; from aiflow_router import command; command.router(sys.argv[1:])"


@dataclass(frozen=True)
class RouterProcess:
    """A running router; `process` tells its memory and descriptors."""

    address: str
    process: psutil.Process
    stderr: Path

    def rss_mb(self) -> float:
        return float(self.process.memory_info().rss) / 2**20

    def log(self) -> str:
        """All that it wrote to stderr."""
        return self.stderr.read_text(errors="replace")

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Any]:
        """For raw bytes."""
        options = [*OPTIONS, ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            yield channel

    async def inflight(self) -> int:
        """Calls at endpoints, as the registry tells it."""
        async with self.channel() as channel:
            stub: Any = registry_pb2_grpc.RegistryServiceStub(channel)
            answer = await stub.ListEndpoints(registry_pb2.ListEndpointsRequest())
        return sum(entry.inflight for entry in answer.entries)

    async def shrinks_to(self, mb: float, *, within_s: float = 3 * heap.EVERY_S) -> None:
        """Returns when no more than that is resident."""
        async with asyncio.timeout(within_s):
            while self.rss_mb() > mb:  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.1)

    async def comes_to_rest(self, *, within_s: float = 10.0) -> None:
        """Returns when nothing is in flight."""
        async with asyncio.timeout(within_s):
            while await self.inflight():  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.02)


@contextmanager
def router_process(
    folder: Path, address: str, *, config: str = "", listen: str = ""
) -> Iterator[RouterProcess]:
    """A router in front of the backend at `address`, with model `m` and service `a.Echo`."""
    (folder / "aiflow.yaml").write_text(
        "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s" + listen + "}\n"
        "discovery:\n  static:\n"
        f"    - {{backend: b, address: '{address}', protocol: oip, models: [m]}}\n"
        f"    - {{backend: c, address: '{address}', protocol: grpc, services: [a.Echo]}}\n" + config
    )
    stderr = folder / "stderr"
    with (
        stderr.open("wb") as file,
        subprocess.Popen(
            (sys.executable, "-W", "error", "-c", _RUN),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=file,
        ) as child,
    ):
        try:
            assert child.stdout is not None
            listening = json.loads(child.stdout.readline())
            yield RouterProcess(
                address=listening["grpc"], process=psutil.Process(child.pid), stderr=stderr
            )
        finally:
            child.kill()


@contextmanager
def backend_process() -> Iterator[str]:
    """The echoing backend as a process; its address."""
    script = Path(__file__).with_name("backend_process.py")
    with subprocess.Popen((sys.executable, str(script)), stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            yield child.stdout.readline().decode().strip()
        finally:
            child.kill()


@dataclass
class Others:
    """What other callers met: milliseconds of each call, and what failed."""

    took_ms: list[float]
    errors: list[str]

    def at(self, share: float) -> float:
        return sorted(self.took_ms)[int(share * (len(self.took_ms) - 1))]


@asynccontextmanager
async def others(address: str) -> AsyncIterator[Others]:
    """Callers who do no harm, in the meantime; filled in when the block has ended."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _OTHERS, address),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    met = Others(took_ms=[], errors=[])
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"calling\n"
        yield met
        out, _ = await child.communicate(b"enough")
        found = json.loads(out)
        met.took_ms, met.errors = found["took_ms"], found["errors"]
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


_OTHERS = """
import json, sys, threading, time, grpc

stop = threading.Event()
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_retries", 0)])
call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
call(b"\\x0a\\x01m", timeout=10)
took_ms, errors = [], []

def calls():
    while not stop.is_set() or len(took_ms) < 50 > len(errors):
        began = time.perf_counter()
        try:
            call(b"\\x0a\\x01m", timeout=10)
            took_ms.append(1000 * (time.perf_counter() - began))
        except grpc.RpcError as error:
            errors.append(f"{error.code().name}: {error.details()}")
        time.sleep(0.002)

threads = [threading.Thread(target=calls) for _ in range(2)]
for thread in threads:
    thread.start()
print("calling", flush=True)
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
print(json.dumps({"took_ms": took_ms, "errors": errors}))
"""
