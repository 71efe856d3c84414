"""Tenants, members and keys as administration writes them, routers that ask for those keys, and who
signs tokens for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from integration.router.kit import Mesh, backend, echo, infer, mesh
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow_router.identity.key import Minted, minted
from aiflow_router.storage.database import changing
from aiflow_router.storage.tables.tenancy import AUDIT, DEPARTMENTS, KEYS, MEMBERS, TENANTS
from aiflow_sdk import errors, status

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
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


@dataclass
class Stored:
    mesh: Mesh
    office: Office

    async def call(self, key: str, method: str = INFER, request: bytes = b"") -> bytes:
        answer: bytes = await self.mesh.channel.unary_unary(method)(
            request or infer("m"), metadata=(("x-api-key", key),)
        )
        return answer

    async def refused(
        self, key: str, method: str = INFER, request: bytes = b""
    ) -> errors.AiflowError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(key, method, request)
        assert key not in str(caught.value)
        return status.from_rpc_error(caught.value)

    async def taken(self, number: int) -> None:
        assert self.mesh.router.directory is not None
        async with asyncio.timeout(5):
            await self.mesh.router.directory.reached(number)


@asynccontextmanager
async def stored(url: str, folder: Path) -> AsyncIterator[Stored]:
    """A router that asks for keys, with models `m` and `n` and service `a.Echo` behind it."""
    async with backend(ModelInfer=echo, ModelStreamInfer=echo, Echo=echo) as server:
        address = f"address: '{server.address}'"
        listed = (
            "discovery:\n  static:\n"
            f"    - {{backend: b, {address}, protocol: oip, models: [m, n]}}\n"
            f"    - {{backend: c, {address}, protocol: grpc, services: [a.Echo]}}\n"
        )
        config = (
            f"auth: {{mode: required, admin_key_file: '{folder / 'admin.key'}'}}\n"
            f"storage: {{url: '{url}'}}\n"
        )
        async with mesh(listed + config) as running:
            assert running.router.engine is not None
            office = Office(running.router.engine)
            await office.tenant("acme")
            await office.member("acme", "ann")
            yield Stored(mesh=running, office=office)


def signer(folder: Path) -> rsa.RSAPrivateKey:
    """A new key to sign tokens with; its public part is in `jwks.json` of the folder."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))
    return key
