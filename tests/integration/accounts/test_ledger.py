"""The ledger on SQLite and on Postgres: what callers are told is what is written."""

from __future__ import annotations

import asyncio

import pytest
from integration.accounts.kit import (
    ANN,
    MEMBER,
    POOL,
    Clock,
    add_tenant,
    ledger,
    left,
    running,
    top_up,
)
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.accounts.account import ISSUED, MICRO, Who
from aiflow_router.accounts.ledger import Ledger
from aiflow_router.accounts.statement import Told, alerts, audited, lines
from aiflow_router.storage.database import opened, reading
from aiflow_router.storage.tables.ledger import ACCOUNTS, HOLDS
from aiflow_sdk import errors


async def test_a_call_is_held_settled_and_told(storage_url: str) -> None:
    async with ledger(storage_url) as (found, engine):
        taken = await found.hold(ANN, "r1", 3 * MICRO, for_s=60)
        assert (taken.payer, await left(engine)) == (POOL, 7)
        assert await found.settle(taken, 2 * MICRO, patience_s=1) == 2 * MICRO
        assert await left(engine) == 8
        told = await lines(engine, "acme", accounts=None, before=None, most=10)
        assert [(line.kind, line.request_id) for line in told] == [
            *(("settle", "r1"), ("hold", "r1"), ("top_up", "")),
        ]
        assert dict(told[0].entries) == {
            "held:acme": -3 * MICRO,
            "spent:acme": 2 * MICRO,
            POOL: MICRO,
        }
        assert (await audited(engine)).imbalance == 0


async def test_what_did_not_go_well_is_given_back(storage_url: str) -> None:
    async with ledger(storage_url) as (found, engine):
        found.release(await found.hold(ANN, "r1", 3 * MICRO, for_s=60))
        await found.commits.idle()
        assert await left(engine) == 10
        await found.hold(ANN, "r1", 3 * MICRO, for_s=60)  # The id may be used again.


async def test_a_second_call_with_an_id_is_refused(storage_url: str) -> None:
    async with ledger(storage_url) as (found, _):
        taken = await found.hold(ANN, "r1", MICRO, for_s=60)
        with pytest.raises(errors.RefusedError, match="is under way already") as caught:
            await found.hold(ANN, "r1", MICRO, for_s=60)
        assert (caught.value.code, caught.value.reason) == ("ALREADY_EXISTS", "DUPLICATE_REQUEST")
        await found.settle(taken, MICRO, patience_s=1)
        with pytest.raises(errors.RefusedError, match="was answered and paid already"):
            await found.hold(ANN, "r1", MICRO, for_s=60)
        await found.hold(Who(tenant="acme", member="bob"), "r2", MICRO, for_s=60)


async def test_who_is_out_is_told_who_has_what(storage_url: str) -> None:
    async with ledger(storage_url) as (found, engine):
        with pytest.raises(errors.RateLimitedError, match="pool:acme has 10") as caught:
            await found.hold(ANN, "r1", 11 * MICRO, for_s=60)
        assert caught.value.reason == "QUOTA_EXCEEDED"
        assert caught.value.metadata == {"subject": POOL, "credits": "11"}
        with pytest.raises(errors.RateLimitedError, match='"nobody" was never given any'):
            await found.hold(Who(tenant="nobody"), "r1", MICRO, for_s=60)
        assert [one.level for one in await _alerts(engine)] == ["none"]


async def test_terms_of_the_tenant_are_followed_at_once(storage_url: str) -> None:
    async with opened(storage_url) as engine, running(Ledger(engine)) as found:
        await add_tenant(engine, "acme", when_out="refuse")
        await top_up(found, 10)
        await found.allocate(
            *("acme", 2 * MICRO), source=POOL, target=MEMBER, actor="", note="", reference="a"
        )
        taken = await found.hold(ANN, "r1", 2 * MICRO, for_s=60)
        assert taken.payer == MEMBER
        with pytest.raises(errors.RateLimitedError, match="member:acme/ann has 0"):
            await found.hold(ANN, "r2", MICRO, for_s=60)
        assert [(one.account, one.level) for one in await _alerts(engine)] == [(MEMBER, "none")]


async def test_grants_are_done_once(storage_url: str) -> None:
    async with ledger(storage_url) as (found, engine):
        await asyncio.gather(*(top_up(found, 5, reference="order 7") for _ in range(5)))
        assert await left(engine) == 15
        with pytest.raises(errors.RefusedError, match="was used for another amount") as caught:
            await top_up(found, 6, reference="order 7")
        assert caught.value.code == "ALREADY_EXISTS"
        with pytest.raises(errors.RefusedError, match="pool:acme has 15 credits") as short:
            await found.allocate(
                *("acme", 16 * MICRO), source=POOL, target=MEMBER, actor="", note="", reference="b"
            )
        assert short.value.reason == "TOO_FEW_CREDITS"
        assert await left(engine) == 15


async def test_many_calls_share_a_commit(storage_url: str) -> None:
    async with ledger(storage_url, pool=1000) as (found, engine):
        before = found.commits.commits
        taken = await asyncio.gather(
            *(found.hold(ANN, f"r{number}", MICRO, for_s=60) for number in range(400))
        )
        await asyncio.gather(*(found.settle(one, MICRO, patience_s=1) for one in taken))
        assert found.commits.commits - before <= 6
        assert await left(engine) == 600
        assert (await audited(engine)).imbalance == 0


async def test_credits_are_never_spent_twice_by_two_routers(storage_url: str) -> None:
    async with (
        ledger(storage_url, pool=50) as (first, engine),
        opened(storage_url) as other,
        running(Ledger(other)) as second,
    ):

        async def call(found: Ledger, name: str) -> bool:
            try:
                taken = await found.hold(ANN, name, MICRO, for_s=60)
            except errors.RateLimitedError:
                return False
            return await found.settle(taken, MICRO, patience_s=1) == MICRO

        went = await asyncio.gather(
            *(call(first, f"a{number}") for number in range(60)),
            *(call(second, f"b{number}") for number in range(60)),
        )
        # The same ids at both: each goes once.
        assert sum(went) == 50
        assert await left(engine) == 0
        await top_up(first, 100, reference="more")
        both = await asyncio.gather(
            *(one.hold(ANN, f"c{n}", MICRO, for_s=60) for n in range(40)
              for one in (first, second)),
            return_exceptions=True,
        )  # fmt: skip
        assert sum(isinstance(one, errors.RefusedError) for one in both) == 40
        assert (await audited(engine)).imbalance == 0


async def test_a_caller_who_goes_away_leaves_nothing_held(storage_url: str) -> None:
    async with ledger(storage_url) as (found, engine):
        holding = asyncio.create_task(found.hold(ANN, "r1", MICRO, for_s=60))
        await asyncio.sleep(0)
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        taken = await found.hold(ANN, "r2", MICRO, for_s=60)
        settling = asyncio.create_task(found.settle(taken, MICRO, patience_s=1))
        await asyncio.sleep(0.0)
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        await found.commits.idle()
        assert await left(engine) == 10
        assert (await audited(engine)).imbalance == 0


async def test_what_a_dead_router_left_expires(storage_url: str) -> None:
    clock = Clock()
    async with opened(storage_url) as engine:
        await add_tenant(engine, "acme")
        async with running(Ledger(engine, clock=clock)) as dies:
            await top_up(dies, 10)
            late = await dies.hold(ANN, "r1", 3 * MICRO, for_s=60)
            await dies.hold(ANN, "r2", 3 * MICRO, for_s=60)
            await dies.hold(ANN, "r3", 3 * MICRO, for_s=600)
            async with running(Ledger(engine, clock=clock)) as lives:
                assert await lives.expire() == 0
                clock.now_s += 61
                assert await lives.expire() == 2
                assert await left(engine) == 7
                # It had only been slow: it pays for what it did.
                assert await dies.settle(late, 2 * MICRO, patience_s=1) == 2 * MICRO
                assert await left(engine) == 5
                clock.now_s += 1000
                assert await lives.expire() == 1
                assert await lives.forget(older_s=100) == 3
        async with reading(engine) as connection:
            count = await connection.execute(select(func.count()).select_from(HOLDS))
            assert count.scalar() == 0
        assert (await audited(engine)).imbalance == 0


async def test_the_database_itself_lets_no_balance_go_below_0(storage_url: str) -> None:
    async with ledger(storage_url) as (_, engine):
        for account, right in ((POOL, False), (ISSUED, True)):
            below = update(ACCOUNTS).where(ACCOUNTS.c.account == account).values(balance=-11)
            async with engine.connect() as connection:
                if right:
                    await connection.execute(below)
                else:
                    with pytest.raises(IntegrityError, match="balance"):
                        await connection.execute(below)
        assert await left(engine) == 10


async def _alerts(engine: AsyncEngine) -> list[Told]:
    return await alerts(engine, "acme", accounts=None, before=None, most=10)
