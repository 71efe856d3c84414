"""One question to Consul, asked again and again: what it waits for, and how it fails.

A question waits at Consul until there is something newer than the index it names. Around that:
- an index that goes backwards, or a failure, starts anew with a question that does not wait;
- an answer that is the same as the one before is not looked at;
- who is woken too often waits for a place in two paces, its own and everybody's, so that a backend
  that flaps cannot keep anybody busy: what it missed it sees at once when it asks again;
- failures back off with full jitter, so that all do not come back in one moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from aiflow_sdk.consul import Answer, Consul, ConsulError, ConsulFailedError

_log = structlog.get_logger(__name__)

FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 5.0
# Watches that began together end their waits apart by up to this share.
SPREAD = 0.1
# Wake-ups of one watch and of all of them. One costs about half a millisecond.
OWN_PER_S, OWN_BURST = 5.0, 10
ALL_PER_S, ALL_BURST = 200.0, 500
# While Consul fails, so often a line in the log says that it still does.
REMIND_EVERY_S = 60.0


class Pace:
    """So many a second, and so many at once.

    Never are more than `burst` + `per_s` x t places given in any time t.
    """

    def __init__(self, *, per_s: float, burst: int) -> None:
        self._every_s = 1 / per_s
        self._ahead_s = (burst - 1) / per_s
        self._next_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long until the next place."""
        return max(0.0, self._next_s - self._ahead_s - now_s)

    def take(self, now_s: float) -> float:
        """Takes the next place; it is in so many seconds."""
        wait_s = self.wait_s(now_s)
        self._next_s = max(now_s, self._next_s) + self._every_s
        return wait_s


def next_index(before: int, got: int) -> int:
    """What to name in the next question; 0: ask without waiting.

    An index that went backwards means another state of Consul, of which nothing is known; and one
    below 1 would not wait, though Consul should never give it.
    """
    return 0 if got < before else max(1, got)


def backoff_s(failures: int, draw: float) -> float:
    """How long to wait after so many failures in a row; `draw` is even in [0, 1)."""
    return draw * min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures, 32))


def wait_of(path: str, wait_s: float, *, watches: int, connections: int) -> float:
    """How long a question may wait.

    Each path a little shorter than `wait_s`, by its hash; and where there are more watches than
    connections, so short that each has its turn within `wait_s`.
    """
    spread = zlib.crc32(path.encode()) / 2**32
    return wait_s * (1 - SPREAD * spread) * min(1.0, connections / max(1, watches))


@dataclass(slots=True)
class Book:
    """What became of all watches.

    Attributes:
        clock: monotonic seconds.
        not_heard: called when a watch failed.
        errors: failures by kind.
        heard_at_s: of each watch by its path: when it was answered last, or else began.
    """

    clock: Callable[[], float]
    not_heard: Callable[[], object]
    errors: Counter[str] = field(default_factory=Counter)
    heard_at_s: dict[str, float] = field(default_factory=dict)
    _doubted_at_s: float = float("-inf")
    _failing: dict[str, str] = field(default_factory=dict)
    _since_s: float = 0.0
    _told_at_s: float = float("-inf")

    @property
    def watches(self) -> int:
        return len(self.heard_at_s)

    @property
    def failing(self) -> str:
        """The last error of a watch that fails now; empty where none does."""
        return next(reversed(self._failing.values()), "")

    def age_s(self) -> float:
        """How long ago that part of the view was told that is the oldest."""
        now_s = self.clock()
        return now_s - min(self.heard_at_s.values(), default=now_s)

    def in_doubt(self, grace_s: float) -> bool:
        """Whether bad news proves nothing: a watch fails, or there was trouble so shortly ago."""
        return bool(self._failing) or self.clock() < self._doubted_at_s + grace_s

    def begins(self, path: str, *, ago_s: float = 0.0) -> None:
        """A watch of `path` begins, with what was told of it so long ago."""
        self.heard_at_s[path] = self.clock() - ago_s

    def ends(self, path: str) -> None:
        del self.heard_at_s[path]
        self._well(path)

    def answered(self, path: str, *, ago_s: float = 0.0) -> None:
        """What was told was true so long ago, as far as the server that answered knows."""
        self.heard_at_s[path] = self.clock() - ago_s
        self._well(path)

    def failed(self, path: str, error: ConsulError) -> None:
        now_s = self.clock()
        self.errors[error.kind] += 1
        if not self._failing:
            self._since_s = now_s
        self._failing.pop(path, None)
        self._failing[path] = str(error)
        self.not_heard()
        if now_s - self._told_at_s >= REMIND_EVERY_S:
            self._told_at_s = now_s
            _log.warning(
                "Consul fails: calls go on with the last view",
                kind=error.kind,
                error=str(error),
                watches=len(self._failing),
                for_s=round(now_s - self._since_s, 1),
            )

    def _well(self, path: str) -> None:
        if self._failing.pop(path, None) is None:
            return
        self._doubted_at_s = self.clock()
        if not self._failing:
            _log.info("Consul answers again", after_s=round(self.clock() - self._since_s, 1))
            self._told_at_s = float("-inf")

    def went_back(self, path: str, *, before: int, got: int) -> None:
        self.errors["index_backwards"] += 1
        self._doubted_at_s = self.clock()
        _log.warning(
            "Consul's index went backwards, as after a restart: asking anew",
            path=path,
            before=before,
            got=got,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What all watches of one Consul have in common.

    Attributes:
        wait_s: how long a question may wait.
        connections: how many may wait at once.
        turns: as many places as `connections`.
        pace: everybody's.
    """

    consul: Consul
    book: Book
    wait_s: float
    connections: int
    turns: asyncio.Semaphore
    pace: Pace = field(default_factory=lambda: Pace(per_s=ALL_PER_S, burst=ALL_BURST))
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    draw: Callable[[], float] = random.random


class Watch:
    """Asks one `path`; `take` gets the body of each answer that is another than the one before.

    `take` raises ConsulError where the body is not what it should be.
    """

    def __init__(
        self,
        asking: Asking,
        path: str,
        take: Callable[[Any], None],
        *,
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        """`turns` is given to a watch that need not take turns with the others."""
        self._asking = asking
        self._path = path
        self._take = take
        self._turns = turns or asking.turns
        self._pace = Pace(per_s=OWN_PER_S, burst=OWN_BURST)
        self._index = 0
        self._digest = b""

    async def run(self) -> None:
        """Until it is cancelled."""
        failures = 0
        while True:
            await self._place()
            try:
                await self._once()
                failures = 0
            except ConsulError as error:
                failures += 1
                self._index = 0
                self._asking.book.failed(self._path, error)
                await self._asking.sleep(backoff_s(failures, self._asking.draw()))

    async def _place(self) -> None:
        now_s = self._asking.book.clock()
        wait_s = max(self._pace.take(now_s), self._asking.pace.take(now_s))
        if wait_s > 0:
            await self._asking.sleep(wait_s)

    async def _once(self) -> None:
        answer = await self._ask()
        book = self._asking.book
        if not answer.known_leader:
            raise ConsulFailedError(
                f"{self._path}: the server that answered knows no leader, so what it tells may be "
                "old; see the log of the Consul servers"
            )
        if answer.index < self._index:
            book.went_back(self._path, before=self._index, got=answer.index)
        digest = hashlib.blake2b(answer.raw, digest_size=16).digest()
        if digest != self._digest:
            self._take(answer.body)
            self._digest = digest
        self._index = next_index(self._index, answer.index)
        book.answered(self._path, ago_s=answer.last_contact_s)

    async def _ask(self) -> Answer:
        asking = self._asking
        async with self._turns:
            if not self._index:
                return await asking.consul.get(self._path)
            wait_s = wait_of(
                self._path,
                asking.wait_s,
                watches=asking.book.watches,
                connections=asking.connections,
            )
            return await asking.consul.get(self._path, index=self._index, wait_s=wait_s)
