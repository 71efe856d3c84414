"""Keys of members."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import and_, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aiflow_router.identity.caller import Caller, Right
from aiflow_router.identity.key import minted
from aiflow_router.storage.tables.tenancy import KEYS, MEMBERS
from aiflow_router.tenancy.book import Book, PageOf, Turn, actor, one, page, within
from aiflow_router.tenancy.fields import DAY_S, Fields, changed, not_found
from aiflow_router.tenancy.members import allowed, whose_member
from aiflow_router.tenancy.records import Key, Member, Page
from aiflow_router.tenancy.roles import (
    Operation,
    Reach,
    Whose,
    administers,
    denied,
    grantable,
    may,
    reach,
)
from aiflow_router.tenancy.tenants import found_tenant
from aiflow_sdk import errors

OVERLAP_S = DAY_S
LONGEST_OVERLAP_S = 90 * DAY_S
# "aif_" and two digits.
_BEGINNING = 6
_ALIKE = 100

_OWNED = KEYS.join(
    MEMBERS, and_(KEYS.c.tenant == MEMBERS.c.tenant, KEYS.c.member == MEMBERS.c.member)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key as it is shown once; `replaced` is the one that it is in place of."""

    key: Key
    secret: str = field(repr=False)
    replaced: Key | None = None


class Keys:
    def __init__(self, book: Book) -> None:
        self._book = book

    async def create(
        self,
        caller: Caller,
        tenant: str,
        member: str,
        *,
        name: str,
        models: Iterable[str],
        methods: Iterable[str],
        rights: Iterable[str],
        lives_s: float,
    ) -> NewKey:
        """`rights` empty: as fit the member's role; `lives_s` 0: for ever.

        Raises BadInputError, NotFoundError, PermissionDeniedError, RefusedError.
        """
        fields = Fields()
        wanted = fields.may(rights)
        values: dict[str, Any] = {
            "name": fields.title("name", name),
            "models": fields.patterns("models", models),
            "methods": fields.patterns("methods", methods),
        }
        fields.life("lives_ms", lives_s)
        async with self._book.change(actor(caller)) as turn:
            owner = await allowed(turn.connection, caller, "key.create", tenant, member)
            fields.check()
            given = wanted or rights_of(owner)
            if beyond := sorted(given - grantable(caller)):
                raise _beyond(beyond)
            if owner.disabled_s is not None:
                raise errors.RefusedError(
                    f'no key of member "{member}" works, for it is disabled: enable it first',
                    reason="MEMBER_DISABLED",
                )
            expires_s = turn.now_s + lives_s if lives_s else None
            return await written(
                turn, "key.create", owner, may=sorted(given), expires_s=expires_s, **values
            )

    async def get(self, caller: Caller, key: str) -> Key:
        """Raises NotFoundError."""
        async with self._book.read() as connection:
            return (await _found(connection, caller, "key.read", key))[0]

    async def list(
        self, caller: Caller, tenant: str, part: PageOf, *, member: str, ended: bool
    ) -> Page[Key]:
        """Raises NotFoundError, PermissionDeniedError."""
        seen = reach(caller, "key.read", tenant)
        if seen is None:
            raise denied(caller, "key.read", Whose(tenant=tenant))
        query = select(*KEYS.c).select_from(_OWNED).where(*within(seen, KEYS, MEMBERS))
        if not ended:
            now_s = self._book.wall()
            query = query.where(
                KEYS.c.revoked_s.is_(None),
                or_(KEYS.c.expires_s.is_(None), KEYS.c.expires_s > now_s),
            )
        async with self._book.read() as connection:
            await found_tenant(connection, tenant)
            if member:
                await allowed(connection, caller, "member.read", tenant, member)
                query = query.where(KEYS.c.member == member)
            return await page(connection, Key, query, KEYS.c.key, part)

    async def update(
        self,
        caller: Caller,
        key: str,
        *,
        name: str | None,
        models: Iterable[str] | None,
        methods: Iterable[str] | None,
    ) -> Key:
        """What is None stays; patterns that are empty are for all.

        Raises BadInputError, NotFoundError, PermissionDeniedError, RefusedError.
        """
        fields = Fields()
        values: dict[str, Any] = {}
        if name is not None:
            values["name"] = fields.title("name", name)
        for field_, given in (("models", models), ("methods", methods)):
            if given is not None:
                found = fields.patterns(field_, given)
                values[field_] = None if found is None else list(found)
        fields.check()
        async with self._book.change(actor(caller)) as turn:
            old, _ = await _found(turn.connection, caller, "key.change", key)
            _as_good(caller, old)
            _live(old, turn.now_s)
            if differs := changed(asdict(old), values):
                await turn.connection.execute(update(KEYS).where(KEYS.c.key == key).values(values))
                await turn.note("key.update", tenant=old.tenant, subject=key, details=differs)
            return (await _found(turn.connection, caller, "key.read", key))[0]

    async def rotate(
        self, caller: Caller, key: str, *, overlap_s: float, lives_s: float | None
    ) -> NewKey:
        """A key in place of another, as good as it, which works on for `overlap_s`.

        `lives_s` None: until the other would have ended; 0: for ever.
        Raises BadInputError, NotFoundError, PermissionDeniedError, RefusedError.
        """
        fields = Fields()
        fields.life("overlap_ms", overlap_s, most_s=LONGEST_OVERLAP_S)
        fields.life("lives_ms", lives_s or 0.0)
        fields.check()
        async with self._book.change(actor(caller)) as turn:
            old, owner = await _found(turn.connection, caller, "key.rotate", key)
            _rotatable(caller, old, owner, chooses=lives_s is not None)
            _live(old, turn.now_s)
            if (successor := await _successor(turn.connection, key)) is not None:
                raise errors.RefusedError(
                    f"key {key} was rotated before: {successor} is in its place, rotate that one",
                    reason="KEY_ROTATED",
                    metadata={"key": successor},
                )
            await _ends(turn, old, overlap_s)
            expires_s = old.expires_s
            if lives_s is not None:
                expires_s = turn.now_s + lives_s if lives_s else None
            new = await written(
                turn,
                "key.rotate",
                owner,
                name=old.name,
                models=old.models,
                methods=old.methods,
                may=old.may,
                expires_s=expires_s,
                instead_of=key,
            )
            replaced, _ = await _found(turn.connection, caller, "key.read", key)
            return NewKey(key=new.key, secret=new.secret, replaced=replaced)

    async def revoke(self, caller: Caller, key: str) -> Key:
        """Raises NotFoundError, PermissionDeniedError."""
        async with self._book.change(actor(caller)) as turn:
            old, owner = await _found(turn.connection, caller, "key.revoke", key)
            if old.revoked_s is None:
                await turn.connection.execute(
                    update(KEYS).where(KEYS.c.key == key).values(revoked_s=turn.now_s)
                )
                details = {"member": owner.member}
                await turn.note("key.revoke", tenant=old.tenant, subject=key, details=details)
            return (await _found(turn.connection, caller, "key.read", key))[0]


def rights_of(owner: Member) -> frozenset[Right]:
    """What a key is for where nobody says: who administers can do it with it."""
    return frozenset({"call"} if owner.role == "member" else {"call", "admin"})


async def written(
    turn: Turn,
    action: str,
    owner: Member,
    *,
    name: str,
    may: Sequence[str],
    models: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    expires_s: float | None = None,
    instead_of: str | None = None,
) -> NewKey:
    """A new key of `owner`."""
    fresh = await minted(turn.connection)
    values = {
        "member": owner.member,
        "name": name,
        "may": list(may),
        "models": None if models is None else list(models),
        "methods": None if methods is None else list(methods),
        "expires_s": expires_s,
        "instead_of": instead_of,
    }
    await turn.connection.execute(
        insert(KEYS).values(
            key=fresh.key,
            sha256=fresh.sha256,
            tenant=owner.tenant,
            created_s=turn.now_s,
            **values,
        )
    )
    told = {field: value for field, value in values.items() if value is not None}
    await turn.note(action, tenant=owner.tenant, subject=fresh.key, details=told)
    made = await one(turn.connection, Key, select(KEYS).where(KEYS.c.key == fresh.key))
    assert made is not None  # noqa: S101 - written above
    return NewKey(key=made, secret=fresh.text)


async def _ends(turn: Turn, old: Key, overlap_s: float) -> None:
    """Lets `old` work for so long yet, where it does not end before."""
    expires_s = min(turn.now_s + overlap_s, math.inf if old.expires_s is None else old.expires_s)
    await turn.connection.execute(
        update(KEYS).where(KEYS.c.key == old.key).values(expires_s=expires_s)
    )
    details = {"expires_s": [old.expires_s, expires_s]}
    await turn.note("key.expire", tenant=old.tenant, subject=old.key, details=details)


def _rotatable(caller: Caller, old: Key, owner: Member, *, chooses: bool) -> None:
    """Who rotates a key sees one that is as good, and so gets no more than they could give.

    Raises PermissionDeniedError.
    """
    whose = whose_member(owner, key=old.key)
    if chooses and not administers(caller, "key.rotate", whose):
        raise denied(caller, "key.rotate", whose)
    if caller.key != old.key:
        _as_good(caller, old)


def _as_good(caller: Caller, old: Key) -> None:
    """Raises PermissionDeniedError where `old` may more than `caller` could give."""
    if beyond := sorted(set(old.may) - grantable(caller)):
        raise _beyond(beyond)


def _live(old: Key, now_s: float) -> None:
    """Raises RefusedError."""
    if (state := old.state(now_s)) != "live":
        raise errors.RefusedError(
            f"key {old.key} is {state}: make another one with `aiflow key create`",
            reason="KEY_ENDED",
        )


def _beyond(rights: Sequence[str]) -> errors.PermissionDeniedError:
    return errors.PermissionDeniedError(
        f"only a platform_admin hands out keys that may {', '.join(rights)}: who registers servers "
        "gets the calls of every tenant",
        reason="ROLE_MISSING",
    )


async def _successor(connection: AsyncConnection, key: str) -> str | None:
    """The key that is in place of `key`, and is not revoked."""
    query = select(KEYS.c.key).where(KEYS.c.instead_of == key, KEYS.c.revoked_s.is_(None))
    return (await connection.execute(query)).scalars().first()


async def _found(
    connection: AsyncConnection, caller: Caller, operation: Operation, key: str
) -> tuple[Key, Member]:
    """The key and whose it is. Raises NotFoundError, also where `caller` may not even see it."""
    found = await one(connection, Key, select(KEYS).where(KEYS.c.key == key))
    if found is not None:
        query = select(MEMBERS).where(
            MEMBERS.c.tenant == found.tenant, MEMBERS.c.member == found.member
        )
        owner = await one(connection, Member, query)
        assert owner is not None  # noqa: S101 - the table's foreign key has seen to it
        whose = whose_member(owner, key=key)
        if may(caller, operation, whose):
            return found, owner
        if may(caller, "key.read", whose):
            raise denied(caller, operation, whose)
    everywhere = "" if caller.role == "platform_admin" else caller.tenant
    seen = reach(caller, "key.read", everywhere) or Reach(tenant="", member="")
    # Of many that are all at random, those that begin alike.
    alike = KEYS.c.key.startswith(key[:_BEGINNING], autoescape=True)
    query = select(KEYS.c.key).select_from(_OWNED).where(*within(seen, KEYS, MEMBERS), alike)
    raise not_found("key", key, (await connection.execute(query.limit(_ALIKE))).scalars().all())
