"""`mode` of a fallback: in shadow it is only counted, and off it is not there."""

import asyncio
from typing import Any

from integration.router.fallback_kit import ask, refusal, routed, unavailable
from integration.router.kit import Seen, echo, hangs, until


async def test_in_shadow_a_call_fails_as_without_and_is_counted() -> None:
    shadow = "fallback: {to: [b], mode: shadow}"
    async with routed(shadow, {"a": unavailable, "b": echo}) as (m, servers):
        assert (await refusal(m)).message == "not now"
        assert not servers["b"].seen
        text = await m.metrics()
        assert 'aiflow_fallback_shadow_total{from="a",reason="unavailable",to="b"} 1.0' in text
        assert "aiflow_fallback_total{" not in text


async def test_in_shadow_an_answer_past_the_share_is_counted_and_waited_for() -> None:
    async def slow(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await asyncio.sleep(0.2)
        await context.write(b"answer")

    shadow = "fallback: {to: [b], deadline_share: 10%, mode: shadow}"
    async with routed(shadow, {"a": slow, "b": echo}) as (m, _):
        assert (await ask(m, timeout=1))[0] == b"answer"
        counted = 'aiflow_fallback_shadow_total{from="a",reason="deadline_share",to="b"} 1.0'
        assert counted in await m.metrics()


async def test_in_shadow_a_call_whose_time_is_up_is_counted() -> None:
    shadow = "timeout: 200ms, fallback: {to: [b], deadline_share: 10%, mode: shadow}"
    async with routed(shadow, {"a": hangs, "b": echo}) as (m, _):
        for due_s in (5.0, 0.1):  # The route's time, and the caller's.
            assert (await refusal(m, timeout=due_s)).code == "DEADLINE_EXCEEDED"
        await until(lambda: m.inflight() == 0)
        counted = 'aiflow_fallback_shadow_total{from="a",reason="deadline_share",to="b"} 2.0'
        assert counted in await m.metrics()


async def test_off_is_off() -> None:
    async with routed("fallback: {to: [b], mode: off}", {"a": unavailable, "b": echo}) as (m, _):
        assert (await refusal(m)).message == "not now"
