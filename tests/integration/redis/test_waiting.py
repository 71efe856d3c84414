"""Limits in Redis that let calls wait: lines are each router's own, the rate is shared."""

import asyncio
import time
import uuid
from typing import Any

import pytest
from fixtures.redis import Server
from integration.router.kit import Mesh, backend, echo, infer, mesh

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.mark.parametrize(
    "lease",
    [
        pytest.param("", id="asked for each call"),
        pytest.param(", lease: 100ms", id="leased"),
    ],
)
async def test_who_waits_at_two_routers_shares_one_rate(redis_server: Server, lease: str) -> None:
    config = (
        f"redis: {{url: {redis_server.url}, prefix: {uuid.uuid4().hex}, timeout: 2s}}\n"
        f"limits: [{{name: gpt, rate: 20/s, burst: 2, wait: true{lease}}}]\n"
    )

    def call(to: Mesh) -> Any:
        return to.channel.unary_unary(INFER)(infer("m"), timeout=10)

    async with backend(ModelInfer=echo) as server, mesh(config) as one, mesh(config) as other:
        for m in (one, other):
            await m.register(server.address, models=("m",))
        since_s = time.monotonic()
        answers = await asyncio.gather(*(call(m) for m in (one, other) for _ in range(8)))
        took_s = time.monotonic() - since_s
        assert answers == [infer("m")] * 16
        assert took_s < 5
        if not lease:  # A lease may take a little more at once, as it says.
            assert took_s >= 14 / 20 - 0.05
        for m in (one, other):
            assert len(m.router.front.admission.waiting.lines) == 0
