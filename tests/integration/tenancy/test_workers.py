"""Administration of several workers: the supervisor decides, and all of them know."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import grpc.aio
import pytest
from integration.router.kit import backend
from integration.router.processes_kit import ALONE, Running, router
from integration.tenancy.kit import Admin, echo, refused

from aiflow.admin.v1 import tenancy_pb2 as pb
from aiflow_router.rpc.tenancy import NAMES
from aiflow_router.tenancy.knocks import BURST, RATE_PER_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")

TWO = "listen: {workers: 2, max_connection_age: 1s, drain_grace: 200ms}\n"
STATIC = "discovery: {static: [{backend: b, address: '%s', protocol: grpc, services: [a.Echo]}]}\n"


async def ends(running: Running, key: str, connections: int = 12) -> set[str]:
    """How calls end on so many connections of their own, which both workers have some of."""

    async def one() -> str:
        async with running.channel() as channel:
            return await echo(channel, key)

    return set(await asyncio.gather(*(one() for _ in range(connections))))


async def test_what_one_worker_answers_holds_at_all_of_them(
    storage_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "admin.key"
    async with backend() as server:
        config = (
            f"{TWO}{STATIC % server.address}storage: {{url: '{storage_url}'}}\n"
            f"auth: {{mode: required, admin_key_file: '{file}'}}\n"
        )
        async with router(tmp_path, config) as running, running.channel() as channel:
            root = Admin(channel, file.read_text().strip())
            await root.CreateTenant(tenant="acme")
            await root.CreateMember(tenant="acme", member="boss", role="tenant_admin")
            key = (await root.CreateKey(tenant="acme", member="boss", name="k")).secret
            boss = Admin(channel, key)
            assert (await boss.WhoAmI()).member == "boss"
            await boss.CreateMember(member="ann")
            for _ in range(4):
                made = await boss.CreateKey(member="ann", name="laptop")
                assert await ends(running, made.secret) == {"OK"}
                await boss.UpdateKey(key=made.key.key, methods=pb.Patterns(patterns=["/a.Other/*"]))
                assert await ends(running, made.secret) == {"PERMISSION_DENIED"}
                await boss.RevokeKey(key=made.key.key)
                assert await ends(running, made.secret) == {"UNAUTHENTICATED"}
            error = await refused(boss.CreateTenant(tenant="rival"))
            assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_MISSING")
            assert error.metadata["role"] == "tenant_admin"
            error = await refused(boss.GetMember(member="anm"))
            assert "did you mean ann?" in error.message
            first = (await boss.ListChanges(page_size=1)).changes[0]
            assert (first.action, first.actor) == ("key.revoke", f"acme/boss ({key[:12]})")
            assert not running.said("workers did not confirm a change of tenants and keys")
            assert not [line for line in running.lines if key[12:].encode() in line]


async def test_a_guesser_is_slowed_down_whichever_worker_it_asks(tmp_path: Path) -> None:
    config = f"{TWO}storage: {{url: 'sqlite:///{tmp_path / 'a.db'}'}}\n"
    async with router(tmp_path, config) as running:

        async def guess() -> str:
            async with grpc.aio.insecure_channel(running.address, options=ALONE) as channel:
                applying = Admin(channel).Apply(code="inv_00000000_" + "A" * 22, member="eve")
                return (await refused(applying)).reason

        began_s = time.monotonic()
        reasons = [await guess() for _ in range(int(BURST) + 5)]
        come_back = (time.monotonic() - began_s) * RATE_PER_S
        assert set(reasons) <= {"CODE_INVALID", "RATE_LIMITED"}
        assert BURST <= reasons.count("CODE_INVALID") <= BURST + come_back


async def test_without_a_database_workers_say_so_too(tmp_path: Path) -> None:
    async with router(tmp_path, TWO) as running, running.channel() as channel:
        for method in NAMES:
            if method != "WhoAmI":
                assert (await refused(getattr(Admin(channel), method)())).reason == "NO_STORAGE"
