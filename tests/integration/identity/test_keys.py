"""Calls with keys out of the database, in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest
from fixtures.postgres import StartPostgres
from integration.identity.kit import stored
from integration.router.kit import infer, mesh

from aiflow_sdk import status


async def test_a_revoked_key_is_refused_from_the_next_call_on(
    storage_url: str, tmp_path: Path
) -> None:
    async with stored(storage_url, tmp_path) as all_:
        key = await all_.office.key("acme", "ann")
        await all_.taken(await all_.office.change_key(key.key, name="renamed"))
        assert await all_.call(key.text) == infer("m")
        await all_.taken(await all_.office.change_key(key.key, revoked_s=1.0))
        error = await all_.refused(key.text)
        assert (error.code, error.reason) == ("UNAUTHENTICATED", "KEY_INVALID")
        assert key.key in error.message
        assert "revoked" in error.message
        assert f'"{key.text}"'.encode() not in b"".join(all_.mesh.log)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("aif_", id="a beginning"),
        pytest.param("aif_00000000_" + "a" * 43, id="one of the right shape"),
        pytest.param("a.b.c", id="something like a token"),
        pytest.param("x" * 4000, id="a long one"),
        pytest.param("Bearer", id="a word"),
    ],
)
async def test_a_key_that_is_not_known_is_told_so(tmp_path: Path, key: str) -> None:
    async with stored(f"sqlite:///{tmp_path / 'a.db'}", tmp_path) as all_:
        error = await all_.refused(key)
        assert (error.code, error.reason) == ("UNAUTHENTICATED", "KEY_INVALID")
        assert "aiflow key list" in error.message


async def test_an_expired_key_is_refused_while_the_router_runs(tmp_path: Path) -> None:
    async with stored(f"sqlite:///{tmp_path / 'a.db'}", tmp_path) as all_:
        key = await all_.office.key("acme", "ann", expires_s=1.0)
        await all_.taken(await all_.office.change_key(key.key, name="renamed"))
        error = await all_.refused(key.text)
        assert "expired at 1970-01-01 00:00:01 UTC" in error.message


async def test_keys_of_the_file_go_on_to_work_beside(tmp_path: Path) -> None:
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    config = (
        f"auth: {{mode: required, keys: [{{name: k, tenant: t, sha256: {digest}, "
        "may: [call, admin]}]}\n"
        f"storage: {{url: 'sqlite:///{tmp_path / 'a.db'}'}}\n"
    )
    async with mesh(config) as running:
        answer = await running.channel.unary_unary("/aiflow.admin.v1.PolicyService/List")(
            b"", metadata=(("x-api-key", "secret"),)
        )
        assert answer


async def test_without_a_key_nobody_is_the_operator_where_there_is_a_database(
    tmp_path: Path,
) -> None:
    async with mesh(f"storage: {{url: 'sqlite:///{tmp_path / 'a.db'}'}}\n") as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.channel.unary_unary("/aiflow.admin.v1.PolicyService/List")(b"")
        assert status.from_rpc_error(caught.value).code == "UNAUTHENTICATED"


async def test_what_is_known_and_how_old_it_is_shows_in_the_metrics(tmp_path: Path) -> None:
    async with stored(f"sqlite:///{tmp_path / 'a.db'}", tmp_path) as all_:
        text = await all_.mesh.metrics()
    assert "aiflow_identity_keys 1.0" in text
    assert "aiflow_identity_age_seconds " in text


async def test_a_router_ends_with_its_database_away(
    start_postgres: StartPostgres, tmp_path: Path
) -> None:
    server = start_postgres()
    async with asyncio.timeout(30):
        async with stored(server.url(), tmp_path) as all_:
            key = await all_.office.key("acme", "ann")
            await all_.taken(await all_.office.change_key(key.key, name="renamed"))
            server.kill()
            assert await all_.call(key.text) == infer("m")
