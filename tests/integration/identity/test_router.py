"""Calls with keys out of the database, in one process."""

from __future__ import annotations

import asyncio
import gc
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fixtures.postgres import StartPostgres
from integration.identity.kit import Office
from integration.router.kit import Mesh, backend, echo, infer, mesh, until
from integration.router.test_nothing_kept import CALLS, SETTLED_S, STRAGGLERS, collector_off
from sqlalchemy import select

from aiflow_router.config.file import ConfigError, parse, printed
from aiflow_router.identity.first_key import make
from aiflow_router.rpc.visit import Visit
from aiflow_router.storage.database import StorageError, opened, reading
from aiflow_router.storage.tables.tenancy import AUDIT, KEYS
from aiflow_sdk import errors, status

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
STATISTICS = "/inference.GRPCInferenceService/ModelStatistics"


@dataclass
class Stored:
    mesh: Mesh
    office: Office

    async def call(self, key: str, method: str = INFER, request: bytes = b"") -> bytes:
        answer: bytes = await self.mesh.channel.unary_unary(method)(
            request or infer("m"), metadata=(("x-api-key", key),)
        )
        return answer

    async def refused(
        self, key: str, method: str = INFER, request: bytes = b""
    ) -> errors.AiflowError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(key, method, request)
        assert key not in str(caught.value)
        return status.from_rpc_error(caught.value)

    async def taken(self, number: int) -> None:
        assert self.mesh.router.directory is not None
        async with asyncio.timeout(5):
            await self.mesh.router.directory.reached(number)


@asynccontextmanager
async def stored(url: str, folder: Path) -> AsyncIterator[Stored]:
    """A router that asks for keys, with models `m` and `n` and service `a.Echo` behind it."""
    async with backend(ModelInfer=echo, ModelStreamInfer=echo, Echo=echo) as server:
        address = f"address: '{server.address}'"
        listed = (
            "discovery:\n  static:\n"
            f"    - {{backend: b, {address}, protocol: oip, models: [m, n]}}\n"
            f"    - {{backend: c, {address}, protocol: grpc, services: [a.Echo]}}\n"
        )
        config = (
            f"auth: {{mode: required, admin_key_file: '{folder / 'admin.key'}'}}\n"
            f"storage: {{url: '{url}'}}\n"
        )
        async with mesh(listed + config) as running:
            assert running.router.engine is not None
            office = Office(running.router.engine)
            await office.tenant("acme")
            await office.member("acme", "ann")
            yield Stored(mesh=running, office=office)


async def test_the_first_start_leaves_a_key_that_may_do_anything(
    storage_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "admin.key"
    async with stored(storage_url, tmp_path) as all_:
        key = file.read_text().strip()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert await all_.call(key) == infer("m")
        assert await all_.call(key, "/aiflow.admin.v1.PolicyService/List")
    said = capsys.readouterr().out
    assert str(file) in said
    assert key not in said


async def test_a_second_start_makes_no_other_key(storage_url: str, tmp_path: Path) -> None:
    async with opened(storage_url) as engine:
        made = [await make(engine, tmp_path / "a.key"), await make(engine, tmp_path / "b.key")]
        async with reading(engine) as connection:
            keys = (await connection.execute(select(KEYS.c.key))).scalars().all()
            told = (await connection.execute(select(AUDIT.c.action))).scalars().all()
    assert made == [tmp_path / "a.key", None]
    assert len(keys) == 1
    assert told == ["tenant.create", "member.create", "key.create"]


async def test_many_first_starts_at_once_make_one_key(storage_url: str, tmp_path: Path) -> None:
    async def start(number: int) -> Path | None:
        async with opened(storage_url) as engine:
            return await make(engine, tmp_path / f"{number}.key")

    made = await asyncio.gather(*(start(number) for number in range(4)))
    assert len([path for path in made if path is not None]) == 1
    assert sum((tmp_path / f"{number}.key").is_file() for number in range(4)) == 1


async def test_a_file_that_is_no_key_is_never_written_over(
    storage_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "id_ed25519"
    file.write_text("somebody's")
    async with opened(storage_url) as engine:
        with pytest.raises(StorageError, match="there is another file of that name"):
            await make(engine, file)
        assert file.read_text() == "somebody's"
        assert await make(engine, tmp_path / "admin.key")


async def test_a_key_left_by_a_crash_is_written_anew(storage_url: str, tmp_path: Path) -> None:
    """The file came first: nobody knows that key."""
    file = tmp_path / "admin.key"
    file.write_text("aif_00000000_left")
    async with opened(storage_url) as engine:
        assert await make(engine, file)
    assert not file.read_text().startswith("aif_00000000_left")


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


SCOPES = [
    pytest.param({"models": ["m"]}, INFER, infer("m"), "", id="a model in the scope"),
    pytest.param({"models": ["m"]}, INFER, infer("n"), "MODEL_FORBIDDEN", id="another model"),
    pytest.param({"models": ["?"]}, INFER, infer("n"), "", id="a model by pattern"),
    pytest.param({"models": ["M"]}, INFER, infer("m"), "MODEL_FORBIDDEN", id="case counts"),
    pytest.param(
        {"models": ["m"]}, INFER, infer("nobody's"), "MODEL_FORBIDDEN", id="one that is not there"
    ),
    pytest.param(
        {"models": ["m"]}, "/a.Echo/Echo", b"x", "METHOD_FORBIDDEN", id="a service, of models only"
    ),
    pytest.param(
        {"models": ["m"], "methods": ["/a.Echo/*", "/inference.*"]},
        "/a.Echo/Echo",
        b"x",
        "",
        id="a service beside models",
    ),
    pytest.param({"methods": ["/a.Echo/Echo"]}, "/a.Echo/Echo", b"x", "", id="a method"),
    pytest.param(
        {"methods": ["/a.Echo/Echo"]}, INFER, infer("m"), "METHOD_FORBIDDEN", id="another method"
    ),
    pytest.param(
        {"models": ["m"]}, STATISTICS, b"", "MODEL_FORBIDDEN", id="what is told of all models"
    ),
]


@pytest.mark.parametrize(("scope", "method", "request_", "reason"), SCOPES)
async def test_a_scope_lets_through_what_it_names(
    tmp_path: Path, scope: dict[str, list[str]], method: str, request_: bytes, reason: str
) -> None:
    async with stored(f"sqlite:///{tmp_path / 'a.db'}", tmp_path) as all_:
        key = await all_.office.key("acme", "ann", **scope)
        await all_.taken(await all_.office.change_key(key.key, name="renamed"))
        if not reason:
            assert await all_.call(key.text, method, request_) == request_
            return
        if method == STATISTICS:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await all_.mesh.channel.unary_unary(method)(
                    b"", metadata=(("x-api-key", key.text),)
                )
            error = status.from_rpc_error(caught.value)
        else:
            error = await all_.refused(key.text, method, request_)
        assert (error.code, error.reason) == ("PERMISSION_DENIED", reason)
        assert key.key in error.message


async def test_a_stream_does_not_reach_another_model_behind_the_first(tmp_path: Path) -> None:
    async with stored(f"sqlite:///{tmp_path / 'a.db'}", tmp_path) as all_:
        key = await all_.office.key("acme", "ann", models=["m"])
        await all_.taken(await all_.office.change_key(key.key, name="renamed"))
        call = all_.mesh.channel.stream_stream(STREAM)(metadata=(("x-api-key", key.text),))
        await call.write(infer("m"))
        assert await call.read() == infer("m")
        await call.write(infer("n"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert status.from_rpc_error(caught.value).reason == "MODEL_FORBIDDEN"


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


def _signed(key: rsa.RSAPrivateKey, **claims: str) -> str:
    told = {"iss": "https://id", "aud": "aiflow", "exp": 4_000_000_000, **claims}
    return jwt.encode(told, key, algorithm="RS256")


async def test_a_token_is_its_member_until_that_is_disabled(
    storage_url: str, tmp_path: Path
) -> None:
    signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = jwt.algorithms.RSAAlgorithm.to_jwk(signer.public_key(), as_dict=True)
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public]}))
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

        token = _signed(signer, tenant="acme", sub="ann")
        assert await ask(token) == "OK"
        await until(lambda: b"acme" in b"".join(running.log))
        assert "does not exist" in await ask(_signed(signer, tenant="acme", sub="eve"))
        number = await office.change_member("acme", "ann", disabled_s=1.0)
        await running.router.directory.reached(number)
        assert "its member is disabled" in await ask(token)
        assert "aiflow_identity_jwks_refused 0.0" in await running.metrics()
        assert not [line for line in running.log if token.encode() in line]


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
    signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = jwt.algorithms.RSAAlgorithm.to_jwk(signer.public_key(), as_dict=True)
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public]}))
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


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        pytest.param(
            "auth: {mode: required}", "auth: mode is `required` but there are no keys", id="no keys"
        ),
        pytest.param(
            "auth: {admin_key_file: a.key}",
            "auth.admin_key_file: has no effect without `storage`",
            id="a file for the first key without a database",
        ),
        pytest.param(
            "auth: {jwt: {issuer: i, audience: a, jwks_file: gone.json}}",
            "auth.jwt.jwks_file: gone.json cannot be read",
            id="keys for tokens that are not there",
        ),
        pytest.param(
            "storage: {url: 'mysql://a/b'}",
            "storage.url: must be sqlite:///",
            id="another database",
        ),
        pytest.param("storage: {url: 'sqlite://'}", "needs a file", id="a database in memory"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(config: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(config)
    assert problem in str(caught.value)


def test_a_password_is_not_printed() -> None:
    config = parse("storage: {url: 'postgresql://me:hush@db/aiflow'}")
    assert "hush" not in printed(config)
    assert "db/aiflow" in printed(config)
    assert "hush" not in repr(config)
