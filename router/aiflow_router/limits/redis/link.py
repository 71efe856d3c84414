"""One connection to Redis that all calls share, and what becomes of it.

Commands go out together once a turn of the event loop, and answers come in the order of the
commands: a call costs Redis one command and this process a future. A Redis that does not answer in
time is away, for all that wait and for who comes next, until it answers again: so no call waits
for it twice.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import hiredis
import structlog

_log = structlog.get_logger(__name__)

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 2.0
# For a connection and what is said on it first, for which no call waits.
GREETING_S = 2.0
# While Redis is away, so often a line in the log says that it still is.
REMIND_EVERY_S = 60.0

# What Redis sent: hiredis.ReplyError where it refused.
Reply = Any
Answered = Callable[[Reply], object]
Value = str | bytes | float | int
Kind = Literal["unreachable", "closed", "timeout", "refused"]


class AwayError(Exception):
    """Redis cannot be asked now."""

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where Redis is.

    Attributes:
        host: without brackets; or `path` of a Unix socket.
        timeout_s: what is not answered in that time is away.
        username: with `password`; empty for Redis's default user.
        tls: None for none.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    timeout_s: float = 0.02
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def greeting(self) -> list[tuple[str, ...]]:
        """What is said first on each connection."""
        said: list[tuple[str, ...]] = []
        if self.password:
            said.append(
                ("AUTH", self.username, self.password) if self.username else ("AUTH", self.password)
            )
        if self.database:
            said.append(("SELECT", str(self.database)))
        return said


def backoff_s(failures: int, draw: float) -> float:
    """How long to wait after so many failures in a row; `draw` is even in [0, 1)."""
    return draw * min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures, 32))


@dataclass(slots=True)
class _Waiting:
    """A command that is not answered yet; its time runs from when it is sent."""

    future: asyncio.Future[Reply]
    orphaned: Answered | None
    ends_s: float = math.inf


class _Connection(asyncio.Protocol):
    """Bytes to and from Redis; `lost` is called once when there are no more."""

    def __init__(self, *, timeout_s: float, lost: Callable[[AwayError], None]) -> None:
        self.timeout_s = timeout_s
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[_Waiting] = deque()
        self._out: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio says so
        self._transport = transport

    def send(self, *command: Value, orphaned: Answered | None = None) -> asyncio.Future[Reply]:
        future: asyncio.Future[Reply] = self._loop.create_future()
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # any length will do
        self._waiting.append(_Waiting(future, orphaned))
        return future

    def _look_at(self, ends_s: float) -> None:
        """Looks then, or earlier, whether there is an answer."""
        if self._timer is not None:
            if self._timer.when() <= ends_s:
                return
            self._timer.cancel()  # From the greeting, which may take longer.
        self._timer = self._loop.call_at(ends_s, self._check)

    def _flush(self) -> None:
        if self._transport is not None and not self._gone:
            self._transport.write(b"".join(self._out))
            ends_s = self._loop.time() + self.timeout_s
            for waiting in islice(reversed(self._waiting), len(self._out)):
                waiting.ends_s = ends_s
            self._look_at(ends_s)
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while self._waiting and (reply := self._reader.gets()) is not False:
                self._answer(reply)
        except hiredis.ProtocolError as error:
            self.end(AwayError("refused", f"what answers there is no Redis: {error}"))

    def _answer(self, reply: Reply) -> None:
        waiting = self._waiting.popleft()
        if waiting.future.cancelled():
            if waiting.orphaned is not None:
                waiting.orphaned(reply)
        elif isinstance(reply, hiredis.ReplyError):
            waiting.future.set_exception(reply)
        else:
            waiting.future.set_result(reply)

    def _check(self) -> None:
        """What came in time was taken already: the loop reads before it looks at its timers."""
        self._timer = None
        ends_s = self._waiting[0].ends_s if self._waiting else math.inf
        if ends_s == math.inf:
            return  # Nothing is sent that is not answered; `_flush` looks again.
        if ends_s <= self._loop.time():
            self.end(AwayError("timeout", f"no answer within {self.timeout_s * 1000:g} ms"))
        else:
            self._look_at(ends_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(AwayError("closed", f"the connection ended: {exc or 'closed by Redis'}"))

    def end(self, error: AwayError) -> None:
        if self._gone:
            return
        self._gone = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        for waiting in self._waiting:
            if not waiting.future.done():
                # An error of its own, or each would keep the call of the last one alive.
                waiting.future.set_exception(AwayError(error.kind, str(error)))
        self._waiting.clear()
        self._lost(error)


class Link:
    """Connects to Redis again and again, until `run` is cancelled.

    Attributes:
        up: whether it can be asked now.
        errors: failures by kind.
        sent: commands sent.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        greet: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Beside the settings.

        Args:
            settings: where Redis is.
            greet: says what has to be said first, with `ask`; raises where Redis is of no use.
            clock: monotonic seconds.
            sleep: waits.
            draw: even in [0, 1).
        """
        self.up = False
        self.errors: Counter[str] = Counter()
        self.sent = 0
        self.settings = settings
        self._greet = greet
        self._clock, self._sleep, self._draw = clock, sleep, draw
        self._connection: _Connection | None = None
        self._ended = asyncio.Event()
        self._tried = asyncio.Event()
        self._since_s = clock()
        self._told_at_s = float("-inf")

    def ask(self, *command: Value, orphaned: Answered | None = None) -> asyncio.Future[Reply]:
        """The answer of Redis; raises AwayError now or later, and hiredis.ReplyError.

        `orphaned` gets an answer that nobody waits for any more.
        """
        if self._connection is None:
            raise AwayError("closed", "not connected")
        self.sent += 1
        return self._connection.send(*command, orphaned=orphaned)

    def give_up(self, error: AwayError) -> None:
        """Takes Redis for away, though it answers."""
        if self._connection is not None:
            self._connection.end(error)

    async def tried(self) -> None:
        """Returns when it is known whether Redis can be asked."""
        await self._tried.wait()

    async def run(self) -> None:
        """Until it is cancelled."""
        failures = 0
        try:
            while True:
                self._ended.clear()
                if await self._connected():
                    failures = 0
                    await self._ended.wait()
                failures += 1
                await self._sleep(backoff_s(failures, self._draw()))
        finally:
            self.up = False
            self.give_up(AwayError("closed", "the router ends"))

    async def _connected(self) -> bool:
        try:
            async with asyncio.timeout(GREETING_S):
                connection = await self._open()
                self._connection = connection
                # At once: no call that ends may put its command between them.
                await asyncio.gather(*(self.ask(*said) for said in self.settings.greeting()))
                await self._greet()
        except TimeoutError:
            self._failed(AwayError("timeout", f"no connection within {GREETING_S:g} s"))
        except OSError as error:
            self._failed(AwayError("unreachable", str(error)))
        except hiredis.ReplyError as error:
            self._failed(AwayError("refused", str(error)))
        except AwayError as error:
            self._failed(error)
        else:
            connection.timeout_s = self.settings.timeout_s
            self._is_up()
        self._tried.set()
        return self.up

    async def _open(self) -> _Connection:
        settings, loop = self.settings, asyncio.get_running_loop()

        def made() -> _Connection:
            return _Connection(timeout_s=GREETING_S, lost=self._lost)

        if settings.path:
            _, connection = await loop.create_unix_connection(made, settings.path)
        else:
            _, connection = await loop.create_connection(
                made, settings.host, settings.port, ssl=settings.tls
            )
        return connection

    def _is_up(self) -> None:
        self.up = True
        _log.info(
            "Redis answers: limits are decided there",
            at=self.settings.place,
            after_s=round(self._clock() - self._since_s, 3),
        )
        self._told_at_s = float("-inf")

    def _lost(self, error: AwayError) -> None:
        self._connection = None
        if self.up:
            self.up = False
            self._since_s = self._clock()
            self._failed(error)
        self._ended.set()

    def _failed(self, error: AwayError) -> None:
        self.errors[error.kind] += 1
        self.give_up(error)
        now_s = self._clock()
        if now_s - self._told_at_s >= REMIND_EVERY_S:
            self._told_at_s = now_s
            _log.warning(
                "Redis is away: each rule goes by what its `away` says",
                at=self.settings.place,
                kind=error.kind,
                error=str(error),
                for_s=round(now_s - self._since_s, 3),
            )
