"""Endpoints that die, vanish or refuse: retried where that is safe, told where it is not."""

import asyncio
import signal
import sys
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import (
    Seen,
    backend,
    backend_process,
    failure_of,
    half_closes,
    infer,
    mesh,
    until,
)

from aiflow.registry.v1 import registry_pb2
from aiflow_router.rpc import server as servers
from aiflow_sdk import errors

INFER = "/inference.GRPCInferenceService/ModelInfer"
NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize("method", ["/a.Echo/Echo", INFER])
async def test_an_unreachable_endpoint_costs_no_call_and_is_left_alone(method: str) -> None:
    async with backend() as server, mesh() as m:
        await m.register(server.address, models=("m",))
        await m.register(NOWHERE, models=("m",))
        attempts = []
        for _ in range(20):
            call = m.channel.unary_unary(method)(infer("m"))
            await call
            attempts.append(dict(tuple(await call.trailing_metadata()))["x-aiflow-attempts"])
        assert attempts.count("2") == 1
        entries = await m.endpoints()
        assert entries[NOWHERE].state == registry_pb2.ENDPOINT_STATE_UNREACHABLE
        assert entries[server.address].state == registry_pb2.ENDPOINT_STATE_READY
        assert {entry.inflight for entry in entries.values()} == {0}


@pytest.mark.parametrize("method", ["/a.Echo/Echo", INFER])
async def test_when_no_endpoint_can_be_reached_the_call_fails_soon(method: str) -> None:
    async with mesh() as m:
        await m.register(NOWHERE, models=("m",))
        for _ in range(3):
            error = await failure_of(m.channel.unary_unary(method)(infer("m")))
            assert isinstance(error, errors.NoEndpointError)
            assert error.retry_after_s


async def test_a_killed_server_is_out_within_3_s_and_no_inference_fails_meanwhile() -> None:
    async with backend() as server, backend_process() as (address, process), mesh() as m:
        await m.register(server.address, models=("m",))
        lease = await m.register(address, models=("m",), ttl_ms=2000)
        call = m.channel.unary_unary(INFER)
        await asyncio.gather(*(call(infer("m")) for _ in range(20)))
        await m.registry.Renew(registry_pb2.RenewRequest(lease_id=lease))
        process.kill()
        killed_s = time.monotonic()
        gone_s = 0.0
        while not gone_s and time.monotonic() < killed_s + 5:
            await asyncio.gather(*(call(infer("m")) for _ in range(4)))
            if address not in await m.endpoints():
                gone_s = time.monotonic() - killed_s
        assert 0 < gone_s < 3
        error = await failure_of(m.registry.Renew(registry_pb2.RenewRequest(lease_id=lease)))
        assert (error.code, error.reason) == ("NOT_FOUND", "LEASE_NOT_FOUND")


async def test_a_stream_whose_backend_dies_is_broken() -> None:
    async with backend_process() as (address, process), mesh() as m:
        await m.register(address)
        call = m.channel.stream_stream("/a.Echo/Hang")()
        await call.write(b"x")
        assert await call.read() == b"x"
        process.kill()
        error = await failure_of(call.read())
        assert (error.code, error.reason) == ("ABORTED", "STREAM_BROKEN")
        await until(lambda: m.inflight() == 0)


async def test_a_call_that_may_have_been_processed_is_not_repeated() -> None:
    async def unavailable(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    async with (
        backend(Echo=unavailable, ModelInfer=unavailable) as one,
        backend(Echo=unavailable, ModelInfer=unavailable) as two,
        mesh() as m,
    ):
        for server in (one, two):
            await m.register(server.address, models=("m",))
        sequence = infer("m", b"\x22\x0d\x0a\x0bsequence_id")
        for method, request, times in (
            ("/a.Echo/Echo", infer("m"), 1),
            (INFER, sequence, 1),
            (INFER, infer("m"), 2),
        ):
            one.seen.clear()
            two.seen.clear()
            error = await failure_of(m.channel.unary_unary(method)(request))
            assert (error.code, error.message) == ("UNAVAILABLE", "not now")
            assert len(one.seen) + len(two.seen) == times


async def test_a_backend_that_pushes_back_is_obeyed() -> None:
    async def unavailable(seen: Seen, context: Any) -> None:
        await context.abort(
            grpc.StatusCode.UNAVAILABLE, "busy", (("grpc-retry-pushback-ms", "-1"),)
        )

    async with (
        backend(ModelInfer=unavailable) as one,
        backend(ModelInfer=unavailable) as two,
        mesh() as m,
    ):
        for server in (one, two):
            await m.register(server.address, models=("m",))
        await failure_of(m.channel.unary_unary(INFER)(infer("m")))
        assert len(one.seen) + len(two.seen) == 1


async def test_attempts_are_as_many_as_the_route_allows() -> None:
    routes = "routes: [{match: {model: m}, retry: {attempts: 1}}]"
    async with mesh(routes) as m:
        await m.register("127.0.0.1:1", models=("m",))
        await m.register("127.0.0.1:2", models=("m",))
        error = await failure_of(m.channel.unary_unary(INFER)(infer("m")))
        assert "(1 tried" in error.message


async def test_a_server_that_returns_at_its_address_is_used_at_once() -> None:
    async with mesh() as m:
        async with backend() as server:
            await m.register(server.address, models=("m",))
            await m.channel.unary_unary(INFER)(infer("m"))
        for _ in range(5):
            error = await failure_of(m.channel.unary_unary(INFER)(infer("m")))
            assert error.code == "UNAVAILABLE"
        again = grpc.aio.server()

        async def answer(request: bytes, _: Any) -> bytes:
            return request

        again.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "inference.GRPCInferenceService",
                    {"ModelInfer": grpc.unary_unary_rpc_method_handler(answer)},
                ),
            )
        )
        again.add_insecure_port(server.address)
        await again.start()
        await m.register(server.address, models=("m",))
        assert await m.channel.unary_unary(INFER)(infer("m")) == infer("m")
        await again.stop(None)


async def test_deregistering_and_draining_stop_new_calls_and_let_running_ones_finish() -> None:
    go_on = asyncio.Event()

    async def wait(seen: Seen, context: Any) -> None:
        message = await context.read()
        seen.messages.append(message)
        await go_on.wait()
        await context.write(message)

    async with backend(Wait=wait) as server, mesh() as m:
        lease = await m.register(server.address)
        running = m.channel.unary_unary("/a.Echo/Wait")(b"x")
        await until(lambda: bool(server.seen and server.seen[0].messages))
        await m.registry.Renew(
            registry_pb2.RenewRequest(lease_id=lease, state=registry_pb2.ENDPOINT_STATE_DRAINING)
        )
        error = await failure_of(m.channel.unary_unary("/a.Echo/Echo")(b""))
        assert isinstance(error, errors.NoEndpointError)
        await m.registry.Deregister(registry_pb2.DeregisterRequest(lease_id=lease))
        assert await m.endpoints() == {}
        go_on.set()
        assert await running == b"x"
        await m.registry.Deregister(registry_pb2.DeregisterRequest(lease_id=lease))


async def test_a_caller_that_vanishes_without_a_word_frees_its_stream_as_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half_closed = half_closes(monkeypatch)
    monkeypatch.setattr(servers, "KEEPALIVE_MS", 500)
    monkeypatch.setattr(servers, "PING_TIMEOUT_MS", 500)
    async with backend() as server, mesh("health: {active: false}") as m:
        await m.register(server.address)
        caller = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _SILENT_CALLER,
            m.router.grpc_address,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert caller.stdout is not None
            assert await caller.stdout.readline() == b"open\n"
            caller.send_signal(signal.SIGSTOP)
            await until(lambda: m.inflight() == 0)
            await until(lambda: b'"code":"CANCELLED"' in b"".join(m.log))
            assert not half_closed
        finally:
            caller.kill()
            await caller.wait()


_SILENT_CALLER = """
import sys, threading, grpc

def messages():
    yield b"x"
    threading.Event().wait()

answers = grpc.insecure_channel(sys.argv[1]).stream_stream("/a.Echo/Echo")(messages())
next(answers)
print("open", flush=True)
threading.Event().wait()
"""
