"""Real gRPC backends and routers on this machine, for the router's tests."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from grpc.aio import _call

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_router.config.config import Config
from aiflow_router.config.file import parse
from aiflow_router.main import serving
from aiflow_router.running import Router
from aiflow_sdk import errors, status

ANY_PORT = "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}\n"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Handle = Callable[["Seen", Any], Awaitable[None]]


@dataclass
class Seen:
    """What a backend saw of a call; `due_s` is when its time is up, on `time.monotonic`'s clock."""

    method: str
    metadata: dict[str, str | bytes]
    time_remaining_s: float | None
    due_s: float
    messages: list[bytes] = field(default_factory=list)
    half_closed: bool = False
    cancelled: bool = False


@dataclass
class Backend:
    address: str
    server: grpc.aio.Server
    seen: list[Seen]


async def echo(seen: Seen, context: Any) -> None:
    """Answers each message with itself."""
    while (message := await context.read()) is not grpc.aio.EOF:
        seen.messages.append(message)
        await context.write(message)
    seen.half_closed = True


async def hangs(seen: Seen, context: Any) -> None:
    """Reads the request, and does not answer."""
    seen.messages.append(await context.read())
    await asyncio.Event().wait()


async def busy(_: Seen, context: Any) -> None:
    """Refuses as a server that restarts does: no details."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")


class Held:
    """A backend whose calls stay until they are let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, _: Seen, context: Any) -> None:
        message = await context.read()
        await self.go.wait()
        await context.write(message)


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, methods: Mapping[str, Handle], seen: list[Seen]) -> None:
        self._methods = methods
        self._seen = seen

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        handle = self._methods.get(details.method.rpartition("/")[2])
        if handle is None:
            return None

        async def run(_: object, context: Any) -> None:
            left_s = context.time_remaining()
            seen = Seen(
                method=details.method,
                metadata=dict(context.invocation_metadata()),
                time_remaining_s=left_s,
                due_s=math.inf if left_s is None else time.monotonic() + left_s,
            )
            self._seen.append(seen)
            try:
                await handle(seen, context)
            except asyncio.CancelledError:
                seen.cancelled = True
                raise

        return grpc.stream_stream_rpc_method_handler(run)


@asynccontextmanager
async def backend(**methods: Handle) -> AsyncIterator[Backend]:
    """A server of any service with these methods (Echo and ModelInfer echo unless given)."""
    seen: list[Seen] = []
    server = grpc.aio.server(options=OPTIONS)
    handlers = {"Echo": echo, "ModelInfer": echo, **methods}
    server.add_generic_rpc_handlers((_Methods(handlers, seen),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Backend(address=f"127.0.0.1:{port}", server=server, seen=seen)
    finally:
        await server.stop(None)


@asynccontextmanager
async def backend_process(
    script: str = "backend_process.py",
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """The echoing backend, or another `script`, as a process that can be killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name(script)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().strip()
    try:
        yield address, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass
class Mesh:
    router: Router
    channel: Any  # Raw bytes; the stubs infer Never from the missing serializers.
    registry: registry_pb2_grpc.RegistryServiceAsyncStub
    log: list[bytes]

    async def register(
        self,
        address: str,
        *,
        models: tuple[str, ...] = (),
        services: tuple[str, ...] = ("a.Echo",),
        backend: str = "echo",
        ttl_ms: int = 60_000,
        version: str = "",
    ) -> str:
        protocol = registry_pb2.PROTOCOL_OIP if models else registry_pb2.PROTOCOL_GRPC
        answer = await self.registry.Register(
            registry_pb2.RegisterRequest(
                endpoint=registry_pb2.Endpoint(
                    backend=backend,
                    address=address,
                    protocol=protocol,
                    models=models,
                    services=services,
                    version=version,
                ),
                ttl_ms=ttl_ms,
            )
        )
        return answer.lease_id

    async def endpoints(self) -> dict[str, registry_pb2.ListEndpointsResponse.Entry]:
        answer = await self.registry.ListEndpoints(registry_pb2.ListEndpointsRequest())
        return {entry.endpoint.address: entry for entry in answer.entries}

    def inflight(self) -> int:
        return self.router.front.active

    async def metrics(self) -> str:
        """What a scrape reads."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{self.router.http_address}/metrics") as answer,
        ):
            return await answer.text()


@asynccontextmanager
async def mesh(config: Config | str = "") -> AsyncIterator[Mesh]:
    """A router and a channel to it."""
    log: list[bytes] = []
    parsed = parse(ANY_PORT + config) if isinstance(config, str) else config
    async with (
        serving(parsed, access_write=log.append) as router,
        grpc.aio.insecure_channel(
            router.grpc_address, options=[*OPTIONS, ("grpc.enable_retries", 0)]
        ) as channel,
    ):
        yield Mesh(
            router=router,
            channel=channel,
            registry=registry_pb2_grpc.RegistryServiceStub(channel),
            log=log,
        )


async def until(condition: Callable[[], bool], *, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - polls what has no event
            await asyncio.sleep(0.005)


def half_closes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The streams to backends that the router half-closes; health checks do that too."""
    streams: list[object] = []

    async def done_writing(stream: object) -> None:
        streams.append(stream)

    # Not the class of the same name in grpc.aio, which is abstract.
    monkeypatch.setattr(_call.StreamStreamCall, "done_writing", done_writing)
    return streams


async def lost(m: Mesh, address: str) -> None:
    """Returns once the router knows that its connection is gone, later than its server stopped."""
    await until(lambda: not m.router.front.sender._links[address].ready())


async def failure_of(call: Any) -> errors.AiflowError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return status.from_rpc_error(caught.value)


def infer(model: str, extra: bytes = b"") -> bytes:
    """A ModelInferRequest that names `model`."""
    name = model.encode()
    return b"\x0a" + bytes([len(name)]) + name + extra
