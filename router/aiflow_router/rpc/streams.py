"""Streams under way, each of which ends when its key is withdrawn: some would go on for days."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiflow_router.identity.caller import Caller
from aiflow_sdk import errors

T = TypeVar("T")

# Why the key that a caller sent is not good any more; None where it is, and where nobody can tell.
Withdrawn = Callable[[str, Caller], errors.AuthenticationError | None]


class Streams:
    """Lives in one event loop."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Task[Any], tuple[str, Caller]] = {}
        self._ended: dict[asyncio.Task[Any], errors.AuthenticationError] = {}

    async def run(self, key: str, caller: Caller, work: Awaitable[T]) -> T:
        """The result of `work`, the stream of who sent `key`.

        Raises AuthenticationError where it was withdrawn meanwhile.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - handlers run in tasks
        self._open[task] = key, caller
        try:
            return await work
        except asyncio.CancelledError:
            if (why := self._ended.get(task)) is None:
                raise
            task.uncancel()
            raise why from None
        finally:
            del self._open[task]
            self._ended.pop(task, None)

    def end(self, withdrawn: Withdrawn) -> None:
        """Ends those whose key is."""
        for task, (key, caller) in self._open.items():
            why = withdrawn(key, caller)
            if why is not None and task not in self._ended:
                self._ended[task] = why
                task.cancel()
