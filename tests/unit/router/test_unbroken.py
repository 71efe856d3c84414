"""A cancellation ends the waiting for an operation, not the operation."""

from __future__ import annotations

import asyncio

import pytest

from aiflow_router.forwarding.unbroken import unbroken


async def test_gives_the_result_of_an_operation_that_waits_several_times() -> None:
    async def work() -> int:
        await asyncio.wait_for(asyncio.get_running_loop().create_future(), 0.001)
        raise AssertionError

    async def twice() -> str:
        first: asyncio.Future[str] = loop.create_future()
        second: asyncio.Future[str] = loop.create_future()
        loop.call_soon(first.set_result, "o")
        loop.call_soon(second.set_result, "k")
        return await first + await second

    loop = asyncio.get_running_loop()
    assert await unbroken(twice()) == "ok"
    with pytest.raises(TimeoutError):
        await unbroken(work())


async def test_raises_what_the_operation_raises() -> None:
    async def work() -> None:
        failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failing.set_exception(ValueError("as told"))
        await failing

    with pytest.raises(ValueError, match="as told"):
        await unbroken(work())


async def test_a_cancelled_waiter_leaves_the_operation_to_its_end() -> None:
    ended: list[str] = []
    loop = asyncio.get_running_loop()
    batches: list[asyncio.Future[str]] = [loop.create_future() for _ in range(2)]

    async def work() -> None:
        ended.append(await batches[0])
        ended.append(await batches[1])

    waiting = asyncio.create_task(unbroken(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert not any(batch.cancelled() for batch in batches)
    for number, batch in enumerate(batches):
        batch.set_result(f"batch {number}")
        await asyncio.sleep(0)
    assert ended == ["batch 0", "batch 1"]


async def test_an_abandoned_operation_may_fail_without_anybody_hearing_of_it() -> None:
    heard: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    batch: asyncio.Future[None] = loop.create_future()

    async def work() -> None:
        await batch

    waiting = asyncio.create_task(unbroken(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    batch.set_exception(RuntimeError("nobody's"))
    await asyncio.sleep(0)
    assert heard == []
