"""A ledger on a real database, with a tenant that has credits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.accounts.account import MICRO, Who
from aiflow_router.accounts.ledger import Ledger
from aiflow_router.accounts.statement import balances
from aiflow_router.storage.database import opened
from aiflow_router.storage.tables.tenancy import TENANTS

ANN = Who(tenant="acme", department="ml", member="ann")
POOL, MEMBER = "pool:acme", "member:acme/ann"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def add_tenant(
    engine: AsyncEngine, tenant: str, *, pays_first: str = "member", when_out: str = "pool"
) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            insert(TENANTS).values(
                tenant=tenant,
                weight=1.0,
                pays_first=pays_first,
                when_out=when_out,
                created_s=0.0,
            )
        )


@asynccontextmanager
async def running(ledger: Ledger) -> AsyncIterator[Ledger]:
    task = asyncio.create_task(ledger.run())
    try:
        yield ledger
        await ledger.close()
    finally:
        task.cancel()
        await asyncio.wait((task,))


@asynccontextmanager
async def ledger(url: str, *, pool: int = 10) -> AsyncIterator[tuple[Ledger, AsyncEngine]]:
    """With `pool` credits in the pool of acme."""
    async with opened(url) as engine:
        await add_tenant(engine, "acme")
        async with running(Ledger(engine)) as found:
            if pool:
                await top_up(found, pool)
            yield found, engine


async def top_up(found: Ledger, amount: int, *, reference: str = "first") -> None:
    await found.top_up("acme", amount * MICRO, actor="root", note="", reference=reference)


async def left(engine: AsyncEngine, account: str = POOL) -> float:
    """In credits."""
    found = {one.account: one.balance for one in await balances(engine, "acme")}
    return found[account] / MICRO
