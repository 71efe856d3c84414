"""A served CPU server as its callers, its operators and the router see it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp
import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from integration.runtime import echo, jobs
from integration.runtime.poll import gone, until

from aiflow_sdk import errors, status
from aiflow_servers.runtime.server import Running, Server, StartError, serving

_LIMIT = 64 * 1024 * 1024
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Caller:
    def __init__(self, running: Running, channel: grpc.aio.Channel) -> None:
        self.running = running
        self.channel: Any = channel  # its typed calls want serializers; ours send bytes
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def unary(self, method: str, request: bytes = b"", **options: Any) -> Any:
        return self.channel.unary_unary(f"/{echo.SERVICE}/{method}")(request, **options)

    async def error(self, method: str, request: bytes = b"", **options: Any) -> errors.AiflowError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.unary(method, request, **options)
        return status.from_rpc_error(caught.value)

    async def counted(self, labels: str) -> bool:
        """Whether a call with these labels is counted, which happens just after its answer."""
        for _ in range(100):
            if labels in (await self.page("/metrics"))[1]:
                return True
            await asyncio.sleep(0.01)
        return False

    async def page(self, path: str) -> tuple[int, str]:
        url = f"http://{self.running.http_address}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()


@asynccontextmanager
async def calling(server: Server = echo.SERVER, **options: Any) -> AsyncIterator[Caller]:
    options = {"workers": 1} | options
    limits = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    async with (
        serving(server, **options) as running,
        grpc.aio.insecure_channel(running.address, limits) as channel,
    ):
        yield Caller(running, channel)


async def test_all_four_kinds_of_calls_are_answered() -> None:
    async with calling() as caller:
        assert await caller.unary("Echo", b"hello") == b"hello"
        count = caller.channel.unary_stream(f"/{echo.SERVICE}/Count")(b"3")
        assert [answer async for answer in count] == [b"0", b"1", b"2"]
        join = caller.channel.stream_unary(f"/{echo.SERVICE}/Join")
        assert await join(iter([b"a", b"b"])) == b"a,b"
        chat = caller.channel.stream_stream(f"/{echo.SERVICE}/Chat")
        assert [answer async for answer in chat(iter([b"a", b"b"]))] == [b"A", b"B"]


async def test_a_typed_error_out_of_a_worker_reaches_the_caller_with_its_details() -> None:
    async with calling() as caller:
        error = await caller.error("Refuse", metadata=[("x-request-id", "mine-1")])
    assert isinstance(error, errors.BadInputError)
    assert error.reason == "PICTURE_TOO_LARGE"
    assert error.violations == {"image.width": "at most 8192"}
    assert error.metadata == {"width": "9000"}
    assert error.retry_after_s == 1.5
    assert error.request_id == "mine-1"


async def test_an_error_in_the_middle_of_a_stream_has_its_details() -> None:
    async with calling() as caller:
        count = caller.channel.unary_stream(f"/{echo.SERVICE}/Count")(b"9")
        seen = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - see what came before
            async for answer in count:
                seen.append(answer)  # noqa: PERF401 - nothing would be left of a comprehension
    assert seen == [b"0", b"1", b"2"]
    assert isinstance(status.from_rpc_error(caught.value), errors.RefusedError)


async def test_an_unexpected_exception_is_logged_whole_and_told_to_nobody() -> None:
    async with calling() as caller:
        with structlog.testing.capture_logs() as logs:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await caller.unary("Fail", metadata=[("x-request-id", "mine-2")])
            await until(lambda: len(logs) == 2)
    error = status.from_rpc_error(caught.value)
    assert (error.code, error.reason, error.request_id) == ("INTERNAL", "INTERNAL", "mine-2")
    everything = f"{caught.value.details()} {caught.value.trailing_metadata()}"
    assert "1234" not in everything
    assert "ValueError" not in everything
    assert "Traceback" not in everything
    unexpected, access = logs
    assert "1234" in str(unexpected["exc_info"])
    assert "jobs.py" in str(unexpected["exc_info"].__notes__)
    assert (access["event"], access["code"]) == ("call", "INTERNAL")


async def test_a_status_that_the_servicer_sets_itself_is_left_alone() -> None:
    async with calling() as caller:
        error = await caller.error("Abort")
        assert (error.code, error.message) == ("OUT_OF_RANGE", "beyond the end")
        assert await caller.counted('code="OUT_OF_RANGE",method="Abort"')


@pytest.mark.parametrize(
    ("path", "reason", "message"),
    [
        pytest.param("/no.Such/Method", "SERVICE_NOT_FOUND", echo.SERVICE, id="an unknown service"),
        pytest.param(f"/{echo.SERVICE}/No", "METHOD_NOT_FOUND", "'No'", id="an unknown method"),
        pytest.param("/", "SERVICE_NOT_FOUND", echo.SERVICE, id="no name at all"),
    ],
)
async def test_unknown_names_are_answered_with_what_there_is(
    path: str, reason: str, message: str
) -> None:
    async with calling() as caller:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.channel.unary_unary(path)(b"")
        error = status.from_rpc_error(caught.value)
        assert (error.code, error.reason) == ("UNIMPLEMENTED", reason)
        assert message in error.message
        _, metrics = await caller.page("/metrics")
    assert "no.Such" not in metrics, "a name of the caller's invention must not become a label"


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        pytest.param([("x-request-id", "abc")], "abc", id="the caller's id comes back"),
        pytest.param([], None, id="one is made up where there is none"),
        pytest.param([("x-request-id", "x" * 200)], None, id="one is made up for a long one"),
    ],
)
async def test_request_ids(sent: Sequence[tuple[str, str]], echoed: str | None) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    traceparent = ("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01")
    async with calling() as caller:
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
            call = caller.unary("Echo", metadata=[*sent, traceparent])
            await call
            trailers = dict(tuple(await call.trailing_metadata()))
            await until(lambda: logs)
    request_id = trailers["x-request-id"]
    assert request_id == echoed or (echoed is None and re.fullmatch("[0-9a-f]{32}", request_id))
    (line,) = logs
    assert line["request_id"] == request_id
    assert line["trace_id"] == trace_id
    assert (line["service"], line["method"], line["code"]) == (echo.SERVICE, "Echo", "OK")
    assert line["duration_ms"] > 0


async def test_a_cancelled_call_ends_its_job() -> None:
    async with calling() as caller:
        (pid,) = caller.running.workers.pids
        call = caller.unary("Compute", b"60")
        await until(lambda: caller.running.workers.busy)
        call.cancel()
        assert await until(lambda: gone(pid)) < 1
        assert await caller.unary("Echo", b"next") == b"next"
        assert await caller.counted('code="CANCELLED",method="Compute"')


async def test_an_expired_deadline_ends_its_job() -> None:
    async with calling() as caller:
        (pid,) = caller.running.workers.pids
        call = asyncio.ensure_future(caller.error("Compute", b"60", timeout=1))
        await until(lambda: caller.running.workers.busy)
        assert isinstance(await call, errors.DeadlineExceededError)
        assert await until(lambda: gone(pid)) < 1
        assert await caller.unary("Echo", b"next") == b"next"
        assert await caller.counted('code="DEADLINE_EXCEEDED",method="Compute"')


async def test_a_call_without_a_deadline_gets_one() -> None:
    async with calling(max_call_s=0.5) as caller:
        error = await caller.error("Wait", b"60")
        assert isinstance(error, errors.DeadlineExceededError)
        assert "0.5 s" in error.message
        assert await caller.unary("Echo", b"next") == b"next"


async def test_a_full_queue_answers_overloaded_with_push_back(tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with calling(max_queue=0) as caller:
        call = asyncio.ensure_future(caller.unary("Fetch", bytes(go)))
        await until(lambda: caller.running.workers.busy)
        error = await caller.error("Echo")
        assert isinstance(error, errors.OverloadedError)
        assert error.retry_after_s
        go.touch()
        await call


async def test_a_worker_that_is_killed_fails_its_call_alone() -> None:
    async with calling() as caller:
        error = await caller.error("Die", b"9")
        assert isinstance(error, errors.UnavailableError)
        assert error.reason == "WORKER_DIED"
        assert await caller.unary("Echo", b"next") == b"next"


async def test_messages_over_the_limit_are_refused_and_those_at_it_are_not() -> None:
    async with calling() as caller:
        fits = b"x" * (_LIMIT - 1024)
        assert len(await caller.unary("Echo", fits)) == len(fits)
        error = await caller.error("Echo", b"x" * (_LIMIT + 1))
        assert isinstance(error, errors.MessageTooLargeError)


async def test_health_of_the_server_and_each_service_and_of_what_is_unknown() -> None:
    async with calling() as caller:
        for name in ("", echo.SERVICE):
            answer = await caller.health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.health.Check(health_pb2.HealthCheckRequest(service="no.Such"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await caller.page("/healthz"))[0] == 200
        assert (await caller.page("/readyz"))[0] == 200


async def test_health_follows_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling() as caller:
        watch = caller.health.Watch(health_pb2.HealthCheckRequest(service=echo.SERVICE))
        assert (await watch.read()).status == SERVING
        monkeypatch.setattr(caller.running.workers, "_initialize", jobs.broken_initialize)
        await caller.error("Die", b"9")
        assert (await watch.read()).status == NOT_SERVING
        assert (await caller.page("/readyz"))[0] == 503
        assert (await caller.page("/healthz"))[0] == 200
        monkeypatch.setattr(caller.running.workers, "_initialize", jobs.initialize)
        assert (await watch.read()).status == SERVING
        assert await caller.unary("Echo", b"back") == b"back"
        watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_the_services(version: str) -> None:
    async with calling() as caller:
        call = caller.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        (answer,) = [answer async for answer in call]
    names = {service.name for service in answer.list_services_response.service}
    assert {echo.SERVICE, "grpc.health.v1.Health"} <= names


async def test_metrics_say_what_happened() -> None:
    async with calling() as caller:
        await caller.unary("Echo")
        await caller.error("Refuse")
        assert await caller.counted('code="INVALID_ARGUMENT",method="Refuse"')
        _, page = await caller.page("/metrics")
    labels = f'method="Echo",service="{echo.SERVICE}"'
    refused = f'method="Refuse",service="{echo.SERVICE}"'
    for line in (
        f'aiflow_server_requests_total{{code="OK",{labels}}} 1.0',
        "aiflow_server_requests_total{" + f'code="INVALID_ARGUMENT",{refused}' + "} 1.0",
        f"aiflow_server_request_duration_seconds_count{{{labels}}} 1.0",
        "aiflow_server_inflight 0.0",
        "aiflow_workers 1.0",
        "aiflow_workers_busy 0.0",
        "aiflow_workers_queue_depth 0.0",
        "aiflow_workers_queue_wait_seconds_count 2.0",
        'aiflow_workers_restarts_total{cause="died"} 0.0',
    ):
        assert line in page.splitlines()


async def test_draining_finishes_calls_in_flight_and_takes_no_new_ones(tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with contextlib.AsyncExitStack() as server:
        running = await server.enter_async_context(serving(echo.SERVER, workers=1, drain_s=60))
        async with grpc.aio.insecure_channel(running.address) as channel:
            caller = Caller(running, channel)
            watch = caller.health.Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await watch.read()).status == SERVING
            (pid,) = running.workers.pids
            call = asyncio.ensure_future(caller.unary("Fetch", bytes(go)))
            await until(lambda: running.workers.busy)
            draining = asyncio.create_task(server.aclose())
            assert (await watch.read()).status == NOT_SERVING
            # Which of the two depends on how far gRPC has got with its shutdown.
            assert (await caller.error("Echo")).code in ("UNAVAILABLE", "CANCELLED")
            assert not call.done()
            go.touch()
            assert await call == b""
            # The health stream is still open, and not waited for.
            await asyncio.wait_for(draining, 5)
    assert gone(pid)


async def test_draining_lets_a_large_answer_reach_its_caller(tmp_path: Path) -> None:
    large, there = b"x" * (16 * 1024 * 1024), tmp_path / "there"
    # Its caller takes it in small pieces.
    limits = [("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]
    async with contextlib.AsyncExitStack() as server:
        running = await server.enter_async_context(serving(echo.SERVER, workers=1, drain_s=60))
        async with grpc.aio.insecure_channel(running.address, limits) as channel:
            call = asyncio.ensure_future(Caller(running, channel).unary("Fetch", bytes(there)))
            await until(lambda: running.workers.busy)
            draining = asyncio.create_task(server.aclose())
            (tmp_path / "part").write_bytes(large)
            (tmp_path / "part").rename(there)
            assert await call == large
            await draining


async def test_draining_ends_what_takes_too_long() -> None:
    async with contextlib.AsyncExitStack() as server:
        running = await server.enter_async_context(serving(echo.SERVER, workers=1, drain_s=0.1))
        async with grpc.aio.insecure_channel(running.address) as channel:
            (pid,) = running.workers.pids
            call = asyncio.ensure_future(Caller(running, channel).error("Compute", b"60"))
            await until(lambda: running.workers.busy)
            await asyncio.wait_for(server.aclose(), 5)
            assert gone(pid)
            assert (await call).code in ("UNAVAILABLE", "CANCELLED")


@pytest.mark.parametrize("option", ["address", "http"])
async def test_a_port_already_in_use_is_one_clear_line(option: Literal["address", "http"]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match=re.escape(address)) as caught:
            async with calling(echo.SERVER, **{option: address}):
                pass
    assert "\n" not in str(caught.value)


async def test_workers_that_do_not_start_are_one_clear_line_and_free_the_port() -> None:
    broken = dataclasses.replace(echo.SERVER, initialize=jobs.broken_initialize)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(StartError, match="No module named 'heavy'") as caught:
        async with calling(broken, address=address):
            pass
    assert "\n" not in str(caught.value)
    async with calling(address=address) as caller:
        assert await caller.unary("Echo", b"mine") == b"mine"
