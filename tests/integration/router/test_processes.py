"""`listen.workers`: several processes that are one router."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import psutil
import pytest
from integration.router.kit import Seen, backend
from prometheus_client.parser import text_string_to_metric_families

from aiflow.admin.v1 import explain_pb2, explain_pb2_grpc
from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_sdk import errors, status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")

RUN = "import sys; from aiflow_router import command; getattr(command, sys.argv[1])(sys.argv[2:])"
TWO = "listen: {workers: 2, max_connection_age: 1s, drain_grace: 200ms, drain_timeout: 20s}\n"
# A channel of its own for each, as callers in different processes have.
ALONE = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Running:
    process: asyncio.subprocess.Process
    address: str
    http: str
    file: Path
    lines: list[bytes] = field(default_factory=list)

    def workers(self) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(self.process.pid).children()
            if "aiflow_router.processes.worker" in child.cmdline()
        ]

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address, options=ALONE)

    async def metrics(self) -> dict[str, float]:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{self.http}/metrics") as answer,
        ):
            text = await answer.text()
        return {
            sample.name + "".join(f" {k}={v}" for k, v in sorted(sample.labels.items())): (
                sample.value
            )
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def metric(self, name: str) -> float:
        return (await self.metrics()).get(name, 0.0)

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.lines) if line["event"] == event]


async def start(*arguments: str, cwd: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", RUN, *arguments),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def router(
    folder: Path, config: str = TWO, grpc: str = "127.0.0.1:0"
) -> AsyncIterator[Running]:
    file = folder / "aiflow.yaml"
    file.write_text(config)
    process = await start("router", "--grpc", grpc, "--http", "127.0.0.1:0", cwd=folder)
    assert process.stdout is not None
    assert process.stderr is not None
    said = json.loads(await process.stdout.readline())
    running = Running(process=process, address=said["grpc"], http=said["http"], file=file)

    async def read(stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            running.lines.append(line)

    reading = asyncio.create_task(read(process.stderr))
    workers = running.workers()
    try:
        yield running
    finally:
        workers += running.workers() if process.returncode is None else []
        for number in (signal.SIGTERM, signal.SIGINT):  # The second one ends it at once.
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        await process.wait()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        await reading


async def until(condition: Callable[[], Any], *, within_s: float = 40.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            holds = condition()
            if await holds if asyncio.iscoroutine(holds) else holds:
                return
            await asyncio.sleep(0.02)


async def register(channel: grpc.aio.Channel, address: str, service: str = "a.Echo") -> str:
    answer = await registry_pb2_grpc.RegistryServiceStub(channel).Register(
        registry_pb2.RegisterRequest(
            endpoint=registry_pb2.Endpoint(
                backend="b",
                address=address,
                protocol=registry_pb2.PROTOCOL_GRPC,
                services=[service],
            ),
            ttl_ms=60_000,
        )
    )
    return str(answer.lease_id)


def calls_at(worker: psutil.Process, address: str) -> int:
    """Connections that a worker has at the router's address."""
    port = int(address.rpartition(":")[2])
    return sum(
        c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port
        for c in worker.net_connections(kind="tcp")
    )


async def echo(channel: Any, method: str = "/a.Echo/Echo") -> bytes:
    answer: bytes = await channel.unary_unary(method)(b"x", timeout=15)
    return answer


@dataclass
class Traffic:
    """Calls on channels that live long, and on new ones all the time."""

    address: str
    ok: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    ended: bool = False

    async def long_lived(self) -> None:
        async with grpc.aio.insecure_channel(self.address, options=ALONE) as channel:
            while not self.ended:
                await self._call(channel, "long")

    async def new_ones(self) -> None:
        while not self.ended:
            async with grpc.aio.insecure_channel(self.address, options=ALONE) as channel:
                await self._call(channel, "new")

    async def _call(self, channel: grpc.aio.Channel, kind: str) -> None:
        try:
            await echo(channel)
            self.ok[kind] += 1
        except grpc.aio.AioRpcError as failure:
            self.failed.append(f"{kind}: {failure.code().name} {failure.details()}")
        await asyncio.sleep(0.01)


@asynccontextmanager
async def traffic(address: str) -> AsyncIterator[Traffic]:
    running = Traffic(address)
    tasks = [asyncio.create_task(running.long_lived()) for _ in range(3)]
    tasks += [asyncio.create_task(running.new_ones()) for _ in range(3)]
    try:
        yield running
    finally:
        running.ended = True
        await asyncio.gather(*tasks)


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
            await until(lambda: not victim.is_running() or victim.status() == "zombie")
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


async def test_reloads_fail_no_call(tmp_path: Path) -> None:
    async with backend() as server:
        static = f"{{address: '{server.address}', protocol: grpc, backend: b"
        config = TWO + f"discovery: {{embedded: {{}}, static: [{static}, services: [a.Echo]}}]}}\n"
        async with router(tmp_path, config) as running, traffic(running.address) as calls:
            seen = set(running.workers())
            for number in range(1, 3):
                services = f"[a.Echo, a.Number{number}]"
                running.file.write_text(config.replace("[a.Echo]", services))
                running.process.send_signal(signal.SIGHUP)

                async def reloaded(number: int = number) -> bool:
                    return await running.metric("aiflow_reloads_total") == number

                await until(reloaded)
                assert len(running.workers()) == 2
                assert not seen & set(running.workers())
                seen |= set(running.workers())
                async with running.channel() as channel:
                    assert await echo(channel, f"/a.Number{number}/Echo") == b"x"
            assert calls.failed == []
            assert calls.ok["long"] > 20
            assert calls.ok["new"] > 20


async def test_a_bad_configuration_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    async with router(tmp_path) as running:
        workers = running.workers()
        static = "{address: '127.0.0.1:1', backend: b, protocol: grpc, services: [a.B]}"
        cases = [
            ("lisen: {}", "aiflow.yaml:1:1: unknown key"),
            (TWO + f"discovery: {{static: [{static}]}}", "discovery.embedded cannot change"),
        ]
        for number, (text, problem) in enumerate(cases, start=1):
            running.file.write_text(text)
            running.process.send_signal(signal.SIGHUP)

            async def refused(number: int = number) -> bool:
                return await running.metric("aiflow_config_load_errors_total") == number

            await until(refused)
            said = running.said("reload refused: the old configuration stays")
            assert problem in said[-1]["problems"][0]
        assert running.workers() == workers


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


async def test_one_worker_does_not_reload(tmp_path: Path) -> None:
    async with router(tmp_path, "listen: {drain_grace: 0s}") as running:
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: any(b"no reload with one worker" in line for line in running.lines))
        assert running.process.returncode is None
        assert os.getpgid(running.process.pid)
