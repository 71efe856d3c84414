"""`WatchEndpoints`: the catalog and its changes, for anybody."""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import mesh, until

from aiflow.registry.v1 import registry_pb2
from aiflow_router.catalog.endpoint import Endpoint, Protocol, State
from aiflow_router.catalog.mirror import Mirror
from aiflow_router.catalog.snapshot import Change, Entry, Snapshot
from aiflow_router.config.config import Config
from aiflow_router.config.file import parse
from aiflow_router.processes.following import Following, catalog
from aiflow_sdk import errors, status

A = "127.0.0.1:1"


async def told(watch: Any) -> registry_pb2.WatchEndpointsResponse:
    message: registry_pb2.WatchEndpointsResponse = await asyncio.wait_for(watch.read(), 10)
    return message


async def to_the_end(watch: Any) -> None:
    while await watch.read() is not grpc.aio.EOF:
        pass


async def test_a_watcher_is_told_all_and_then_what_changes() -> None:
    async with mesh() as m:
        await m.register("127.0.0.1:2", backend="other")
        watch = m.registry.WatchEndpoints(registry_pb2.WatchEndpointsRequest())
        first = await told(watch)
        assert first.complete
        assert [entry.endpoint.backend for entry in first.entries] == ["other"]

        lease = await m.register(A, models=("m",), services=())
        seen = await told(watch)
        while not seen.entries:
            seen = await told(watch)
        (entry,) = seen.entries
        assert entry.endpoint.models == ["m"]
        assert entry.state == registry_pb2.ENDPOINT_STATE_READY
        assert not seen.complete
        assert seen.version > first.version

        await m.registry.Renew(
            registry_pb2.RenewRequest(lease_id=lease, state=registry_pb2.ENDPOINT_STATE_DRAINING)
        )
        while not (seen.entries and seen.entries[0].state == registry_pb2.ENDPOINT_STATE_DRAINING):
            seen = await told(watch)
        await m.registry.Deregister(registry_pb2.DeregisterRequest(lease_id=lease))
        while not seen.removed:
            seen = await told(watch)
        assert [key.address for key in seen.removed] == [A]

        await m.router.drain()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await asyncio.wait_for(to_the_end(watch), 10)
        assert isinstance(status.from_rpc_error(failure.value), errors.DrainingError)


async def test_who_loses_the_catalog_keeps_its_view_and_finds_it_again() -> None:
    def at(address: str) -> Config:
        return parse(f"listen: {{grpc: '{address}', http: '127.0.0.1:0', drain_grace: 0s}}")

    mirror = Mirror()
    async with AsyncExitStack() as stack:
        async with mesh(at("127.0.0.1:0")) as first:
            address = first.router.grpc_address
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            await first.register(A)
            following = Following("catalog", catalog(mirror, channel), rng=random.Random(1))
            task = asyncio.create_task(following.run())
            stack.callback(task.cancel)
            await asyncio.wait_for(following.began.wait(), 10)
            assert following.now
        await until(lambda: not following.now)
        assert following.lost == 1
        assert set(mirror.snapshot.entries) == {("echo", A)}
        async with mesh(at(address)) as second:
            await second.register("127.0.0.1:2")
            await until(lambda: set(mirror.snapshot.entries) == {("echo", "127.0.0.1:2")})
            await until(lambda: following.now)
            assert following.lost == 1


async def test_a_mirror_that_hears_the_whole_again_disturbs_nobody() -> None:
    changes: list[Change] = []

    def follow(_: Snapshot, change: Change) -> None:
        changes.append(change)

    def entry(address: str) -> Entry:
        endpoint = Endpoint(
            backend="b", address=address, protocol=Protocol.GRPC, services=("a.Echo",)
        )
        return Entry(endpoint=endpoint, state=State.READY)

    mirror = Mirror()
    await mirror.change([entry("h:1"), entry("h:2")], version=7, complete=True)
    await asyncio.wait_for(mirror.reached(7), 5)
    mirror.follow(follow)
    await mirror.change([entry("h:1"), entry("h:3")], version=9, complete=True)
    assert mirror.version == 9
    assert {key for change in changes[1:] for key in change.put} == {("b", "h:3")}
    assert {key for change in changes[1:] for key in change.gone} == {("b", "h:2")}
    await mirror.change([], removed=[("b", "h:1")], version=10)
    assert set(mirror.snapshot.entries) == {("b", "h:3")}
    mirror.close()
