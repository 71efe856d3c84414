"""The ledger's rows: all SQL by which it changes, a handful of statements for a whole batch.

Who changes a tenant's credits first locks the accounts that it may touch, in the order of their
names, so that two routers wait for one another and never in a circle; `held:TENANT` is always among
them, so holds are read only by who may change them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from aiflow_router.accounts.account import ISSUED, Who
from aiflow_router.accounts.alert import Level
from aiflow_router.accounts.book import Account, Book, Held, HoldKey
from aiflow_router.accounts.operation import (
    Allocate,
    Hold,
    Operation,
    Outcome,
    Release,
    TopUp,
)
from aiflow_router.accounts.payer import Terms
from aiflow_router.storage.database import reading
from aiflow_router.storage.tables.ledger import ACCOUNTS, ALERTS, ENTRIES, HOLDS, TRANSFERS
from aiflow_router.storage.tables.tenancy import TENANTS

# SQLite takes some 32,000 values in one statement.
_AT_ONCE = 5_000


async def applied(
    engine: AsyncEngine, operations: Sequence[Operation], *, now_s: float
) -> tuple[Book, list[Outcome]]:
    """Does all of it in one transaction; what came of each. Raises SQLAlchemyError, OSError."""
    async with engine.begin() as connection:
        book = await _read(connection, operations, now_s=now_s)
        outcomes = [book.apply(operation) for operation in operations]
        await _write(connection, book)
    return book, outcomes


async def overdue(engine: AsyncEngine, *, now_s: float, most: int) -> list[Release]:
    """What gives back holds that nobody settled in time."""
    query = (
        select(HOLDS.c.tenant, HOLDS.c.request_id, HOLDS.c.token, HOLDS.c.payer)
        .where(HOLDS.c.state == "held", HOLDS.c.expires_s < now_s)
        .order_by(HOLDS.c.expires_s)
        .limit(most)
    )
    async with reading(engine) as connection:
        found = (await connection.execute(query)).all()
    return [
        Release(
            who=Who(tenant=row.tenant),
            request_id=row.request_id,
            token=row.token,
            payer=row.payer,
            expired=True,
        )
        for row in found
    ]


async def forget(engine: AsyncEngine, *, before_s: float) -> int:
    """Forgets calls that ended so long ago; their ids may be used again. How many they were."""
    ended = HOLDS.c.state.in_(("settled", "released"))  # As the index has them.
    query = delete(HOLDS).where(ended, HOLDS.c.expires_s < before_s)
    async with engine.begin() as connection:
        return (await connection.execute(query)).rowcount


async def _read(
    connection: AsyncConnection, operations: Sequence[Operation], *, now_s: float
) -> Book:
    await _make(connection, operations)
    names = sorted({name for operation in operations for name in operation.accounts()})
    accounts: dict[str, Account] = {}
    for some in _slices(names):
        # The sorting comes before the locking.
        query = (
            select(ACCOUNTS)
            .where(ACCOUNTS.c.account.in_(some))
            .order_by(ACCOUNTS.c.account)
            .with_for_update(key_share=True)
        )
        for row in await connection.execute(query):
            accounts[row.account] = Account(
                tenant=row.tenant, balance=row.balance, full=row.full, told=Level(row.told)
            )
    return Book(
        now_s=now_s,
        accounts=accounts,
        holds=await _holds(connection, operations),
        terms=await _terms(connection, operations),
        references=await _references(connection, operations),
    )


async def _make(connection: AsyncConnection, operations: Iterable[Operation]) -> None:
    made = {
        name: operation.tenant
        for operation in operations
        if isinstance(operation, TopUp | Allocate)
        for name in operation.made()
    }
    if not made:
        return
    rows = [
        {"account": name, "tenant": made.get(name, ""), "balance": 0, "full": 0, "told": 0}
        for name in sorted({*made, ISSUED})
    ]
    await connection.execute(_insert(connection)(ACCOUNTS).on_conflict_do_nothing(), rows)


def _insert(connection: AsyncConnection) -> Any:
    """Of the database at hand: what to do about a row that is there is no common SQL."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert


async def _holds(
    connection: AsyncConnection, operations: Iterable[Operation]
) -> dict[HoldKey, Held]:
    keys = sorted(
        {
            (operation.who.tenant, operation.request_id)
            for operation in operations
            if not isinstance(operation, TopUp | Allocate)
        }
    )
    found: dict[HoldKey, Held] = {}
    for some in _slices(keys):
        query = select(HOLDS).where(tuple_(HOLDS.c.tenant, HOLDS.c.request_id).in_(some))
        for row in await connection.execute(query):
            found[row.tenant, row.request_id] = Held(
                state=row.state,
                payer=row.payer,
                amount=row.amount,
                spent=row.spent,
                token=row.token,
                expires_s=row.expires_s,
            )
    return found


async def _terms(
    connection: AsyncConnection, operations: Iterable[Operation]
) -> Mapping[str, Terms]:
    tenants = sorted({one.who.tenant for one in operations if isinstance(one, Hold)})
    found: dict[str, Terms] = {}
    for some in _slices(tenants):
        query = select(TENANTS.c.tenant, TENANTS.c.pays_first, TENANTS.c.when_out).where(
            TENANTS.c.tenant.in_(some)
        )
        for row in await connection.execute(query):
            found[row.tenant] = Terms(first=row.pays_first, when_out=row.when_out)
    return found


async def _references(
    connection: AsyncConnection, operations: Iterable[Operation]
) -> dict[tuple[str, str], Mapping[str, int]]:
    keys = sorted(
        {(one.tenant, one.reference) for one in operations if isinstance(one, TopUp | Allocate)}
    )
    found: dict[tuple[str, str], dict[str, int]] = {}
    for some in _slices(keys):
        query = (
            select(TRANSFERS.c.tenant, TRANSFERS.c.reference, ENTRIES.c.account, ENTRIES.c.amount)
            .join(ENTRIES, ENTRIES.c.number == TRANSFERS.c.number)
            .where(tuple_(TRANSFERS.c.tenant, TRANSFERS.c.reference).in_(some))
        )
        for row in await connection.execute(query):
            found.setdefault((row.tenant, row.reference), {})[row.account] = row.amount
    return dict(found)


async def _write(connection: AsyncConnection, book: Book) -> None:
    await _write_transfers(connection, book)
    if book.changed_accounts:
        query = (
            update(ACCOUNTS)
            .where(ACCOUNTS.c.account == bindparam("name"))
            .values(balance=bindparam("now"), full=bindparam("most"), told=bindparam("level"))
        )
        rows = [
            {"name": name, "now": one.balance, "most": one.full, "level": int(one.told)}
            for name in sorted(book.changed_accounts)
            for one in (book.accounts[name],)
        ]
        await connection.execute(query, rows)
    if book.changed_holds:
        put = _insert(connection)(HOLDS)
        names = ("state", "payer", "amount", "spent", "token", "expires_s")
        put = put.on_conflict_do_update(
            index_elements=["tenant", "request_id"],
            set_={name: put.excluded[name] for name in names},
        )
        rows = [
            {
                "tenant": key[0],
                "request_id": key[1],
                **{name: getattr(book.holds[key], name) for name in names},
            }
            for key in sorted(book.changed_holds)
        ]
        await connection.execute(put, rows)
    if book.alerts:
        await connection.execute(
            insert(ALERTS),
            [
                {
                    "at_s": alert.at_s,
                    "tenant": alert.tenant,
                    "account": alert.account,
                    "level": alert.level,
                    "balance": alert.balance,
                    "full": alert.full,
                }
                for alert in book.alerts
            ],
        )


async def _write_transfers(connection: AsyncConnection, book: Book) -> None:
    if not book.transfers:
        return
    made = await connection.execute(
        insert(TRANSFERS).returning(TRANSFERS.c.number, sort_by_parameter_order=True),
        [
            {
                "at_s": book.now_s,
                "kind": one.kind,
                "tenant": one.tenant,
                "request_id": one.request_id,
                "actor": one.actor,
                "note": one.note,
                "reference": one.reference,
            }
            for one in book.transfers
        ],
    )
    entries = [
        {"number": number, "account": name, "amount": amount}
        for number, one in zip(made.scalars(), book.transfers, strict=True)
        for name, amount in one.entries.items()
    ]
    await connection.execute(insert(ENTRIES), entries)


def _slices(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
