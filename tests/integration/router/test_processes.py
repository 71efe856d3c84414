"""`listen.workers`: several processes that are one router."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from integration.router.kit import Seen, backend
from integration.router.processes_kit import TWO, calls_at, echo, register, router, start, until

from aiflow.admin.v1 import explain_pb2, explain_pb2_grpc
from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_router.catalog.catalog import Catalog
from aiflow_router.config.config import Config
from aiflow_router.policy.keeping import keeping, of_the_file
from aiflow_router.policy.policies import Policies
from aiflow_router.processes.owner import Owner
from aiflow_router.processes.worker import READY, SUPERVISOR_SOCKET
from aiflow_sdk import errors, status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")


async def test_a_registration_is_seen_by_every_worker_and_the_view_is_one(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def wait(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await go_on.wait()
        await context.write(b"done")

    async with backend(Wait=wait) as server, router(tmp_path) as running:
        workers = running.workers()
        assert len(workers) == 2
        async with contextlib.AsyncExitStack() as stack:
            channels: list[Any] = []

            async def both_are_met() -> bool:
                channels.append(await stack.enter_async_context(running.channel()))
                with pytest.raises(grpc.aio.AioRpcError):
                    await echo(channels[-1])
                return all(calls_at(worker, running.address) for worker in workers)

            await until(both_are_met)
            await register(channels[0], server.address)
            # No waiting: when Register is answered, every worker has it.
            assert [await echo(channel) for channel in channels] == [b"x"] * len(channels)
            assert await running.metric("aiflow_endpoints backend=b state=ready") == 1

            held = [channel.unary_unary("/a.Echo/Wait")(b"x") for channel in channels]
            await until(lambda: sum(bool(s.messages) for s in server.seen) >= 2 * len(channels))
            for channel in channels:
                listed = await registry_pb2_grpc.RegistryServiceStub(channel).ListEndpoints(
                    registry_pb2.ListEndpointsRequest()
                )
                (entry,) = listed.entries
                assert entry.inflight == len(channels)
                assert entry.expires_in_ms > 0
            assert await running.metric("aiflow_inflight backend=b") == len(channels)
            go_on.set()
            assert await asyncio.gather(*held) == [b"done"] * len(channels)


async def test_a_call_is_replayed_by_any_worker_and_endpoints_are_seen_by_all(
    tmp_path: Path,
) -> None:
    config = TWO.replace("max_connection_age: 1s, ", "")
    go_on = asyncio.Event()

    async def wait(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await go_on.wait()
        await context.write(b"done")

    async with (
        backend(Wait=wait) as server,
        router(tmp_path, config) as running,
        contextlib.AsyncExitStack() as stack,
    ):
        channels: list[Any] = [await stack.enter_async_context(running.channel())]
        await register(channels[0], server.address)

        async def both_are_met() -> bool:
            channels.append(await stack.enter_async_context(running.channel()))
            await echo(channels[-1])
            return all(calls_at(worker, running.address) for worker in running.workers())

        await until(both_are_met)
        held = []
        for i, channel in enumerate(channels):
            metadata = [("x-request-id", f"call-{i}/+=@:")]
            await channel.unary_unary("/a.Echo/Echo")(b"x", metadata=metadata)
            held.append(channel.unary_unary("/a.Echo/Wait")(b"x"))
        await until(lambda: sum(bool(s.messages) for s in server.seen) >= 2 * len(channels))

        workers = set()
        for channel in channels:
            stub: Any = explain_pb2_grpc.ExplainServiceStub(channel)
            told = await stub.Explain(explain_pb2.ExplainRequest(service="a.Echo"))
            (endpoint,) = told.candidates[0].endpoints
            assert endpoint.inflight_of_all == len(channels)
            assert endpoint.inflight < len(channels)
            assert endpoint.worst_state == registry_pb2.ENDPOINT_STATE_READY
            answered = set()
            for i in range(len(channels)):
                answer = await stub.Replay(explain_pb2.ReplayRequest(request_id=f"call-{i}/+=@:"))
                (trace,) = answer.traces
                answered.add(trace.worker)
            workers.add(told.worker)
            assert len(answered) == 2
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await stub.Replay(explain_pb2.ReplayRequest(request_id="nobody's"))
            assert status.from_rpc_error(unknown.value).reason == "REQUEST_NOT_FOUND"
        assert len(workers) == 2
        go_on.set()
        await asyncio.gather(*held)


async def test_a_worker_that_hangs_holds_up_no_registration_for_long(tmp_path: Path) -> None:
    config = TWO.replace("max_connection_age: 1s, ", "")
    async with backend() as server, router(tmp_path, config) as running:
        stuck, other = running.workers()
        async with contextlib.AsyncExitStack() as stack:
            channels: dict[int, Any] = {}

            async def both_are_met() -> bool:
                before = calls_at(stuck, running.address), calls_at(other, running.address)
                channel = await stack.enter_async_context(running.channel())
                with pytest.raises(grpc.aio.AioRpcError):
                    await echo(channel)
                channels[int(calls_at(stuck, running.address) == before[0])] = channel
                return len(channels) == 2

            await until(both_are_met)
            stuck.suspend()
            try:
                await asyncio.wait_for(register(channels[1], server.address), 5)
            finally:
                stuck.resume()
            assert await echo(channels[1]) == b"x"
            assert running.said("workers did not confirm a change of the catalog")

            async def is_seen() -> bool:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    return await echo(channels[0]) == b"x"
                return False

            await until(is_seen)


async def test_a_killed_worker_is_back_soon_and_nothing_is_counted_backwards(
    tmp_path: Path,
) -> None:
    counted = "aiflow_requests_total code=OK model=a.Echo tenant=anonymous"
    config = TWO.replace("max_connection_age: 1s, ", "")
    async with backend() as server, router(tmp_path, config) as running:
        async with running.channel() as first:
            await register(first, server.address)
        await until(lambda: not any(calls_at(w, running.address) for w in running.workers()))
        victim, other = running.workers()
        async with contextlib.AsyncExitStack() as stack:
            channels: list[Any] = []

            async def both_are_met() -> bool:
                channels.append(await stack.enter_async_context(running.channel()))
                await echo(channels[-1])
                return all(calls_at(worker, running.address) for worker in (victim, other))

            await until(both_are_met)
            before = await running.metrics()
            assert before[counted] >= len(channels)
            victim.kill()
            # Its threads held its connections for a moment longer than it lived.
            await until(lambda: running.said("worker died"))
            # Those who were with the other worker notice nothing; the rest connect again.
            answers = await asyncio.gather(
                *(echo(channel) for channel in channels), return_exceptions=True
            )
            assert answers.count(b"x") >= 1
            assert {await echo(channel) for channel in channels} == {b"x"}
            await until(lambda: len(running.workers()) == 2 and victim not in running.workers())
            serving = "aiflow_workers state=serving"

            async def two_serve() -> bool:
                return await running.metric(serving) == 2

            await until(two_serve)
        after = await running.metrics()
        assert after[counted] >= before[counted]
        assert after["aiflow_worker_deaths_total"] == 1
        (said,) = running.said("worker died")
        assert said["how"] == "signal SIGKILL"
        running.process.terminate()
        assert await running.process.wait() == 0
        for line in running.lines:  # Whole lines, from three processes.
            json.loads(line)


async def test_workers_die_with_their_supervisor_and_free_the_address(tmp_path: Path) -> None:
    async with router(tmp_path) as running:
        workers = running.workers()
        running.process.kill()
        await running.process.wait()
        await until(lambda: not any(worker.is_running() for worker in workers))
        async with router(tmp_path, grpc=running.address):
            pass


async def test_a_worker_whose_supervisor_dies_before_its_turn_does_not_serve(
    tmp_path: Path,
) -> None:
    catalog, file = Catalog(), tmp_path / "config.json"
    file.write_text("{}")
    policies = Policies(of_the_file(Config(), origin="", since_s=0))
    async with keeping(policies, running=Config, watched=None) as kept:
        owner = Owner(catalog, kept.desk, None, list)
        async with owner.listening(tmp_path / SUPERVISOR_SOCKET):
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aiflow_router.processes.worker"),
                *(str(tmp_path), "1", str(file)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert worker.stdout is not None
            try:
                assert await worker.stdout.readline() == f"{READY}\n".encode()
                # Nothing more at its stdin, which is closed as at the supervisor's death.
                out, err = await asyncio.wait_for(worker.communicate(b""), 10)
            finally:
                if worker.returncode is None:
                    worker.kill()
    catalog.close()
    assert (out, worker.returncode) == (b"", 1)
    assert b"the supervisor died before this worker served" in err


async def test_sigterm_lets_calls_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def wait(seen: Seen, context: Any) -> None:
        seen.messages.append(await context.read())
        await go_on.wait()
        await context.write(b"done")

    config = TWO.replace("max_connection_age: 1s, ", "")
    async with (
        backend(Wait=wait) as server,
        router(tmp_path, config) as running,
        running.channel() as channel_,
    ):
        channel: Any = channel_
        await register(channel, server.address)
        held = channel.unary_unary("/a.Echo/Wait")(b"x")
        await until(lambda: bool(server.seen and server.seen[0].messages))
        running.process.terminate()
        refused: list[errors.AiflowError] = []

        async def is_refused() -> bool:
            try:
                await echo(channel)
            except grpc.aio.AioRpcError as failure:
                refused.append(status.from_rpc_error(failure))
            return bool(refused)

        await until(is_refused)
        assert isinstance(refused[0], errors.DrainingError)
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{running.http}/readyz") as answer,
        ):
            assert answer.status == 503
        go_on.set()
        assert await held == b"done"
        assert await asyncio.wait_for(running.process.wait(), 10) == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_router_at_the_address_does_not_start(tmp_path: Path, workers: int) -> None:
    async with router(tmp_path) as running:
        (tmp_path / "second").mkdir()
        (tmp_path / "second" / "aiflow.yaml").write_text(f"listen: {{workers: {workers}}}")
        options = ("--grpc", running.address, "--http", "127.0.0.1:0")
        second = await start("router", *options, cwd=tmp_path / "second")
        _, err = await second.communicate()
        assert second.returncode == 1
        assert f"{running.address} is already in use" in err.decode()
