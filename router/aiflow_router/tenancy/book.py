"""Where tenancy is written down: each change one transaction, its line of the audit log with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from sqlalchemy import Column, ColumnElement, Select, Table, insert, select
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from aiflow_router.identity.caller import Caller
from aiflow_router.routing.nearest import MAX_LOOKED_AT
from aiflow_router.storage import database
from aiflow_router.storage.tables.tenancy import AUDIT
from aiflow_router.tenancy.records import Page, record
from aiflow_router.tenancy.roles import Reach
from aiflow_sdk import errors

_log = structlog.get_logger(__name__)

R = TypeVar("R")

DEFAULT_PAGE, MAX_PAGE = 100, 1000
AGAIN_S = 1.0
# What is written is answered after this time, whoever has not taken it in.
TAKEN_WITHIN_S = 5.0

Everywhere = Callable[[int], Awaitable[None]]
"""Returns when the change of this number is known to every process of this router."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOf:
    """Which part of a list is asked for, as it came."""

    size: int = 0
    token: str = ""

    def limit(self) -> int:
        """Raises BadInputError."""
        if not 0 <= self.size <= MAX_PAGE:
            raise errors.BadInputError(
                f"page_size must be 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}",
                violations={"page_size": f"must be 0 to {MAX_PAGE}"},
            )
        return self.size or DEFAULT_PAGE


class Turn:
    """A transaction that changes something; others wait for its end.

    Attributes:
        now_s: when it is.
        number: of its last line in the audit log; 0 while it has none.
    """

    def __init__(self, connection: AsyncConnection, *, actor: str, now_s: float) -> None:
        self.connection = connection
        self.now_s = now_s
        self.number = 0
        self.actor = actor
        self._noted: list[tuple[str, str, str]] = []

    async def note(
        self, action: str, *, tenant: str, subject: str, details: Mapping[str, Any] | None = None
    ) -> None:
        """Writes a line of the audit log; "key.revoke" is about a key."""
        written = await self.connection.execute(
            insert(AUDIT)
            .values(
                at_s=self.now_s,
                actor=self.actor,
                action=action,
                tenant=tenant,
                kind=action.partition(".")[0],
                subject=subject,
                details=dict(details or {}),
            )
            .returning(AUDIT.c.number)
        )
        self.number = written.scalar_one()
        self._noted.append((action, tenant, subject))

    def log(self) -> None:
        """Says what is committed."""
        for action, tenant, subject in self._noted:
            _log.info("changed", action=action, tenant=tenant, subject=subject, actor=self.actor)


class Book:
    """The database as tenancy uses it.

    Args:
        everywhere: awaited after each change; None where nobody else has to know.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        everywhere: Everywhere | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._everywhere = everywhere
        self.wall = wall

    @asynccontextmanager
    async def change(self, actor: str) -> AsyncIterator[Turn]:
        """Changes all or nothing, and returns when every process knows. Raises UnavailableError."""
        async with reached(), database.changing(self._engine) as connection:
            turn = Turn(connection, actor=actor, now_s=self.wall())
            yield turn
        turn.log()
        if turn.number and self._everywhere is not None:
            try:
                async with asyncio.timeout(TAKEN_WITHIN_S):
                    await self._everywhere(turn.number)
            except TimeoutError:
                # It is written, and taken in as soon as the database can be read again.
                _log.warning("a change is not known everywhere yet", number=turn.number)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Raises UnavailableError."""
        async with reached(), database.reading(self._engine) as connection:
            yield connection


def actor(caller: Caller) -> str:
    """Who did it, for the audit log."""
    who = f"{caller.tenant}/{caller.member}" if caller.member else caller.tenant
    return f"{who} ({caller.key})" if caller.key else who


async def one(connection: AsyncConnection, kind: type[R], query: Select[Any]) -> R | None:
    """The record that `query` finds, which is at most one."""
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else record(kind, row)


async def page(
    connection: AsyncConnection, kind: type[R], query: Select[Any], by: Column[str], part: PageOf
) -> Page[R]:
    """A part of what `query` finds, in the order of `by`, which is unique."""
    limit = part.limit()
    if part.token:
        query = query.where(by > part.token)
    rows = (await connection.execute(query.order_by(by).limit(limit + 1))).all()
    items = tuple(record(kind, row) for row in rows[:limit])
    more = len(rows) > limit
    return Page(items=items, next=getattr(items[-1], by.name) if more else "")


async def names(connection: AsyncConnection, column: Column[str], *where: Any) -> Iterable[str]:
    """For what is nearest to one that is not there."""
    rows = await connection.execute(select(column).where(*where).limit(MAX_LOOKED_AT))
    return rows.scalars().all()


def within(seen: Reach, *tables: Table) -> list[ColumnElement[bool]]:
    """Finds what is in reach; each of the columns is taken from the first table that has it."""
    wanted = {"tenant": seen.tenant, "department": seen.department, "member": seen.member}
    return [
        next(table.c[name] for table in tables if name in table.c) == value
        for name, value in wanted.items()
        if value is not None
    ]


@asynccontextmanager
async def reached() -> AsyncIterator[None]:
    try:
        yield
    except DataError:
        raise errors.BadInputError(
            "the request has a text or number that the database cannot take, such as a zero byte"
        ) from None
    # Of the connection, not of what was asked.
    except (OperationalError, InterfaceError, PoolTimeoutError, OSError) as error:
        _log.error("the database cannot be asked", why=str(getattr(error, "orig", None) or error))
        raise errors.UnavailableError(
            "the router's database cannot be asked now: try again shortly, and look first whether "
            "what you wanted to change is changed",
            reason="STORAGE_AWAY",
            retry_after_s=AGAIN_S,
        ) from None
