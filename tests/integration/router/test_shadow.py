"""Copies of calls for another model: compared, counted, bounded, and never felt by the caller."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Backend, Mesh, Seen, backend, hangs, infer, mesh, until
from tritonclient.grpc import service_pb2

from aiflow_router.routing.name import model_name

INFER = "/inference.GRPCInferenceService/ModelInfer"
SEQUENCE = b"\x22\x0d\x0a\x0bsequence_id"
Handle = Callable[[Seen, Any], Awaitable[None]]


def says(text: bytes, *, version: str = "1") -> Handle:
    async def handle(seen: Seen, context: Any) -> None:
        request = await context.read()
        seen.messages.append(request)
        answer = service_pb2.ModelInferResponse(
            model_name=model_name(request), model_version=version, raw_output_contents=[text]
        )
        await context.write(answer.SerializeToString())

    return handle


async def fails(seen: Seen, context: Any) -> None:
    seen.messages.append(await context.read())
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "asked to fail")


async def running(
    stack: AsyncExitStack, real: Handle, copy: Handle, *, rule: str = "percent: 100", more: str = ""
) -> tuple[Mesh, Backend, Backend]:
    """Model `m` answered by `real`, with copies to model `other`, which `copy` answers."""
    servers = [await stack.enter_async_context(backend(ModelInfer=h)) for h in (real, copy)]
    m = await stack.enter_async_context(
        mesh(f"routes: [{{match: {{model: m}}, shadow: {{to: other, {rule}}}{more}}}]")
    )
    for name, server in zip(("m", "other"), servers, strict=True):
        await m.register(server.address, models=(name,), services=(), backend=name)
    return m, servers[0], servers[1]


async def ask(m: Mesh, request: bytes = infer("m"), **options: Any) -> bytes:
    return bytes(await m.channel.unary_unary(INFER)(request, **options))


async def outcomes(m: Mesh) -> dict[str, float]:
    found = re.findall(
        r'^aiflow_shadow_total\{model="m",outcome="(\w+)",to="other"\} (\S+)$',
        await m.metrics(),
        re.MULTILINE,
    )
    return {outcome: float(count) for outcome, count in found}


async def counted(m: Mesh, count: int) -> dict[str, float]:
    async with asyncio.timeout(5):
        while sum((found := await outcomes(m)).values()) < count:  # noqa: ASYNC110 - a scrape has no event
            await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("real", "copy", "expected"),
    [
        pytest.param(says(b"a"), says(b"a", version="2"), "same", id="the same answer"),
        pytest.param(says(b"a"), says(b"b"), "different", id="another answer"),
        pytest.param(says(b"a"), fails, "error", id="only the copy fails"),
        pytest.param(fails, says(b"a"), "better", id="only the call fails"),
        pytest.param(fails, fails, "both_failed", id="both fail"),
    ],
)
async def test_the_outcome_is_counted(real: Handle, copy: Handle, expected: str) -> None:
    async with AsyncExitStack() as stack:
        m, _, _ = await running(stack, real, copy)
        for _ in range(3):
            if real is fails:
                with pytest.raises(grpc.aio.AioRpcError, match="asked to fail"):
                    await ask(m)
            else:
                answer = service_pb2.ModelInferResponse.FromString(await ask(m))
                assert (answer.model_name, answer.raw_output_contents) == ("m", [b"a"])
        assert await counted(m, 3) == {expected: 3}
        timed = 'aiflow_shadow_seconds_count{model="m",side="copy",to="other"} 3.0'
        assert (timed in await m.metrics()) == (expected in {"same", "different"})


async def test_a_copy_is_the_call_under_the_other_name_and_says_what_it_is() -> None:
    async with AsyncExitStack() as stack:
        m, real, copy = await running(stack, says(b"a"), says(b"a"))
        await ask(m, infer("m", b"\x1a\x01i"), metadata=(("x-aiflow-priority", "high"),))
        await counted(m, 1)
        (called,), (copied,) = real.seen, copy.seen
        sent = service_pb2.ModelInferRequest.FromString(copied.messages[0])
        assert (sent.model_name, sent.id) == ("other", "i")
        assert called.metadata["x-aiflow-priority"] == "high"
        assert "x-aiflow-shadow" not in called.metadata
        assert copied.metadata["x-aiflow-priority"] == "low"
        assert copied.metadata["x-aiflow-shadow"] == "true"
        assert copied.metadata["x-request-id"] == called.metadata["x-request-id"]


async def test_a_copy_that_hangs_is_not_felt_and_ends_by_the_other_models_timeout() -> None:
    async with AsyncExitStack() as stack:
        more = "}, {match: {model: other}, timeout: 300ms"
        m, _, _ = await running(stack, says(b"a"), hangs, more=more)
        started_s = time.monotonic()
        for _ in range(5):
            await ask(m)
        assert time.monotonic() - started_s < 0.3
        assert await counted(m, 5) == {"error": 5}
        assert {entry.inflight for entry in (await m.endpoints()).values()} == {0}


async def test_a_caller_that_cancels_takes_no_copy_along() -> None:
    async with AsyncExitStack() as stack:
        m, real, copy = await running(stack, hangs, says(b"a"))
        call = m.channel.unary_unary(INFER)(infer("m"))
        await until(lambda: bool(real.seen and copy.seen))
        call.cancel()
        assert await counted(m, 1) == {"unpaired": 1}
        assert not copy.seen[0].cancelled


async def test_no_more_copies_are_under_way_than_may_be() -> None:
    async with AsyncExitStack() as stack:
        rule = "percent: 100, max_in_flight: 2"
        m, _, copy = await running(stack, says(b"a"), hangs, rule=rule)
        for _ in range(5):
            await ask(m)
        await until(lambda: len(copy.seen) == 2)
        assert await outcomes(m) == {"dropped": 3}


async def test_a_busy_target_gets_no_copy() -> None:
    async with AsyncExitStack() as stack:
        more = "}, {match: {model: other}, overload: {limit: 1}"
        m, _, copy = await running(stack, says(b"a"), hangs, more=more)
        call = m.channel.unary_unary(INFER)(infer("other"))
        await until(lambda: len(copy.seen) == 1)
        await ask(m)
        assert await counted(m, 1) == {"dropped": 1}
        assert len(copy.seen) == 1
        call.cancel()


async def test_a_target_that_nothing_serves_is_counted_and_not_felt() -> None:
    async with (
        backend(ModelInfer=says(b"a")) as server,
        mesh("routes: [{match: {model: m}, shadow: {to: other, percent: 100}}]") as m,
    ):
        await m.register(server.address, models=("m",), services=())
        for _ in range(3):
            await ask(m)
        assert await counted(m, 3) == {"no_target": 3}


async def test_what_is_not_to_be_copied_is_not() -> None:
    async with AsyncExitStack() as stack:
        m, real, copy = await running(stack, says(b"a"), says(b"a"), more=", cache: {ttl: 60s}")
        await ask(m, infer("m", SEQUENCE))
        for _ in range(3):
            await ask(m)  # Once from the backend, then from the cache.
        await counted(m, 1)
        assert (len(real.seen), len(copy.seen)) == (2, 1)


async def test_about_the_share_that_was_asked_for_is_copied() -> None:
    async with AsyncExitStack() as stack:
        rule = "percent: 20, max_in_flight: 1000"
        m, _, copy = await running(stack, says(b"a"), says(b"a"), rule=rule)
        await asyncio.gather(*(ask(m) for _ in range(400)))
        # Eight standard deviations either way.
        assert 16 <= len(copy.seen) <= 144


async def test_a_router_that_stops_ends_the_copies() -> None:
    async with AsyncExitStack() as stack:
        m, _, copy = await running(stack, says(b"a"), hangs)
        await ask(m)
        await until(lambda: len(copy.seen) == 1)
        front = m.router.front
        await m.router.drain()
        await front.shadows.close()
        await until(lambda: copy.seen[0].cancelled)
