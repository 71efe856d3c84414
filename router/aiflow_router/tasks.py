"""Work that goes on beside the rest for as long as somebody wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

_log = structlog.get_logger(__name__)

T = TypeVar("T")

# From the news of a read or of a cancellation to the last of those that wait for it: about four.
_TURNS = 8


def begun(work: Coroutine[None, None, None], what: str) -> asyncio.Task[None]:
    """A task that never ends by itself; where it fails the log says what is not done any more."""

    def report(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error(f"{what}: that is not done any more", exc_info=error)

    task = asyncio.create_task(work)
    task.add_done_callback(report)
    return task


async def ended(*tasks: asyncio.Task[None], within_s: float | None = None) -> bool:
    """Cancels them; whether all of them have ended within that time."""
    for task in tasks:
        task.cancel()
    _, late = await asyncio.wait(tasks, timeout=within_s)
    return not late


async def whole(work: Coroutine[None, None, T]) -> T:
    """Its result; who is cancelled ends only after it, for half of it may be all or nothing."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # Read, or asyncio would log that nobody did.
        raise


async def moment(seconds: float, *, unless: asyncio.Future[Any] | None = None) -> None:
    """Over once what came within that time was heard too, or `unless` is done.

    A timer alone is no help where the loop was held: then it is due in the same turn in which the
    news comes, which takes some turns more to get to those whom it concerns.
    """
    if unless is None:
        await asyncio.sleep(seconds)
    else:
        await asyncio.wait((unless,), timeout=seconds)
    for _ in range(_TURNS):
        if unless is not None and unless.done():
            return
        await asyncio.sleep(0)


@asynccontextmanager
async def beside(work: Coroutine[None, None, None], what: str) -> AsyncIterator[None]:
    """Until the block ends."""
    task = begun(work, what)
    try:
        yield
    finally:
        await ended(task)
