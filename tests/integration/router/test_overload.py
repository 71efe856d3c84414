"""More calls than a backend can take: some wait, some are told to come back, none is lost."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from google.protobuf import wrappers_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from integration.router.kit import (
    Backend,
    Handle,
    Held,
    Mesh,
    Seen,
    backend,
    echo,
    failure_of,
    infer,
    mesh,
    until,
)
from integration.router.typed_service import SERVICE, shop

from aiflow.registry.v1 import registry_pb2
from aiflow_router.limits.overload import Gates
from aiflow_sdk import errors, status

PREFIX = "/inference.GRPCInferenceService"
INFER, STREAM = f"{PREFIX}/ModelInfer", f"{PREFIX}/ModelStreamInfer"
ECHO = "/a.Echo/Echo"


def route(overload: str, *, due: str = "15s") -> str:
    routes = (
        f"{{match: {match}, timeout: {due}, overload: {overload}}}"
        for match in ("{model: m}", "{service: a.Echo}")
    )
    return f"routes: [{', '.join(routes)}]"


def gates(m: Mesh, name: str = "m") -> Gates:
    return next(found for known, found in m.router.front.table.gates() if known == name)


async def metrics(m: Mesh) -> dict[str, float]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{m.router.http_address}/metrics") as answer,
    ):
        lines = [line for line in (await answer.text()).splitlines() if "#" not in line]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@asynccontextmanager
async def held(overload: str, *, due: str = "15s") -> AsyncIterator[tuple[Mesh, Backend, Held]]:
    hold = Held()
    async with (
        backend(ModelInfer=hold, ModelStreamInfer=echo, ModelReady=echo) as server,
        mesh(route(overload, due=due)) as m,
    ):
        await m.register(server.address, models=("m",))
        yield m, server, hold


def call(m: Mesh, priority: str = "normal", **options: Any) -> Any:
    return m.channel.unary_unary(INFER)(
        infer("m"), metadata=(("x-aiflow-priority", priority),), **options
    )


async def test_what_has_no_room_is_shed_with_a_delay_to_come_back_after() -> None:
    async with held("{limit: 1, queue: 1}") as (m, server, hold):
        inside, waiting = call(m), call(m)
        await until(lambda: gates(m).unary.waiting == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(m, "low")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        trailing = dict(tuple(caught.value.trailing_metadata() or ()))
        details = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert details.details[0].Unpack(info)
        assert (info.domain, info.reason) == ("aiflow", "OVERLOADED")
        assert details.details[1].Unpack(retry)
        delay_ms = retry.retry_delay.ToMilliseconds()
        assert 1000 <= delay_ms <= 1500
        assert trailing["grpc-retry-pushback-ms"] == str(delay_ms)
        assert trailing["retry-after"] in ("1", "2")
        assert trailing["x-aiflow-served-by"] == "router"
        seen = await metrics(m)
        assert seen['aiflow_queue_depth{model="m"}'] == 1
        assert seen['aiflow_concurrency_limit{model="m"}'] == 1
        shed = 'aiflow_shed_total{model="m",priority="low",reason="OVERLOADED"}'
        assert seen[shed] == 1
        hold.go.set()
        assert await inside == await waiting == infer("m")
        assert len(server.seen) == 2
        assert (await metrics(m))['aiflow_queue_wait_seconds_count{model="m"}'] == 1
        await until(lambda: b'"reason":"OVERLOADED"' in b"".join(m.log))


async def test_a_full_queue_makes_room_for_who_matters_more() -> None:
    async with held("{limit: 1, queue: 1}") as (m, _, hold):
        inside, low = call(m), call(m, "low")
        await until(lambda: gates(m).unary.waiting == 1)
        high = call(m, "high")
        error = await failure_of(low)
        assert isinstance(error, errors.OverloadedError)
        assert error.retry_after_s
        hold.go.set()
        assert await inside == await high == infer("m")


async def test_a_deadline_that_cannot_be_kept_is_told_at_once() -> None:
    async def slow(seen: Seen, context: Any) -> None:
        await asyncio.sleep(0.5)
        await context.write(await context.read())

    async with backend(ModelInfer=slow) as server, mesh(route("{limit: 1}")) as m:
        await m.register(server.address, models=("m",))
        await call(m)
        inside = call(m)
        await until(lambda: gates(m).unary.inflight == 1)
        asked_s = time.monotonic()
        error = await failure_of(call(m, timeout=0.4))
        assert time.monotonic() - asked_s < 0.3
        assert isinstance(error, errors.DeadlineUnreachableError)
        assert (error.code, error.reason) == ("UNAVAILABLE", "DEADLINE_UNREACHABLE")
        assert error.retry_after_s == status.NEVER_S
        await inside
        assert len(server.seen) == 2
        await until(lambda: b'"reason":"DEADLINE_UNREACHABLE"' in b"".join(m.log))


async def test_a_waiter_that_goes_away_frees_its_place() -> None:
    async with held("{limit: 1, queue: 1}") as (m, server, hold):
        inside, gone = call(m), call(m)
        await until(lambda: gates(m).unary.waiting == 1)
        gone.cancel()
        await until(lambda: gates(m).unary.waiting == 0)
        late = call(m, timeout=0.1)
        assert isinstance(await failure_of(late), errors.DeadlineExceededError)
        await until(lambda: gates(m).unary.waiting == 0)
        waiting = call(m)
        await until(lambda: gates(m).unary.waiting == 1)
        hold.go.set()
        await asyncio.gather(inside, waiting)
        assert len(server.seen) == 2
        # Its caller's clock may be the first to end the late one, which is a cancel to the router.
        refused = gates(m).unary.refused
        assert refused.total() == 2
        assert refused["normal", "CANCELLED"] >= 1


async def test_the_routes_timeout_counts_while_a_call_waits() -> None:
    async with held("{limit: 1}", due="200ms") as (m, server, _):
        inside = m.channel.stream_stream(STREAM)()
        await inside.write(infer("m"))
        await inside.read()
        error = await failure_of(call(m))
        assert isinstance(error, errors.DeadlineExceededError)
        assert "busy" in error.message
        assert len(server.seen) == 1
        inside.cancel()
        await until(gates(m).idle)


@pytest.mark.parametrize("method", [INFER, ECHO, STREAM])
@pytest.mark.parametrize("end", ["answer", "status", "nobody", "cancel", "deadline"])
async def test_every_way_out_gives_the_place_back(method: str, end: str) -> None:
    hold = Held()

    async def aborting(seen: Seen, context: Any) -> None:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")

    handle: Handle = {"answer": echo, "status": aborting}.get(end, hold)
    methods = dict.fromkeys(("ModelInfer", "Echo", "ModelStreamInfer"), handle)
    async with backend(**methods) as server, mesh(route("{limit: 1, queue: 0}")) as m:
        address = "127.0.0.1:1" if end == "nobody" else server.address
        await m.register(address, models=("m",))
        name = "a.Echo" if method == ECHO else "m"
        for _ in range(3):
            timeout = 0.05 if end == "deadline" else 5
            sent = m.channel.unary_unary(method)(infer("m"), timeout=timeout)
            if end == "cancel":
                await until(lambda: gates(m, name).stream.inflight == 1)
                sent.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sent
            elif end == "answer":
                await sent
            else:
                error = await failure_of(sent)
                assert error.reason != "OVERLOADED"
            await until(gates(m, name).idle)


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_call_that_is_inside_counts_when_endpoints_change(leaves: bool) -> None:
    hold = Held()
    config = route("{limit: 1, queue: 0}")
    async with backend(ModelInfer=hold) as server, backend() as other, mesh(config) as m:
        lease = await m.register(server.address, models=("m",))
        inside = call(m)
        await until(lambda: gates(m).unary.inflight == 1)
        if leaves:
            await m.registry.Deregister(registry_pb2.DeregisterRequest(lease_id=lease))
            assert isinstance(await failure_of(call(m)), errors.NoEndpointError)
        await m.register(other.address, models=("m",))
        assert isinstance(await failure_of(call(m)), errors.OverloadedError)
        hold.go.set()
        await inside
        await call(m)


async def test_health_registry_and_reads_pass_a_full_gate() -> None:
    async with held("{limit: 1, queue: 0}") as (m, server, hold):
        inside = call(m)
        await until(lambda: gates(m).unary.inflight == 1)
        assert isinstance(await failure_of(call(m)), errors.OverloadedError)
        ready = m.channel.unary_unary(f"{PREFIX}/ModelReady")
        assert await ready(infer("m")) == infer("m")
        health: Any = health_pb2_grpc.HealthStub(m.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="m"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert server.address in await m.endpoints()
        assert (await metrics(m))['aiflow_concurrency_limit{model="m"}'] == 1
        hold.go.set()
        await inside


async def test_streams_count_for_a_fixed_limit_and_wait() -> None:
    async with held("{limit: 1, queue: 1}", due="300ms") as (m, _, _hold):
        first = m.channel.stream_stream(STREAM)()
        await first.write(infer("m"))
        await first.read()
        second = m.channel.stream_stream(STREAM)()
        await second.write(infer("m"))
        await until(lambda: gates(m).stream.waiting == 1)
        # Without a deadline of its own it waits as long as an answer might take, not for ever.
        error = await failure_of(second.read())
        assert isinstance(error, errors.OverloadedError)
        third = m.channel.stream_stream(STREAM)()
        await third.write(infer("m"))
        await until(lambda: gates(m).stream.waiting == 1)
        await first.done_writing()
        assert await third.read() == infer("m")
        await third.done_writing()
        assert await third.read() is grpc.aio.EOF


async def test_idle_streams_do_not_stop_up_an_adaptive_limit() -> None:
    async with (
        backend(ModelStreamInfer=echo) as server,
        mesh(route("{limit: adaptive, min: 1, max: 3, queue: 0}")) as m,
    ):
        await m.register(server.address, models=("m",))
        streams = [m.channel.stream_stream(STREAM)() for _ in range(3)]
        for stream in streams:
            await stream.write(infer("m"))
            await stream.read()
        assert await call(m) == infer("m")
        another = m.channel.stream_stream(STREAM)()
        await another.write(infer("m"))
        assert isinstance(await failure_of(another.read()), errors.OverloadedError)
        for stream in streams:
            stream.cancel()


@pytest.mark.parametrize("reflect", [True, False])
async def test_a_typed_service_has_a_gate_too(reflect: bool) -> None:
    config = f"routes: [{{match: {{service: {SERVICE}}}, overload: {{limit: 1, queue: 0}}}}]"
    async with shop(reflect=reflect) as (address, server), mesh(config) as m:
        await m.register(address, services=(SERVICE,))
        await until(lambda: m.router.kinds.pending() == 0)

        def get(value: str) -> Any:
            text = wrappers_pb2.StringValue(value=value).SerializeToString()
            return m.channel.unary_unary(f"/{SERVICE}/Get")(text)

        inside = get("hang")
        await until(lambda: "hang" in server.seen)
        assert isinstance(await failure_of(get("x")), errors.OverloadedError)
        inside.cancel()
        await until(gates(m, SERVICE).idle)
        await get("x")


async def test_shadow_counts_and_lets_pass() -> None:
    async with held("{limit: 1, queue: 1, mode: shadow}") as (m, server, hold):
        calls = [call(m) for _ in range(4)]
        await until(lambda: len(server.seen) == 4)
        seen = await metrics(m)
        shadow = 'aiflow_shed_shadow_total{model="m",priority="normal",reason="OVERLOADED"}'
        assert seen[shadow] == 2
        assert not any(name.startswith("aiflow_shed_total{") for name in seen)
        hold.go.set()
        await asyncio.gather(*calls)
        assert gates(m).idle()


async def test_off_is_off() -> None:
    async with held("{mode: off}") as (m, server, hold):
        calls = [call(m) for _ in range(4)]
        await until(lambda: len(server.seen) == 4)
        assert 'aiflow_concurrency_limit{model="m"}' not in await metrics(m)
        hold.go.set()
        await asyncio.gather(*calls)


async def test_those_who_wait_are_served_during_a_drain() -> None:
    async with held("{limit: 1, queue: 4}") as (m, _, hold):
        calls = [call(m) for _ in range(4)]
        await until(lambda: gates(m).unary.waiting == 3)
        drained = asyncio.create_task(m.router.drain())
        await until(lambda: m.router.front.draining)
        assert isinstance(await failure_of(call(m)), errors.DrainingError)
        hold.go.set()
        assert await asyncio.gather(*calls) == [infer("m")] * 4
        await drained
        assert gates(m).idle()


SERVICE_S, SLOTS = 0.05, 2


async def busy(m: Mesh, *, seconds: float, rates: dict[str, float], **options: Any) -> Counter[str]:
    """Calls of each priority at its rate, whether they are answered or not; how they ended."""
    ends: Counter[str] = Counter()

    async def one(priority: str) -> None:
        try:
            await call(m, priority, **options)
        except grpc.aio.AioRpcError as failure:
            error = status.from_rpc_error(failure)
            assert (error.retry_after_s or 0) > 0 or error.reason != "OVERLOADED"
            ends[f"{priority} {error.reason}"] += 1
        else:
            ends[f"{priority} OK"] += 1

    rng, end_s = random.Random(1), time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:

        async def come(priority: str, rate: float) -> None:
            while time.monotonic() < end_s:
                group.create_task(one(priority))
                await asyncio.sleep(rng.expovariate(rate))

        for priority, rate in rates.items():
            group.create_task(come(priority, rate))
    return ends


@asynccontextmanager
async def two_slots(overload: str) -> AsyncIterator[tuple[Mesh, Backend]]:
    slots = asyncio.Semaphore(SLOTS)

    async def work(seen: Seen, context: Any) -> None:
        message = await context.read()
        async with slots:
            await asyncio.sleep(SERVICE_S)
        await context.write(message)

    async with backend(ModelInfer=work) as server, mesh(route(overload)) as m:
        await m.register(server.address, models=("m",))
        yield m, server


async def test_four_times_overloaded_the_high_priority_calls_all_succeed() -> None:
    async with two_slots("{limit: 2, queue: 16}") as (m, _):
        ends = await busy(m, seconds=2, rates={"high": 15, "low": 145})
    assert ends["high OK"] == sum(n for end, n in ends.items() if end.startswith("high")) > 10
    assert ends["low OVERLOADED"] > ends["low OK"] > 0
    assert not set(ends) - {"high OK", "low OK", "low OVERLOADED"}


@pytest.mark.parametrize("limit", ["3", "adaptive, min: 1"])
async def test_three_times_overloaded_the_backend_stays_as_useful_as_it_can_be(limit: str) -> None:
    async with two_slots(f"{{limit: {limit}, queue: 8}}") as (m, server):
        ends = await busy(m, seconds=2, rates={"normal": 3 * SLOTS / SERVICE_S}, timeout=0.5)
        assert gates(m).unary.limit <= 12
    # Hardly any of what the backend works on is for callers that have given up.
    assert ends["normal OK"] > 0.8 * len(server.seen) > 0
    assert ends["normal OVERLOADED"] + ends["normal DEADLINE_UNREACHABLE"] > ends["normal OK"]
