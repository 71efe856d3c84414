"""Applications: who was invited asks to become a member, and an administrator decides.

An applicant has no key. What they have is a code, then the secret of their application; by that,
once it is approved, they get their first key, which nobody else has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Select, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aiflow_router.identity.caller import Caller
from aiflow_router.storage.tables.tenancy import APPLICATIONS, INVITATIONS
from aiflow_router.tenancy import codes
from aiflow_router.tenancy.book import Book, PageOf, Turn, actor, one, page, within
from aiflow_router.tenancy.fields import Fields, exists, not_found
from aiflow_router.tenancy.invitations import by_code
from aiflow_router.tenancy.keys import NewKey, rights_of, written
from aiflow_router.tenancy.members import found_member, made, named
from aiflow_router.tenancy.records import Application, Decision, Invitation, Page
from aiflow_router.tenancy.roles import Whose, denied, may, reach, require
from aiflow_router.tenancy.tenants import found_tenant
from aiflow_sdk import errors

STATES = ("waiting", "approved", "refused", "taken")
FIRST = "first"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApplication:
    """An application as it is shown once."""

    application: Application
    secret: str = field(repr=False)


class Applications:
    def __init__(self, book: Book) -> None:
        self._book = book

    async def create(self, code: str, member: str, *, note: str) -> NewApplication:
        """Raises AlreadyExistsError, BadInputError, PermissionDeniedError."""
        fields = Fields()
        fields.name("member", member)
        fields.note("note", note)
        fields.check()
        # Who only guesses does not take writers' turns.
        async with self._book.read() as connection:
            invitation = await self._invitation(connection, code)
        async with self._book.change(f"applicant by {invitation.invitation}") as turn:
            invitation = await self._invitation(turn.connection, code)
            await _free(turn.connection, invitation.tenant, member)
            minted = await codes.fresh(
                turn.connection, codes.application, APPLICATIONS.c.application
            )
            told = {"invitation": invitation.invitation, "member": member, "note": note}
            await turn.connection.execute(
                insert(APPLICATIONS).values(
                    application=minted.id,
                    sha256=minted.sha256,
                    tenant=invitation.tenant,
                    state="waiting",
                    created_s=turn.now_s,
                    **told,
                )
            )
            await turn.connection.execute(
                update(INVITATIONS)
                .where(INVITATIONS.c.invitation == invitation.invitation)
                .values(uses_left=INVITATIONS.c.uses_left - 1)
            )
            await turn.note(
                "application.create", tenant=invitation.tenant, subject=minted.id, details=told
            )
            found = await _by_id(turn.connection, minted.id)
            return NewApplication(application=found, secret=minted.secret)

    async def get(self, secret: str) -> Application:
        """Raises PermissionDeniedError."""
        async with self._book.read() as connection:
            return await _by_secret(connection, secret)

    async def take_key(self, secret: str, *, name: str) -> NewKey:
        """The first key of who was approved. Raises PermissionDeniedError, RefusedError."""
        fields = Fields()
        fields.title("name", name)
        fields.check()
        async with self._book.read() as connection:
            found = await _by_secret(connection, secret)
        async with self._book.change(f"{found.tenant}/{found.member}") as turn:
            found = await _by_secret(turn.connection, secret)
            _takeable(found)
            owner = await found_member(turn.connection, found.tenant, found.member)
            if owner.disabled_s is not None:
                raise errors.RefusedError(
                    f'member "{owner.member}" is disabled: ask an admin of {owner.tenant}',
                    reason="MEMBER_DISABLED",
                )
            new = await written(turn, "key.create", owner, name=name, may=sorted(rights_of(owner)))
            await _decide(turn, found, "taken", {"key": new.key.key})
            return new

    async def list(
        self, caller: Caller, tenant: str, part: PageOf, *, state: str
    ) -> Page[Application]:
        """Raises BadInputError, NotFoundError, PermissionDeniedError."""
        seen = reach(caller, "application.read", tenant)
        if seen is None:
            raise denied(caller, "application.read", Whose(tenant=tenant))
        query = _all().where(*within(seen, APPLICATIONS, INVITATIONS))
        if state:
            fields = Fields()
            fields.choice("state", state, STATES)
            fields.check()
            query = query.where(APPLICATIONS.c.state == state)
        async with self._book.read() as connection:
            await found_tenant(connection, tenant)
            return await page(connection, Application, query, APPLICATIONS.c.application, part)

    async def approve(self, caller: Caller, application: str) -> Application:
        """Raises AlreadyExistsError, NotFoundError, RefusedError."""
        async with self._book.change(actor(caller)) as turn:
            found = await _decidable(turn.connection, caller, application)
            if found.state in ("approved", "taken"):
                return found
            if found.state == "refused":
                raise _decided(found)
            await made(
                turn,
                found.tenant,
                found.member,
                department=found.department or "",
                role=found.role,
            )
            return await _decide(turn, found, "approved", {"member": found.member})

    async def refuse(self, caller: Caller, application: str) -> Application:
        """Raises NotFoundError, RefusedError."""
        async with self._book.change(actor(caller)) as turn:
            found = await _decidable(turn.connection, caller, application)
            if found.state == "refused":
                return found
            if found.state != "waiting":
                raise _decided(found)
            return await _decide(turn, found, "refused", {"member": found.member})

    async def _invitation(self, connection: AsyncConnection, code: str) -> Invitation:
        """The one that `code` is of. Raises PermissionDeniedError, the same whatever is wrong."""
        found = await by_code(connection, code) if codes.plausible(code) else None
        live = found is not None and found.live(self._book.wall())
        if found is None or not live:
            raise errors.PermissionDeniedError(
                "this code is not good: it is not known, or has expired, was revoked or is used "
                "up; check it for typing errors, or ask for another invitation",
                reason="CODE_INVALID",
            )
        return found


async def _free(connection: AsyncConnection, tenant: str, member: str) -> None:
    """Raises AlreadyExistsError where somebody has the name, or waits for it."""
    waiting = select(APPLICATIONS.c.application).where(
        APPLICATIONS.c.tenant == tenant,
        APPLICATIONS.c.member == member,
        APPLICATIONS.c.state == "waiting",
    )
    if (
        await named(connection, tenant, member) is not None
        or (await connection.execute(waiting)).first() is not None
    ):
        raise exists("member", member)


def _takeable(found: Application) -> None:
    """Raises RefusedError."""
    if found.state == "taken":
        raise errors.RefusedError(
            "the key of this application was handed out before, and is shown once only: ask an "
            f"admin of {found.tenant} for another one",
            reason="KEY_TAKEN",
        )
    if found.state != "approved":
        why = "is not decided yet: try again later" if found.state == "waiting" else "was refused"
        raise errors.RefusedError(f"this application {why}", reason="NOT_APPROVED")


async def _decidable(connection: AsyncConnection, caller: Caller, application: str) -> Application:
    """Raises NotFoundError, also where `caller` may not see it, and PermissionDeniedError."""
    found = await one(
        connection, Application, _all().where(APPLICATIONS.c.application == application)
    )
    if found is None or not may(caller, "application.read", _whose(found)):
        raise not_found("application", application, ())
    require(caller, "application.decide", _whose(found))
    return found


def _whose(found: Application) -> Whose:
    return Whose(tenant=found.tenant, department=found.department or "", role=found.role)


def _decided(found: Application) -> errors.RefusedError:
    return errors.RefusedError(
        f"application {found.application} is {found.state} already, by {found.decided_by}",
        reason="ALREADY_DECIDED",
    )


async def _decide(
    turn: Turn, found: Application, state: Decision, details: dict[str, str]
) -> Application:
    values: dict[str, object] = {"state": state}
    if state != "taken":
        values |= {"decided_s": turn.now_s, "decided_by": turn.actor}
    await turn.connection.execute(
        update(APPLICATIONS).where(APPLICATIONS.c.application == found.application).values(values)
    )
    action = {"approved": "approve", "refused": "refuse", "taken": "take"}[state]
    await turn.note(
        f"application.{action}", tenant=found.tenant, subject=found.application, details=details
    )
    return await _by_id(turn.connection, found.application)


def _all() -> Select[tuple[object, ...]]:
    return select(*APPLICATIONS.c, INVITATIONS.c.department, INVITATIONS.c.role).join(
        INVITATIONS, APPLICATIONS.c.invitation == INVITATIONS.c.invitation
    )


async def _by_id(connection: AsyncConnection, application: str) -> Application:
    query = _all().where(APPLICATIONS.c.application == application)
    found = await one(connection, Application, query)
    assert found is not None  # noqa: S101 - who asks has just written or read it
    return found


async def _by_secret(connection: AsyncConnection, secret: str) -> Application:
    """Raises PermissionDeniedError."""
    found = None
    if codes.plausible(secret):
        query = _all().where(APPLICATIONS.c.sha256 == codes.digest(secret))
        found = await one(connection, Application, query)
    if found is None:
        raise errors.PermissionDeniedError(
            "this is not the secret of an application: it is what `aiflow member apply` printed",
            reason="SECRET_INVALID",
        )
    return found
