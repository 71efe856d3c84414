"""Tenants, members and keys as administration writes them: with their rows of the audit log."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.identity.key import Minted, minted
from aiflow_router.storage.database import changing
from aiflow_router.storage.tables.tenancy import AUDIT, DEPARTMENTS, KEYS, MEMBERS, TENANTS

TENANT = {"weight": 1.0, "pays_first": "pool", "when_out": "refuse", "created_s": 0.0}


class Office:
    """Changes the database; each change is a row of the audit log, whose number it returns."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def tenant(self, name: str, **values: Any) -> int:
        row = insert(TENANTS).values(tenant=name, **{**TENANT, **values})
        return await self._told(row, "tenant", name, name)

    async def department(self, tenant: str, name: str) -> int:
        row = insert(DEPARTMENTS).values(tenant=tenant, department=name, created_s=0.0)
        return await self._told(row, "department", tenant, name)

    async def member(self, tenant: str, name: str, role: str = "member", **values: Any) -> int:
        row = insert(MEMBERS).values(tenant=tenant, member=name, role=role, created_s=0.0, **values)
        return await self._told(row, "member", tenant, name)

    async def key(self, tenant: str, member: str, **values: Any) -> Minted:
        """A new key."""
        async with changing(self._engine) as connection:
            made = await minted(connection)
            columns = {"name": "k", "may": ["call"], "created_s": 0.0, **values}
            await connection.execute(
                insert(KEYS).values(
                    key=made.key, sha256=made.sha256, tenant=tenant, member=member, **columns
                )
            )
            await connection.execute(_audit("key", tenant, made.key))
        return made

    async def change_key(self, key: str, **values: Any) -> int:
        return await self._told(
            update(KEYS).where(KEYS.c.key == key).values(values), "key", "", key
        )

    async def change_tenant(self, tenant: str, **values: Any) -> int:
        row = update(TENANTS).where(TENANTS.c.tenant == tenant).values(values)
        return await self._told(row, "tenant", tenant, tenant)

    async def change_department(self, tenant: str, name: str, **values: Any) -> int:
        row = update(DEPARTMENTS).where(DEPARTMENTS.c.department == name).values(values)
        return await self._told(row, "department", tenant, name)

    async def change_member(self, tenant: str, name: str, **values: Any) -> int:
        row = update(MEMBERS).where(MEMBERS.c.member == name).values(values)
        return await self._told(row, "member", tenant, name)

    async def _told(self, change: Any, kind: str, tenant: str, subject: str) -> int:
        async with changing(self._engine) as connection:
            await connection.execute(change)
            done = await connection.execute(_audit(kind, tenant, subject))
            assert done.inserted_primary_key is not None
            return int(done.inserted_primary_key[0])


def _audit(kind: str, tenant: str, subject: str) -> Any:
    return insert(AUDIT).values(
        at_s=0.0,
        actor="the test",
        action=f"{kind}.change",
        tenant=tenant,
        kind=kind,
        subject=subject,
        details={},
    )
