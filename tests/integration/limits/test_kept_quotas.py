"""What is used of quotas, in real databases: kept over restarts, and known to other routers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fixtures.postgres import StartPostgres
from integration.router.kit import until
from integration.router.limits_kit import limited
from sqlalchemy import event, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.limits.kept_quotas import KeptQuotas
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.rule import Ask, Rule
from aiflow_router.storage.database import opened
from aiflow_router.storage.tables.quotas import QUOTAS

DAY = Rule(name="day", kind="day", amount=10)
MONTH = Rule(name="month", kind="month", amount=10)
NOON_S = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()


class Router:
    """The buckets of a process, and what keeps their quotas."""

    def __init__(self, engine: AsyncEngine, wall: Callable[[], float] = lambda: NOON_S) -> None:
        self.memory = Memory(wall=wall)
        self.kept = KeptQuotas(self.memory, engine, wall=wall)
        self._calls = 0

    async def takes(self, rule: Rule, cost: float, whose: str = "acme") -> bool:
        self._calls += 1
        asks = [self._ask(rule, cost, whose)]
        return (await self.memory.take(asks, holder=str(self._calls))).granted

    async def left(self, rule: Rule, whose: str = "acme") -> float:
        return (await self.memory.look([self._ask(rule, 0, whose)])).standings[0].remaining

    @staticmethod
    def _ask(rule: Rule, cost: float, whose: str) -> Ask:
        return Ask(rule=rule, bucket=f"{rule.name}|{whose}", cost=cost)


async def test_a_restart_gives_nobody_a_new_quota(storage_url: str) -> None:
    async with opened(storage_url) as engine:
        first = Router(engine)
        await first.kept.load()
        for rule in (DAY, MONTH):
            assert await first.takes(rule, 7)
        await first.kept.write()
        second = Router(engine)
        await second.kept.load()
        for rule in (DAY, MONTH):
            assert await second.left(rule) == 3
            assert not await second.takes(rule, 4)
        assert await second.left(DAY, "beta") == 10


async def test_the_next_day_begins_with_nothing_used(storage_url: str) -> None:
    async with opened(storage_url) as engine:
        first = Router(engine)
        await first.takes(DAY, 7)
        await first.takes(MONTH, 7)
        await first.kept.write()
        second = Router(engine, wall=lambda: NOON_S + 24 * 3600)
        await second.kept.load()
        assert await second.left(DAY) == 10
        assert await second.left(MONTH) == 3


async def test_routers_on_one_database_know_what_the_others_used(storage_url: str) -> None:
    async with opened(storage_url) as engine:
        one, other = Router(engine), Router(engine)
        await one.takes(DAY, 4)
        await other.takes(DAY, 3)
        await asyncio.gather(one.kept.write(), other.kept.write())
        await one.takes(DAY, 1)
        await other.takes(DAY, 1)
        for router in (one, other):
            await router.kept.write()
        assert await one.left(DAY) == 2  # It wrote before the other did.
        assert await other.left(DAY) == 1


async def test_what_comes_while_it_is_written_is_not_lost(storage_url: str) -> None:
    async with opened(storage_url) as engine:
        router = Router(engine)
        await router.takes(DAY, 1)
        writing = asyncio.create_task(router.kept.write())
        await asyncio.sleep(0)
        await router.takes(DAY, 2)
        await writing
        assert await router.left(DAY) == 7
        await router.kept.write()
        async with engine.connect() as connection:
            used = (await connection.execute(select(QUOTAS.c.used))).scalar_one()
        assert used == 3


async def test_who_ends_while_it_is_written_counts_it_once(storage_url: str) -> None:
    async with opened(storage_url) as engine:
        router = Router(engine)
        await router.takes(DAY, 3)
        running = asyncio.create_task(router.kept.run())
        event.listen(engine.sync_engine, "commit", lambda _: running.cancel(), once=True)
        await asyncio.wait((running,))
        await router.kept.write()
        assert await router.left(DAY) == 7
        again = Router(engine)
        await again.kept.load()
        assert await again.left(DAY) == 7


async def test_a_database_that_was_away_is_told_later(start_postgres: StartPostgres) -> None:
    server = start_postgres()
    async with opened(server.url()) as engine:
        router = Router(engine)
        await router.takes(DAY, 1)
        server.kill()
        with pytest.raises((SQLAlchemyError, OSError)):
            await router.kept.write()
        await router.takes(DAY, 2)
        assert await router.left(DAY) == 7
        server.restart()
        await router.kept.write()
        again = Router(engine)
        await again.kept.load()
        assert await again.left(DAY) == 7


async def test_more_quotas_than_one_statement_takes(storage_url: str) -> None:
    async with opened(storage_url) as engine:
        router = Router(engine)
        for number in range(1200):
            await router.takes(DAY, 1, str(number))
        await router.kept.write()
        again = Router(engine)
        await again.kept.load()
        assert await again.left(DAY, "1199") == 9


async def test_what_is_long_over_is_removed(storage_url: str) -> None:
    old = datetime.fromtimestamp(NOON_S, UTC) - timedelta(days=100)
    async with opened(storage_url) as engine:
        async with engine.begin() as connection:
            for period in (f"{old:%Y-%m-%d}", f"{old:%Y-%m}", "2026-10", "2026-11-23"):
                row = {"bucket": "day|acme", "period": period, "used": 1.0}
                await connection.execute(insert(QUOTAS).values(row))
        await Router(engine).kept.load()
        async with engine.connect() as connection:
            left = (await connection.execute(select(QUOTAS.c.period))).scalars().all()
        assert sorted(left) == ["2026-10", "2026-11-23"]


def kept_at(url: str, folder: Path) -> str:
    key = f"auth: {{admin_key_file: '{folder / 'admin.key'}'}}\n"
    return f"{key}storage: {{url: '{url}'}}\nlimits: [{{name: q, quota: 3/month}}]"


async def test_a_router_keeps_its_quotas(storage_url: str, tmp_path: Path) -> None:
    config = kept_at(storage_url, tmp_path)
    async with limited(config) as to:
        assert await to.granted(2) == 2
        assert "aiflow_quotas_age_seconds" in await to.mesh.metrics()
    async with limited(config) as to:
        assert await to.granted(2) == 1


async def test_a_router_writes_its_quotas_each_second(storage_url: str, tmp_path: Path) -> None:
    config = kept_at(storage_url, tmp_path)
    async with limited(config) as to, opened(storage_url) as engine:
        await to.infer()
        written = asyncio.Event()

        async def look() -> None:
            while True:
                async with engine.connect() as connection:
                    used = (await connection.execute(select(QUOTAS.c.used))).scalar()
                if used == 1:
                    written.set()
                    return
                await asyncio.sleep(0.1)

        looking = asyncio.create_task(look())
        await until(written.is_set)
        await looking
