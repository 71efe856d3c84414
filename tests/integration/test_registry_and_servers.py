"""A CPU server of the runtime behind a real router: registered, called, cancelled, gone."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from integration.router.kit import ANY_PORT
from integration.runtime.echo import SERVER, SERVICE
from integration.runtime.poll import until

from aiflow_router.catalog.endpoint import State
from aiflow_router.config.file import parse
from aiflow_router.main import serving as serving_router
from aiflow_router.running import Router
from aiflow_sdk import AsyncClient
from aiflow_sdk.errors import (
    BadInputError,
    CallCancelledError,
    DeadlineExceededError,
    NoEndpointError,
)
from aiflow_servers.runtime.lease_registrar import LeaseRegistrar
from aiflow_servers.runtime.server import Running
from aiflow_servers.runtime.server import serving as serving_server


@asynccontextmanager
async def routed() -> AsyncIterator[tuple[Running, AsyncClient]]:
    """A router, a server that registered itself there, and a client of the router."""
    async with (
        serving_router(parse(ANY_PORT)) as router,
        serving_server(SERVER, registrar=at(router), workers=1, grace_s=0.0) as server,
        AsyncClient(router.grpc_address) as client,
    ):
        await client.wait_ready(services=[SERVICE])
        yield server, client


def at(router: Router) -> LeaseRegistrar:
    return LeaseRegistrar(router=router.grpc_address)


def method(client: AsyncClient, name: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return client.channel().unary_unary(f"/{SERVICE}/{name}")


async def test_a_server_that_registers_is_called_through_the_router() -> None:
    async with routed() as (server, client):
        reply = await client.call(method(client, "Echo"), b"hello")
        assert reply.message == b"hello"
        assert reply.served_by.endswith(f"@{server.address}")


async def test_a_server_that_leaves_is_shown_as_draining_for_the_grace_and_then_gone() -> None:
    async with AsyncExitStack() as leaving, serving_router(parse(ANY_PORT)) as router:
        await leaving.enter_async_context(
            serving_server(SERVER, registrar=at(router), workers=1, grace_s=0.5)
        )
        await until(lambda: router.catalog.snapshot.services.get(SERVICE))
        states: list[State] = []
        router.catalog.follow(
            lambda now, _: states.extend(entry.state for entry in now.entries.values())
        )
        began = time.monotonic()
        await leaving.aclose()
        assert time.monotonic() - began >= 0.5
        assert list(dict.fromkeys(states)) == [State.READY, State.DRAINING]
        assert not router.catalog.snapshot.entries


async def test_an_error_of_a_server_arrives_whole() -> None:
    async with routed() as (_, client):
        with pytest.raises(BadInputError) as caught:
            await method(client, "Refuse")(b"")
        assert caught.value.reason == "PICTURE_TOO_LARGE"
        assert caught.value.violations
        assert caught.value.request_id


async def test_a_cancelled_call_frees_router_and_worker() -> None:
    async with routed() as (server, client):
        call = asyncio.ensure_future(client.call(method(client, "Wait"), b"60"))
        await until(lambda: server.workers.busy == 1)
        started = time.monotonic()
        call.cancel()
        with pytest.raises((asyncio.CancelledError, CallCancelledError)):
            await call
        await until(lambda: server.workers.busy == 0, within_s=1.0)
        await nothing_in_flight(client)
        assert time.monotonic() - started < 1.0
        assert (await client.call(method(client, "Echo"), b"next")).message == b"next"


async def test_an_expired_deadline_frees_router_and_worker() -> None:
    async with routed() as (server, client):
        with pytest.raises(DeadlineExceededError):
            await client.call(method(client, "Wait"), b"60", timeout_s=0.3)
        await until(lambda: server.workers.busy == 0, within_s=1.0)
        await nothing_in_flight(client)


async def test_a_server_that_leaves_is_out_at_once() -> None:
    async with (
        serving_router(parse(ANY_PORT)) as router,
        AsyncClient(router.grpc_address) as client,
    ):
        async with serving_server(SERVER, registrar=at(router), workers=1, grace_s=0.0):
            await client.wait_ready(services=[SERVICE])
        assert await client.endpoints() == ()
        with pytest.raises(NoEndpointError) as caught:
            await client.call(method(client, "Echo"), b"", timeout_s=0.5)
        assert SERVICE in caught.value.message


async def nothing_in_flight(client: AsyncClient) -> None:
    """Returns once the router counts no call on its way to a server; fails after a second."""
    async with asyncio.timeout(1.0):
        while any(e.inflight for e in await client.endpoints()):  # noqa: ASYNC110 - a poll
            await asyncio.sleep(0.01)  # the router is asked again
