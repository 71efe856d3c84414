"""A router as a process of its own, whose memory and log can be looked at from outside."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
from integration.router.kit import OPTIONS

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc

_RUN = "import sys; from aiflow_router import command; command.router(sys.argv[1:])"


@dataclass
class RouterProcess:
    """A running router.

    Attributes:
        channel: raw bytes.
        process: its memory and descriptors.
    """

    address: str
    channel: Any
    process: psutil.Process
    _stderr: Path

    def rss_mb(self) -> float:
        return float(self.process.memory_info().rss) / 2**20

    def log(self) -> str:
        """All that it wrote to stderr."""
        return self._stderr.read_text(errors="replace")

    async def inflight(self) -> int:
        """Calls at endpoints, as the registry tells it."""
        stub = registry_pb2_grpc.RegistryServiceStub(self.channel)
        answer = await stub.ListEndpoints(registry_pb2.ListEndpointsRequest())
        return sum(entry.inflight for entry in answer.entries)


@asynccontextmanager
async def router_process(
    folder: Path, address: str, *, config: str = "", max_message_mb: int = 64
) -> AsyncIterator[RouterProcess]:
    """A router in front of the backend at `address`, which serves model `m` and service `a.Echo`."""
    (folder / "aiflow.yaml").write_text(
        "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s, "
        f"max_message_mb: {max_message_mb}}}\n"
        "discovery:\n  static:\n"
        f"    - {{backend: b, address: '{address}', protocol: oip, models: [m]}}\n"
        f"    - {{backend: c, address: '{address}', protocol: grpc, services: [a.Echo]}}\n" + config
    )
    stderr = folder / "stderr"
    with stderr.open("wb") as file:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", _RUN),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
        )
    try:
        assert child.stdout is not None
        listening = json.loads(await child.stdout.readline())
        async with grpc.aio.insecure_channel(
            listening["grpc"], options=[*OPTIONS, ("grpc.enable_retries", 0)]
        ) as channel:
            yield RouterProcess(
                address=listening["grpc"],
                channel=channel,
                process=psutil.Process(child.pid),
                _stderr=stderr,
            )
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
