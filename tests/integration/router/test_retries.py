"""Second tries and hedges: made where they are safe, within the budget, and seen afterwards."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Backend, Mesh, Seen, backend, hangs, infer, lost, mesh, until

from aiflow_sdk import errors, status

INFER = "/inference.GRPCInferenceService/ModelInfer"
Handle = Callable[[Seen, Any], Awaitable[None]]


async def answers(seen: Seen, context: Any) -> None:
    seen.messages.append(await context.read())
    await context.write(b"answer")


def unavailable(*pushback: str) -> Handle:
    async def handle(_: Seen, context: Any) -> None:
        trailers = tuple(("grpc-retry-pushback-ms", value) for value in pushback)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not now", trailers)

    return handle


async def running(
    stack: AsyncExitStack, routes: str, *handles: Handle
) -> tuple[Mesh, list[Backend]]:
    """A router with `routes` and a backend for each of `handles`."""
    servers = [await stack.enter_async_context(backend(ModelInfer=handle)) for handle in handles]
    m = await stack.enter_async_context(mesh(f"routes: [{{match: {{model: m}}, {routes}}}]"))
    for server in servers:
        await m.register(server.address, models=("m",))
    return m, servers


async def ask(m: Mesh, **options: Any) -> tuple[bytes, dict[str, Any]]:
    call = m.channel.unary_unary(INFER)(infer("m"), **options)
    return await call, dict(tuple(await call.trailing_metadata()))


async def failure(m: Mesh, **options: Any) -> errors.AiflowError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await m.channel.unary_unary(INFER)(infer("m"), **options)
    return status.from_rpc_error(caught.value)


async def test_a_black_holed_endpoint_costs_one_try_and_no_call() -> None:
    async with AsyncExitStack() as stack:
        m, (hole, _) = await running(
            stack, "retry: {per_try_timeout: 200ms}, balance: round_robin", hangs, answers
        )
        started_s = time.monotonic()
        results = await asyncio.gather(*(ask(m, timeout=5) for _ in range(10)))
        assert time.monotonic() - started_s < 2
        assert {answer for answer, _ in results} == {b"answer"}
        tried_twice = [told for _, told in results if told["x-aiflow-attempts"] == "2"]
        assert len(tried_twice) == len(hole.seen) == 5
        await until(lambda: all(seen.cancelled for seen in hole.seen))
        assert 'outcome="PER_TRY_TIMEOUT"} 5.0' in await m.metrics()


async def test_the_last_try_has_all_the_time_that_is_left() -> None:
    async def slow(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await asyncio.sleep(0.5)
        await context.write(b"answer")

    async with AsyncExitStack() as stack:
        m, _ = await running(stack, "retry: {per_try_timeout: 100ms}", slow, slow)
        answer, told = await ask(m, timeout=5)
        assert (answer, told["x-aiflow-attempts"]) == (b"answer", "2")


async def test_a_try_that_no_other_may_follow_has_all_the_time() -> None:
    async def slow(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await asyncio.sleep(0.3)
        await context.write(b"answer")

    async with AsyncExitStack() as stack:
        m, servers = await running(stack, "retry: {per_try_timeout: 50ms}", slow, slow)
        step = infer("m", b"\x22\x0d\x0a\x0bsequence_id")
        assert await m.channel.unary_unary(INFER)(step, timeout=5) == b"answer"
        assert sum(len(server.seen) for server in servers) == 1


async def test_a_short_push_back_is_waited_for_and_a_long_one_is_left_to_the_caller() -> None:
    async with AsyncExitStack() as stack:
        m, _ = await running(stack, "balance: round_robin", unavailable("300"), answers)
        started_s = time.monotonic()
        told = [(await ask(m))[1]["x-aiflow-attempts"] for _ in range(2)]
        assert sorted(told) == ["1", "2"]
        assert time.monotonic() - started_s >= 0.3
    for pushback in ("5000", "-1", "soon"):
        async with AsyncExitStack() as stack:
            m, servers = await running(stack, "timeout: 3s", *2 * (unavailable(pushback),))
            error = await failure(m)
            assert (error.code, error.message) == ("UNAVAILABLE", "not now")
            assert sum(len(server.seen) for server in servers) == 1


async def test_no_more_calls_retry_at_once_than_the_budget_allows() -> None:
    most = now = 0
    asked: set[bytes] = set()

    async def second_try_is_slow(seen: Seen, context: Any) -> None:
        nonlocal most, now
        name = str(seen.metadata["x-request-id"]).encode()
        if name not in asked:
            asked.add(name)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        await context.write(b"answer")

    async with AsyncExitStack() as stack:
        budget = "timeout: 3s, retry: {budget: 10%, budget_floor: 2}"
        m, _ = await running(stack, budget, *2 * (second_try_is_slow,))
        results = await asyncio.gather(*(ask(m) for _ in range(20)))
        assert {answer for answer, _ in results} == {b"answer"}
        assert 1 <= most <= 2


async def test_a_call_that_gets_no_place_in_the_budget_fails_with_what_it_had() -> None:
    async with AsyncExitStack() as stack:
        none = "retry: {budget: 0%, budget_floor: 0}"
        m, servers = await running(stack, none, *2 * (unavailable(),))
        error = await failure(m)
        assert (error.code, error.message) == ("UNAVAILABLE", "not now")
        assert sum(len(server.seen) for server in servers) == 1
        assert 'aiflow_retry_budget_exhausted_total{model="m"} 1.0' in await m.metrics()


async def test_a_hedge_answers_for_an_endpoint_that_hangs_and_the_loser_is_cancelled() -> None:
    async with AsyncExitStack() as stack:
        m, (hole, _) = await running(
            stack, "hedge: {after: 500ms}, balance: round_robin", hangs, answers
        )
        results = [await ask(m, timeout=5) for _ in range(4)]
        assert {answer for answer, _ in results} == {b"answer"}
        told = [told["x-aiflow-attempts"] for _, told in results]
        assert sorted(told) == ["1", "1", "2", "2"]
        assert not any(hole.address in told["x-aiflow-served-by"] for _, told in results)
        await until(lambda: all(seen.cancelled for seen in hole.seen))
        assert 'aiflow_hedges_total{model="m",result="won"} 2.0' in await m.metrics()
        assert {entry.inflight for entry in (await m.endpoints()).values()} == {0}


async def test_a_retry_in_shadow_is_counted_and_not_made() -> None:
    would = 'aiflow_retries_shadow_total{model="m",reason="unavailable"}'
    async with AsyncExitStack() as stack:
        m, servers = await running(stack, "retry: {mode: shadow}", unavailable(), unavailable())
        error = await failure(m)
        assert (error.code, error.message) == ("UNAVAILABLE", "not now")
        assert sum(len(server.seen) for server in servers) == 1
        assert f"{would} 1.0" in await m.metrics()
        # What may not be repeated would not have been, nor what was asked to be left alone.
        step = infer("m", b"\x22\x0d\x0a\x0bsequence_id")
        with pytest.raises(grpc.aio.AioRpcError):
            await m.channel.unary_unary(INFER)(step)
        assert f"{would} 1.0" in await m.metrics()


async def test_a_second_endpoint_instead_of_one_out_of_reach_is_counted_in_shadow() -> None:
    async with AsyncExitStack() as stack:
        m, servers = await running(
            stack, "retry: {mode: shadow}, balance: round_robin", answers, answers
        )
        await servers[0].server.stop(None)
        await lost(m, servers[0].address)
        results = await asyncio.gather(*(ask(m) for _ in range(2)), return_exceptions=True)
        assert sum(isinstance(result, grpc.aio.AioRpcError) for result in results) == 1
        would = 'aiflow_retries_shadow_total{model="m",reason="unreachable"} 1.0'
        assert would in await m.metrics()


async def test_a_try_in_shadow_may_take_longer_than_its_time_which_is_counted() -> None:
    async def slow(_: Seen, context: Any) -> None:
        await asyncio.sleep(0.2)
        await context.write(b"answer")

    async with AsyncExitStack() as stack:
        rule = "retry: {mode: shadow, per_try_timeout: 50ms}"
        m, _ = await running(stack, rule, slow, slow)
        answer, told = await ask(m)
        assert (answer, told["x-aiflow-attempts"]) == (b"answer", "1")
        would = 'aiflow_retries_shadow_total{model="m",reason="per_try_timeout"} 1.0'
        assert would in await m.metrics()


async def test_a_hedge_in_shadow_is_counted_and_not_made() -> None:
    async def slow(_: Seen, context: Any) -> None:
        await asyncio.sleep(0.2)
        await context.write(b"answer")

    async with AsyncExitStack() as stack:
        m, servers = await running(stack, "hedge: {after: 50ms, mode: shadow}", slow, slow)
        assert (await ask(m))[1]["x-aiflow-attempts"] == "1"
        assert sum(len(server.seen) for server in servers) == 1
        assert 'aiflow_hedges_shadow_total{model="m"} 1.0' in await m.metrics()


async def test_retries_and_hedges_that_are_off_are_not_made() -> None:
    async with AsyncExitStack() as stack:
        rule = "retry: {mode: off}, hedge: {mode: off}"
        m, servers = await running(stack, rule, unavailable(), unavailable())
        await failure(m)
        assert sum(len(server.seen) for server in servers) == 1
        assert "_shadow_total{" not in await m.metrics()


async def test_what_may_not_be_repeated_is_not_hedged() -> None:
    async with AsyncExitStack() as stack:
        m, servers = await running(stack, "hedge: {after: 50ms}, timeout: 300ms", hangs, hangs)
        with pytest.raises(grpc.aio.AioRpcError):
            await m.channel.unary_unary(INFER)(infer("m", b"\x22\x0d\x0a\x0bsequence_id"))
        assert sum(len(server.seen) for server in servers) == 1


async def test_a_hedge_that_fails_leaves_the_first_endpoint_its_time() -> None:
    async def slow(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await asyncio.sleep(0.3)
        await context.write(b"answer")

    async with AsyncExitStack() as stack:
        m, (first, _) = await running(
            stack, "hedge: {after: 50ms}, balance: round_robin", slow, unavailable()
        )
        results = [await ask(m, timeout=5) for _ in range(2)]
        assert {answer for answer, _ in results} == {b"answer"}
        assert all(first.address in told["x-aiflow-served-by"] for _, told in results)


async def test_a_caller_that_cancels_a_hedged_call_frees_both_endpoints() -> None:
    async with AsyncExitStack() as stack:
        m, servers = await running(stack, "hedge: {after: 50ms}", hangs, hangs)
        call = m.channel.unary_unary(INFER)(infer("m"))
        await until(lambda: all(server.seen for server in servers))
        call.cancel()
        await until(lambda: all(seen.cancelled for server in servers for seen in server.seen))
        await until(lambda: m.inflight() == 0)
        assert {entry.inflight for entry in (await m.endpoints()).values()} == {0}


async def test_hedges_are_bounded_by_the_retry_budget() -> None:
    async with AsyncExitStack() as stack:
        m, servers = await running(
            stack,
            "hedge: {after: 20ms}, timeout: 500ms, retry: {budget: 0%, budget_floor: 2}",
            *2 * (hangs,),
        )
        await asyncio.gather(*(failure(m) for _ in range(10)))
        assert sum(len(server.seen) for server in servers) == 12
        assert 'aiflow_hedges_total{model="m",result="over_budget"} 8.0' in await m.metrics()
