"""Credits and usage by role: who may give, move and see what."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from aiflow_router.accounts import account, report, statement
from aiflow_router.accounts.account import MOST, written
from aiflow_router.accounts.ledger import Ledger
from aiflow_router.accounts.report import Filter, Row
from aiflow_router.accounts.statement import Balance, Line, Told
from aiflow_router.accounts.usage import KEYS
from aiflow_router.identity.caller import Caller
from aiflow_router.storage.tables.tenancy import MEMBERS
from aiflow_router.tenancy.book import Book, PageOf, actor
from aiflow_router.tenancy.fields import Fields
from aiflow_router.tenancy.members import allowed
from aiflow_router.tenancy.records import Page
from aiflow_router.tenancy.roles import Operation, Reach, Whose, denied, reach, require
from aiflow_router.tenancy.tenants import found_department, found_tenant

DAY_S = 24 * 3600.0
SHOWN_DAYS = 30
MAX_NOTE = 256
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What is to be given or moved; an account that is empty is the pool."""

    tenant: str
    amount: int
    note: str
    reference: str
    source: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """`again`: it had been done before; `balances` are those of the accounts, as asked for."""

    again: bool
    balances: tuple[Balance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which usage is asked for, as it came; an empty tenant of a platform_admin's is any."""

    tenant: str = ""
    from_day: str = ""
    to_day: str = ""
    department: str = ""
    member: str = ""
    model: str = ""


class Accounting:
    """Every operation is told the caller, and refuses what the caller's role does not allow."""

    def __init__(
        self, engine: AsyncEngine, ledger: Ledger, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._book = Book(engine)
        self._wall = wall

    async def top_up(self, caller: Caller, wanted: Grant) -> Granted:
        """Raises BadInputError, NotFoundError, PermissionDeniedError, RefusedError."""
        require(caller, "credits.give", Whose(tenant=wanted.tenant))
        _check(wanted)
        async with self._book.read() as connection:
            await found_tenant(connection, wanted.tenant)
        done = await self._ledger.top_up(
            wanted.tenant,
            wanted.amount,
            actor=actor(caller),
            note=wanted.note,
            reference=wanted.reference,
        )
        return await self._granted(wanted.tenant, account.pool(wanted.tenant), again=done.again)

    async def allocate(self, caller: Caller, wanted: Grant) -> Granted:
        """Raises as `top_up`."""
        _check(wanted)
        source, target = _named(wanted.tenant, wanted.source), _named(wanted.tenant, wanted.target)
        fields = Fields()
        if source == target:
            fields.wrong("target", f"must be another account than the source, {source}")
        fields.check()
        async with self._book.read() as connection:
            for field, name in (("source", source), ("target", target)):
                await self._allowed(connection, caller, wanted.tenant, field, name)
        done = await self._ledger.allocate(
            wanted.tenant,
            wanted.amount,
            source=source,
            target=target,
            actor=actor(caller),
            note=wanted.note,
            reference=wanted.reference,
        )
        return await self._granted(wanted.tenant, source, target, again=done.again)

    async def balances(self, caller: Caller, tenant: str) -> list[Balance]:
        """Raises NotFoundError, PermissionDeniedError, UnavailableError."""
        seen = _reach(caller, "credits.read", tenant)
        async with self._book.read() as connection:
            await found_tenant(connection, tenant)
            names = await _accounts(connection, tenant, seen)
        found = await statement.balances(self._engine, tenant)
        return [one for one in found if names is None or one.account in names]

    async def transfers(
        self, caller: Caller, tenant: str, part: PageOf, *, of_account: str
    ) -> Page[Line]:
        """Raises as `balances`, and BadInputError."""
        seen = _reach(caller, "credits.read", tenant)
        async with self._book.read() as connection:
            await found_tenant(connection, tenant)
            names = await _accounts(connection, tenant, seen)
        if of_account:
            names = frozenset({of_account} if names is None else {of_account} & names)
        limit = part.limit()
        found = await statement.lines(
            self._engine, tenant, accounts=names, before=_number(part), most=limit + 1
        )
        more = len(found) > limit
        items = tuple(found[:limit])
        return Page(items=items, next=str(items[-1].number) if more else "")

    async def alerts(self, caller: Caller, tenant: str, part: PageOf) -> Page[Told]:
        """Raises as `transfers`."""
        tenant = _whose(caller, tenant)
        seen = _reach(caller, "credits.read", tenant)
        async with self._book.read() as connection:
            names = await _accounts(connection, tenant, seen)
        limit = part.limit()
        found = await statement.alerts(
            self._engine, tenant, accounts=names, before=_number(part), most=limit + 1
        )
        more = len(found) > limit
        items = tuple(found[:limit])
        return Page(items=items, next=str(items[-1].number) if more else "")

    async def usage(
        self, caller: Caller, asked: Asked, part: PageOf, *, by: Sequence[str]
    ) -> Page[Row]:
        """Raises BadInputError, PermissionDeniedError, UnavailableError."""
        which = self._filter(caller, asked)
        fields = Fields()
        by = tuple(dict.fromkeys(by)) or ("model",)
        for name in by:
            fields.choice("by", name, KEYS)
        fields.check()
        limit, skip = part.limit(), _number(part) or 0
        found = await report.summed(self._engine, which, by=by, skip=skip, most=limit + 1)
        more = len(found) > limit
        return Page(items=tuple(found[:limit]), next=str(skip + limit) if more else "")

    def export(self, caller: Caller, asked: Asked) -> AsyncIterator[tuple[str, str]]:
        """As `report.exported`. Raises as `usage`, at once."""
        return report.exported(self._engine, self._filter(caller, asked))

    def _filter(self, caller: Caller, asked: Asked) -> Filter:
        tenant = _whose(caller, asked.tenant)
        seen = _reach(caller, "usage.read", tenant)
        fields = Fields()
        today_s = self._wall()
        from_day = asked.from_day or _day(today_s - (SHOWN_DAYS - 1) * DAY_S)
        to_day = asked.to_day or _day(today_s)
        for field, value in (("from_day", from_day), ("to_day", to_day)):
            if not _is_day(value):
                fields.wrong(field, "must be a day such as 2026-11-24")
        if _is_day(from_day) and _is_day(to_day) and from_day > to_day:
            fields.wrong("from_day", f"{from_day} is after {to_day}, the last day")
        fields.check()
        for name, own in (("department", seen.department), ("member", seen.member)):
            wanted = getattr(asked, name)
            if wanted and own is not None and wanted != own:
                raise denied(caller, "usage.read", Whose(tenant=tenant, **{name: wanted}))
        return Filter(
            from_day=from_day,
            to_day=to_day,
            tenant=seen.tenant,
            department=asked.department or seen.department,
            member=asked.member or seen.member,
            model=asked.model or None,
        )

    async def _allowed(
        self, connection: AsyncConnection, caller: Caller, tenant: str, field: str, name: str
    ) -> None:
        """Whether credits may be moved from or to the account, and whether it can be there."""
        kind, _, rest = name.partition(":")
        prefix = account.pool(tenant).partition(":")[2]
        whose, _, own = rest.partition("/")
        if kind == "pool" and rest == prefix:
            require(caller, "credits.allocate", Whose(tenant=tenant))
            await found_tenant(connection, tenant)
        elif kind == "department" and whose == prefix and own:
            require(caller, "credits.allocate", Whose(tenant=tenant, department=own))
            await found_department(connection, tenant, own)
        elif kind == "member" and whose == prefix and own:
            await allowed(connection, caller, "credits.allocate", tenant, own)
        else:
            fields = Fields()
            fields.wrong(
                field,
                f"must be pool:{prefix}, department:{prefix}/DEPARTMENT or member:{prefix}/MEMBER",
            )
            fields.check()

    async def _granted(self, tenant: str, *names: str, again: bool) -> Granted:
        found = {one.account: one for one in await statement.balances(self._engine, tenant)}
        return Granted(again=again, balances=tuple(found[name] for name in names))


def _named(tenant: str, said: str) -> str:
    """The account: "member:ann" is one of the tenant's, as is "pool", or nothing."""
    kind, _, name = said.partition(":")
    if kind in ("", "pool") and not name:
        return account.pool(tenant)
    prefix = account.pool(tenant).partition(":")[2]
    return said if "/" in name or kind == "pool" else f"{kind}:{prefix}/{name}"


def _check(wanted: Grant) -> None:
    """Raises BadInputError."""
    fields = Fields()
    if not 0 < wanted.amount <= MOST:
        fields.wrong("micro_credits", f"must be more than 0, and {written(MOST)} credits at most")
    if len(wanted.note) > MAX_NOTE:
        fields.wrong("note", f"must be {MAX_NOTE} characters at most")
    fields.note("note", wanted.note)
    fields.title("reference", wanted.reference)
    fields.check()


def _whose(caller: Caller, tenant: str) -> str:
    """The tenant that is asked for; "" for any, which only a platform_admin sees."""
    return tenant if tenant or caller.role == "platform_admin" else caller.tenant


def _reach(caller: Caller, operation: Operation, tenant: str) -> Reach:
    """Raises PermissionDeniedError."""
    seen = reach(caller, operation, tenant)
    if seen is None:
        raise denied(caller, operation, Whose(tenant=tenant))
    return seen


async def _accounts(connection: AsyncConnection, tenant: str, seen: Reach) -> frozenset[str] | None:
    """Those that may be seen; None for all."""
    if seen.member is not None:
        return frozenset({account.member_of(tenant, seen.member)})
    if seen.department is None:
        return None
    query = select(MEMBERS.c.member).where(
        MEMBERS.c.tenant == tenant, MEMBERS.c.department == seen.department
    )
    members = (await connection.execute(query)).scalars()
    return frozenset(
        {
            account.department_of(tenant, seen.department),
            *(account.member_of(tenant, member) for member in members),
        }
    )


def _number(part: PageOf) -> int | None:
    if not part.token:
        return None
    if not part.token.isdecimal() or len(part.token) > 18:
        fields = Fields()
        fields.wrong("page_token", "must be the last answer's next_page_token")
        fields.check()
    return int(part.token)


def _day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at_s))


def _is_day(value: str) -> bool:
    if not _DAY.fullmatch(value):
        return False
    try:
        dt.date.fromisoformat(value)
    except ValueError:
        return False
    return True
