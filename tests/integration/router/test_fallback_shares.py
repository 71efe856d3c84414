"""`deadline_share`: how much of a call's time each candidate may take."""

import asyncio
import time
from typing import Any

import pytest
from integration.router.fallback_kit import ask, refusal, routed
from integration.router.kit import Seen, echo, hangs, infer, until


async def test_a_first_candidate_that_hangs_is_cancelled_after_its_share() -> None:
    half = "fallback: {to: [b], deadline_share: 50%}"
    async with routed(half, {"a": hangs, "b": echo}) as (m, servers):
        started_s = time.monotonic()
        answer, told = await ask(m, timeout=1.0)
        assert 0.4 < time.monotonic() - started_s < 0.9
        assert answer == infer("b")
        assert told["x-aiflow-fallback"] == "deadline_share"
        await until(lambda: servers["a"].seen[0].cancelled)
        assert (servers["a"].seen[0].time_remaining_s or 0) <= 0.51
        assert 0.2 < (servers["b"].seen[0].time_remaining_s or 0) <= 0.51
        assert 'aiflow_attempts_total{backend="a",outcome="ROUTE_TIMEOUT"} 1.0' in (
            await m.metrics()
        )


async def test_several_candidates_part_the_share_and_the_deadline_is_one_for_all() -> None:
    more = "timeout: 900ms, fallback: {to: [b, c], deadline_share: 60%}"
    async with routed(more, {"a": hangs, "b": hangs, "c": hangs}) as (m, servers):
        started_s = time.monotonic()
        error = await refusal(m)
        assert 0.8 < time.monotonic() - started_s < 1.3
        assert error.code == "DEADLINE_EXCEEDED"
        first, second, third = (servers[name].seen[0].due_s for name in "abc")
        assert [second - first, third - second] == pytest.approx([0.27, 0.36], abs=0.1)


async def test_with_nobody_to_take_over_the_first_candidate_has_all_the_time() -> None:
    async def slow(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await asyncio.sleep(0.5)
        await context.write(b"answer")

    share = "fallback: {to: [never], deadline_share: 20%}"
    async with routed(share, {"a": slow}) as (m, _):
        assert (await ask(m, timeout=1.5))[0] == b"answer"
