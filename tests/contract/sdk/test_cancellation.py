"""A caller that gives up, leaves or is interrupted frees the server; many share one client."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from contract.sdk.kit import ONE, Text, Words, WordsStub, add_words, double

from aiflow_sdk import AsyncClient, Client, Retry, errors
from aiflow_sdk.testing import Failure, Server, serving

HANG = Failure(delay_s=30)


def wait_for_call(server: Server, count: int = 1) -> None:
    deadline = time.monotonic() + 10
    while len(server.calls) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def test_cancelling_a_task_cancels_its_call_at_the_server() -> None:
    with serving({"double": double}, servicers=[(add_words, Words())]) as server:
        async with AsyncClient(server.address) as client:
            stub: Any = client.stub(WordsStub)
            starts: list[Callable[[], Awaitable[Any]]] = [
                lambda: client.infer("double", ONE),
                lambda: client.call(stub.Echo, Text(value="x")),
                lambda: stub.Echo(Text(value="x")),
            ]
            for start in starts:
                server.fail_next(HANG)
                seen = len(server.calls)
                task = asyncio.ensure_future(start())
                await asyncio.to_thread(wait_for_call, server, seen + 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(server.calls[-1].ended.wait, 5)


async def test_cancelling_the_call_itself_is_a_typed_error_in_a_task_that_goes_on() -> None:
    with serving(servicers=[(add_words, Words())]) as server:
        async with AsyncClient(server.address) as client:
            server.fail_next(HANG)
            call: Any = client.stub(WordsStub).Echo(Text(value="x"))
            await asyncio.to_thread(wait_for_call, server)
            assert call.cancel()
            with pytest.raises(errors.CallCancelledError):
                await call
            assert await asyncio.to_thread(server.calls[0].ended.wait, 5)


async def test_asyncio_timeout_works_as_it_does_elsewhere() -> None:
    with serving({"double": double}) as server:
        async with AsyncClient(server.address) as client:
            server.fail_next(HANG)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.infer("double", ONE)


async def test_closing_an_async_client_ends_its_calls_as_cancelled() -> None:
    with serving({"double": double}) as server:
        client = AsyncClient(server.address)
        server.fail_next(HANG)
        task = asyncio.ensure_future(client.infer("double", ONE))
        await asyncio.to_thread(wait_for_call, server)
        await client.close()
        await client.close()
        with pytest.raises(errors.CallCancelledError):
            await task
        with pytest.raises(errors.CallCancelledError, match="closed"):
            await client.infer("double", ONE)


def test_closing_a_client_ends_calls_of_other_threads_as_cancelled() -> None:
    with serving({"double": double}) as server, ThreadPoolExecutor(1) as threads:
        client = Client(server.address)
        server.fail_next(HANG)
        call = threads.submit(client.infer, "double", ONE)
        wait_for_call(server)
        client.close()
        client.close()
        with pytest.raises(errors.CallCancelledError):
            call.result(timeout=10)
        with pytest.raises(errors.CallCancelledError, match="closed"):
            client.infer("double", ONE)
        assert server.calls[0].ended.wait(5)


def test_leaving_a_stream_early_ends_it_at_the_server() -> None:
    with serving({"double": double}) as server, Client(server.address) as client:

        def endless() -> Iterator[dict[str, Any]]:
            while True:
                yield ONE

        answers = client.stream_infer("double", endless())
        assert next(answers)["y"].tolist() == [[2, 2]]
        answers.close()  # type: ignore[attr-defined]
        assert server.calls[0].ended.wait(5)


def test_ctrl_c_cancels_the_call_at_the_server() -> None:
    script = """
import sys, signal, time
from aiflow_sdk import Client
with Client(sys.argv[1]) as client:
    try:
        client.infer("double", {"x": b"1"})
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.read()  # alive, so that it is the client who cancels and not its end
"""
    with serving({"double": double}) as server:
        server.fail_next(HANG)
        with subprocess.Popen(
            [sys.executable, "-c", script, server.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            wait_for_call(server)
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            assert process.stdout.readline() == b"interrupted\n"
            assert server.calls[0].ended.wait(5)
            process.communicate(timeout=10)


def test_many_threads_share_one_client() -> None:
    def ask(client: Client, number: int) -> bool:
        result = client.infer("double", {"x": np.array([[number]], np.int64)})
        return bool(result["y"].item() == 2 * number)

    with (
        serving({"double": double}) as server,
        # As many attempts as failures are ordered: one call may meet all of them.
        Client(server.address, retry=Retry(attempts=8)) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        server.fail_next(Failure(error=errors.NoEndpointError("none")), times=5)
        server.fail_next(Failure(drop=True))
        assert all(threads.map(lambda number: ask(client, number), range(200)))


async def test_many_tasks_share_one_client() -> None:
    with serving({"double": double}) as server:
        async with AsyncClient(server.address) as client:
            asked = [client.infer("double", {"x": np.array([[n]], np.int64)}) for n in range(100)]
            results = await asyncio.gather(*asked)
    assert [result["y"].item() for result in results] == [2 * n for n in range(100)]


def test_a_future_of_a_stub_is_typed_too() -> None:
    with serving(servicers=[(add_words, Words())]) as server, Client(server.address) as client:
        stub = client.stub(WordsStub)
        assert stub.Echo.future(Text(value="a")).result(5).value == "a"
        server.fail_next(Failure(error=errors.RefusedError("no")))
        future = stub.Echo.future(Text(value="a"))
        assert isinstance(future.exception(5), errors.RefusedError)
        server.fail_next(HANG)
        seen = threading.Event()
        future = stub.Echo.future(Text(value="a"))
        future.add_done_callback(lambda _: seen.set())
        wait_for_call(server, 3)
        future.cancel()
        assert seen.wait(5)
        with pytest.raises(errors.CallCancelledError):
            future.result(5)
