"""Answers given again: to equal calls of the same tenant, for a time, and never in place of a call
that was to be made."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Backend, Mesh, Seen, backend, infer, mesh, until

from aiflow_sdk import status

INFER = "/inference.GRPCInferenceService/ModelInfer"
SEQUENCE = b"\x22\x0d\x0a\x0bsequence_id"
SHARED_MEMORY = b"\x22\x16\x0a\x14shared_memory_region"


class Numbered:
    """Numbers its answers; answers while `open`, and fails with `failing`."""

    def __init__(self) -> None:
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()
        self.failing: grpc.StatusCode | None = None

    async def __call__(self, seen: Seen, context: Any) -> None:
        self.asked += 1
        number = self.asked
        seen.messages.append(await context.read())
        await self.open.wait()
        if self.failing is not None:
            await context.abort(self.failing, f"failure {number}")
        await context.write(b"answer %d" % number)


@dataclass
class Running:
    mesh: Mesh
    model: Numbered
    backend: Backend

    async def ask(
        self, request: bytes = infer("m"), **options: Any
    ) -> tuple[bytes, dict[str, Any]]:
        call = self.mesh.channel.unary_unary(INFER)(request, **options)
        return await call, dict(tuple(await call.trailing_metadata()))

    async def answers(self, *requests: bytes) -> list[bytes]:
        return [(await self.ask(request))[0] for request in requests]

    async def count(self, metric: str) -> float:
        found = re.search(rf"^{re.escape(metric)} (\S+)$", await self.mesh.metrics(), re.MULTILINE)
        return 0.0 if found is None else float(found[1])


@asynccontextmanager
async def running(cache: str = "ttl: 60s", more: str = "") -> AsyncIterator[Running]:
    model = Numbered()
    async with (
        backend(ModelInfer=model) as server,
        mesh(f"routes: [{{match: {{model: m}}, cache: {{{cache}}}}}]\n{more}") as m,
    ):
        await m.register(server.address, models=("m",), services=(), version="1")
        yield Running(mesh=m, model=model, backend=server)


async def test_an_equal_call_gets_the_answer_again_and_is_told_so() -> None:
    async with running() as run:
        first, told_first = await run.ask()
        again, told = await run.ask()
        assert (first, again, run.model.asked) == (b"answer 1", b"answer 1", 1)
        assert (told_first["x-aiflow-cache"], told["x-aiflow-cache"]) == ("miss", "hit")
        assert "x-aiflow-cache-age" not in told_first
        assert told["x-aiflow-cache-age"] == "0"
        assert told["x-aiflow-served-by"] == f"m@{run.backend.address}"
        assert "x-aiflow-attempts" not in told
        assert await run.count('aiflow_cache_total{model="m",result="hit"}') == 1
        assert await run.count('aiflow_cache_bytes{model="m"}') > len(b"answer 1")
        lines = [json.loads(line) for line in b"".join(run.mesh.log).splitlines()]
        inferences = [line for line in lines if line["method"] == INFER]
        assert [line["cache"] for line in inferences] == ["miss", "hit"]
        assert [line["attempts"] for line in inferences] == [1, 0]
        assert {line["endpoint"] for line in inferences} == {f"m@{run.backend.address}"}


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(infer("m", SEQUENCE), id="a step of a sequence"),
        pytest.param(infer("m", SHARED_MEMORY), id="tensors that are elsewhere"),
    ],
)
async def test_what_is_no_matter_of_the_bytes_alone_is_always_asked(request_: bytes) -> None:
    async with running() as run:
        assert await run.answers(request_, request_) == [b"answer 1", b"answer 2"]
        _, told = await run.ask(request_)
        assert "x-aiflow-cache" not in told


async def test_other_bytes_are_another_call() -> None:
    other = infer("m", b"\x1a\x01i")  # Another id.
    async with running() as run:
        assert await run.answers(infer("m"), other, infer("m")) == [
            b"answer 1",
            b"answer 2",
            b"answer 1",
        ]


async def test_a_large_request_is_answered_again_as_well() -> None:
    large = [infer("m", b"\x3a\x80\x80\x20" + filling * 2**19) for filling in (b"a", b"b")]
    async with running() as run:
        assert await run.answers(large[0], large[1], large[0]) == [
            b"answer 1",
            b"answer 2",
            b"answer 1",
        ]


async def test_after_its_time_an_answer_is_not_given_again() -> None:
    async with running("ttl: 100ms") as run:
        assert await run.answers(infer("m")) == [b"answer 1"]
        await asyncio.sleep(0.1)
        assert await run.answers(infer("m")) == [b"answer 2"]
        expired = 'aiflow_cache_evictions_total{model="m",reason="expired"}'
        assert await run.count(expired) == 1


async def test_nothing_of_one_tenant_is_shown_to_another() -> None:
    keys = ", ".join(
        f"{{name: {name}, tenant: {name}, sha256: {hashlib.sha256(name.encode()).hexdigest()}}}"
        for name in ("one", "two")
    )
    async with running(more=f"auth: {{keys: [{keys}]}}") as run:
        asked = [
            (await run.ask(metadata=(("x-api-key", key),) if key else ()))[0]
            for key in ("one", "two", "", "one", "two", "")
        ]
        assert asked == [b"answer 1", b"answer 2", b"answer 3"] * 2
        # Nor may one wait for the answer of another.
        run.model.open.clear()
        tasks = [
            asyncio.create_task(run.ask(infer("m", b"\x1a\x01i"), metadata=(("x-api-key", key),)))
            for key in ("one", "two")
        ]
        await until(lambda: run.model.asked == 5)
        run.model.open.set()
        assert {answer for answer, _ in await asyncio.gather(*tasks)} == {b"answer 4", b"answer 5"}


async def test_a_new_version_never_gives_an_answer_of_the_old_one() -> None:
    async with running() as run:
        assert await run.answers(infer("m"), infer("m")) == [b"answer 1", b"answer 1"]
        await run.mesh.register(run.backend.address, models=("m",), services=(), version="2")
        assert await run.answers(infer("m"), infer("m")) == [b"answer 2", b"answer 2"]


async def test_a_caller_that_skips_gets_a_new_answer_which_is_kept() -> None:
    async with running() as run:
        await run.ask()
        answer, told = await run.ask(metadata=(("x-aiflow-cache", "skip"),))
        assert (answer, told["x-aiflow-cache"]) == (b"answer 2", "skip")
        assert await run.answers(infer("m")) == [b"answer 2"]


async def test_a_failure_is_not_kept() -> None:
    async with running() as run:
        run.model.failing = grpc.StatusCode.INVALID_ARGUMENT
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError, match="failure"):
                await run.ask()
        run.model.failing = None
        assert await run.answers(infer("m")) == [b"answer 3"]


async def test_fifty_equal_calls_at_once_are_one() -> None:
    async with running() as run:
        run.model.open.clear()
        tasks = [asyncio.create_task(run.ask()) for _ in range(50)]
        await until(lambda: run.mesh.inflight() == 50)
        run.model.open.set()
        results = await asyncio.gather(*tasks)
        assert run.model.asked == 1
        assert {answer for answer, _ in results} == {b"answer 1"}
        assert sorted(told["x-aiflow-cache"] for _, told in results) == ["hit"] * 49 + ["miss"]
        assert await run.count('aiflow_cache_total{model="m",result="joined"}') == 49


async def led(run: Running, **options: Any) -> Any:
    """A call that leads, and is under way."""
    run.model.open.clear()
    call = run.mesh.channel.unary_unary(INFER)(infer("m"), **options)
    await until(lambda: run.model.asked == 1)
    return call


async def joined(run: Running, count: int, **options: Any) -> list[asyncio.Task[Any]]:
    """Calls that wait for it, in their order."""
    tasks = []
    for _ in range(count):
        before = run.mesh.inflight()
        tasks.append(asyncio.create_task(run.ask(**options)))
        await until(lambda before=before: run.mesh.inflight() > before)  # type: ignore[misc]
    return tasks


async def test_when_the_leading_call_is_cancelled_the_next_one_leads() -> None:
    async with running() as run:
        lead = await led(run)
        tasks = await joined(run, 3)
        lead.cancel()
        await until(lambda: run.model.asked == 2)
        run.model.open.set()
        assert {answer for answer, _ in await asyncio.gather(*tasks)} == {b"answer 2"}


async def test_a_leading_call_with_a_short_deadline_takes_nobody_along() -> None:
    async with running() as run:
        lead = await led(run, timeout=0.2)
        tasks = await joined(run, 3, timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await lead
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: run.model.asked == 2)
        run.model.open.set()
        assert {answer for answer, _ in await asyncio.gather(*tasks)} == {b"answer 2"}


async def test_a_call_that_waits_keeps_to_its_own_deadline() -> None:
    async with running() as run:
        lead = await led(run)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.ask(timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        run.model.open.set()
        assert (await lead, run.model.asked) == (b"answer 1", 1)


async def test_waiting_and_then_leading_take_no_more_than_the_routes_timeout() -> None:
    model = Numbered()
    routes = "routes: [{match: {model: m}, timeout: 600ms, cache: {ttl: 60s}}]"
    async with backend(ModelInfer=model) as server, mesh(routes) as m:
        await m.register(server.address, models=("m",), services=())
        run = Running(mesh=m, model=model, backend=server)
        lead = await led(run)
        await asyncio.sleep(0.3)
        started_s = time.monotonic()
        waited = await joined(run, 1)
        failed = await asyncio.gather(lead, *waited, return_exceptions=True)
        # It led from the end of the first one on, for what was left of its own time.
        assert model.asked == 2
        assert time.monotonic() - started_s < 0.85
        for error in failed:
            assert isinstance(error, grpc.aio.AioRpcError)
            assert status.from_rpc_error(error).code == "DEADLINE_EXCEEDED"


async def test_failures_are_not_waited_for_one_after_the_other() -> None:
    async with running() as run:
        run.model.failing = grpc.StatusCode.INVALID_ARGUMENT
        lead = await led(run)
        tasks = await joined(run, 10)
        run.model.open.set()
        results = await asyncio.gather(lead, *tasks, return_exceptions=True)
        failures = {
            str(result.details()) for result in results if isinstance(result, grpc.aio.AioRpcError)
        }
        # Each has its own.
        assert failures == {f"failure {number}" for number in range(1, 12)}
        run.model.failing = None
        assert (await run.ask())[0] == b"answer 12"


async def test_callers_that_all_go_away_leave_nothing_waiting() -> None:
    async with running() as run:
        lead = await led(run)
        tasks = await joined(run, 5)
        for task in tasks:
            task.cancel()
        lead.cancel()
        await until(lambda: run.mesh.inflight() == 0)
        run.model.open.set()
        assert (await run.ask())[1]["x-aiflow-cache"] == "miss"


async def test_an_answer_too_large_for_the_cache_is_given_to_all_who_wait_and_not_kept() -> None:
    large = b"x" * (200 * 1024)

    async def answers(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await asyncio.sleep(0.2)
        await context.write(large)

    async with (
        backend(ModelInfer=answers) as server,
        mesh("routes: [{match: {model: m}, cache: {ttl: 60s, max_mb: 1}}]") as m,
    ):
        await m.register(server.address, models=("m",), services=())
        ask = m.channel.unary_unary(INFER)
        assert await asyncio.gather(*(ask(infer("m")) for _ in range(5))) == [large] * 5
        assert len(server.seen) == 1
        await ask(infer("m"))
        assert len(server.seen) == 2
        assert 'aiflow_cache_bytes{model="m"} 0.0' in await m.metrics()


async def test_in_shadow_every_call_is_made_and_what_would_have_been_is_counted() -> None:
    async with running("ttl: 60s, mode: shadow") as run:
        results = [await run.ask() for _ in range(3)]
        assert [answer for answer, _ in results] == [b"answer 1", b"answer 2", b"answer 3"]
        assert not any("x-aiflow-cache" in told for _, told in results)
        assert await run.count('aiflow_cache_total{model="m",result="would_hit"}') == 2
        assert await run.count('aiflow_cache_total{model="m",result="miss"}') == 1
