"""A router process with a catalog of any size, which says how long its event loop was held.

    python benchmarks/router_program.py --port 7000 --models 1000 --endpoints 10000 --addresses 3

Prints its address. Each line that it reads is a number of seconds: for so long the catalog changes
in every way it can (0: not at all, until the next line), then a line of JSON says what that did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from aiflow_router.catalog.catalog import Catalog
from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.catalog.leases import Lease
from aiflow_router.config.config import Config
from aiflow_router.config.file import parse
from aiflow_router.config.route import Route
from aiflow_router.garbage import kept_short
from aiflow_router.main import serving
from aiflow_sdk import logs

ANY_PORT = "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0', drain_grace: 0s}"
BURST = 500  # Endpoints that change at one moment.
BULK = 10_000  # Endpoints that come, and go, as fast as they are said.
ALONE = 20  # Endpoints that change one after the other.
SAID_AT_ONCE = (
    20  # In one turn of the loop: saying it is a log line, which costs more than all else.
)
LAPSE_S = 0.5
LEASE_S = 600.0

T = TypeVar("T")
R = TypeVar("R")

_Handle: Any = asyncio.Handle  # Its `_run` is the one place that every callback goes through.
_run = _Handle._run  # noqa: SLF001 - as above


def address(place: int, port: int) -> str:
    """All of them are this machine's."""
    return f"127.{1 + place // 62_500}.{place // 250 % 250}.{1 + place % 250}:{port}"


def endpoint(number: int, *, models: int, addresses: int, port: int) -> Endpoint:
    return Endpoint(
        backend=f"b{number // addresses}",
        address=address(number % addresses, port),
        protocol=Protocol.OIP,
        models=(f"m{number % models}",),
    )


class Lag:
    """The longest that the loop's thread was at work between two turns of the loop.

    Attributes:
        cpu_s: as CPU time, which other processes of the machine do not add to.
        wall_s: as time that passed.
        callback_s: CPU time of the longest callback; it has no share in what the system adds when
            it wakes a thread late, as it does on a busy machine.
    """

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = self.callback_s = 0.0

    def timed(self, handle: asyncio.Handle) -> None:
        """In place of `asyncio.Handle._run`."""
        began_s = time.thread_time()
        _run(handle)
        self.callback_s = max(self.callback_s, time.thread_time() - began_s)

    async def beat(self) -> None:
        cpu_s, wall_s = time.thread_time(), time.monotonic()
        while True:
            await asyncio.sleep(0)
            now_cpu_s, now_wall_s = time.thread_time(), time.monotonic()
            self.cpu_s = max(self.cpu_s, now_cpu_s - cpu_s)
            self.wall_s = max(self.wall_s, now_wall_s - wall_s)
            cpu_s, wall_s = now_cpu_s, now_wall_s


@asynccontextmanager
async def lag() -> AsyncIterator[Lag]:
    found = Lag()
    beating = asyncio.create_task(found.beat())
    # A function, which becomes a method of the handle; a bound method would not.
    _Handle._run = lambda handle: found.timed(handle)  # noqa: PLW0108, SLF001 - as said
    try:
        yield found
    finally:
        _Handle._run = _run  # noqa: SLF001 - as above
        beating.cancel()


class Churn:
    """Endpoints come, change and go: one by one, in bursts, in bulk, and by falling silent.

    None of them is called, so that what is seen is the price of the change alone.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.new = [
            endpoint(BULK + number, models=1000, addresses=2 * BULK, port=9)
            for number in range(BULK)
        ]
        self.changes = 0

    async def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            leases = await self.said(self.register, self.new)
            await self.said(self.drain, leases[:BURST])
            await self.said(self.ready, leases[:BURST])
            await self.said(self.deregister, leases[:BURST])
            for item in self.new[:ALONE]:
                lease = await self.said(self.register, [item])
                await self.said(self.deregister, lease)
            await self.said(self.lapsing, self.new[:BURST])
            await asyncio.sleep(LAPSE_S)
            await self.said(self.deregister, leases[BURST:])

    async def said(self, what: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Says so of all `items` as fast as it can be heard; returns when it is true."""
        found = []
        for number, item in enumerate(items):
            found.append(what(item))
            if number % SAID_AT_ONCE == SAID_AT_ONCE - 1:
                await asyncio.sleep(0)
        await self.catalog.settled()
        self.changes += len(items)
        return found

    def register(self, item: Endpoint) -> Lease:
        return self.catalog.register(item, ttl_s=LEASE_S)

    def lapsing(self, item: Endpoint) -> Lease:
        return self.catalog.register(item, ttl_s=LAPSE_S)

    def drain(self, lease: Lease) -> Lease:
        return self.catalog.renew(lease.id, state=State.DRAINING)

    def ready(self, lease: Lease) -> Lease:
        return self.catalog.renew(lease.id, state=State.READY)

    def deregister(self, lease: Lease) -> None:
        self.catalog.deregister(lease.id)


async def main() -> None:
    arguments = argparse.ArgumentParser()
    for name in ("port", "models", "endpoints", "addresses"):
        arguments.add_argument(f"--{name}", type=int, required=True)
    asked = arguments.parse_args()
    # Each endpoint that is called has a connection.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(
            serving(config(asked.models), access_write=lambda _: None)
        )
        for number in range(asked.endpoints):
            item = endpoint(number, models=asked.models, addresses=asked.addresses, port=asked.port)
            router.catalog.register(item, ttl_s=LEASE_S)
        await router.catalog.settled()
        churn = Churn(router.catalog)
        stack.enter_context(kept_short(router.catalog.follow))  # As in `aiflow router`.
        print(router.grpc_address, flush=True)
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        while line := await lines.readline():
            seconds = float(line)
            churn.changes = 0
            async with lag() as found:
                await (churn.run(seconds) if seconds else lines.readline())
            held = {
                "held_ms": found.cpu_s * 1000,
                "held_wall_ms": found.wall_s * 1000,
                "callback_ms": found.callback_s * 1000,
            }
            print(json.dumps({**held, "changes": churn.changes}), flush=True)


def config(models: int) -> Config:
    """Turns, so that so many calls as there are endpoints reach every one of them."""
    routes = [
        Route.model_validate({"match": {"model": f"m{number}"}, "balance": "round_robin"})
        for number in range(models)
    ]
    return parse(ANY_PORT).model_copy(update={"routes": tuple(routes)})


if __name__ == "__main__":
    logs.configure()
    asyncio.run(main())
