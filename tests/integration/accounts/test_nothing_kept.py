"""A call that paid, or could not, leaves nothing behind: see the router's test of the same name."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from integration.accounts.paying import INFER, Paying, paying
from integration.router.kit import Seen, infer, until
from integration.router.test_nothing_kept import CALLS, SETTLED_S, STRAGGLERS, collector_off

from aiflow_router.accounts import rows
from aiflow_router.rpc.visit import Visit


async def cancelled(found: Paying) -> None:
    call = found.mesh.channel.unary_unary(INFER)(
        infer("t"), metadata=found.metadata("", "tokens=9")
    )
    await until(lambda: found.mesh.inflight() == 1)
    call.cancel()
    await until(lambda: found.mesh.inflight() == 0)


async def hangs(_: Seen, context: Any) -> None:
    await context.read()
    await asyncio.sleep(30)


async def away(*_: object, **__: object) -> None:
    raise OSError("no database")


ENDS: dict[str, Callable[[Paying], Awaitable[object]]] = {
    "paid": lambda found: found.call(method="/a.Echo/Echo"),
    "out of credits": lambda found: found.call("worse"),
    "undeclared": lambda found: found.call("t"),
    "a duplicate": lambda found: found.call(method="/a.Echo/Echo", request_id="one"),
    "cancelled": cancelled,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_a_call_that_has_ended_keeps_nothing(
    end: Callable[[Paying], Awaitable[object]], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'aiflow.db'}"
    pool = 2 if end is ENDS["out of credits"] else 100
    async with paying(url, tmp_path, pool=pool, ModelInfer=hangs) as found:
        assert await kept(found, end) <= STRAGGLERS


async def test_nor_does_one_while_the_database_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'aiflow.db'}"
    async with paying(url, tmp_path) as found:
        with monkeypatch.context() as patched:
            patched.setattr(rows, "applied", away)
            left = await kept(found, lambda one: one.call(), calls=10)
        assert left <= STRAGGLERS
        assert await found.left() == 10


async def kept(
    found: Paying, end: Callable[[Paying], Awaitable[object]], *, calls: int = CALLS
) -> int:
    with collector_off():
        for _ in range(calls):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await end(found)
        await until(lambda: found.mesh.inflight() == 0)
        await asyncio.sleep(SETTLED_S)  # The journal lets go of what it has counted.
        return sum(isinstance(thing, Visit) for thing in gc.get_objects())
