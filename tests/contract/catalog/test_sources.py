"""What every source of endpoints does, whether servers register here, are listed, or use Consul."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from contract.catalog.kit import Source, changed, comes_to, router_of, status_of
from fixtures.consul import Agent
from integration.router.kit import Backend, Mesh, Seen, backend, infer, until

from aiflow_router.catalog.endpoint import Endpoint
from aiflow_sdk.consul_entry import Entry


@dataclass
class Here:
    mesh: Mesh
    source: Source
    one: Backend
    two: Backend


@pytest.fixture(params=["embedded", "static", "consul"])
async def here(request: pytest.FixtureRequest, consul: Agent) -> AsyncIterator[Here]:
    async with (
        backend() as one,
        backend() as two,
        router_of(request.param, consul) as (mesh, source),
    ):
        yield Here(mesh=mesh, source=source, one=one, two=two)


def entry(backend: Backend, *models: str) -> Entry:
    return Entry(backend="contract", address=backend.address, protocol="oip", models=models)


async def call(here: Here, model: str, *, times: int = 20) -> None:
    method = here.mesh.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for _ in range(times):
        await method(infer(model), timeout=5)


async def test_an_endpoint_that_appears_is_called(here: Here) -> None:
    assert await status_of(here.mesh, "m") == "NOT_FOUND"
    await here.source.put(entry(here.one, "m"))
    await comes_to(here.mesh, "m", "OK")
    assert here.one.seen


async def test_a_service_that_appears_is_called(here: Here) -> None:
    item = Entry(
        backend="contract", address=here.one.address, protocol="grpc", services=("a.Echo",)
    )
    await here.source.put(item)
    await until(lambda: "a.Echo" in here.mesh.router.view.snapshot.services)
    method = here.mesh.channel.unary_unary("/a.Echo/Echo")
    assert await method(b"hello", timeout=5) == b"hello"


async def test_an_endpoint_that_leaves_is_called_no_more(here: Here) -> None:
    await here.source.put(entry(here.one, "m"))
    await comes_to(here.mesh, "m", "OK")
    await here.source.leave(entry(here.one, "m"))
    # Its name stays known for a while: callers are told to wait, not that it never was.
    await comes_to(here.mesh, "m", "UNAVAILABLE")
    assert here.one.address not in await here.mesh.endpoints()


async def test_of_two_endpoints_the_one_that_stays_takes_all_calls(here: Here) -> None:
    for server in (here.one, here.two):
        await here.source.put(entry(server, "m"))
    await until(lambda: len(here.mesh.router.view.snapshot.models.get("m", ())) == 2)
    await here.source.leave(entry(here.one, "m"))
    await until(lambda: len(here.mesh.router.view.snapshot.models["m"]) == 1)
    here.one.seen.clear()
    await call(here, "m")
    assert not here.one.seen
    assert len(here.two.seen) >= 20


async def test_an_endpoint_that_drains_takes_no_new_calls_and_is_still_known(here: Here) -> None:
    if not here.source.can_drain:
        pytest.skip("a list knows no draining")
    for server in (here.one, here.two):
        await here.source.put(entry(server, "m"))
    await until(lambda: len(here.mesh.router.view.snapshot.models.get("m", ())) == 2)
    await here.source.drain(entry(here.one, "m"))
    await until(lambda: len(here.mesh.router.view.snapshot.models["m"]) == 1)
    here.one.seen.clear()
    await call(here, "m")
    assert not here.one.seen
    await here.source.drain(entry(here.two, "m"))
    await comes_to(here.mesh, "m", "UNAVAILABLE")
    assert 'aiflow_endpoints{backend="contract",state="draining"} 2.0' in await here.mesh.metrics()


@pytest.mark.parametrize("kind", ["embedded", "consul"])
async def test_an_endpoint_that_drains_finishes_what_it_began(kind: str, consul: Agent) -> None:
    release = asyncio.Event()

    async def slow(_: Seen, context: Any) -> None:
        message = await context.read()
        await release.wait()
        await context.write(message)

    async with backend(ModelInfer=slow) as server, router_of(kind, consul) as (mesh, source):
        await source.put(entry(server, "m"))
        await until(lambda: "m" in mesh.router.view.snapshot.models)
        method = mesh.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        began = method(infer("m"), timeout=10)
        await until(lambda: bool(server.seen))
        await source.drain(entry(server, "m"))
        await until(lambda: not mesh.router.view.snapshot.models["m"])
        release.set()
        assert await began == infer("m")


async def test_an_endpoint_may_change_its_models(here: Here) -> None:
    await here.source.put(entry(here.one, "old", "both"))
    await comes_to(here.mesh, "old", "OK")
    await here.source.put(entry(here.one, "both", "new"))
    await comes_to(here.mesh, "new", "OK")
    assert await status_of(here.mesh, "both") == "OK"
    assert await status_of(here.mesh, "old") == "UNAVAILABLE"


async def test_an_endpoint_may_change_all_else_that_it_says(here: Here) -> None:
    item = entry(here.one, "m")
    await here.source.put(item)
    await comes_to(here.mesh, "m", "OK")
    await here.source.put(changed(item, weight=7, zone="b", version="1.2", device="gpu:0"))

    def found() -> Endpoint:
        return here.mesh.router.view.snapshot.entries[item.backend, item.address].endpoint

    await until(lambda: found().weight == 7)
    assert (found().zone, found().version, found().device) == ("b", "1.2", "gpu:0")


async def test_an_endpoint_that_is_told_twice_is_there_once(here: Here) -> None:
    for _ in range(2):
        await here.source.put(entry(here.one, "m"))
        await comes_to(here.mesh, "m", "OK")
    assert len(here.mesh.router.view.snapshot.models["m"]) == 1


async def test_one_address_may_be_two_backends(here: Here) -> None:
    first, second = entry(here.one, "m"), changed(entry(here.one, "n"), backend="contract-2")
    for item in (first, second):
        await here.source.put(item)
    await comes_to(here.mesh, "m", "OK")
    await comes_to(here.mesh, "n", "OK")
    await here.source.leave(second)
    await comes_to(here.mesh, "n", "UNAVAILABLE")
    assert await status_of(here.mesh, "m") == "OK"


async def test_what_cannot_be_called_is_left_out_and_harms_nobody(here: Here) -> None:
    await here.source.put_wrong(here.two.address)
    await here.source.put(entry(here.one, "m"))
    await comes_to(here.mesh, "m", "OK")
    assert here.two.address not in await here.mesh.endpoints()


async def test_people_and_scrapes_are_told_what_is_there(here: Here) -> None:
    await here.source.put(entry(here.one, "m"))
    await comes_to(here.mesh, "m", "OK")
    url = f"http://{here.mesh.router.http_address}/readyz"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        assert "m" in (await answer.json())["models"]
    text = await here.mesh.metrics()
    assert 'aiflow_endpoints{backend="contract",state="ready"} 1.0' in text
    assert "aiflow_discovery_age_seconds" in text
