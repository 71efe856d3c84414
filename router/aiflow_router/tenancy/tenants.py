"""Tenants and their departments."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aiflow_router.identity.caller import Caller
from aiflow_router.storage.tables.tenancy import DEPARTMENTS, TENANTS
from aiflow_router.tenancy.book import Book, PageOf, actor, names, one, page, within
from aiflow_router.tenancy.fields import Fields, changed, exists, not_found
from aiflow_router.tenancy.records import Department, Page, Tenant
from aiflow_router.tenancy.roles import Whose, denied, reach, require

PAYS_FIRST = ("member", "pool")
WHEN_OUT = ("refuse", "pool")


class Tenants:
    def __init__(self, book: Book) -> None:
        self._book = book

    async def create(
        self, caller: Caller, tenant: str, *, weight: float, pays_first: str, when_out: str
    ) -> Tenant:
        """Raises AlreadyExistsError, BadInputError, PermissionDeniedError."""
        require(caller, "tenant.create", Whose(tenant=tenant))
        fields = Fields()
        values = {
            "tenant": fields.tenant(tenant),
            "weight": fields.weight(weight),
            "pays_first": fields.choice("pays_first", pays_first, PAYS_FIRST),
            "when_out": fields.choice("when_out", when_out, WHEN_OUT),
        }
        fields.check()
        async with self._book.change(actor(caller)) as turn:
            if await _tenant(turn.connection, tenant) is not None:
                raise exists("tenant", tenant)
            await turn.connection.execute(insert(TENANTS).values(created_s=turn.now_s, **values))
            await turn.note("tenant.create", tenant=tenant, subject=tenant, details=values)
            return await found_tenant(turn.connection, tenant)

    async def get(self, caller: Caller, tenant: str) -> Tenant:
        require(caller, "tenant.read", Whose(tenant=tenant))
        async with self._book.read() as connection:
            return await found_tenant(connection, tenant)

    async def list(self, caller: Caller, part: PageOf) -> Page[Tenant]:
        # One's own is a list of one, for who may see it.
        own = "" if caller.role == "platform_admin" else caller.tenant
        seen = reach(caller, "tenant.read", own)
        if seen is None:
            raise denied(caller, "tenant.read", Whose(tenant=own))
        query = select(TENANTS).where(*within(seen, TENANTS))
        async with self._book.read() as connection:
            return await page(connection, Tenant, query, TENANTS.c.tenant, part)

    async def update(
        self,
        caller: Caller,
        tenant: str,
        *,
        weight: float | None,
        pays_first: str | None,
        when_out: str | None,
        disabled: bool | None,
    ) -> Tenant:
        """What is None stays. Raises BadInputError, NotFoundError, PermissionDeniedError."""
        whose = Whose(tenant=tenant)
        require(caller, "tenant.change", whose)
        if weight is not None or disabled is not None:
            require(caller, "tenant.weigh", whose)
        fields = Fields()
        values: dict[str, object] = {}
        if weight is not None:
            values["weight"] = fields.weight(weight)
        if pays_first is not None:
            values["pays_first"] = fields.choice("pays_first", pays_first, PAYS_FIRST)
        if when_out is not None:
            values["when_out"] = fields.choice("when_out", when_out, WHEN_OUT)
        if disabled and tenant == caller.tenant:
            fields.wrong("disabled", "must not be set: it is your own tenant, and you are in it")
        fields.check()
        async with self._book.change(actor(caller)) as turn:
            before = await found_tenant(turn.connection, tenant)
            if disabled is not None and disabled != (before.disabled_s is not None):
                values["disabled_s"] = turn.now_s if disabled else None
            if differs := changed(asdict(before), values):
                await turn.connection.execute(
                    update(TENANTS).where(TENANTS.c.tenant == tenant).values(values)
                )
                await turn.note("tenant.update", tenant=tenant, subject=tenant, details=differs)
            return await found_tenant(turn.connection, tenant)

    async def create_department(self, caller: Caller, tenant: str, department: str) -> Department:
        """Raises AlreadyExistsError, BadInputError, NotFoundError, PermissionDeniedError."""
        require(caller, "department.create", Whose(tenant=tenant, department=department))
        fields = Fields()
        fields.name("department", department)
        fields.check()
        async with self._book.change(actor(caller)) as turn:
            await found_tenant(turn.connection, tenant)
            if await _department(turn.connection, tenant, department) is not None:
                raise exists("department", department)
            await turn.connection.execute(
                insert(DEPARTMENTS).values(
                    tenant=tenant, department=department, created_s=turn.now_s
                )
            )
            await turn.note("department.create", tenant=tenant, subject=department)
            return await found_department(turn.connection, tenant, department)

    async def departments(self, caller: Caller, tenant: str, part: PageOf) -> Page[Department]:
        seen = reach(caller, "department.read", tenant)
        if seen is None:
            raise denied(caller, "department.read", Whose(tenant=tenant))
        query = select(DEPARTMENTS).where(*within(seen, DEPARTMENTS))
        async with self._book.read() as connection:
            await found_tenant(connection, tenant)
            return await page(connection, Department, query, DEPARTMENTS.c.department, part)

    async def update_department(
        self, caller: Caller, tenant: str, department: str, *, disabled: bool | None
    ) -> Department:
        """What is None stays. Raises NotFoundError, PermissionDeniedError."""
        require(caller, "department.change", Whose(tenant=tenant, department=department))
        fields = Fields()
        if disabled and (tenant, department) == (caller.tenant, caller.department):
            fields.wrong("disabled", "must not be set: it is your own department")
        fields.check()
        async with self._book.change(actor(caller)) as turn:
            before = await found_department(turn.connection, tenant, department)
            if disabled is not None and disabled != (before.disabled_s is not None):
                disabled_s = turn.now_s if disabled else None
                await turn.connection.execute(
                    update(DEPARTMENTS)
                    .where(DEPARTMENTS.c.tenant == tenant, DEPARTMENTS.c.department == department)
                    .values(disabled_s=disabled_s)
                )
                await turn.note(
                    "department.update",
                    tenant=tenant,
                    subject=department,
                    details={"disabled_s": [before.disabled_s, disabled_s]},
                )
            return await found_department(turn.connection, tenant, department)


async def found_tenant(connection: AsyncConnection, tenant: str) -> Tenant:
    """Raises NotFoundError, which only who may see all tenants is told the nearest names by."""
    found = await _tenant(connection, tenant)
    if found is None:
        raise not_found("tenant", tenant, await names(connection, TENANTS.c.tenant))
    return found


async def found_department(connection: AsyncConnection, tenant: str, department: str) -> Department:
    """Raises NotFoundError."""
    found = await _department(connection, tenant, department)
    if found is None:
        await found_tenant(connection, tenant)
        of_tenant = DEPARTMENTS.c.tenant == tenant
        known = await names(connection, DEPARTMENTS.c.department, of_tenant)
        raise not_found("department", department, known)
    return found


async def _tenant(connection: AsyncConnection, tenant: str) -> Tenant | None:
    return await one(connection, Tenant, select(TENANTS).where(TENANTS.c.tenant == tenant))


async def _department(
    connection: AsyncConnection, tenant: str, department: str
) -> Department | None:
    query = select(DEPARTMENTS).where(
        DEPARTMENTS.c.tenant == tenant, DEPARTMENTS.c.department == department
    )
    return await one(connection, Department, query)
