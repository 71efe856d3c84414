"""Tokens (JWT) that say which member of which tenant calls."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from integration.identity.kit import LIVE, Office, signer
from integration.router.kit import mesh, until

from aiflow_sdk import status


def _signed(key: rsa.RSAPrivateKey, **claims: str) -> str:
    told = {"iss": "https://id", "aud": "aiflow", "exp": 4_000_000_000, **claims}
    return jwt.encode(told, key, algorithm="RS256")


async def test_a_token_is_its_member_until_that_is_disabled(
    storage_url: str, tmp_path: Path
) -> None:
    signs = signer(tmp_path)
    config = (
        "auth:\n  mode: required\n"
        f"  admin_key_file: '{tmp_path / 'admin.key'}'\n"
        "  jwt: {issuer: https://id, audience: aiflow, "
        f"jwks_file: '{tmp_path / 'jwks.json'}'}}\n"
        f"storage: {{url: '{storage_url}'}}\n"
    )
    async with mesh(config) as running:
        assert running.router.engine is not None
        assert running.router.directory is not None
        office = Office(running.router.engine)
        await office.tenant("acme")
        await running.router.directory.reached(await office.member("acme", "ann"))

        async def ask(token: str) -> str:
            try:
                await running.channel.unary_unary(LIVE)(
                    b"", metadata=(("authorization", f"Bearer {token}"),)
                )
            except grpc.aio.AioRpcError as error:
                return status.from_rpc_error(error).message
            return "OK"

        token = _signed(signs, tenant="acme", sub="ann")
        assert await ask(token) == "OK"
        await until(lambda: b"acme" in b"".join(running.log))
        assert "does not exist" in await ask(_signed(signs, tenant="acme", sub="eve"))
        number = await office.change_member("acme", "ann", disabled_s=1.0)
        await running.router.directory.reached(number)
        assert "its member is disabled" in await ask(token)
        assert "aiflow_identity_jwks_refused 0.0" in await running.metrics()
        assert not [line for line in running.log if token.encode() in line]
