"""Work that goes on beside the rest for as long as somebody wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog

_log = structlog.get_logger(__name__)

T = TypeVar("T")


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
    """Its result; who is cancelled ends after it, for half of it may be all or nothing."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # Read, or asyncio would log that nobody did.
        raise


@asynccontextmanager
async def beside(work: Coroutine[None, None, None], what: str) -> AsyncIterator[None]:
    """Until the block ends."""
    task = begun(work, what)
    try:
        yield
    finally:
        await ended(task)
