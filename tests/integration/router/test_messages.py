"""Large, compressed and limited messages."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import OPTIONS, Seen, backend, infer, mesh
from integration.router.wire import INFER, framed, head, wire

from aiflow_sdk import errors, status

MIB = 1024 * 1024
GZIP = grpc.Compression.Gzip
DEFLATE = grpc.Compression.Deflate


def filled(size: int) -> bytes:
    """A ModelInferRequest of exactly this size: the name, then a field of bytes."""
    name = infer("m")
    length = size - len(name) - 6
    varint = bytes((length >> 7 * n) & 0x7F | (0x80 if n < 4 else 0) for n in range(5))
    return name + b"\x3a" + varint + bytes(length)


@pytest.mark.parametrize("method", [INFER, "/a.Echo/Echo"])
async def test_64_mib_pass_both_ways_and_a_byte_more_does_not(method: str) -> None:
    async def one_more(seen: Seen, context: Any) -> None:
        await context.write(await context.read() + b"\0")

    more = {"ModelInfer": one_more, "Echo": one_more}
    async with backend() as server, backend(**more) as other, mesh() as m:
        await m.register(server.address, models=("m",))
        call = m.channel.unary_unary(method)
        most = filled(64 * MIB)
        assert len(most) == 64 * MIB
        assert await call(most) == most
        for request, to in ((most + b"\0", server), (most, other)):
            if to is other:
                await m.register(server.address, models=("x",), services=("x.X",))
                await m.register(other.address, models=("m",))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request)
            error = status.from_rpc_error(caught.value)
            assert isinstance(error, errors.MessageTooLargeError)
            assert "listen.max_message_mb" in error.message


@pytest.mark.parametrize("method", [INFER, "/a.Echo/Echo"])
@pytest.mark.parametrize("compression", [GZIP, DEFLATE])
async def test_what_a_caller_compresses_arrives(method: str, compression: Any) -> None:
    async with backend() as server, mesh() as m:
        await m.register(server.address, models=("m",))
        request = filled(8 * MIB)
        call = m.channel.unary_unary(method)
        assert await call(request, compression=compression) == request


async def test_each_hop_is_compressed_by_itself() -> None:
    """The caller's gzip is undone at the router, and so is the backend's."""
    encodings: list[str] = []

    async def shout(seen: Seen, context: Any) -> None:
        context.set_compression(GZIP)
        message = await context.read()
        await context.write(message)

    async with backend(Echo=shout) as server, mesh() as m, wire(m.router.grpc_address) as w:
        await m.register(server.address)
        packed = framed(gzip.compress(bytes(100_000)), flag=1)
        answer = await w.ask(
            head("/a.Echo/Echo", grpc_encoding="gzip", grpc_accept_encoding="gzip"), packed
        )
        assert answer.told == "grpc 0"
        assert answer.data == framed(bytes(100_000))  # not compressed again
        assert "gzip" in answer.headers["grpc-accept-encoding"]
        encodings.append(answer.headers.get("grpc-encoding", "identity"))
        assert encodings == ["identity"]
        (seen,) = server.seen
        assert "grpc-encoding" not in seen.metadata


async def test_a_message_that_unpacks_past_the_limit_is_refused() -> None:
    small = "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', max_message_mb: 1}"
    from aiflow_router.config.file import parse

    async with backend() as server, mesh(parse(small)) as m:
        await m.register(server.address, models=("m",))
        for size, says in ((MIB + 1, "listen.max_message_mb"), (3 * MIB, "larger than max")):
            for method in (INFER, "/a.Echo/Echo"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await m.channel.unary_unary(method)(filled(size), compression=GZIP)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert says in (caught.value.details() or "")


@pytest.mark.parametrize("compression", [GZIP, DEFLATE])
async def test_where_compression_is_off_a_compressed_request_is_unimplemented(
    compression: Any,
) -> None:
    off = "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', compression: false}"
    from aiflow_router.config.file import parse

    async with backend() as server, mesh(parse(off)) as m:
        await m.register(server.address, models=("m",))
        call = m.channel.unary_unary(INFER)
        assert await call(infer("m")) == infer("m")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(infer("m") + bytes([0x1A, 100]) + bytes(100), compression=compression)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "disabled" in (caught.value.details() or "")
        async with wire(m.router.grpc_address) as w:
            bomb = zlib.compress(bytes(50 * MIB), 9)
            answer = await w.ask(head(grpc_encoding="deflate"), framed(bomb, flag=1))
            assert answer.told == "grpc 12"


async def test_large_messages_stream_both_ways() -> None:
    async with backend() as server, mesh() as m:
        await m.register(server.address)
        async with grpc.aio.insecure_channel(m.router.grpc_address, options=OPTIONS) as channel:
            chat: Any = channel.stream_stream("/a.Echo/Echo")()
            for number in range(4):
                await chat.write(bytes([number]) * 32 * MIB)
                assert await chat.read() == bytes([number]) * 32 * MIB
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
