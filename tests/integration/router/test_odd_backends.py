"""Backends that answer what no gRPC library would: the caller gets a status, or the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from integration.router.kit import infer, mesh, until
from integration.router.wire import INFER, framed

Answer = Callable[[h2.connection.H2Connection, int], None]
OK = [(b":status", b"200"), (b"content-type", b"application/grpc")]


@asynccontextmanager
async def odd_backend(answer: Answer) -> AsyncIterator[str]:
    """A server that answers each call by hand; its address."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        config = h2.config.H2Configuration(
            client_side=False,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        ends = (ConnectionError, h2.exceptions.ProtocolError, asyncio.CancelledError)
        with contextlib.suppress(*ends):
            while True:
                writer.write(connection.data_to_send())
                await writer.drain()
                if not (data := await reader.read(65536)):
                    break
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.StreamEnded):
                        answer(connection, event.stream_id)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in serving:
        task.cancel()
    await asyncio.wait(serving)


def odd_metadata(connection: h2.connection.H2Connection, stream: int) -> None:
    odd = [(b"x-odd", b"caf\xe9"), (b"x-odder", b"caf\xc3\xa9"), (b"x-even", b"a")]
    connection.send_headers(stream, [*OK, *odd])
    connection.send_data(stream, framed(b"answer"))
    connection.send_headers(stream, [(b"grpc-status", b"0"), *odd], end_stream=True)


def page(connection: h2.connection.H2Connection, stream: int) -> None:
    connection.send_headers(stream, [(b":status", b"503"), (b"content-type", b"text/html")])
    connection.send_data(stream, b"<html>", end_stream=True)


def reset(connection: h2.connection.H2Connection, stream: int) -> None:
    connection.reset_stream(stream, 2)


def no_status(connection: h2.connection.H2Connection, stream: int) -> None:
    connection.send_headers(stream, OK)
    connection.send_data(stream, framed(b"answer"), end_stream=True)


def odd_status(connection: h2.connection.H2Connection, stream: int) -> None:
    connection.send_headers(stream, [*OK, (b"grpc-status", b"77")], end_stream=True)


def cut_message(connection: h2.connection.H2Connection, stream: int) -> None:
    connection.send_headers(stream, OK)
    connection.send_data(stream, framed(b"answer", length=100))
    connection.send_headers(stream, [(b"grpc-status", b"0")], end_stream=True)


@pytest.mark.parametrize("method", [INFER, "/a.Echo/Echo"])
async def test_metadata_that_grpc_cannot_send_is_left_out_of_the_answer(method: str) -> None:
    async with odd_backend(odd_metadata) as address, mesh() as m:
        await m.register(address, models=("m",))
        call = m.channel.unary_unary(method)(infer("m"), timeout=5)
        assert await call == b"answer"
        for metadata in (await call.initial_metadata(), await call.trailing_metadata()):
            found = dict(tuple(metadata))
            assert found["x-even"] == "a"
            assert "x-odd" not in found
            assert "x-odder" not in found
        await until(lambda: m.inflight() == 0)


@pytest.mark.parametrize(
    ("answer", "code", "method"),
    [
        *(
            pytest.param(answer, code, method, id=f"{what} to {method}")
            for method in (INFER, "/a.Echo/Echo")
            for answer, code, what in (
                (page, "UNAVAILABLE", "a web page that says 503"),
                (reset, "INTERNAL", "a reset"),
                (no_status, "UNKNOWN", "an answer without a status"),
                (odd_status, "UNKNOWN", "a status that there is not"),
            )
        ),
        # As a stream's it would be a stream without messages, to gRPC's core, which may be right.
        pytest.param(cut_message, "INTERNAL", INFER, id="a message that is cut short"),
    ],
)
async def test_an_answer_that_is_none_is_a_status(answer: Answer, code: str, method: str) -> None:
    async with odd_backend(answer) as address, mesh() as m:
        await m.register(address, models=("m",))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.channel.unary_unary(method)(infer("m"), timeout=5)
        assert caught.value.code().name == code, caught.value.details()
        await until(lambda: m.inflight() == 0)
        entries: Any = await m.endpoints()
        assert entries[address].inflight == 0
