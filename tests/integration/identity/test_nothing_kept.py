"""A call that was refused for who made it keeps nothing."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import grpc.aio
import pytest
from integration.identity.kit import INFER, LIVE, signer, stored
from integration.router.kit import infer, mesh, until
from integration.router.test_nothing_kept import CALLS, SETTLED_S, STRAGGLERS, collector_off

from aiflow_router.rpc.visit import Visit


async def test_a_call_that_was_refused_for_its_key_keeps_nothing(tmp_path: Path) -> None:
    """What would be kept is gRPC's call; see test_nothing_kept in the tests of the router."""
    async with stored(f"sqlite:///{tmp_path / 'a.db'}", tmp_path) as all_:
        key = await all_.office.key("acme", "ann", models=["m"])
        await all_.taken(await all_.office.change_key(key.key, name="renamed"))
        with collector_off():
            for _ in range(CALLS):
                await all_.refused(key.text, INFER, infer("n"))
                await all_.refused(key.text, "/a.Echo/Echo", b"x")
                await all_.refused("aif_00000000_unknown")
            await until(lambda: all_.mesh.inflight() == 0)
            await asyncio.sleep(SETTLED_S)
            kept = sum(isinstance(thing, Visit) for thing in gc.get_objects())
    assert kept <= STRAGGLERS


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("a.b.c", id="of no letters that mean anything"),
        pytest.param("eyJhbGciOiJSUzI1NiJ9.e30.AAAA", id="signed by nobody"),
    ],
)
async def test_a_call_that_was_refused_for_its_token_keeps_nothing(
    tmp_path: Path, token: str
) -> None:
    signer(tmp_path)
    config = (
        f"auth: {{jwt: {{issuer: i, audience: a, jwks_file: '{tmp_path / 'jwks.json'}'}}}}\n"
        f"storage: {{url: 'sqlite:///{tmp_path / 'a.db'}'}}\n"
    )
    async with mesh(config) as running:
        with collector_off():
            for _ in range(CALLS):
                with pytest.raises(grpc.aio.AioRpcError, match="this token is not good"):
                    await running.channel.unary_unary(LIVE)(b"", metadata=(("x-api-key", token),))
            await until(lambda: running.inflight() == 0)
            await asyncio.sleep(SETTLED_S)
            kept = sum(isinstance(thing, Visit) for thing in gc.get_objects())
    assert kept <= STRAGGLERS
