"""Limits that let calls wait: in fair order, as long as their deadlines allow, and no longer."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import (
    Backend,
    Mesh,
    Seen,
    backend,
    echo,
    failure_of,
    infer,
    mesh,
    until,
)

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc
from aiflow_router.limits.line import Lines
from aiflow_sdk import errors, status

PREFIX = "/inference.GRPCInferenceService"
INFER, STREAM = f"{PREFIX}/ModelInfer", f"{PREFIX}/ModelStreamInfer"
ECHO = "/a.Echo/Echo"
# One at once; the next in half a minute.
SLOW = "{name: gpt, rate: 2/min, burst: 1, wait: true}"


def lines(m: Mesh) -> Lines:
    return m.router.front.admission.waiting.lines


def waiting(m: Mesh, rule: str = "gpt") -> int:
    return lines(m).waiting().get(rule, 0)


@asynccontextmanager
async def limited(*rules: str, more: str = "") -> AsyncIterator[tuple[Mesh, Backend]]:
    async with (
        backend(ModelInfer=echo, ModelStreamInfer=echo) as server,
        mesh(f"limits: [{', '.join(rules)}]\n{more}") as m,
    ):
        await m.register(server.address, models=("m",))
        yield m, server


def call(m: Mesh, *, name: str = "", priority: str = "", key: str = "", **options: Any) -> Any:
    metadata = [("x-name", name or "any"), ("x-aiflow-priority", priority or "normal")]
    if key:
        metadata.append(("x-api-key", key))
    return m.channel.unary_unary(INFER)(infer("m"), metadata=tuple(metadata), **options)


async def trailers(call: Any) -> dict[str, Any]:
    return dict(tuple(await call.trailing_metadata()))


async def begun(call: Any) -> dict[str, Any]:
    """What its caller is told before the answer."""
    return dict(tuple(await call.initial_metadata()))


async def change(m: Mesh, document: str) -> None:
    stub = policy_pb2_grpc.PolicyServiceStub(m.channel)
    await stub.Set(policy_pb2.SetPolicyRequest(document=document))


def names(server: Backend) -> list[str]:
    return [str(seen.metadata.get("x-name", "")) for seen in server.seen]


async def test_who_is_over_the_limit_waits_for_its_turn() -> None:
    async with limited("{name: gpt, rate: 4/s, burst: 1, wait: true}") as (m, server):
        since_s = time.monotonic()
        calls = [call(m, name=str(n)) for n in range(5)]
        assert await asyncio.gather(*calls) == [infer("m")] * 5
        assert 1 <= time.monotonic() - since_s < 5
        assert names(server) == ["0", "1", "2", "3", "4"]
        told = [await begun(one) for one in calls]
        assert "x-aiflow-queue-position" not in told[0]
        assert [one["x-aiflow-queue-position"] for one in told[1:]] == ["1", "2", "3", "4"]
        assert float(told[4]["x-aiflow-queue-estimate"]) == pytest.approx(1, abs=0.25)
        assert (await trailers(calls[4]))["x-ratelimit-limit"] == "1"
        metrics = await m.metrics()
        assert 'aiflow_queue_wait_seconds_count{model="m"} 4.0' in metrics
        assert 'aiflow_ratelimit_total{result="over",rule="gpt"} 0.0' in metrics
        assert len(lines(m)) == 0


async def test_who_waits_is_told_at_once_and_the_backends_own_comes_at_the_end() -> None:
    async def greets(seen: Seen, context: Any) -> None:
        await context.send_initial_metadata((("x-hello", "early"),))
        await echo(seen, context)

    async with (
        backend(ModelInfer=greets, ModelStreamInfer=greets) as server,
        mesh("limits: [{name: gpt, rate: 2/s, burst: 1, wait: true}]") as m,
    ):
        await m.register(server.address, models=("m",))
        first = call(m)
        await first
        assert (await begun(first))["x-hello"] == "early"
        unary = call(m)
        await until(lambda: waiting(m) == 1)
        stream: Any = m.channel.stream_stream(STREAM)(iter([infer("m")]))
        told = await begun(stream)
        assert not stream.done()
        assert told["x-aiflow-queue-position"] == "2"
        assert float(told["x-aiflow-queue-estimate"]) > 0.2
        assert "x-hello" not in told
        assert await unary == infer("m")
        # grpc.aio shows it to the caller of a unary call with the answer only.
        assert (await begun(unary))["x-aiflow-queue-position"] == "1"
        assert "x-hello" not in await begun(unary)
        assert [message async for message in stream] == [infer("m")]
        for one in (unary, stream):
            assert (await trailers(one))["x-hello"] == "early"


async def test_a_deadline_that_cannot_be_kept_is_told_at_once() -> None:
    async with limited(SLOW) as (m, server):
        await call(m)
        since_s = time.monotonic()
        error = await failure_of(call(m, timeout=5))
        assert time.monotonic() - since_s < 1
        assert isinstance(error, errors.DeadlineUnreachableError)
        assert (error.code, error.reason) == ("UNAVAILABLE", "DEADLINE_UNREACHABLE")
        assert error.retry_after_s == status.NEVER_S
        assert '"gpt", 2 calls/min' in error.message
        assert error.metadata["rule"] == "gpt"
        assert len(server.seen) == 1
        metrics = await m.metrics()
        assert 'aiflow_ratelimit_total{result="over",rule="gpt"} 1.0' in metrics
        shed = 'aiflow_shed_total{model="m",priority="normal",reason="DEADLINE_UNREACHABLE"} 1.0'
        assert shed in metrics
        assert len(lines(m)) == 0


async def test_a_full_line_sheds_who_is_last_in_it() -> None:
    async with limited(SLOW.replace("wait: true", "wait: true, queue: 2")) as (m, _):
        await call(m)
        first, low = call(m), call(m, priority="low")
        await until(lambda: waiting(m) == 2)
        assert 'aiflow_queue_depth{model="m"} 2.0' in await m.metrics()
        assert 'aiflow_ratelimit_waiting{rule="gpt"} 2.0' in await m.metrics()
        newest = call(m)
        error = await failure_of(low)
        assert isinstance(error, errors.OverloadedError)
        assert (error.retry_after_s or 0) > 30
        assert isinstance(await failure_of(call(m)), errors.OverloadedError)
        for one in (first, newest):
            one.cancel()
        await until(lambda: len(lines(m)) == 0)


@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_who_goes_away_leaves_the_line_at_once(end: str) -> None:
    async with limited("{name: gpt, concurrency: 1, wait: true}") as (m, server):
        held = m.channel.stream_stream(STREAM)()
        await held.write(infer("m"))
        await held.read()
        gone = call(m, timeout=1.2 if end == "deadline" else None)
        later = call(m, name="later")
        await until(lambda: waiting(m) == 2)
        if end == "cancel":
            gone.cancel()
        else:
            error = await failure_of(gone)
            assert isinstance(error, errors.DeadlineExceededError)
        await until(lambda: waiting(m) == 1)
        await held.done_writing()
        assert await later == infer("m")
        assert names(server)[1:] == ["later"]
        assert len(lines(m)) == 0


async def test_a_place_that_comes_free_goes_to_the_first_at_once() -> None:
    release = asyncio.Event()

    async def held(seen: Seen, context: Any) -> None:
        message = await context.read()
        await release.wait()
        await context.write(message)

    async with (
        backend(ModelInfer=held) as server,
        mesh("limits: [{name: gpt, concurrency: 1, wait: true}]") as m,
    ):
        await m.register(server.address, models=("m",))
        calls = [call(m, name=str(n)) for n in range(4)]
        await until(lambda: waiting(m) == 3)
        since_s = time.monotonic()
        release.set()
        await asyncio.gather(*calls)
        assert time.monotonic() - since_s < 0.5
        assert names(server) == ["0", "1", "2", "3"]


def key(tenant: str) -> str:
    digest = hashlib.sha256(tenant.encode()).hexdigest()
    return f"{{name: {tenant}, tenant: {tenant}, sha256: {digest}, may: [call, admin]}}"


async def test_one_tenants_burst_is_behind_the_first_call_of_another() -> None:
    auth = f"auth: {{mode: optional, keys: [{key('loud')}, {key('quiet')}]}}"
    rule = "{name: gpt, rate: 20/s, burst: 1, wait: true}"
    async with limited(rule, more=auth) as (m, server):
        loud = [call(m, name="loud", key="loud") for _ in range(12)]
        await until(lambda: waiting(m) > 8)
        quiet = call(m, name="quiet", key="quiet")
        low = call(m, name="low", key="quiet", priority="low")
        high = call(m, name="high", key="loud", priority="high")
        await asyncio.gather(*loud, quiet, low, high)
        order = names(server)
        assert order.index("quiet") <= len(order) - len(loud) + 3
        assert order.index("high") < order.index("quiet") + 3
        assert order[-1] == "low"


async def test_the_longest_wait_of_several_decides() -> None:
    rules = (
        "{name: wide, rate: 40/s, burst: 1, wait: true}",
        "{name: narrow, rate: 10/s, burst: 1, wait: true}",
    )
    async with limited(*rules) as (m, server):
        since_s = time.monotonic()
        await asyncio.gather(*(call(m, name=str(n)) for n in range(5)))
        assert 0.4 <= time.monotonic() - since_s < 2
        assert names(server) == ["0", "1", "2", "3", "4"]


async def test_a_rule_that_does_not_wait_refuses_who_waits_for_another() -> None:
    rules = (
        "{name: gpt, rate: 20/s, burst: 2, wait: true}",
        "{name: all, rate: 2/min, burst: 3}",
    )
    async with limited(*rules) as (m, _):
        calls = [call(m) for _ in range(5)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        failed = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
        assert len(failed) == 2
        for one in failed:
            error = status.from_rpc_error(one)
            assert (error.reason, error.metadata["rule"]) == ("RATE_LIMITED", "all")
        assert len(lines(m)) == 0


async def test_what_never_can_be_is_refused_though_the_rule_waits() -> None:
    rule = "{name: gpt, rate: 100/min, burst: 10, cost: tokens, assume: 1, wait: true}"
    async with limited(rule) as (m, _):
        metadata = (("x-aiflow-units", "tokens=11"),)
        error = await failure_of(m.channel.unary_unary(INFER)(infer("m"), metadata=metadata))
        assert error.reason == "RATE_LIMITED"
        assert len(lines(m)) == 0


async def test_a_cheap_call_does_not_pass_a_dear_one_that_waits() -> None:
    rule = "{name: gpt, rate: 20/s, burst: 10, cost: tokens, assume: 1, wait: true}"
    async with limited(rule) as (m, server):

        def tokens(number: int) -> Any:
            metadata = (("x-aiflow-units", f"tokens={number}"), ("x-name", str(number)))
            return m.channel.unary_unary(INFER)(infer("m"), metadata=metadata)

        await tokens(9)
        dear = tokens(8)
        await until(lambda: waiting(m) == 1)
        cheap = tokens(1)
        await asyncio.gather(dear, cheap)
        assert names(server) == ["9", "8", "1"]


@pytest.mark.parametrize(
    "document",
    [
        pytest.param("limits: [{name: gpt, rate: 1000/s, wait: true}]", id="a higher rate"),
        pytest.param("limits: []", id="no rule any more"),
        pytest.param(
            "limits: [{name: gpt, rate: 2/min, burst: 1, wait: true, mode: shadow}]", id="a shadow"
        ),
    ],
)
async def test_who_waits_goes_by_the_rules_that_come(document: str) -> None:
    async with limited(SLOW) as (m, _):
        calls = [call(m) for _ in range(4)]
        await until(lambda: waiting(m) == 3)
        await change(m, document)
        async with asyncio.timeout(3):
            assert await asyncio.gather(*calls) == [infer("m")] * 4
        assert len(lines(m)) == 0


async def test_who_waits_is_refused_by_a_rule_that_waits_no_more() -> None:
    async with limited(SLOW) as (m, _):
        await call(m)
        late = call(m)
        await until(lambda: waiting(m) == 1)
        await change(m, "limits: [{name: gpt, rate: 2/min, burst: 1}]")
        assert isinstance(await failure_of(late), errors.RateLimitedError)
        assert len(lines(m)) == 0


@pytest.mark.parametrize("method", [ECHO, STREAM])
async def test_streams_and_typed_services_wait_too(method: str) -> None:
    async with limited("{name: gpt, rate: 10/s, burst: 1, wait: true}") as (m, _):
        since_s = time.monotonic()
        answers = await asyncio.gather(
            *(m.channel.unary_unary(method)(infer("m")) for _ in range(3))
        )
        assert answers == [infer("m")] * 3
        assert 0.2 <= time.monotonic() - since_s < 2


async def test_those_who_wait_are_served_during_a_drain() -> None:
    async with limited("{name: gpt, rate: 2/s, burst: 1, wait: true}") as (m, _):
        calls = [call(m) for _ in range(3)]
        await until(lambda: waiting(m) == 2)
        drained = asyncio.create_task(m.router.drain())
        assert await asyncio.gather(*calls) == [infer("m")] * 3
        await drained
