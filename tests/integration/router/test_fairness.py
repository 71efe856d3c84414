"""Who has more waiting than there is gets a share by its tenant's weight, at a real router."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from integration.router.kit import Mesh, Seen, backend, echo
from integration.tenancy.kit import ECHO, town

WEIGHTS = {"one": 1, "three": 3}
# Who has the smaller share asks for more, and first.
SENT = {"one": 40, "three": 24}


async def all_wait(m: Mesh, seen: list[Seen]) -> int:
    """How many are in when all others have come to wait."""
    depth = re.compile(r'aiflow_queue_depth\{model="a\.Echo"\} (\S+)')
    async with asyncio.timeout(10):
        while True:
            found = depth.search(await m.metrics())
            if found and float(found[1]) + len(seen) >= sum(SENT.values()):
                return len(seen)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param("limits: [{name: m, rate: 20/s, burst: 1, wait: true}]", id="a rate"),
        pytest.param("limits: [{name: m, concurrency: 1, wait: true}]", id="places"),
        pytest.param(
            "routes: [{match: {service: a.Echo}, overload: {limit: 1, queue: 100}}]", id="a gate"
        ),
    ],
)
async def test_tenants_who_wait_are_served_by_their_weights(config: str, tmp_path: Path) -> None:
    may_end = asyncio.Event()

    async def held(seen: Seen, context: Any) -> None:
        await may_end.wait()
        await echo(seen, context)

    async with backend(Echo=held) as server, town(tmp_path, config) as there:
        await there.register(server.address)
        keys = {}
        for name, weight in WEIGHTS.items():
            await there.root.CreateTenant(tenant=name, weight=weight)
            keys[name] = (await there.member(name, "caller")).key
        call = there.mesh.channel.unary_unary(ECHO)
        sent = {
            name: [
                call(b"x", metadata=(("x-api-key", key), ("x-name", name)))
                for _ in range(SENT[name])
            ]
            for name, key in keys.items()
        }
        since = await all_wait(there.mesh, server.seen)
        may_end.set()
        await asyncio.gather(*sent["three"])
        for late in sent["one"]:
            late.cancel()

        order = [str(seen.metadata["x-name"]) for seen in server.seen][since:]
        assert order.count("three") > SENT["three"] / 2
        while order[-1] == "one":  # Nobody waited beside it any more.
            order.pop()
        for served in range(1, len(order) + 1):
            ahead = order[:served].count("three") - WEIGHTS["three"] * order[:served].count("one")
            # The bound of start-time fair queueing: a call of each, by its weight.
            assert abs(ahead) <= WEIGHTS["three"] + WEIGHTS["one"]
