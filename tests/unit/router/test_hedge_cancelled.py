"""A hedged call whose caller goes in the turn in which an attempt fails."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

from aiflow_router.forwarding.sender import Sender, never


async def test_the_failure_that_nobody_waits_for_any_more_is_not_logged() -> None:
    logged: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: logged.append(context))
    callers: list[asyncio.Task[Any]] = []

    async def tried(*_: object) -> Any:
        loop.call_soon(callers.pop().cancel)  # Heard before the failure is.
        raise ValueError("nobody's")

    sender: Any = SimpleNamespace(clock=loop.time, _tried=tried)
    call: Any = SimpleNamespace(plan=None)
    work = Sender._hedged(sender, call, b"", never, 60.0)
    caller = asyncio.create_task(work)
    callers.append(caller)
    await asyncio.wait((caller,))
    assert caller.cancelled()
    del caller, work
    gc.collect()
    assert logged == []
