"""Streams do not outlive the key they were opened with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from integration.router.kit import backend, until
from integration.tenancy.kit import ECHO, Admin, Town, town

from aiflow_sdk import status


async def opened(there: Town, key: str) -> Any:
    """A stream that has answered once."""
    call = there.mesh.channel.stream_stream(ECHO)(metadata=[("x-api-key", key)], timeout=30)
    assert await answers(call)
    return call


async def answers(call: Any) -> bool:
    await call.write(b"x")
    return bool(await call.read() == b"x")


async def revoked(there: Town, _: Admin, key: str) -> None:
    await there.root.RevokeKey(key=key)


async def of_a_disabled_member(_: Town, boss: Admin, __: str) -> None:
    await boss.UpdateMember(member="ann", disabled=True)


async def of_a_disabled_tenant(there: Town, _: Admin, __: str) -> None:
    await there.root.UpdateTenant(tenant="acme", disabled=True)


@pytest.mark.parametrize(
    ("withdraw", "why"),
    [
        (revoked, "it was revoked"),
        (of_a_disabled_member, "disabled"),
        (of_a_disabled_tenant, "disabled"),
    ],
)
async def test_a_stream_ends_with_its_key(withdraw: Any, why: str, tmp_path: Path) -> None:
    async with backend() as server, town(tmp_path) as there:
        await there.register(server.address)
        boss, rival = await there.tenant("acme"), await there.tenant("rival")
        await boss.CreateMember(member="ann")
        made = await boss.CreateKey(member="ann", name="laptop")
        call, other = await opened(there, made.secret), await opened(there, rival.key)
        await withdraw(there, boss, made.key.key)
        # Before the change is answered it is taken in, so this is soon.
        async with asyncio.timeout(5):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        error = status.from_rpc_error(caught.value)
        assert (error.code, error.reason) == ("UNAUTHENTICATED", "KEY_WITHDRAWN")
        assert made.key.key in error.message
        assert why in error.message
        assert await answers(other)
        # Its end at the backend ends too.
        of_ann, of_rival = server.seen
        await until(lambda: of_ann.half_closed or of_ann.cancelled)
        assert not of_rival.half_closed
        assert not of_rival.cancelled
        text = await there.mesh.metrics()
        assert (
            'aiflow_requests_total{code="UNAUTHENTICATED",model="a.Echo",tenant="acme"} 1.0' in text
        )


async def test_a_change_of_another_key_ends_no_stream(tmp_path: Path) -> None:
    async with backend() as server, town(tmp_path) as there:
        await there.register(server.address)
        boss = await there.tenant("acme")
        made = await boss.CreateKey(member="boss", name="other")
        call = await opened(there, boss.key)
        await boss.RevokeKey(key=made.key.key)
        assert await there.echo(made.secret) == "UNAUTHENTICATED"
        assert await answers(call)
