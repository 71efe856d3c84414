"""Members of tenants."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aiflow_router.identity.caller import Caller, Role
from aiflow_router.storage.tables.tenancy import MEMBERS
from aiflow_router.tenancy.book import Book, PageOf, Turn, actor, names, one, page, within
from aiflow_router.tenancy.fields import Fields, changed, exists, not_found
from aiflow_router.tenancy.records import Member, Page
from aiflow_router.tenancy.roles import Operation, Reach, Whose, denied, reach, require
from aiflow_router.tenancy.tenants import found_department, found_tenant


class Members:
    def __init__(self, book: Book) -> None:
        self._book = book

    async def create(
        self, caller: Caller, tenant: str, member: str, *, department: str, role: str
    ) -> Member:
        """Raises AlreadyExistsError, BadInputError, NotFoundError, PermissionDeniedError."""
        fields = Fields()
        fields.name("member", member)
        given = fields.role(role)
        department = own_department(caller, department)
        belongs(fields, department, given)
        whose = Whose(tenant=tenant, department=department, member=member, role=given)
        require(caller, "member.create", whose)
        fields.check()
        async with self._book.change(actor(caller)) as turn:
            await found_tenant(turn.connection, tenant)
            return await made(turn, tenant, member, department=department, role=given)

    async def get(self, caller: Caller, tenant: str, member: str) -> Member:
        """Raises NotFoundError, PermissionDeniedError."""
        async with self._book.read() as connection:
            return await allowed(connection, caller, "member.read", tenant, member)

    async def list(
        self, caller: Caller, tenant: str, part: PageOf, *, department: str
    ) -> Page[Member]:
        """Raises NotFoundError, PermissionDeniedError."""
        seen = reach(caller, "member.read", tenant)
        if seen is None or (department and seen.department not in (None, department)):
            raise denied(caller, "member.read", Whose(tenant=tenant, department=department))
        query = select(MEMBERS).where(*within(seen, MEMBERS))
        if department:
            query = query.where(MEMBERS.c.department == department)
        async with self._book.read() as connection:
            await found_tenant(connection, tenant)
            if department:
                await found_department(connection, tenant, department)
            return await page(connection, Member, query, MEMBERS.c.member, part)

    async def update(
        self,
        caller: Caller,
        tenant: str,
        member: str,
        *,
        department: str | None,
        role: str | None,
        disabled: bool | None,
    ) -> Member:
        """What is None stays. Raises BadInputError, NotFoundError, PermissionDeniedError."""
        fields = Fields()
        given = None if role is None else fields.role(role)
        oneself = (tenant, member) == (caller.tenant, caller.member)
        if oneself and given not in (None, caller.role):
            fields.wrong("role", "must stay: nobody changes their own, let another admin do it")
        if oneself and disabled:
            fields.wrong("disabled", "must not be set: it is you, let another admin do it")
        async with self._book.change(actor(caller)) as turn:
            before = await allowed(turn.connection, caller, "member.change", tenant, member)
            after_role = given or before.role
            after_department = (before.department or "") if department is None else department
            # What the member is to be must be in reach too, not only what it is.
            whose = Whose(
                tenant=tenant, department=after_department, member=member, role=after_role
            )
            require(caller, "member.change", whose)
            belongs(fields, after_department, after_role)
            fields.check()
            if after_department:
                await found_department(turn.connection, tenant, after_department)
            values: dict[str, object] = {"department": after_department or None, "role": after_role}
            if disabled is not None and disabled != (before.disabled_s is not None):
                values["disabled_s"] = turn.now_s if disabled else None
            if differs := changed(asdict(before), values):
                await turn.connection.execute(
                    update(MEMBERS)
                    .where(MEMBERS.c.tenant == tenant, MEMBERS.c.member == member)
                    .values(values)
                )
                await turn.note("member.update", tenant=tenant, subject=member, details=differs)
            return await found_member(turn.connection, tenant, member)


def own_department(caller: Caller, department: str) -> str:
    """Where none is named: of a department's admin the own one, for there is no other choice."""
    if not department and caller.role == "department_admin":
        return caller.department
    return department


def belongs(fields: Fields, department: str, role: Role) -> None:
    """A department's admin without a department would administer nothing."""
    if role == "department_admin" and not department:
        fields.wrong("department", "must be set for a department_admin: it is what they administer")


async def made(turn: Turn, tenant: str, member: str, *, department: str, role: Role) -> Member:
    """A new member. Raises AlreadyExistsError, NotFoundError for its department."""
    if department:
        await found_department(turn.connection, tenant, department)
    if await named(turn.connection, tenant, member) is not None:
        raise exists("member", member)
    values = {"department": department or None, "role": role}
    await turn.connection.execute(
        insert(MEMBERS).values(tenant=tenant, member=member, created_s=turn.now_s, **values)
    )
    await turn.note("member.create", tenant=tenant, subject=member, details=values)
    return await found_member(turn.connection, tenant, member)


async def allowed(
    connection: AsyncConnection, caller: Caller, operation: Operation, tenant: str, name: str
) -> Member:
    """The member, where `caller` may do that to it. Raises NotFoundError, PermissionDeniedError.

    Who may do it to nobody there is not told who is.
    """
    found = await named(connection, tenant, name)
    if found is None:
        require(caller, operation, Whose(tenant=tenant, department=caller.department))
        await found_tenant(connection, tenant)
        seen = reach(caller, "member.read", tenant) or Reach(tenant=tenant, member=caller.member)
        known = await names(connection, MEMBERS.c.member, *within(seen, MEMBERS))
        raise not_found("member", name, known)
    require(caller, operation, whose_member(found))
    return found


def whose_member(found: Member, *, key: str = "") -> Whose:
    return Whose(
        tenant=found.tenant,
        department=found.department or "",
        member=found.member,
        role=found.role,
        key=key,
    )


async def found_member(connection: AsyncConnection, tenant: str, member: str) -> Member:
    """One that is there."""
    found = await named(connection, tenant, member)
    if found is None:
        raise not_found("member", member, ())
    return found


async def named(connection: AsyncConnection, tenant: str, member: str) -> Member | None:
    query = select(MEMBERS).where(MEMBERS.c.tenant == tenant, MEMBERS.c.member == member)
    return await one(connection, Member, query)
