"""Callers that are slow, silent or gone: each is let go some day, and frees what it held."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from integration.router.kit import Seen, backend, infer, mesh, until
from integration.router.wire import INFER, Wire, frame, framed, head, wire

from aiflow_router import main
from aiflow_router.rpc import front
from aiflow_router.rpc import server as servers

GOOD = framed(infer("m"))
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def drip(connection: Wire, data: bytes, *, every_s: float = 0.05) -> None:
    """A byte at a time until the router has had enough."""
    for byte in data:
        if connection.closed.is_set():
            return
        await connection.raw(bytes([byte]))
        await asyncio.sleep(every_s)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that waits a second where it would wait ten or more."""
    for name in ("HANDSHAKE_MS", "KEEPALIVE_MS", "PING_TIMEOUT_MS", "IDLE_MS"):
        monkeypatch.setattr(servers, name, 1000)
    monkeypatch.setattr(main, "UPLOADS_EVERY_S", 0.1)
    monkeypatch.setattr(front, "UPLOAD_WITHIN_S", 1.0)


@pytest.mark.parametrize(
    "opening",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(PREFACE, id="the preface a byte at a time"),
        pytest.param(PREFACE + frame(4, 0, 0, bytes(6 * 200)), id="settings a byte at a time"),
    ],
)
async def test_who_does_not_finish_its_greeting_is_let_go(impatient: None, opening: bytes) -> None:
    async with mesh() as m, wire(m.router.grpc_address, start=False) as connection:
        await drip(connection, opening)
        await asyncio.wait_for(connection.closed.wait(), 5)


async def test_who_never_acknowledges_the_routers_settings_is_let_go(impatient: None) -> None:
    async with mesh() as m, wire(m.router.grpc_address, start=False) as connection:
        connection.reading.clear()
        await connection.raw(PREFACE + frame(4, 0, 0))
        await asyncio.sleep(1.5)
        connection.reading.set()
        await asyncio.wait_for(connection.closed.wait(), 5)


async def test_headers_a_byte_at_a_time_end(impatient: None) -> None:
    async with mesh() as m, wire(m.router.grpc_address) as connection:
        pairs = [(str(name).encode(), str(value).encode()) for name, value in head(x_a="a" * 4000)]
        await drip(connection, frame(1, 4, 1, connection.h2.encoder.encode(pairs)))
        await asyncio.wait_for(connection.closed.wait(), 5)
        assert m.inflight() == 0


async def test_a_connection_without_calls_is_closed_some_day(impatient: None) -> None:
    async with mesh() as m, wire(m.router.grpc_address) as connection:
        await asyncio.wait_for(connection.closed.wait(), 5)


async def test_a_request_a_byte_at_a_time_ends_with_a_status(impatient: None) -> None:
    async with backend() as server, mesh() as m, wire(m.router.grpc_address) as connection:
        await m.register(server.address, models=("m",))
        stream = await connection.begin(head())
        sending = asyncio.create_task(_drip_body(connection, stream))
        answer = await connection.answer(stream, within_s=5)
        assert answer.told == "grpc 4"
        assert "did not come within 1 s" in answer.message
        sending.cancel()
        await asyncio.wait((sending,))
        assert (await connection.ask(head(), GOOD)).told == "grpc 0"
        assert m.inflight() == 0


async def _drip_body(connection: Wire, stream: int) -> None:
    for byte in framed(bytes(1000)):
        connection.h2.send_data(stream, bytes([byte]))
        await connection.flush()
        await asyncio.sleep(0.05)


async def test_a_slow_request_within_its_time_is_taken(impatient: None) -> None:
    async with backend() as server, mesh() as m, wire(m.router.grpc_address) as connection:
        await m.register(server.address, models=("m",))
        stream = await connection.begin(head())
        for part in (GOOD[:3], GOOD[3:6], GOOD[6:]):
            await connection.send(stream, part)
            await asyncio.sleep(0.05)
        assert (await connection.answer(stream)).told == "grpc 0"


@pytest.mark.parametrize("path", [INFER, "/a.Echo/Hang"])
@pytest.mark.parametrize("whole", [True, False], ids=["a whole message", "half a message"])
async def test_a_caller_that_vanishes_frees_everything(
    impatient: None, path: str, whole: bool
) -> None:
    """With keepalive as a net: now and then gRPC's core misses that a connection was reset."""

    async def hang(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await asyncio.Event().wait()

    async with backend(Hang=hang, ModelInfer=hang) as server, mesh() as m:
        await m.register(server.address, models=("m",))
        tasks = len(asyncio.all_tasks())
        for _ in range(20):
            async with wire(m.router.grpc_address) as connection:
                stream = await connection.begin(head(path))
                body = GOOD if whole else framed(infer("m"), length=1000)
                await connection.send(stream, body)
                count = len(server.seen)
                arrives = whole or path != INFER
                if arrives:
                    await until(lambda: bool(server.seen and server.seen[-1].method == path))
                await until(lambda: m.inflight() == 1)
                connection.abandon()
                await until(lambda: m.inflight() == 0)
                assert count <= len(server.seen)
        await until(lambda: all(seen.cancelled or not seen.messages for seen in server.seen))
        entries = await m.endpoints()
        assert {entry.inflight for entry in entries.values()} == {0}
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 3)


async def test_a_refused_stranger_is_refused_before_his_request_has_come() -> None:
    key = f"{{name: a, tenant: shop, sha256: {'a' * 64}}}"
    auth = f"auth: {{mode: required, keys: [{key}]}}"
    async with mesh(auth) as m, wire(m.router.grpc_address) as connection:
        stream = await connection.begin(head())
        assert (await connection.answer(stream)).told == "grpc 16"
