"""SIGHUP: new workers take over, or the old ones stay as they are."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from integration.router.kit import ANY_PORT, OPTIONS, Held, backend, infer, mesh
from integration.router.processes_kit import TWO, echo, router, traffic, until
from integration.router.wire import INFER

import aiflow_router.running
from aiflow_router import main
from aiflow_router.config.file import parse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")


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


async def test_a_worker_that_leaves_ends_with_its_last_answer_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(main, "LAST_ANSWERS_S", 10.0)
    monkeypatch.setattr(aiflow_router.running, "OLDEST_SPARE_S", 0.0)
    large = infer("m", b"\x3a\x80\x80\x80\x04" + bytes(8 * 1024 * 1024))
    held = Held()
    # Its caller takes it in small pieces.
    options = [*OPTIONS, ("grpc.http2.bdp_probe", 0)]
    async with backend(ModelInfer=held) as server, contextlib.AsyncExitStack() as worker:
        m = await worker.enter_async_context(mesh(parse(ANY_PORT.replace("}", ", workers: 1}"))))
        await m.register(server.address, models=("m",))
        async with grpc.aio.insecure_channel(m.router.grpc_address, options) as channel_:
            channel: Any = channel_
            call = asyncio.ensure_future(channel.unary_unary(INFER)(large))
            await until(lambda: server.seen)
            leaving = asyncio.create_task(m.router.leave())
            held.go.set()
            await asyncio.wait_for(leaving, 10)
            await worker.aclose()
            assert await call == large


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


async def test_one_worker_does_not_reload(tmp_path: Path) -> None:
    async with router(tmp_path, "listen: {drain_grace: 0s}") as running:
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: any(b"no reload with one worker" in line for line in running.lines))
        assert running.process.returncode is None
        assert os.getpgid(running.process.pid)
