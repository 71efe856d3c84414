"""Group commit: one writer takes all that was asked for meanwhile into one transaction.

A commit waits for the disk, or for a server. Were each operation a commit of its own, a few hundred
in a second would be the end of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from aiflow_router.accounts.operation import Operation, Outcome

_log = structlog.get_logger(__name__)

MOST_AT_ONCE = 500
# A server that does not answer by then is taken for dead.
WITHIN_S = 5.0
AGAIN_S = 0.05
AGAIN_AT_MOST_S = 1.0

Write = Callable[[Sequence[Operation]], Awaitable[Sequence[Outcome]]]


class UnwrittenError(Exception):
    """The database could not be asked, or did not say whether it is done."""


@dataclass(slots=True, kw_only=True)
class _Asked:
    """`until_s`: it is tried again until then, by the loop's clock."""

    operation: Operation
    until_s: float
    done: asyncio.Future[Outcome] = field(repr=False)


class Commits:
    """Lives in one event loop.

    Args:
        write: does them all, or none.

    Attributes:
        commits: how many there were; `batch` how many operations in them.
        away: why the last try failed; empty where it went well.
    """

    def __init__(
        self,
        write: Write,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._write = write
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        self._asked: deque[_Asked] = deque()
        self._some = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._failures = 0
        self.commits = 0
        self.written = 0
        self.failed = 0
        self.away = ""

    @property
    def waiting(self) -> int:
        return len(self._asked)

    def ask(self, operation: Operation, *, patience_s: float = 0.0) -> asyncio.Future[Outcome]:
        """What will come of it; UnwrittenError where the database is away for so long.

        A future that is cancelled before its turn is not done at all.
        """
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        asked = _Asked(operation=operation, until_s=self._clock() + patience_s, done=done)
        self._asked.append(asked)
        self._some.set()
        self._idle.clear()
        return done

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._some.wait()
            batch = self._taken()
            if batch:
                await self._try(batch)
            if not self._asked:
                self._some.clear()
                self._idle.set()
            elif self._failures:
                await self._pause()

    async def idle(self) -> None:
        """Returns when nothing is left to write."""
        await self._idle.wait()

    def _taken(self) -> list[_Asked]:
        batch: list[_Asked] = []
        while self._asked and len(batch) < MOST_AT_ONCE:
            asked = self._asked.popleft()
            if not asked.done.cancelled():
                batch.append(asked)
        return batch

    async def _pause(self) -> None:
        most_s = min(AGAIN_AT_MOST_S, AGAIN_S * 2 ** min(self._failures, 10))
        await self._sleep(most_s * (0.5 + self._rng() / 2))

    async def _try(self, batch: list[_Asked]) -> None:
        try:
            async with asyncio.timeout(WITHIN_S):
                outcomes = await self._write([asked.operation for asked in batch])
        except asyncio.CancelledError:
            self._asked.extendleft(reversed(batch))
            raise
        except Exception as error:  # noqa: BLE001 - each who asked is told
            if _away(error):
                self._put_off(batch, error)
            elif len(batch) > 1:
                # Something is wrong with one of them, which must not be the others' end.
                for asked in batch:
                    await self._try([asked])
            else:
                self._give_up(batch[0], error)
            return
        if self.away:
            _log.info("the database of credits is back", was_away=self.away)
        self._failures, self.away = 0, ""
        self.commits += 1
        self.written += len(batch)
        for asked, outcome in zip(batch, outcomes, strict=True):
            if not asked.done.done():
                asked.done.set_result(outcome)

    def _put_off(self, batch: list[_Asked], error: Exception) -> None:
        why = _words(error)
        if not self.away:
            _log.error("the database of credits cannot be used", error=why)
        self._failures += 1
        self.failed += 1
        self.away = why
        now_s = self._clock()
        for asked in reversed(batch):
            if asked.until_s > now_s:
                self._asked.appendleft(asked)
            elif not asked.done.done():
                asked.done.set_exception(UnwrittenError(why))

    def _give_up(self, asked: _Asked, error: Exception) -> None:
        self.failed += 1
        _log.error("the ledger could not do this", operation=asked.operation, exc_info=error)
        if not asked.done.done():
            asked.done.set_exception(UnwrittenError(_words(error)))


def _away(error: Exception) -> bool:
    """Whether it says nothing of what was to be written."""
    if isinstance(error, OSError | TimeoutError | PoolTimeoutError):
        return True
    if isinstance(error, OperationalError | InterfaceError | InternalError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it did not answer within {WITHIN_S:g} s"
    if isinstance(error, SQLAlchemyError):
        error = getattr(error, "orig", None) or error
    return (str(error).strip() or type(error).__name__).splitlines()[0]
