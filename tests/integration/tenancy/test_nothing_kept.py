"""An administrative call that has ended leaves nothing that only the garbage collector could free.

See tests/integration/router/test_nothing_kept.py for what it would do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest
from integration.router.kit import until
from integration.router.test_nothing_kept import CALLS, SETTLED_S, STRAGGLERS, collector_off
from integration.tenancy.kit import Town, town

from aiflow_router.rpc.visit import Visit

ENDS: dict[str, Callable[[Town], Awaitable[object]]] = {
    "answered": lambda t: t.root.GetTenant(tenant="acme"),
    "answered, with a change": lambda t: t.root.CreateKey(tenant="acme", member="boss", name="k"),
    "of what is not there": lambda t: t.root.GetTenant(tenant="acmee"),
    "that would make what is there": lambda t: t.root.CreateTenant(tenant="acme"),
    "by whom may not": lambda t: t.admin("").ListTenants(),
    "with a wrong code, then too often": lambda t: t.admin("").Apply(code="x", member="eve"),
    "with a wrong field": lambda t: t.root.CreateTenant(tenant="two words"),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_a_call_that_has_ended_keeps_nothing(
    end: Callable[[Town], Awaitable[object]], tmp_path: Path
) -> None:
    async with town(tmp_path) as t:
        await t.tenant("acme")
        with collector_off():
            for _ in range(CALLS):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await end(t)
            await until(lambda: t.mesh.inflight() == 0)
            await asyncio.sleep(SETTLED_S)  # The journal lets go of what it has counted.
            kept = sum(isinstance(thing, Visit) for thing in gc.get_objects())
    assert kept <= STRAGGLERS
