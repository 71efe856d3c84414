"""What was used, added up for people, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.accounts.account import written
from aiflow_router.accounts.usage import KEYS, SUMS
from aiflow_router.storage.database import reading
from aiflow_router.storage.tables.usage import USAGE

# Lines of CSV in a part.
LINES = 1_000
# The columns of the CSV; `credits` are credits, where the table has millionths.
COLUMNS = (*KEYS, *SUMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which usage; what is None is any. Days are inclusive."""

    from_day: str
    to_day: str
    tenant: str | None = None
    department: str | None = None
    member: str | None = None
    model: str | None = None

    def of(self, query: Select[Any]) -> Select[Any]:
        query = query.where(USAGE.c.day >= self.from_day, USAGE.c.day <= self.to_day)
        for name in ("tenant", "department", "member", "model"):
            if (wanted := getattr(self, name)) is not None:
                query = query.where(USAGE.c[name] == wanted)
        return query


Row = Mapping[str, Any]
"""By name: what is kept apart, and the sums."""


async def summed(
    engine: AsyncEngine, which: Filter, *, by: Sequence[str], skip: int, most: int
) -> list[Row]:
    """In the order of `by`, which are of KEYS."""
    kept = [USAGE.c[name] for name in by]
    sums = [func.sum(USAGE.c[name]).label(name) for name in SUMS]
    query = which.of(select(*kept, *sums)).group_by(*kept).order_by(*kept)
    async with reading(engine) as connection:
        found = await connection.execute(query.offset(skip).limit(most))
    return [row._asdict() for row in found.all()]


async def exported(engine: AsyncEngine, which: Filter) -> AsyncIterator[tuple[str, str]]:
    """Days and whole lines of each, in order; the first part begins with the header."""
    head = ",".join(COLUMNS) + "\r\n"
    days = which.of(select(USAGE.c.day).distinct()).order_by(USAGE.c.day)
    async with reading(engine) as connection:
        found = (await connection.execute(days)).scalars().all()
    if not found:
        yield "", head
    for day in found:
        after: tuple[Any, ...] = ()
        while True:
            # A short transaction each: who reads slowly holds nobody up.
            rows = await _part(engine, which, day, after)
            if rows:
                yield day, head + _lines(rows)
                head = ""
                after = tuple(getattr(rows[-1], name) for name in KEYS)
            if len(rows) < LINES:
                break


async def _part(
    engine: AsyncEngine, which: Filter, day: str, after: tuple[Any, ...]
) -> Sequence[Any]:
    keys = [USAGE.c[name] for name in KEYS]
    query = which.of(select(USAGE)).where(USAGE.c.day == day).order_by(*keys).limit(LINES)
    if after:
        # As one comparison: after the last one of the part before.
        query = query.where(tuple_(*keys) > tuple_(*after))
    async with reading(engine) as connection:
        found: Sequence[Any] = (await connection.execute(query)).all()
    return found


def _lines(rows: Sequence[Any]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    for row in rows:
        found = row._asdict()
        writer.writerow(
            (
                *(_cell(found[name]) for name in KEYS),
                *(_number(name, found[name]) for name in SUMS),
            )
        )
    return out.getvalue()


def _number(name: str, value: float) -> str:
    return written(int(value)) if name == "credits" else f"{value:.15g}"


def _cell(value: str) -> str:
    """So that a spreadsheet takes no name for a formula."""
    return "'" + value if value[:1] in ("=", "+", "-", "@") else value
