"""Explain says which limits a call would meet, and takes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from integration.router.kit import until
from integration.router.limits_kit import Limited, keys, limited, of

from aiflow.admin.v1 import explain_pb2, explain_pb2_grpc

RULES = (
    "limits: [{name: all, rate: 10/s}, {name: t, per: [tenant], match: {model: m}, rate: 1/h, "
    "burst: 2}, {name: s, quota: 1/day, mode: shadow}, {name: n, match: {model: n}, rate: 1/h}]"
)


ADMIN = keys("admin", "acme").replace("tenant: admin,", "tenant: admin, may: [call, admin],")


async def explained(to: Limited, **asked: Any) -> explain_pb2.ExplainResponse:
    ask: Any = explain_pb2_grpc.ExplainServiceStub(to.mesh.channel).Explain
    answer: explain_pb2.ExplainResponse = await ask(
        explain_pb2.ExplainRequest(model="m", **asked), metadata=of("admin")
    )
    return answer


async def test_what_is_left_is_told_and_not_taken() -> None:
    async with limited(ADMIN + RULES) as to:
        await to.infer(metadata=of("acme"))
        for _ in range(5):
            told = await explained(to, tenant="acme")
        found = {limit.rule: limit for limit in told.limits}
        assert list(found) == ["all", "t", "s"]
        assert (found["t"].bucket, found["t"].holds) == ("t|acme", 2)
        assert 1 <= found["t"].remaining < 1.1
        assert found["t"].says == "1 calls/h for each tenant"
        assert found["t"].by == "memory"
        assert (found["s"].shadow, found["s"].wait_s) == (True, -1)
        assert not told.refusals
        beta = await explained(to, tenant="beta")
        assert {limit.rule: limit.remaining for limit in beta.limits}["t"] == 2


async def test_what_would_be_refused_is_told_as_the_call_would_be() -> None:
    async with limited(ADMIN + RULES) as to:
        assert await to.granted(3, metadata=of("acme")) == 2
        told = await explained(to, tenant="acme")
        assert told.verdict.startswith(
            'refused: RESOURCE_EXHAUSTED/RATE_LIMITED: over the limit "t"'
        )
        assert "try again in 1 h 0 min, " in told.verdict
        assert told.refusals[0].reason == "RATE_LIMITED"
        assert told.refusals[0].when == "such a call of t|acme now"
        assert 3500 < told.refusals[0].retry_after_s <= 3600


async def test_who_would_wait_is_told_so() -> None:
    async with limited(ADMIN + "limits: [{name: w, rate: 1/h, wait: true}]") as to:
        await to.infer(metadata=of("acme"))
        told = await explained(to)
        assert told.verdict.startswith('waits for the limit "w"')
        assert told.limits[0].waits
        assert not told.refusals


async def test_a_place_in_the_line_is_told_with_how_long_it_takes() -> None:
    async with limited(ADMIN + "limits: [{name: w, rate: 30/min, burst: 1, wait: true}]") as to:
        await to.infer(metadata=of("acme"))
        waiting = [asyncio.create_task(to.infer(metadata=of("acme"))) for _ in range(3)]
        admission = to.mesh.router.front.admission
        await until(lambda: admission.waits()["w"] == 3)
        told = await explained(to, tenant="acme")
        (limit,) = told.limits
        assert (limit.waiting, limit.ahead) == (3, 3)
        assert 6 < limit.wait_s <= 8  # 2 s for each before it, and its own.
        assert "behind 3 others" in told.verdict
        # Another tenant has its fair share.
        (limit,) = (await explained(to, tenant="beta")).limits
        assert limit.ahead <= 1
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await until(lambda: admission.waits()["w"] == 0)
