"""Thousands of endpoints: they start, serve and change, and calls move on meanwhile."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from integration.router.kit import ANY_PORT, backend, infer, mesh, until

from aiflow.registry.v1 import registry_pb2
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.config.discovery import Discovery, StaticEndpoint
from aiflow_router.config.file import parse
from aiflow_router.garbage import kept_short

INFER = "/inference.GRPCInferenceService/ModelInfer"
MANY = 10_000
# Ten times what is aimed at: this machine may be busy.
LONGEST_HOLD_S = 0.1


class Lag:
    """The CPU time that the loop's thread spent at one stretch, at most."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def beat(self) -> None:
        last_s = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            self.longest_s = max(self.longest_s, now_s - last_s)
            last_s = now_s


@asynccontextmanager
async def lag() -> AsyncIterator[Lag]:
    found = Lag()
    beating = asyncio.create_task(found.beat())
    try:
        yield found
    finally:
        beating.cancel()


@contextmanager
def as_a_router_of_its_own(catalog: Catalog) -> Iterator[None]:
    """As in `aiflow router`, or collections of what tests have left behind hold the loop."""
    with kept_short(catalog.follow):
        yield
    gc.unfreeze()


def endpoint(number: int) -> Endpoint:
    return Endpoint(
        backend=f"b{number % 50}",
        address=f"127.{1 + number // 62_500}.{number // 250 % 250}.{number % 250}:9",
        protocol=Protocol.OIP,
        models=(f"m{number % 1000}",),
    )


def static(backend_name: str, address: str, *models: str) -> StaticEndpoint:
    return StaticEndpoint(backend=backend_name, address=address, protocol="oip", models=models)


async def test_ten_thousand_static_endpoints_are_served_from_the_first_call_on() -> None:
    async with backend() as served:
        many = (endpoint(number) for number in range(MANY))
        config = parse(ANY_PORT).model_copy(
            update={
                "discovery": Discovery(
                    static=(
                        *(static(item.backend, item.address, *item.models) for item in many),
                        static("one", served.address, "echo"),
                    )
                )
            }
        )
        async with mesh(config) as m:
            assert len(m.router.catalog.snapshot.entries) == MANY + 1
            request = infer("echo")
            assert await m.channel.unary_unary(INFER)(request, timeout=5) == request
            listed = await m.registry.ListEndpoints(registry_pb2.ListEndpointsRequest())
            keys = [(entry.endpoint.backend, entry.endpoint.address) for entry in listed.entries]
            assert len(keys) == MANY + 1
            assert keys == sorted(keys)


async def test_no_change_however_large_holds_the_loop_for_long() -> None:
    async with backend() as served, mesh() as m:
        await m.register(served.address, models=("echo",))
        catalog, call = m.router.catalog, m.channel.unary_unary(INFER)
        answered = 0

        async def calls() -> None:
            nonlocal answered
            while True:
                await call(infer("echo"), timeout=5)
                answered += 1

        calling = asyncio.create_task(calls())
        with as_a_router_of_its_own(catalog):
            async with lag() as found:
                leases = []
                for number in range(MANY):
                    leases.append(catalog.register(endpoint(number), ttl_s=60))
                    if number % 100 == 0:  # As many come in with one packet.
                        await asyncio.sleep(0)
                await catalog.settled()
                assert len(catalog.snapshot.entries) == MANY + 1
                during_bulk = answered
                for lease in leases[:500]:
                    catalog.renew(lease.id, state=State.DRAINING)
                for lease in leases[500:1000]:
                    catalog.deregister(lease.id)
                await catalog.settled()
        calling.cancel()
        assert len(catalog.snapshot.entries) == MANY - 500 + 1
        assert during_bulk > 20
        assert found.longest_s < LONGEST_HOLD_S


async def test_who_registers_is_called_as_soon_as_it_is_told_so_also_in_a_burst() -> None:
    async with backend() as served, mesh() as m:
        for number in range(2000):
            m.router.catalog.register(endpoint(number), ttl_s=60)
        lease_id = await m.register(served.address, models=("echo",))
        request = infer("echo")
        assert await m.channel.unary_unary(INFER)(request, timeout=5) == request
        for number in range(2000):
            m.router.catalog.register(endpoint(2000 + number), ttl_s=60)
        await m.registry.Deregister(registry_pb2.DeregisterRequest(lease_id=lease_id))
        assert "echo" not in m.router.catalog.snapshot.models


async def test_thousands_that_fall_silent_together_are_out_together() -> None:
    async with mesh() as m:
        for number in range(2000):
            m.router.catalog.register(endpoint(number), ttl_s=5)
        await m.router.catalog.settled()
        assert len(m.router.catalog.snapshot.entries) == 2000
        await until(lambda: not m.router.catalog.snapshot.entries, within_s=10)
        assert not m.router.catalog.snapshot.models


async def test_a_list_is_whole_also_when_endpoints_leave_while_it_is_made() -> None:
    async with mesh() as m:
        leases = [m.router.catalog.register(endpoint(n), ttl_s=60) for n in range(4000)]
        await m.router.catalog.settled()
        listing = asyncio.create_task(m.endpoints())
        while not listing.done():
            for _ in range(min(20, len(leases))):
                m.router.catalog.deregister(leases.pop().id)
            await asyncio.sleep(0)
        listed = await listing
        assert 0 < len(listed) <= 4000
        assert len(leases) < 4000
