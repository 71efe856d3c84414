"""Asking every endpoint something when it registers, in the background, until it has answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from aiflow_router.catalog.endpoint import Endpoint, Key

_log = structlog.get_logger(__name__)

ENDPOINTS_AT_ONCE = 8
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class _Asked:
    endpoint: Endpoint
    asking: asyncio.Task[None]


class Inquiry(Generic[T]):
    """Lives in one event loop.

    Args:
        ask: asks one endpoint; None means: ask it again, after a pause.
        take: gets the answer of an endpoint, which replaces the one before; None when it has left.
    """

    def __init__(
        self,
        *,
        ask: Callable[[Endpoint], Awaitable[T | None]],
        take: Callable[[Endpoint, T | None], None],
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._question = ask
        self._take = take
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._sleep = sleep
        self._gate = asyncio.Semaphore(ENDPOINTS_AT_ONCE)
        self._asked: dict[Key, _Asked] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def pending(self) -> int:
        """Endpoints that have not answered yet."""
        return len(self._asking)

    def endpoints(self) -> Mapping[Key, Endpoint]:
        """Those that were asked and have not left."""
        return {key: item.endpoint for key, item in self._asked.items()}

    def ask(self, endpoint: Endpoint) -> None:
        """Does nothing where this very registration was asked before."""
        asked = self._asked.get(endpoint.key)
        if asked is not None:
            if asked.endpoint is endpoint:
                return
            asked.asking.cancel()  # What it said before holds until it has answered.
        asking = asyncio.create_task(self._until_answered(endpoint))
        asking.add_done_callback(self._ended)
        self._asking.add(asking)
        self._asked[endpoint.key] = _Asked(endpoint=endpoint, asking=asking)

    def forget(self, key: Key) -> None:
        gone = self._asked.pop(key, None)
        if gone is not None:
            gone.asking.cancel()
            self._take(gone.endpoint, None)

    async def close(self) -> None:
        for task in self._asking:
            task.cancel()
        if self._asking:
            await asyncio.wait(tuple(self._asking))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("asking an endpoint failed", exc_info=error)

    async def _until_answered(self, endpoint: Endpoint) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            async with self._gate:
                answer = await self._question(endpoint)
            if answer is not None:
                self._take(endpoint, answer)
                return
            await self._sleep(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
