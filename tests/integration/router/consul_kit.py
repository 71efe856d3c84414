"""Endpoints put into a real Consul as servers do it, and calls that go on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
import grpc.aio
from fixtures.consul import Agent
from integration.router.kit import Mesh, infer

from aiflow_sdk.consul import segment
from aiflow_sdk.consul_entry import Entry, to_service

INFER = "/inference.GRPCInferenceService/ModelInfer"


def entry(address: str, *models: str, backend: str = "echo", **fields: Any) -> Entry:
    return Entry(backend=backend, address=address, protocol="oip", models=models, **fields)


async def register(agent: Agent, item: Entry, *, status: str = "passing", token: str = "") -> None:
    """With a TTL check that has `status` and lasts longer than a test."""
    body = {
        **to_service(item),
        "Check": {"CheckID": f"ttl:{item.id}", "TTL": "10m", "Status": status},
    }
    await asyncio.to_thread(agent.ask, "PUT", "/v1/agent/service/register", body, token=token)


async def deregister(agent: Agent, item: Entry) -> None:
    path = f"/v1/agent/service/deregister/{segment(item.id)}"
    await asyncio.to_thread(agent.ask, "PUT", path)


async def maintain(agent: Agent, item: Entry, *, enable: bool = True) -> None:
    """Maintenance mode, as a server enters before it leaves."""
    path = f"/v1/agent/service/maintenance/{segment(item.id)}?enable={str(enable).lower()}"
    await asyncio.to_thread(agent.ask, "PUT", path)


async def check(agent: Agent, item: Entry, status: str) -> None:
    body = {"Status": status}
    path = f"/v1/agent/check/update/{segment(f'ttl:{item.id}')}"
    await asyncio.to_thread(agent.ask, "PUT", path, body)


def discovery(
    address: str, *, wait: str = "500ms", grace: str = "60s", more: str = "", rest: str = ""
) -> str:
    consul = f"{{address: '{address}', wait: {wait}, grace: {grace}{more}}}"
    return f"discovery: {{consul: {consul}{rest}}}\n"


async def reported(running: Mesh, name: str, value: object) -> None:
    """Returns when /readyz says so."""
    async with asyncio.timeout(10):
        while (await report(running))[1][name] != value:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)


async def report(running: Mesh) -> tuple[int, dict[str, object]]:
    """What /readyz answers of discovery."""
    url = f"http://{running.router.http_address}/readyz"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, (await answer.json())["discovery"]


@dataclass
class Traffic:
    """Calls that were made in the meantime."""

    calls: int = 0
    failed: list[str] = field(default_factory=list)

    async def more(self, count: int = 20) -> None:
        """Returns when so many calls more were made."""
        aim = self.calls + count
        async with asyncio.timeout(20):
            while self.calls < aim:  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.005)


@asynccontextmanager
async def traffic(channel: Any, model: str = "m") -> AsyncIterator[Traffic]:
    """Calls one after the other until the block ends."""
    call = channel.unary_unary(INFER)
    made = Traffic()
    stop = asyncio.Event()

    async def calls() -> None:
        while not stop.is_set():
            try:
                await call(infer(model), timeout=10)
            except grpc.aio.AioRpcError as error:
                made.failed.append(f"{error.code().name}: {error.details()}")
            made.calls += 1
            await asyncio.sleep(0.002)

    task = asyncio.create_task(calls())
    try:
        await made.more(5)
        yield made
    finally:
        stop.set()
        await task
