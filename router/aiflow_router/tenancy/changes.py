"""The audit log, read."""

from __future__ import annotations

import re

from sqlalchemy import select

from aiflow_router.identity.caller import Caller
from aiflow_router.storage.tables.tenancy import AUDIT
from aiflow_router.tenancy.book import Book, PageOf
from aiflow_router.tenancy.fields import Fields
from aiflow_router.tenancy.records import Change, Page, record
from aiflow_router.tenancy.roles import Whose, denied, reach

KINDS = ("tenant", "department", "member", "key", "invitation", "application")
# That any database can take.
_NUMBER = re.compile(r"[0-9]{1,18}")


class Changes:
    def __init__(self, book: Book) -> None:
        self._book = book

    async def list(
        self, caller: Caller, tenant: str, part: PageOf, *, kind: str, subject: str
    ) -> Page[Change]:
        """The latest first; `tenant` "": of all tenants. Raises BadInputError, and as `reach`."""
        seen = reach(caller, "audit.read", tenant)
        if seen is None:
            raise denied(caller, "audit.read", Whose(tenant=tenant))
        fields = Fields()
        if kind:
            fields.choice("kind", kind, KINDS)
        if part.token and not _NUMBER.fullmatch(part.token):
            fields.wrong("page_token", "must be the last answer's next_page_token")
        fields.check()
        query = select(AUDIT).order_by(AUDIT.c.number.desc())
        if seen.tenant is not None:
            query = query.where(AUDIT.c.tenant == seen.tenant)
        if kind:
            query = query.where(AUDIT.c.kind == kind)
        if subject:
            query = query.where(AUDIT.c.subject == subject)
        if part.token:
            query = query.where(AUDIT.c.number < int(part.token))
        limit = part.limit()
        async with self._book.read() as connection:
            rows = (await connection.execute(query.limit(limit + 1))).all()
        items = tuple(record(Change, row) for row in rows[:limit])
        return Page(items=items, next=str(items[-1].number) if len(rows) > limit else "")
