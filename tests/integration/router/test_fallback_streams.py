"""Fallback of streams: they go on before a backend was reached, and never after."""

import grpc
import grpc.aio
import pytest
from integration.router.fallback_kit import STREAM, VERSION, routed, unavailable
from integration.router.kit import backend_process, echo, infer

from aiflow_sdk import status


async def test_a_stream_goes_on_before_anything_was_sent_and_is_renamed_as_a_whole() -> None:
    async with routed("fallback: [never, c]", {"c": echo}) as (m, servers):
        call = m.channel.stream_stream(STREAM)()
        for extra in (b"\x1a\x01x", VERSION):
            await call.write(infer("a", extra))
        assert await call.read() == infer("c", b"\x1a\x01x")
        assert await call.read() == infer("c")
        await call.write(infer("c"))  # By its own name too.
        assert await call.read() == infer("c")
        await call.write(infer("other"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert status.from_rpc_error(caught.value).reason == "BAD_INPUT"
        trailing = dict(tuple(await call.trailing_metadata()))
        assert trailing["x-aiflow-fallback"] == "no_endpoint,no_endpoint"
        assert trailing["x-aiflow-served-by"] == f"c@{servers['c'].address}"


async def test_a_stream_that_reached_a_backend_does_not_go_on() -> None:
    async with routed("fallback: [b]", {"a": unavailable, "b": echo}) as (m, servers):
        call = m.channel.stream_stream(STREAM)()
        await call.write(infer("a"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.details() == "not now"
        assert not servers["b"].seen


async def test_after_the_first_byte_a_stream_breaks() -> None:
    async with (
        backend_process() as (address, process),
        routed("fallback: [b]", {"b": echo}) as (m, servers),
    ):
        await m.register(address, models=("a",), backend="a")
        call = m.channel.stream_stream(STREAM)()
        await call.write(infer("a"))
        assert await call.read() == infer("a")
        process.kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert status.from_rpc_error(caught.value).reason == "STREAM_BROKEN"
        assert not servers["b"].seen
