"""Consul and several workers: the supervisor watches, and all of them follow."""

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from fixtures.consul import StartAgent
from integration.router.consul_kit import INFER, discovery, entry, register
from integration.router.kit import backend, infer
from integration.router.processes_kit import (
    ALONE,
    TWO,
    Running,
    router,
    start,
    traffic,
    until,
)
from integration.router.test_policy import admin, last_seen_s, versions_at

from aiflow.admin.v1 import policy_pb2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")

FROM_DISK = "started from the last view on disk, because Consul does not answer"


async def answered(running: Running, model: str) -> bool:
    """Whether some calls, each on a connection of its own, are all answered."""
    for _ in range(6):
        async with grpc.aio.insecure_channel(running.address, options=ALONE) as channel:
            call: Any = channel.unary_unary(INFER)
            try:
                await call(infer(model), timeout=5)
            except grpc.aio.AioRpcError:
                return False
    return True


async def readyz(running: Running) -> tuple[int, dict[str, Any]]:
    url = f"http://{running.http}/readyz"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.json()


async def test_workers_follow_consul_and_outlive_it(
    start_consul: StartAgent, tmp_path: Path
) -> None:
    agent = start_consul()
    file = tmp_path / "last.json"
    config = TWO + discovery(agent.address, wait="300ms", more=f", last_known: '{file}'")
    async with backend() as server:
        await register(agent, entry(server.address, "m"))
        async with router(tmp_path, config) as running:
            assert await answered(running, "m")
            await register(agent, entry(server.address, "m", "n"))
            await until(lambda: answered(running, "n"))
            await until(lambda: file.exists() and b'"n"' in file.read_bytes())
            agent.kill()
            await until(lambda: _failing(running))
            assert await answered(running, "m")
            metrics = await running.metrics()
            assert metrics["aiflow_discovery_errors_total kind=away"] >= 1
            assert metrics["aiflow_discovery_from_disk"] == 0
            assert metrics["aiflow_discovery_age_seconds"] < 60
        async with router(tmp_path, config) as running:
            assert await answered(running, "n")
            assert running.said(FROM_DISK)
            status, report = await readyz(running)
            assert (status, report["discovery"]["from_disk"]) == (200, True)
            assert (await running.metrics())["aiflow_discovery_from_disk"] == 1
            await asyncio.to_thread(agent.start)
            await register(agent, entry(server.address, "o"))
            await until(lambda: answered(running, "o"))


async def test_what_lies_in_consul_is_the_policy_of_every_worker(
    start_consul: StartAgent, tmp_path: Path
) -> None:
    agent = start_consul()
    key = "aiflow/policy"
    text = "routes: [{match: {service: a.Echo}, timeout: %s}]\n"

    async def put(document: str) -> None:
        await asyncio.to_thread(agent.ask, "PUT", f"/v1/kv/{key}", document.encode())

    await put(text % "11s")
    kv = f"policy: {{consul_kv: {{key: {key}, address: '{agent.address}'}}}}\n"
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(backend())
        listed = f"{{backend: b, address: '{server.address}', protocol: grpc, services: [a.Echo]}}"
        config = f"{TWO}{kv}discovery: {{static: [{listed}]}}\n{text % '10s'}"
        running = await stack.enter_async_context(router(tmp_path, config))
        channel = await stack.enter_async_context(running.channel())
        (first,) = set(await versions_at(running.address))
        policy = (await admin(channel).Get(policy_pb2.GetPolicyRequest())).policy
        assert (policy.version, policy.source) == (first, "consul")
        async with traffic(running.address) as calls:
            await put(text % "12s")
            last_s = await last_seen_s(running.address, first, time.monotonic())
            (second,) = set(await versions_at(running.address))
            await put("routes: [{matsch: {}}]")
            await until(lambda: running.said("policy refused: the one in force stays"))
            assert set(await versions_at(running.address)) == {second}
            await admin(channel).Rollback(policy_pb2.RollbackPolicyRequest(version=first))
            assert set(await versions_at(running.address)) == {first}
            agent.kill()
            assert set(await versions_at(running.address)) == {first}
        assert calls.failed == []
        assert await running.metric("aiflow_config_load_errors_total") == 1
    assert last_s < 1.0


async def _failing(running: Running) -> bool:
    return "failing" in (await readyz(running))[1]["discovery"]


@pytest.mark.parametrize("workers", ["listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0'}\n", TWO])
async def test_files_for_tls_that_cannot_be_used_refuse_the_start(
    workers: str, tmp_path: Path
) -> None:
    (tmp_path / "aiflow.yaml").write_text(
        workers + "discovery: {consul: {address: https://127.0.0.1:9, ca: nowhere.pem}}\n"
    )
    process = await start("router", cwd=tmp_path)
    async with asyncio.timeout(30):
        _, stderr = await process.communicate()
    assert process.returncode == 1
    assert b"the files for TLS to Consul cannot be used (ca nowhere.pem" in stderr
    assert b"Traceback" not in stderr
