"""`aiflow router` and `aiflow check` as a person or a supervisor runs them."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from integration.router.kit import Seen, backend, until

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_sdk import errors, status

RUN = "import sys; from aiflow_sdk.command.main import main; main(sys.argv[1:])"
SLOW_DRAIN = "listen: {drain_grace: 2s, drain_timeout: 20s}\n"


async def start(*arguments: str, cwd: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", RUN, *arguments),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def router(
    tmp_path: Path, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    options = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    process = await start("router", *options, *arguments, cwd=tmp_path)
    try:
        assert process.stdout is not None
        yield process, json.loads(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    async with router(tmp_path) as (_, listening):
        for flag, other, what in (("--grpc", "--http", "grpc"), ("--http", "--grpc", "http")):
            taken = listening[what]
            second = await start("router", flag, taken, other, "127.0.0.1:0", cwd=tmp_path)
            out, err = await second.communicate()
            assert second.returncode == 1
            assert out == b""
            (line,) = [line for line in err.decode().splitlines() if line.startswith("Error")]
            assert f"{taken} is already in use" in line
            assert flag in line
            assert "Traceback" not in err.decode()


async def test_sigterm_lets_calls_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    (tmp_path / "aiflow.yaml").write_text(SLOW_DRAIN)
    go_on = asyncio.Event()

    async def wait(seen: Seen, context: Any) -> None:
        message = await context.read()
        seen.messages.append(message)
        await go_on.wait()
        await context.write(message)

    async with (
        backend(Wait=wait) as server,
        router(tmp_path) as (process, listening),
        grpc.aio.insecure_channel(listening["grpc"]) as channel_,
        aiohttp.ClientSession() as http,
    ):
        channel: Any = channel_
        await registry_pb2_grpc.RegistryServiceStub(channel_).Register(
            registry_pb2.RegisterRequest(
                endpoint=registry_pb2.Endpoint(
                    backend="b",
                    address=server.address,
                    protocol=registry_pb2.PROTOCOL_GRPC,
                    services=["a.Echo"],
                ),
                ttl_ms=60_000,
            )
        )
        running = channel.unary_unary("/a.Echo/Wait")(b"x")
        await until(lambda: bool(server.seen and server.seen[0].messages))
        process.send_signal(signal.SIGTERM)
        echo = channel.unary_unary("/a.Echo/Echo")
        async with asyncio.timeout(5):
            while True:
                async with http.get(f"http://{listening['http']}/readyz") as answer:
                    if answer.status == 503:
                        break
            assert await echo(b"still served") == b"still served"
            refused = None
            while refused is None:
                # Each leaves a line in a pipe that nobody empties, and a full one holds it up.
                await asyncio.sleep(0.02)
                try:
                    await echo(b"")
                except grpc.aio.AioRpcError as failure:
                    refused = status.from_rpc_error(failure)
            assert isinstance(refused, errors.DrainingError)
        go_on.set()
        assert await running == b"x"
        assert await asyncio.wait_for(process.wait(), 5) == 0


async def test_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    (tmp_path / "aiflow.yaml").write_text("listen: {drain_grace: 60s}")
    async with router(tmp_path) as (process, listening), aiohttp.ClientSession() as http:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(5):
            while True:
                async with http.get(f"http://{listening['http']}/readyz") as answer:
                    if answer.status == 503:
                        break
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 130


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [("listen: {max_message_mb: 8}", 0, "max_message_mb: 8"), ("lisen: {}", 1, "did you mean")],
)
async def test_check(tmp_path: Path, text: str, code: int, said: str) -> None:
    (tmp_path / "aiflow.yaml").write_text(text)
    process = await start("check", cwd=tmp_path)
    out, err = await process.communicate()
    assert process.returncode == code
    assert said in (err if code else out).decode()


async def test_a_wrong_file_stops_the_router(tmp_path: Path) -> None:
    process = await start("router", "--config", "missing.yaml", cwd=tmp_path)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert "missing.yaml: cannot be read" in err.decode()
