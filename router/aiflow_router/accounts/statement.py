"""What the ledger has to say: balances, transfers, alerts, and whether it adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from aiflow_router.storage.database import reading
from aiflow_router.storage.tables.ledger import ACCOUNTS, ALERTS, ENTRIES, HOLDS, TRANSFERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What is in an account; `full` is what was after the last grant."""

    account: str
    balance: int
    full: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A transfer; its entries are accounts and amounts."""

    number: int
    at_s: float
    kind: str
    request_id: str
    actor: str
    note: str
    entries: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An alert as it was written down."""

    number: int
    at_s: float
    account: str
    level: str
    balance: int
    full: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """By how much the ledger does not add up; all are 0 in one that does.

    Attributes:
        balances: the sum of all balances.
        transfers: how many transfers have entries that do not sum to 0.
        accounts: how many have another balance than their entries say.
        held: the difference between what is held and what the holds say.
        spent: the same of what was spent.
    """

    balances: int
    transfers: int
    accounts: int
    held: int
    spent: int

    @property
    def imbalance(self) -> int:
        return sum(map(abs, (self.balances, self.transfers, self.accounts, self.held, self.spent)))


async def balances(engine: AsyncEngine, tenant: str) -> list[Balance]:
    query = (
        select(ACCOUNTS.c.account, ACCOUNTS.c.balance, ACCOUNTS.c.full)
        .where(ACCOUNTS.c.tenant == tenant)
        .order_by(ACCOUNTS.c.account)
    )
    async with reading(engine) as connection:
        found = await connection.execute(query)
    return [Balance(account=row.account, balance=row.balance, full=row.full) for row in found.all()]


async def lines(
    engine: AsyncEngine,
    tenant: str,
    *,
    accounts: frozenset[str] | None,
    before: int | None,
    most: int,
) -> list[Line]:
    """The newest first, from those older than the number `before`; None for the newest.

    `accounts`: only transfers that touch one of these; None for all.
    """
    query = select(TRANSFERS).where(TRANSFERS.c.tenant == tenant)
    if accounts is not None:
        touching = select(ENTRIES.c.number).where(ENTRIES.c.account.in_(accounts))
        query = query.where(TRANSFERS.c.number.in_(touching))
    if before is not None:
        query = query.where(TRANSFERS.c.number < before)
    query = query.order_by(TRANSFERS.c.number.desc()).limit(most)
    async with reading(engine) as connection:
        found = (await connection.execute(query)).all()
        numbers = [row.number for row in found]
        entries: dict[int, list[tuple[str, int]]] = {number: [] for number in numbers}
        of = select(ENTRIES).where(ENTRIES.c.number.in_(numbers)).order_by(ENTRIES.c.amount)
        for entry in await connection.execute(of):
            entries[entry.number].append((entry.account, entry.amount))
    return [
        Line(
            number=row.number,
            at_s=row.at_s,
            kind=row.kind,
            request_id=row.request_id,
            actor=row.actor,
            note=row.note,
            entries=tuple(entries[row.number]),
        )
        for row in found
    ]


async def alerts(
    engine: AsyncEngine,
    tenant: str,
    *,
    accounts: frozenset[str] | None,
    before: int | None,
    most: int,
) -> list[Told]:
    """As `lines`; an empty tenant is any."""
    query = select(ALERTS)
    if tenant:
        query = query.where(ALERTS.c.tenant == tenant)
    if accounts is not None:
        query = query.where(ALERTS.c.account.in_(accounts))
    if before is not None:
        query = query.where(ALERTS.c.number < before)
    query = query.order_by(ALERTS.c.number.desc()).limit(most)
    async with reading(engine) as connection:
        found = (await connection.execute(query)).all()
    return [
        Told(
            number=row.number,
            at_s=row.at_s,
            account=row.account,
            level=row.level,
            balance=row.balance,
            full=row.full,
        )
        for row in found
    ]


async def audited(engine: AsyncEngine) -> Audit:
    """Reads the whole ledger."""
    by_transfer = select(func.sum(ENTRIES.c.amount).label("left")).group_by(ENTRIES.c.number)
    by_account = (
        select(ENTRIES.c.account, func.sum(ENTRIES.c.amount).label("moved"))
        .group_by(ENTRIES.c.account)
        .subquery()
    )
    differs = (
        select(func.count())
        .select_from(ACCOUNTS)
        .outerjoin(by_account, by_account.c.account == ACCOUNTS.c.account)
        .where(ACCOUNTS.c.balance != func.coalesce(by_account.c.moved, 0))
    )
    crooked = by_transfer.having(func.sum(ENTRIES.c.amount) != 0).subquery()
    async with reading(engine) as connection:
        held = await _sum(connection, _in("held:"))
        holds = await _sum(
            connection, select(func.sum(HOLDS.c.amount)).where(HOLDS.c.state == "held")
        )
        spent = await _sum(connection, _in("spent:"))
        # Holds are forgotten after a time; what their transfers spent is not.
        settled = await _sum(
            connection,
            select(func.sum(ENTRIES.c.amount))
            .join(TRANSFERS, TRANSFERS.c.number == ENTRIES.c.number)
            .where(
                TRANSFERS.c.kind.in_(("settle", "refund")), ENTRIES.c.account.startswith("spent:")
            ),
        )
        return Audit(
            balances=await _sum(connection, select(func.sum(ACCOUNTS.c.balance))),
            transfers=await _sum(connection, select(func.count()).select_from(crooked)),
            accounts=await _sum(connection, differs),
            held=held - holds,
            spent=spent - settled,
        )


def _in(prefix: str) -> Select[Any]:
    return select(func.sum(ACCOUNTS.c.balance)).where(ACCOUNTS.c.account.startswith(prefix))


async def _sum(connection: AsyncConnection, query: Select[Any]) -> int:
    return int((await connection.execute(query)).scalar() or 0)
