"""Several workers: each pays and writes by itself, and what it wrote holds for all."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from integration.accounts.test_service import INFER, Accountant
from integration.router.kit import backend, infer
from integration.router.processes_kit import Running, router
from integration.tenancy.kit import Admin

from aiflow_router.accounts.account import MICRO
from aiflow_router.accounts.statement import audited
from aiflow_router.storage.database import opened

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")

CONFIG = """listen: {workers: 2, drain_grace: 200ms}
discovery: {static: [{backend: b, address: '%s', protocol: oip, models: [m]}]}
routes: [{match: {model: m}, price: 1}]
storage: {url: '%s'}
auth: {mode: required, admin_key_file: '%s'}
"""
CALLS = 24


async def codes(running: Running, key: str) -> list[str]:
    """How calls end, each over a connection of its own, which both workers have some of."""

    async def one() -> str:
        async with running.channel() as channel:
            infers: Any = channel.unary_unary(INFER)
            call = infers(infer("m"), metadata=[("x-api-key", key)], timeout=20)
            return str((await call.code()).name)

    return await asyncio.gather(*(one() for _ in range(CALLS)))


async def test_two_workers_spend_no_credit_twice(storage_url: str, tmp_path: Path) -> None:
    file = tmp_path / "admin.key"
    async with backend() as server:
        config = CONFIG % (server.address, storage_url, file)
        async with router(tmp_path, config) as running, running.channel() as channel:
            root = Admin(channel, await asyncio.to_thread(lambda: file.read_text().strip()))
            await root.CreateTenant(tenant="acme")
            await root.CreateMember(tenant="acme", member="ann")
            key = (await root.CreateKey(tenant="acme", member="ann", name="k")).secret
            money = Accountant(channel, root)
            await money.TopUp(tenant="acme", micro_credits=20 * MICRO, reference="a")
            ends = await codes(running, key)
            assert (ends.count("OK"), ends.count("RESOURCE_EXHAUSTED")) == (20, 4)
            assert await money.has() == {"held:acme": 0, "pool:acme": 0, "spent:acme": 20}
            async with asyncio.timeout(10):
                while True:
                    usage = (await money.ListUsage(by=["tenant"])).usage
                    if sum(one.calls for one in usage) == CALLS:
                        break
                    await asyncio.sleep(0.1)
            assert [(one.tenant, one.failed, one.micro_credits) for one in usage] == [
                ("acme", 4, 20 * MICRO)
            ]
    async with opened(storage_url) as engine:
        assert (await audited(engine)).imbalance == 0


async def test_what_was_used_is_written_when_a_router_ends(tmp_path: Path) -> None:
    url, file = f"sqlite:///{tmp_path / 'a.db'}", tmp_path / "admin.key"
    async with backend() as server:
        config = (CONFIG % (server.address, url, file)).replace("price: 1", "timeout: 9s")
        async with router(tmp_path, config) as running:
            key = await asyncio.to_thread(lambda: file.read_text().strip())
            assert set(await codes(running, key)) == {"OK"}
            running.process.send_signal(signal.SIGTERM)
            assert await running.process.wait() == 0
    async with opened(url) as engine, engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT SUM(calls) FROM usage")
        assert found.scalar() == CALLS
