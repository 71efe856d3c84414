"""Equal calls: one asks, the others wait, and nobody waits in vain or for failure after failure."""

from __future__ import annotations

import asyncio

import pytest

from aiflow_router.caching.flight import Flight, Flights

KEY = b"k"


async def join(flights: Flights[str], *, within_s: float = 5.0) -> str | Flight[str] | None:
    flight = flights.get(KEY)
    assert flight is not None
    return await flight.joined(deadline_s=asyncio.get_running_loop().time() + within_s)


async def waiting(flights: Flights[str], count: int) -> list[asyncio.Task[object]]:
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(join(flights)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_an_answer_is_everybodys() -> None:
    flights: Flights[str] = Flights()
    lead = flights.lead(KEY)
    tasks = await waiting(flights, 3)
    lead.landed("answer")
    assert await asyncio.gather(*tasks) == ["answer"] * 3
    assert len(flights) == 0


async def test_when_the_lead_fails_the_next_in_line_leads() -> None:
    flights: Flights[str] = Flights()
    lead = flights.lead(KEY)
    tasks = await waiting(flights, 3)
    lead.failed(counts=True)
    assert await tasks[0] is lead
    assert not tasks[1].done()
    lead.landed("answer")
    assert await asyncio.gather(*tasks[1:]) == ["answer"] * 2


async def test_after_two_failures_all_ask_for_themselves() -> None:
    flights: Flights[str] = Flights()
    lead = flights.lead(KEY)
    tasks = await waiting(flights, 4)
    lead.failed(counts=True)
    lead.failed(counts=True)
    assert await asyncio.gather(*tasks) == [lead, None, None, None]
    assert flights.get(KEY) is None


async def test_leads_that_were_cancelled_are_no_failures() -> None:
    flights: Flights[str] = Flights()
    lead = flights.lead(KEY)
    tasks = await waiting(flights, 5)
    for task in tasks[:4]:
        lead.failed(counts=False)
        assert await task is lead
    lead.landed("answer")
    assert await tasks[4] == "answer"


async def test_who_leaves_before_its_turn_is_passed_over() -> None:
    flights: Flights[str] = Flights()
    lead = flights.lead(KEY)
    tasks = await waiting(flights, 2)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    lead.failed(counts=True)
    assert await tasks[1] is lead


async def test_who_is_cancelled_the_moment_it_is_given_the_lead_hands_it_on() -> None:
    flights: Flights[str] = Flights()
    lead = flights.lead(KEY)
    tasks = await waiting(flights, 2)
    lead.failed(counts=True)
    tasks[0].cancel()
    assert await tasks[1] is lead
    lead.failed(counts=False)
    assert len(flights) == 0


async def test_nobody_waits_past_its_deadline() -> None:
    flights: Flights[str] = Flights()
    lead = flights.lead(KEY)
    with pytest.raises(TimeoutError):
        await join(flights, within_s=0.01)
    lead.landed("answer")
    assert len(flights) == 0
