"""A call in a line of a limit, and what may happen to it in one turn of the event loop."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from aiflow_router.limits.line import placed
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.rule import Ask, Rule
from aiflow_router.rpc.visit import Visit
from aiflow_router.rpc.waiting import Waiting
from aiflow_sdk import errors


class Context:
    """What of a gRPC context is used."""

    def __init__(self, left_s: float | None) -> None:
        self._left_s = left_s

    def time_remaining(self) -> float | None:
        return self._left_s

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Nobody reads it here."""


async def test_who_is_sent_away_as_its_deadline_passes_leaves_its_line_once() -> None:
    loop = asyncio.get_running_loop()
    rule = Rule(name="a", amount=10.0, burst=1.0, wait=True, queue=1)
    asks = (Ask(rule=rule, bucket="a", cost=1.0),)
    buckets = Memory()
    waiting = Waiting(
        buckets, clock=loop.time, waited=lambda label, s: None, refused=lambda rule: None
    )

    async def take(left_s: float | None) -> Any:
        context: Any = Context(left_s)
        visit = Visit(method="/s/m", started_s=loop.time(), label="m")
        return await waiting.take(visit, asks, context, holder=str(left_s))

    assert (await take(None)).granted
    began_s = loop.time()
    late = asyncio.create_task(take(0.2))
    while not len(waiting.lines):  # noqa: ASYNC110 - polls what has no event
        await asyncio.sleep(0)
    standing = (await buckets.look(asks)).standings[0]
    more_urgent = placed(asks, asks[0], tenant="", weight=1.0, priority="high", deadline_s=math.inf)
    # In the turn in which the other is told that its time is over, before it goes.
    loop.call_at(began_s + 0.19, lambda: waiting.lines.join(more_urgent, standing, loop.time()))
    time.sleep(0.3)  # noqa: ASYNC251 - the harm that is done
    with pytest.raises(errors.OverloadedError):
        await late
    assert more_urgent.waits
    waiting.lines.leave(more_urgent)
    assert not len(waiting.lines)
