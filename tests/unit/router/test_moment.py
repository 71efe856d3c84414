"""What came in time is heard, even where the loop was held until the time was over."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio
import pytest

from aiflow_router.forwarding.stream import HEADERS_AFTER_S, _begin, _Patience, _Upstream
from aiflow_router.forwarding.unbroken import unbroken
from aiflow_router.rpc.uploads import Uploads
from aiflow_router.tasks import moment

Work = Callable[[], Coroutine[Any, Any, object]]


class Ended:
    """A call whose caller sends no more, and its stream to the backend."""

    async def read(self) -> object:
        return grpc.aio.EOF

    async def done_writing(self) -> None:
        raise AssertionError("an upload that was cancelled is taken for a finished one")

    async def send_initial_metadata(self, metadata: object) -> None:
        raise AssertionError(f"{metadata} is sent although the end is there")


async def half_close() -> None:
    call: Any = Ended()
    patience = _Patience(call, call, None)
    await _Upstream(call, call, first=None, take=bytes, patience=patience, clock=None).run()


async def receive() -> object:
    context: Any = Ended()
    return await Uploads(clock=lambda: 0.0, within_s=math.inf).receive(context, since_s=0.0)


@contextmanager
def held() -> Iterator[asyncio.Future[None]]:
    """Done by a byte from outside, which the loop sees in the turn in which its timers are due."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    came: asyncio.Future[None] = loop.create_future()

    def receive() -> None:
        loop.remove_reader(ours)
        came.set_result(None)

    def hold() -> None:
        theirs.send(b"x")
        time.sleep(10 * HEADERS_AFTER_S)

    with ours, theirs:
        loop.add_reader(ours, receive)
        loop.call_later(HEADERS_AFTER_S / 2, hold)  # By then the work waits.
        yield came


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda: moment(HEADERS_AFTER_S), id="a moment"),
        pytest.param(half_close, id="before a half-close"),
        pytest.param(receive, id="before a request is called incomplete"),
    ],
)
async def test_a_cancellation_comes_first(work: Work) -> None:
    with held() as came:
        working = asyncio.create_task(work())

        async def gone() -> None:
            await asyncio.create_task(unbroken(_the(came)))
            working.cancel()

        going = asyncio.create_task(gone())
        await asyncio.wait((working, going))
        assert working.cancelled()


async def test_an_end_comes_before_metadata_that_says_nothing() -> None:
    context: Any = Ended()
    with held() as came:
        reading = asyncio.create_task(unbroken(_the(came)))
        await _begin(context, [], reading)
        assert reading.done()


async def _the(future: asyncio.Future[None]) -> None:
    await future
