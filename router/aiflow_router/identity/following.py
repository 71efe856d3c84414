"""Keeps a directory as the database is: looks each second, and at once where it is told to.

While the database cannot be asked, calls go by what is known, and a metric tells how old that is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from aiflow_router.identity import records
from aiflow_router.identity.caller import Caller
from aiflow_router.identity.directory import Directory
from aiflow_router.storage import notices
from aiflow_router.storage.database import reading
from aiflow_router.storage.tables.tenancy import KEYS

_log = structlog.get_logger(__name__)

EVERY_S = 1.0
# A look that takes longer is given up, and tried again.
LOOK_WITHIN_S = 10.0
USED_EVERY_S = 60.0
# Keys whose last use is written in one transaction: others want to write too.
USED_AT_ONCE = 1000
# So much apart are the tries to hear of changes while nobody tells of them.
DEAF_MIN_S, DEAF_MAX_S = 0.5, 5.0

Sleep = Callable[[float], Awaitable[None]]


class Following:
    """What keeps `directory` as the database of `engine` is."""

    def __init__(
        self,
        directory: Directory,
        engine: AsyncEngine,
        *,
        sleep: Sleep = asyncio.sleep,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._directory = directory
        self._engine = engine
        self._sleep = sleep
        self._wall = wall
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._why = ""

    async def load(self) -> None:
        """Reads all there is. Raises SQLAlchemyError."""
        began_s = time.perf_counter()
        async with reading(self._engine) as connection:
            await self._read_all(connection)
        _log.info(
            "keys are known",
            keys=len(self._directory),
            took_s=round(time.perf_counter() - began_s, 2),
        )

    async def run(self) -> None:
        """Looks for changes until it is cancelled."""
        directory = self._directory
        while True:
            try:
                async with asyncio.timeout(LOOK_WITHIN_S):
                    more = await self.look()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                more = False
                self._lost(error)
                # A nudge is no help now, and whoever nudges does so again and again.
                await self._sleep(EVERY_S)
            else:
                self._found()
            if not more:
                await directory.nudged(within_s=EVERY_S)

    async def look(self) -> bool:
        """Takes in what has changed, by a page of the audit log; whether there may be more.

        Raises SQLAlchemyError.
        """
        directory = self._directory
        async with reading(self._engine) as connection:
            found = await records.changes(connection, after=directory.number)
            if found.number is None:
                _log.warning("the audit log is another one: all keys are read anew")
                await self._read_all(connection)
                return False
            for where in found.key_filters():
                await records.keys(connection, directory.change, where)
            if directory.names_members:
                for where in found.member_filters():
                    await records.members(connection, directory.change_members, where)
        directory.looked(found.number)
        return found.rows >= records.PAGE

    async def hear(self) -> None:
        """Nudges the directory when another process tells of a change, until it is cancelled.

        Ends at once where the database tells nobody.
        """
        wait_s = DEAF_MIN_S
        while notices.heard(self._engine):
            try:
                async for _ in notices.of(self._engine):
                    wait_s = DEAF_MIN_S
                    self._directory.nudge()
            except (SQLAlchemyError, OSError) as error:
                _log.info(
                    "changes are not heard of, only looked for each second", why=_short(error)
                )
            await self._sleep(wait_s * self._rng.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, DEAF_MAX_S)

    async def write_used(self) -> None:
        """Writes each minute which keys were used, until it is cancelled."""
        while True:
            await self._sleep(USED_EVERY_S * self._rng.uniform(0.9, 1.0))
            try:
                await self.settle()
            except (SQLAlchemyError, OSError) as error:
                _log.warning("when keys were last used is not written", why=_short(error))

    async def settle(self) -> None:
        """Writes which keys were used since the last time. Raises SQLAlchemyError."""
        used, now_s = self._directory.take_used(), self._wall()
        for start in range(0, len(used), USED_AT_ONCE):
            part = used[start : start + USED_AT_ONCE]
            # In the order of ids, as every other process does it, so that none waits in a circle.
            async with self._engine.begin() as connection:
                await connection.execute(
                    update(KEYS)
                    .where(KEYS.c.key.in_(part))
                    .where(KEYS.c.last_used_s.is_(None) | (KEYS.c.last_used_s < now_s))
                    .values(last_used_s=now_s)
                )

    async def _read_all(self, connection: AsyncConnection) -> None:
        number = await records.last_number(connection)
        keys: dict[bytes, Caller] = {}
        members: records.Members = {}
        await records.keys(connection, keys.update)
        if self._directory.names_members:
            await records.members(connection, members.update)
        self._directory.replace(keys, members)
        self._directory.looked(number)

    def _lost(self, error: BaseException) -> None:
        why = _short(error) or f"it does not answer within {LOOK_WITHIN_S:g} s"
        if not self._why:
            _log.error("the database cannot be asked: calls go by the keys that are known", why=why)
        self._why = why

    def _found(self) -> None:
        if self._why:
            _log.info("the database can be asked again", was=self._why)
        self._why = ""


def _short(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else ""
