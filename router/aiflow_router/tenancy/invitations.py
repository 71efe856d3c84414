"""Invitations: codes by which somebody may apply to become a member."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aiflow_router.identity.caller import Caller
from aiflow_router.storage.tables.tenancy import INVITATIONS
from aiflow_router.tenancy import codes
from aiflow_router.tenancy.book import Book, PageOf, actor, one, page, within
from aiflow_router.tenancy.fields import DAY_S, Fields, not_found
from aiflow_router.tenancy.members import belongs, own_department
from aiflow_router.tenancy.records import Invitation, Page
from aiflow_router.tenancy.roles import Whose, denied, may, reach, require
from aiflow_router.tenancy.tenants import found_department, found_tenant

LIVES_S = 7 * DAY_S
LONGEST_LIFE_S = 90 * DAY_S
MAX_USES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInvitation:
    """An invitation as it is shown once."""

    invitation: Invitation
    code: str = field(repr=False)


class Invitations:
    def __init__(self, book: Book) -> None:
        self._book = book

    async def create(
        self, caller: Caller, tenant: str, *, department: str, role: str, uses: int, lives_s: float
    ) -> NewInvitation:
        """Raises BadInputError, NotFoundError, PermissionDeniedError."""
        fields = Fields()
        department = own_department(caller, department)
        given = fields.role(role)
        belongs(fields, department, given)
        require(
            caller, "invitation.create", Whose(tenant=tenant, department=department, role=given)
        )
        fields.count("uses", uses, most=MAX_USES)
        fields.life("lives_ms", lives_s, most_s=LONGEST_LIFE_S)
        fields.check()
        async with self._book.change(actor(caller)) as turn:
            await found_tenant(turn.connection, tenant)
            if department:
                await found_department(turn.connection, tenant, department)
            minted = await codes.fresh(turn.connection, codes.invitation, INVITATIONS.c.invitation)
            values = {
                "department": department or None,
                "role": given,
                "uses_left": uses,
                "expires_s": turn.now_s + lives_s,
            }
            await turn.connection.execute(
                insert(INVITATIONS).values(
                    invitation=minted.id,
                    sha256=minted.sha256,
                    tenant=tenant,
                    created_s=turn.now_s,
                    **values,
                )
            )
            await turn.note("invitation.create", tenant=tenant, subject=minted.id, details=values)
            made = await by_id(turn.connection, minted.id)
            assert made is not None  # noqa: S101 - written above
            return NewInvitation(invitation=made, code=minted.secret)

    async def list(
        self, caller: Caller, tenant: str, part: PageOf, *, ended: bool
    ) -> Page[Invitation]:
        """Raises NotFoundError, PermissionDeniedError."""
        seen = reach(caller, "invitation.read", tenant)
        if seen is None:
            raise denied(caller, "invitation.read", Whose(tenant=tenant))
        query = select(INVITATIONS).where(*within(seen, INVITATIONS))
        if not ended:
            query = query.where(
                INVITATIONS.c.revoked_s.is_(None),
                INVITATIONS.c.expires_s > self._book.wall(),
                INVITATIONS.c.uses_left > 0,
            )
        async with self._book.read() as connection:
            await found_tenant(connection, tenant)
            return await page(connection, Invitation, query, INVITATIONS.c.invitation, part)

    async def revoke(self, caller: Caller, invitation: str) -> Invitation:
        """Raises NotFoundError, also where `caller` may not see it, and PermissionDeniedError."""
        async with self._book.change(actor(caller)) as turn:
            found = await by_id(turn.connection, invitation)
            if found is None or not may(caller, "invitation.read", whose(found)):
                raise not_found("invitation", invitation, ())
            require(caller, "invitation.revoke", whose(found))
            if found.revoked_s is None:
                await turn.connection.execute(
                    update(INVITATIONS)
                    .where(INVITATIONS.c.invitation == invitation)
                    .values(revoked_s=turn.now_s)
                )
                await turn.note("invitation.revoke", tenant=found.tenant, subject=invitation)
            return await by_id(turn.connection, invitation) or found


def whose(found: Invitation) -> Whose:
    return Whose(tenant=found.tenant, department=found.department or "", role=found.role)


async def by_id(connection: AsyncConnection, invitation: str) -> Invitation | None:
    query = select(INVITATIONS).where(INVITATIONS.c.invitation == invitation)
    return await one(connection, Invitation, query)


async def by_code(connection: AsyncConnection, code: str) -> Invitation | None:
    query = select(INVITATIONS).where(INVITATIONS.c.sha256 == codes.digest(code))
    return await one(connection, Invitation, query)
