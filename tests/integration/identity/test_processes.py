"""Keys where `listen.workers` is more than 1: every worker has them, and what changed at once."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from integration.identity.kit import Office
from integration.router.processes_kit import ALONE, Running, router, start, until

from aiflow_router.identity.key import Minted
from aiflow_router.processes.worker import socket_of
from aiflow_router.storage.database import opened
from aiflow_sdk import status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")

LISTEN = "listen: {workers: 2, drain_grace: 0s, drain_timeout: 5s}\nauth: {mode: required}\n"
LIVE = "/inference.GRPCInferenceService/ServerLive"
# Enough connections that each worker gets some.
CALLERS = 12


async def answers(running: Running, key: str) -> set[str]:
    """What callers over connections of their own are told."""

    async def call() -> str:
        async with grpc.aio.insecure_channel(running.address, options=ALONE) as channel:
            ask: Any = channel.unary_unary(LIVE)
            try:
                await ask(b"", metadata=(("x-api-key", key),))
            except grpc.aio.AioRpcError as error:
                return status.from_rpc_error(error).message
            return "OK"

    return set(await asyncio.gather(*(call() for _ in range(CALLERS))))


async def reached(running: Running, number: int) -> float:
    """Asks each worker as their supervisor does; how long it took."""
    began_s = time.monotonic()
    for worker in running.workers():
        folder, name = worker.cmdline()[-3:-1]
        connector = aiohttp.UnixConnector(str(socket_of(Path(folder), name)))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://worker/directory/{number}") as answer,
        ):
            assert answer.status == 204
    return time.monotonic() - began_s


async def team(office: Office) -> Minted:
    await office.tenant("acme")
    await office.member("acme", "ann")
    return await office.key("acme", "ann")


async def test_a_change_is_in_all_workers_when_they_say_so(
    storage_url: str, tmp_path: Path
) -> None:
    config = f"{LISTEN}storage: {{url: '{storage_url}'}}\n"
    async with router(tmp_path, config) as running, opened(storage_url) as engine:
        office = Office(engine)
        key = await team(office)
        took_s = []
        for number in range(9):
            seen = await office.change_key(key.key, name=f"name {number}")
            took_s.append(await reached(running, seen))
        assert await answers(running, key.text) == {"OK"}
        await reached(running, await office.change_key(key.key, revoked_s=1.0))
        (told,) = await answers(running, key.text)
        assert "it was revoked" in told
        # They look at once, not each with its next look in up to a second.
        assert statistics.median(took_s) < 0.5, took_s


async def test_a_change_that_nobody_tells_of_is_found_within_a_second(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    async with (
        router(tmp_path, f"{LISTEN}storage: {{url: '{url}'}}\n") as running,
        opened(url) as engine,
    ):
        key = await team(Office(engine))

        async def known() -> bool:
            return await answers(running, key.text) == {"OK"}

        await until(known, within_s=10)
        assert (await running.metrics())["aiflow_identity_keys"] == 2


async def test_the_first_key_is_made_once_and_a_worker_that_is_born_later_knows_it(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'data' / 'a.db'}"
    async with router(tmp_path, f"{LISTEN}storage: {{url: '{url}'}}\n") as running:
        key = (tmp_path / "data" / "aiflow-admin.key").read_text().strip()
        assert await answers(running, key) == {"OK"}
        assert len(running.said("keys are known")) == 2
        before = running.workers()
        before[0].kill()
        await until(lambda: len(running.said("keys are known")) == 3)
        await until(lambda: len(running.workers()) == 2 and running.workers() != before)
        assert await answers(running, key) == {"OK"}
        assert not [line for line in running.lines if key.encode() in line]


async def test_a_database_that_cannot_be_used_is_told_and_ends_the_start(tmp_path: Path) -> None:
    for workers in ("1", "2"):
        (tmp_path / "aiflow.yaml").write_text(
            f"listen: {{workers: {workers}}}\n"
            "storage: {url: 'postgresql://me:hush@127.0.0.1:1/aiflow'}\n"
        )
        process = await start(
            *("router", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"), cwd=tmp_path
        )
        _, stderr = await process.communicate()
        assert process.returncode == 1
        assert b"cannot be used" in stderr
        assert b"hush" not in stderr
