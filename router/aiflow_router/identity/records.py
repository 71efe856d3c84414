"""What the database says of keys and members, as the directory has it.

Rows come in pages, so that calls move on while a tenant with many keys is read anew.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import Any, get_args

import structlog
from sqlalchemy import ColumnElement, FromClause, Select, Table, Text, and_, cast, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from aiflow_router.identity.caller import Caller, Right, Role
from aiflow_router.identity.scope import Scope, scope
from aiflow_router.storage.tables.tenancy import AUDIT, DEPARTMENTS, KEYS, MEMBERS, TENANTS

_log = structlog.get_logger(__name__)

PAGE = 1000
# So many names fit one statement of SQLite.
AT_ONCE = 400
_ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}
_RIGHTS: Mapping[str, Right] = {right: right for right in get_args(Right)}

Keys = list[tuple[bytes, Caller]]
Members = dict[tuple[str, str], Caller]


@dataclass(slots=True, kw_only=True)
class Changes:
    """What rows of the audit log say is to be read anew.

    Attributes:
        number: of the last row; None where the log is not the one that was followed.
        rows: how many there were.
    """

    number: int | None = None
    rows: int = 0
    tenants: set[str] = field(default_factory=set)
    members: set[tuple[str, str]] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)

    def note(self, tenant: str, kind: str, subject: str) -> None:
        if kind == "tenant":
            self.tenants.add(subject)
        elif kind == "department":  # Seldom enough for the whole tenant.
            self.tenants.add(tenant)
        elif kind == "member":
            self.members.add((tenant, subject))
        elif kind == "key":
            self.keys.add(subject)

    def key_filters(self) -> list[ColumnElement[bool]]:
        """Conditions on KEYS that together find what has changed."""
        parts = _parts(sorted(self.keys))
        return [*self._owners(KEYS), *(KEYS.c.key.in_(part) for part in parts)]

    def member_filters(self) -> list[ColumnElement[bool]]:
        """The same on MEMBERS."""
        return self._owners(MEMBERS)

    def _owners(self, table: Table) -> list[ColumnElement[bool]]:
        member = tuple_(table.c.tenant, table.c.member)
        found: list[ColumnElement[bool]] = []
        found += [table.c.tenant.in_(part) for part in _parts(sorted(self.tenants))]
        found += [member.in_(part) for part in _parts(sorted(self.members))]
        return found


async def last_number(connection: AsyncConnection) -> int:
    """Of the audit log; 0 where it is empty."""
    newest = select(AUDIT.c.number).order_by(AUDIT.c.number.desc()).limit(1)
    return (await connection.execute(newest)).scalar() or 0


async def changes(connection: AsyncConnection, *, after: int) -> Changes:
    """A page of what the audit log says behind row `after`."""
    found = Changes()
    rows = await connection.execute(
        select(AUDIT.c.number, AUDIT.c.tenant, AUDIT.c.kind, AUDIT.c.subject)
        # Row `after` itself too: if it is gone, this is another log, out of an older copy.
        .where(AUDIT.c.number >= after)
        .order_by(AUDIT.c.number)
        .limit(PAGE + 1)
    )
    first = True
    for number, tenant, kind, subject in rows:
        if first and after and number != after:
            return Changes()
        first = False
        if number > after:
            found.rows += 1
            found.note(tenant, kind, subject)
        found.number = number
    if first and not after:
        found.number = 0
    return found


async def keys(
    connection: AsyncConnection,
    take: Callable[[Keys], None],
    where: ColumnElement[bool] | None = None,
) -> None:
    """Hands over keys with their SHA-256, a page at a time."""
    reader = _Reader()
    await _paged(
        connection, _of_keys(), where, lambda page: take([reader.key(row) for row in page])
    )


async def members(
    connection: AsyncConnection,
    take: Callable[[Members], None],
    where: ColumnElement[bool] | None = None,
) -> None:
    """Hands over members by tenant and name, a page at a time."""
    reader = _Reader()
    await _paged(
        connection, _of_members(), where, lambda page: take(dict(map(reader.member, page)))
    )


async def _paged(
    connection: AsyncConnection,
    statement: Select[Any],
    where: ColumnElement[bool] | None,
    take: Callable[[Sequence[Any]], None],
) -> None:
    if where is not None:
        statement = statement.where(where)
    async with connection.stream(statement.execution_options(yield_per=PAGE)) as rows:
        async for page in rows.partitions():
            take(page)
            await asyncio.sleep(0)  # Calls move on in between.


# What is the same in both: whose it is, and why it may not be good.
_OWNER = (
    MEMBERS.c.department,
    MEMBERS.c.role,
    TENANTS.c.weight,
    MEMBERS.c.disabled_s,
    DEPARTMENTS.c.disabled_s,
    TENANTS.c.disabled_s,
)


def _of_keys() -> Select[Any]:
    return select(
        KEYS.c.sha256,
        KEYS.c.key,
        KEYS.c.name,
        KEYS.c.tenant,
        KEYS.c.member,
        # As text: most keys have the same, which is then understood once.
        cast(KEYS.c.may, Text),
        cast(KEYS.c.models, Text),
        cast(KEYS.c.methods, Text),
        KEYS.c.expires_s,
        KEYS.c.revoked_s,
        *_OWNER,
    ).select_from(
        _with_owners(
            KEYS.join(
                MEMBERS,
                and_(KEYS.c.tenant == MEMBERS.c.tenant, KEYS.c.member == MEMBERS.c.member),
            )
        )
    )


def _of_members() -> Select[Any]:
    return select(MEMBERS.c.tenant, MEMBERS.c.member, *_OWNER).select_from(_with_owners(MEMBERS))


def _with_owners(members: FromClause) -> FromClause:
    return members.join(TENANTS, MEMBERS.c.tenant == TENANTS.c.tenant).outerjoin(
        DEPARTMENTS,
        and_(
            MEMBERS.c.tenant == DEPARTMENTS.c.tenant,
            MEMBERS.c.department == DEPARTMENTS.c.department,
        ),
    )


class _Reader:
    """Makes records of rows; what is equal is one object, for there are many of them."""

    def __init__(self) -> None:
        self._rights: dict[str, frozenset[Right]] = {}
        self._scopes: dict[tuple[str | None, str | None], Scope | None] = {}

    def key(self, row: Any) -> tuple[bytes, Caller]:
        sha256, key, name, tenant, member, may, models, methods, expires_s, revoked_s = row[:10]
        department, role, weight, *disabled_s = row[10:]
        barred = "it was revoked" if revoked_s is not None else _barred(*disabled_s)
        wanted = None
        if models is not None or methods is not None:
            try:
                wanted = self._scope(models, methods)
            except ValueError as error:
                _log.error(
                    "a key is not good: its scope is not understood", key=key, why=str(error)
                )
                barred = barred or "its scope is not understood, the router's log says why"
        return bytes(sha256), Caller(
            name=name,
            tenant=intern(tenant),
            may=self._may(may),
            key=key,
            department=intern(department or ""),
            member=intern(member),
            role=_ROLES.get(role, "member"),
            weight=weight,
            scope=wanted,
            expires_s=expires_s,
            barred=barred,
        )

    def member(self, row: Any) -> tuple[tuple[str, str], Caller]:
        tenant, member, department, role, weight, *disabled_s = row
        rights: set[Right] = {"call", "admin"} if role == "platform_admin" else {"call"}
        caller = Caller(
            name=f"token of {member}",
            tenant=intern(tenant),
            may=frozenset(rights),
            # Rules by key hold for all tokens of a member together, and never for two members.
            key=f"token:{tenant}/{member}",
            department=intern(department or ""),
            member=intern(member),
            role=_ROLES.get(role, "member"),
            weight=weight,
            barred=_barred(*disabled_s),
        )
        return (caller.tenant, caller.member), caller

    def _may(self, text: str) -> frozenset[Right]:
        found = self._rights.get(text)
        if found is None:
            # A right that another version of the program knows is none here.
            told = json.loads(text)
            found = frozenset(_RIGHTS[right] for right in told if right in _RIGHTS)
            self._rights[text] = found
        return found

    def _scope(self, models: str | None, methods: str | None) -> Scope | None:
        """Raises ValueError."""
        if (models, methods) not in self._scopes:
            self._scopes[models, methods] = scope(
                None if models is None else json.loads(models),
                None if methods is None else json.loads(methods),
            )
        return self._scopes[models, methods]


def _barred(member_s: float | None, department_s: float | None, tenant_s: float | None) -> str:
    if tenant_s is not None:
        return "its tenant is disabled"
    if department_s is not None:
        return "its department is disabled"
    return "" if member_s is None else "its member is disabled"


def _parts(items: list[Any]) -> list[list[Any]]:
    return [items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE)]
