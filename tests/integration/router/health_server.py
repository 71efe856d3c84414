"""An echoing model server with a health service; also a process of its own that can be restarted.

python health_server.py PORT [mute]    # prints its address; mute is without a health service
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class _Health(health.aio.HealthServicer):
    def __init__(self, *, watched: bool) -> None:
        super().__init__()
        self._watched = watched
        self.checks = 0
        self.watches = 0

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        self.checks += 1
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - as above
        if not self._watched:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        self.watches += 1
        await super().Watch(request, context)


@dataclass
class Server:
    """Attributes: fails: the status of every call; takes_s: how long an answer takes."""

    health: _Health
    address: str = ""
    calls: int = 0
    fails: grpc.StatusCode | None = None
    takes_s: float = 0.0

    async def say(self, status: Any) -> None:
        await self.health.set("", status)

    async def infer(self, request: bytes, context: Any) -> bytes:
        self.calls += 1
        await asyncio.sleep(self.takes_s)
        if self.fails is not None:
            await context.abort(self.fails, "out of order")
        return request


@asynccontextmanager
async def model_server(
    port: int = 0, *, host: str = "127.0.0.1", healthy: bool = True, watched: bool = True
) -> AsyncIterator[Server]:
    """Without `healthy` it has no health service, without `watched` no Watch."""
    found = Server(health=_Health(watched=watched))
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    infer: Any = grpc.unary_unary_rpc_method_handler(found.infer)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "inference.GRPCInferenceService", {"ModelInfer": infer}
            ),
        )
    )
    if healthy:
        health_pb2_grpc.add_HealthServicer_to_server(found.health, server)
    found.address = f"{host}:{server.add_insecure_port(f'{host}:{port}')}"
    await server.start()
    try:
        yield found
    finally:
        await server.stop(None)


@dataclass
class Processes:
    """Model servers that can be killed and started again at the same address."""

    mute: bool = False
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def start(self, address: str = "127.0.0.1:0") -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__)),
            address.rpartition(":")[2],
            *(["mute"] if self.mute else []),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        self.running[address] = process
        return address

    async def kill(self, address: str) -> None:
        process = self.running.pop(address)
        process.kill()
        await process.wait()

    def send(self, address: str, signal: int) -> None:
        self.running[address].send_signal(signal)


@asynccontextmanager
async def processes(
    count: int, *, mute: bool = False
) -> AsyncIterator[tuple[Processes, Sequence[str]]]:
    found = Processes(mute=mute)
    try:
        yield found, await asyncio.gather(*(found.start() for _ in range(count)))
    finally:
        for address in list(found.running):
            await found.kill(address)


async def main() -> None:
    async with model_server(int(sys.argv[1]), healthy="mute" not in sys.argv) as server:
        print(server.address, flush=True)  # noqa: T201 - read by the test
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
