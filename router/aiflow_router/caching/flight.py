"""Equal calls that come while one is under way wait for its answer instead of asking too.

One leads and asks. An answer is everybody's. A failure is its caller's own: the next in line leads;
and when LEADERS have failed one after the other, all who still wait ask for themselves, for in turn
they would wait for each other's failures. Who is cancelled or late leaves the line, or hands the
lead on, and counts as no failure.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

LEADERS = 2


class Flights(Generic[T]):
    """Those that are under way, by key."""

    def __init__(self) -> None:
        self._under_way: dict[bytes, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def get(self, key: bytes) -> Flight[T] | None:
        return self._under_way.get(key)

    def lead(self, key: bytes) -> Flight[T]:
        """Begins one. Whoever does is to say once what came of it: `landed` or `failed`."""
        flight = self._under_way[key] = Flight(key, self._under_way)
        return flight


class Flight(Generic[T]):
    def __init__(self, key: bytes, under_way: dict[bytes, Flight[T]]) -> None:
        self._key = key
        self._under_way = under_way
        self._failures = 0
        self._waiting: deque[asyncio.Future[T | Flight[T] | None]] = deque()

    async def joined(self, *, deadline_s: float) -> T | Flight[T] | None:
        """The answer; or the flight itself: now the caller leads; or None: asks for itself.

        `deadline_s` is on the event loop's clock. Raises TimeoutError.
        """
        waiter: asyncio.Future[T | Flight[T] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await waiter
        except BaseException:
            # It may have been given the lead a moment ago.
            if waiter.done() and not waiter.cancelled() and waiter.result() is self:
                self.failed(counts=False)
            raise

    def landed(self, answer: T) -> None:
        del self._under_way[self._key]
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(answer)

    def failed(self, *, counts: bool) -> None:
        """The lead has no answer to share; `counts` where that says something of the others'."""
        self._failures += counts
        while self._waiting:
            waiter = self._waiting.popleft()
            if waiter.done():
                continue
            if self._failures < LEADERS:
                waiter.set_result(self)
                return
            waiter.set_result(None)
        del self._under_way[self._key]
