"""What is used, added up in memory and written each second.

A batch has a number and is added to the table under it, so that one whose commit was not answered
is not added twice. Who is killed loses what it had not written: a second's worth. The ledger, not
this, is what is paid by.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any, Protocol

import structlog
from sqlalchemy import delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from aiflow_router.storage.tables.usage import USAGE, USAGE_WRITERS

_log = structlog.get_logger(__name__)

EVERY_S = 1.0
WITHIN_S = 5.0
CLOSE_WITHIN_S = 5.0
# A writer that was silent for so long is gone and will not ask about its last batch.
WRITER_GONE_S = 24 * 3600.0
# Rows in a statement: SQLite takes some 32,000 values.
_AT_ONCE = 1_000


class Caller(Protocol):
    """See `identity.caller.Caller`."""

    @property
    def tenant(self) -> str: ...

    @property
    def department(self) -> str: ...

    @property
    def member(self) -> str: ...

    @property
    def key(self) -> str: ...


class Ended(Protocol):
    """What is added up of a call that has ended: see `rpc.visit.Visit`."""

    @property
    def caller(self) -> Caller: ...

    @property
    def label(self) -> str:
        """The model or service."""

    @property
    def code(self) -> str: ...

    @property
    def counted(self) -> bool:
        """Whether it asked a model or service to do something."""

    @property
    def took(self) -> Mapping[str, float]:
        """What it used, as its backend or else its caller says: tokens, pixels, gpu-ms."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def credits(self) -> int:
        """What it paid, in micro-credits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Whose, and of what; as the table has it."""

    day: str
    tenant: str
    department: str
    member: str
    key: str
    model: str


@dataclass(slots=True, kw_only=True)
class Sum:
    calls: int = 0
    failed: int = 0
    tokens: float = 0.0
    pixels: float = 0.0
    gpu_ms: float = 0.0
    bytes: int = 0
    credits: int = 0


KEYS = tuple(field.name for field in fields(Key))
SUMS = tuple(field.name for field in fields(Sum))


class Usage:
    """Lives in one event loop.

    Attributes:
        unwritten: rows that are to be written.
        written_s: when all was, by `clock`.
    """

    def __init__(self, engine: AsyncEngine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._writer = uuid.uuid4().hex
        self._batch = 0
        self._sums: dict[Key, Sum] = {}
        self._sending: dict[Key, Sum] = {}
        self._away = ""
        self.written_s = clock()

    @property
    def unwritten(self) -> int:
        return len(self._sums) + len(self._sending)

    def age_s(self) -> float:
        """For how long something has been waiting to be written."""
        return self._clock() - self.written_s if self.unwritten else 0.0

    def add(self, ended: Iterable[Ended]) -> None:
        day = time.strftime("%Y-%m-%d", time.gmtime(self._clock()))
        for call in ended:
            if call.counted:
                self._add(day, call)

    def _add(self, day: str, call: Ended) -> None:
        caller = call.caller
        key = Key(
            day=day,
            tenant=caller.tenant,
            department=caller.department,
            member=caller.member,
            key=caller.key,
            model=call.label,
        )
        found = self._sums.get(key)
        if found is None:
            found = self._sums[key] = Sum()
        found.calls += 1
        found.failed += call.code != "OK"
        found.bytes += call.size_bytes
        found.credits += call.credits
        took = call.took
        if took:
            found.tokens += took.get("tokens", 0.0)
            found.pixels += took.get("pixels", 0.0)
            found.gpu_ms += took.get("gpu-ms", 0.0)

    async def run(self, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Until it is cancelled."""
        await self._forget_writers()
        while True:
            await sleep(EVERY_S)
            await self.write()

    async def close(self) -> None:
        """Writes what is left, where the database lets it."""
        # What was being written when this was asked for, and what came since.
        for _ in range(2):
            await self.write(within_s=CLOSE_WITHIN_S)
        if left := self.unwritten:
            _log.error("what was used could not be written and is lost", rows=left)

    async def write(self, *, within_s: float = WITHIN_S) -> bool:
        """Whether all that there was is written; what is not is tried again the next time."""
        if not self._sending:
            self._sending, self._sums = self._sums, {}
            self._batch += 1
        if self._sending:
            try:
                async with asyncio.timeout(within_s), self._engine.begin() as connection:
                    await self._put(connection)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                self._failed(error)
                return False
        if self._away:
            _log.info("what was used is written again", was_away=self._away)
            self._away = ""
        self._sending = {}
        self.written_s = self._clock()
        return True

    def _failed(self, error: Exception) -> None:
        said = str(getattr(error, "orig", None) or error) or "it did not answer in time"
        why = said.splitlines()[0]
        if not self._away:
            _log.error("what was used cannot be written just now", error=why)
        self._away = why

    async def _put(self, connection: AsyncConnection) -> None:
        insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert
        writer = {"writer": self._writer, "batch": 0, "at_s": self._clock()}
        await connection.execute(insert(USAGE_WRITERS).values(writer).on_conflict_do_nothing())
        first_time = await connection.execute(
            update(USAGE_WRITERS)
            .where(USAGE_WRITERS.c.writer == self._writer, USAGE_WRITERS.c.batch < self._batch)
            .values(batch=self._batch, at_s=self._clock())
        )
        if not first_time.rowcount:
            return
        # In one order everywhere, so that no two writers wait for one another.
        items = sorted(self._sending.items(), key=lambda item: astuple(item[0]))
        for start in range(0, len(items), _AT_ONCE):
            rows = [
                {
                    **dict(zip(KEYS, astuple(key), strict=True)),
                    **dict(zip(SUMS, astuple(found), strict=True)),
                }
                for key, found in items[start : start + _AT_ONCE]
            ]
            put = insert(USAGE).values(rows)
            added = {name: USAGE.c[name] + put.excluded[name] for name in SUMS}
            await connection.execute(
                put.on_conflict_do_update(index_elements=list(KEYS), set_=added)
            )

    async def _forget_writers(self) -> None:
        before_s = self._clock() - WRITER_GONE_S
        try:
            async with self._engine.begin() as connection:
                await connection.execute(
                    delete(USAGE_WRITERS).where(USAGE_WRITERS.c.at_s < before_s)
                )
        except (SQLAlchemyError, OSError) as error:
            self._failed(error)
