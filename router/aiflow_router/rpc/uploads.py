"""Requests of unary calls on their way in, and how long one may take.

All are looked at together now and then: a timer for each would be paid by every call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc.aio

from aiflow_router.tasks import moment
from aiflow_sdk import errors

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the stubs only

# A 64 MB request comes in this time over 10 Mbit/s.
WITHIN_S = 60.0
LOOK_EVERY_S = 5.0
GONE_AFTER_S = 0.001


class Uploads:
    """Lives in one event loop; `within_s` holds to within the time between two looks."""

    def __init__(self, *, clock: Callable[[], float], within_s: float) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._within_s = within_s
        self._since_s: dict[asyncio.Task[Any], float] = {}  # oldest first
        self._late: set[asyncio.Task[Any]] = set()

    async def receive(self, context: Context, *, since_s: float) -> bytes:
        """The request of a call that came at `since_s`.

        Raises BadInputError where none comes, DeadlineExceededError.
        """
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 - handlers run in tasks
        self._since_s[task] = since_s
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            self._late.discard(task)
            task.uncancel()
            raise errors.DeadlineExceededError(
                f"the request did not come within {self._within_s:g} s: send less at a time, or "
                "over a faster connection"
            ) from None
        finally:
            del self._since_s[task]
        if isinstance(message, bytes):
            return message
        # A caller that goes away ends its messages too, and only a moment later is this task
        # cancelled.
        await moment(GONE_AFTER_S)
        raise errors.BadInputError(
            "the call ended without a whole request message: send one, even if it is empty",
            violations={"request": "is missing or cut short"},
        )

    def look(self) -> None:
        """Ends those that take too long."""
        begun_before_s = self._clock() - self._within_s
        for task, since_s in self._since_s.items():
            if since_s > begun_before_s:
                break
            self._late.add(task)
            task.cancel()

    async def watch(self, *, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            self.look()
