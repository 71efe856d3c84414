"""What is used of quotas, kept in the database: a restart gives nobody a new one.

Written each second as what has been added since, and read back in the same statement. So routers
that share a database but no Redis add up, and each knows what the others had used when it last
wrote: until then it may grant what is left by its own count. What was used in the last second
before a process was killed is forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from aiflow_router.limits.memory import Memory
from aiflow_router.limits.quota import Quota, period_of
from aiflow_router.storage.database import StorageError, reading
from aiflow_router.storage.tables.quotas import QUOTAS
from aiflow_router.tasks import begun, ended, whole

_log = structlog.get_logger(__name__)

EVERY_S = 1.0
# A database that answers nobody does not hold up the end.
END_WITHIN_S = 2.0
# Rows of one statement: SQLite takes 32766 values.
_ROWS = 500
# Of periods that are over; somebody may want to look at last month's.
_KEPT_DAYS = 62

Key = tuple[str, str]
"""Bucket and period."""


class KeptQuotas:
    """Lives in one event loop."""

    def __init__(
        self,
        memory: Memory,
        engine: AsyncEngine,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._memory = memory
        self._engine = engine
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._written_s = clock()
        self._failing = False

    def age_s(self) -> float:
        """Since all that was used was written."""
        return self._clock() - self._written_s

    async def load(self) -> None:
        """Takes over what is used of this day and month. Raises StorageError."""
        now_s = self._wall()
        periods = (period_of("day", now_s)[0], period_of("month", now_s)[0])
        try:
            async with reading(self._engine) as connection:
                found = await connection.execute(
                    select(QUOTAS.c.bucket, QUOTAS.c.period, QUOTAS.c.used).where(
                        QUOTAS.c.period.in_(periods)
                    )
                )
                self._memory.restore({(row.bucket, row.period): row.used for row in found})
            async with self._engine.begin() as connection:
                oldest = datetime.fromtimestamp(now_s, UTC) - timedelta(days=_KEPT_DAYS)
                await connection.execute(delete(QUOTAS).where(QUOTAS.c.period < f"{oldest:%Y-%m}"))
        except SQLAlchemyError as error:
            raise StorageError(f"what is used of quotas cannot be read: {error}") from error

    async def run(self) -> None:
        """Writes each second, until it is cancelled; a write that fails is made up for later."""
        while True:
            await self._sleep(EVERY_S)
            try:
                # Cut off in its commit it would be told again, and count twice.
                await whole(self.write())
            except (SQLAlchemyError, OSError) as error:
                if not self._failing:
                    _log.error("what is used of quotas is not written", why=str(error))
                self._failing = True
            else:
                if self._failing:
                    _log.info("what is used of quotas is written again")
                self._failing = False

    async def write(self) -> None:
        """Raises SQLAlchemyError and OSError; then nothing of it counts as written."""
        began_s = self._clock()
        untold = self._memory.quotas()
        for at in range(0, len(untold), _ROWS):
            await self._write(untold[at : at + _ROWS])
        self._written_s = began_s

    async def _write(self, quotas: Sequence[tuple[str, Quota]]) -> None:
        added = {(name, quota.period): quota.untold for name, quota in quotas}
        for _, quota in quotas:
            quota.untold = 0.0
        try:
            async with self._engine.begin() as connection:
                used = await _added(connection, added)
        except BaseException:
            for name, quota in quotas:
                quota.untold += added.get((name, quota.period), 0.0)
            raise
        for name, quota in quotas:
            if (now := used.get((name, quota.period))) is not None:
                # With what others have used, and what has come here since.
                quota.used = now + quota.untold


async def _added(connection: AsyncConnection, added: Mapping[Key, float]) -> Mapping[Key, float]:
    """Adds to what is used; what it comes to."""
    # Always in one order, or two routers could wait for each other for ever.
    rows = [
        {"bucket": bucket, "period": period, "used": used}
        for (bucket, period), used in sorted(added.items())
    ]
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(QUOTAS).values(rows)
    written = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[QUOTAS.c.bucket, QUOTAS.c.period],
            set_={"used": QUOTAS.c.used + statement.excluded.used},
        ).returning(QUOTAS.c.bucket, QUOTAS.c.period, QUOTAS.c.used)
    )
    return {(row.bucket, row.period): row.used for row in written}


@asynccontextmanager
async def keeping(memory: Memory, engine: AsyncEngine) -> AsyncIterator[KeptQuotas]:
    """Begins with what is used, and writes what is added until the block ends.

    Raises StorageError.
    """
    kept = KeptQuotas(memory, engine)
    await kept.load()
    task = begun(kept.run(), "writing what is used of quotas")
    try:
        yield kept
    finally:
        await ended(task, within_s=END_WITHIN_S)
        try:
            async with asyncio.timeout(END_WITHIN_S):
                await kept.write()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.error("what was used of quotas in the last second is lost", why=str(error))
