"""TenancyService of a router: who gets what answer, and from when on it holds."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from fixtures.postgres import StartPostgres
from google.protobuf.descriptor import FieldDescriptor
from integration.router.kit import backend, mesh
from integration.tenancy.kit import Admin, refused, town

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc
from aiflow.admin.v1 import tenancy_pb2 as pb
from aiflow_router.rpc.tenancy import NAMES, NEEDS, SERVICE
from aiflow_router.tenancy import knocks
from aiflow_router.tenancy.knocks import BURST
from aiflow_sdk import errors

CODE = "inv_00000000_" + "A" * 22


async def test_a_key_works_from_its_answer_on_until_the_answer_that_ends_it(
    storage_url: str, tmp_path: Path
) -> None:
    async with town(tmp_path, url=storage_url) as t, backend() as server:
        await t.register(server.address)
        boss = await t.tenant("acme")
        who = await boss.WhoAmI()
        assert (who.tenant, who.member, who.role) == ("acme", "boss", "tenant_admin")
        await boss.CreateMember(member="ann")
        for _ in range(5):
            made = await boss.CreateKey(member="ann", name="laptop")
            assert await t.echo(made.secret) == "OK"
            ended = await boss.RevokeKey(key=made.key.key)
            assert ended.key.state == "revoked"
            assert await t.echo(made.secret) == "UNAUTHENTICATED"
        made = await boss.CreateKey(member="ann", name="laptop")
        ann = t.admin(made.secret)
        old, made = made, await ann.RotateKey(overlap_ms=60_000)
        assert (await t.echo(old.secret), await t.echo(made.secret)) == ("OK", "OK")
        new = await t.admin(made.secret).RotateKey(overlap_ms=0)
        assert (await t.echo(made.secret), await t.echo(new.secret)) == ("UNAUTHENTICATED", "OK")
        await boss.UpdateMember(member="ann", disabled=True)
        assert await t.echo(new.secret) == "UNAUTHENTICATED"
        await boss.UpdateMember(member="ann", disabled=False)
        assert await t.echo(new.secret) == "OK"
        await t.root.UpdateTenant(tenant="acme", disabled=True)
        assert await t.echo(new.secret) == "UNAUTHENTICATED"


# What each method is asked with the names and ids of another tenant, and how it ends. A refusal
# is the same whether there is such a thing or not.
FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "WhoAmI": ({}, ""),
    "CreateTenant": ({"tenant": "mine"}, "PERMISSION_DENIED"),
    "GetTenant": ({"tenant": "acme"}, "PERMISSION_DENIED"),
    "ListTenants": ({}, ""),
    "UpdateTenant": ({"tenant": "acme", "pays_first": "pool"}, "PERMISSION_DENIED"),
    "CreateDepartment": ({"tenant": "acme", "department": "spy"}, "PERMISSION_DENIED"),
    "ListDepartments": ({"tenant": "acme"}, "PERMISSION_DENIED"),
    "UpdateDepartment": (
        {"tenant": "acme", "department": "sales", "disabled": True},
        "PERMISSION_DENIED",
    ),
    "CreateMember": ({"tenant": "acme", "member": "spy"}, "PERMISSION_DENIED"),
    "GetMember": ({"tenant": "acme", "member": "boss"}, "PERMISSION_DENIED"),
    "ListMembers": ({"tenant": "acme"}, "PERMISSION_DENIED"),
    "UpdateMember": ({"tenant": "acme", "member": "boss", "disabled": True}, "PERMISSION_DENIED"),
    "CreateKey": ({"tenant": "acme", "member": "boss", "name": "spy"}, "PERMISSION_DENIED"),
    "GetKey": ({"key": "KEY"}, "NOT_FOUND"),
    "ListKeys": ({"tenant": "acme"}, "PERMISSION_DENIED"),
    "UpdateKey": ({"key": "KEY", "name": "spied"}, "NOT_FOUND"),
    "RotateKey": ({"key": "KEY"}, "NOT_FOUND"),
    "RevokeKey": ({"key": "KEY"}, "NOT_FOUND"),
    "Invite": ({"tenant": "acme"}, "PERMISSION_DENIED"),
    "ListInvitations": ({"tenant": "acme"}, "PERMISSION_DENIED"),
    "RevokeInvitation": ({"invitation": "INVITATION"}, "NOT_FOUND"),
    "Apply": ({"code": CODE, "member": "spy"}, "PERMISSION_DENIED"),
    "GetApplication": ({"secret": CODE}, "PERMISSION_DENIED"),
    "TakeKey": ({"secret": CODE}, "PERMISSION_DENIED"),
    "ListApplications": ({"tenant": "acme"}, "PERMISSION_DENIED"),
    "Approve": ({"application": "APPLICATION"}, "NOT_FOUND"),
    "Refuse": ({"application": "APPLICATION"}, "NOT_FOUND"),
    "ListChanges": ({"tenant": "acme"}, "PERMISSION_DENIED"),
}


async def test_a_tenant_reads_and_changes_nothing_of_another(tmp_path: Path) -> None:
    assert set(FOREIGN) == set(NAMES)
    async with town(tmp_path) as t:
        boss, rival = await t.tenant("acme"), await t.tenant("rival")
        await boss.CreateDepartment(department="sales")
        invited = await boss.Invite()
        applied = await boss.Apply(code=invited.code, member="ann")
        ids = {
            "KEY": (await boss.GetKey()).key.key,
            "INVITATION": invited.invitation.invitation,
            "APPLICATION": applied.application.application,
        }
        number = (await t.root.ListChanges(page_size=1)).changes[0].number
        for method, (fields, code) in FOREIGN.items():
            asked = {name: ids.get(value, value) for name, value in fields.items()}
            if code:
                error = await refused(getattr(rival, method)(**asked))
                assert error.code == code, method
                unknown = {name: _unknown(value) for name, value in asked.items()}
                same = await refused(getattr(rival, method)(**unknown))
                assert (same.code, same.reason) == (error.code, error.reason), method
            else:
                answer = await getattr(rival, method)(**asked)
                assert "acme" not in str(answer), method
        assert (await t.root.ListChanges(page_size=1)).changes[0].number == number
        assert [one.tenant for one in (await rival.ListTenants()).tenants] == ["rival"]
        assert "acme" not in str(await rival.ListChanges())


def _unknown(value: object) -> object:
    """The same of something that there is not."""
    if value == "acme":
        return "nobody"
    return value[:-1] + "0" if isinstance(value, str) and value[3:4] == "_" else value


async def test_a_tenants_admin_is_no_operator(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        boss = await t.tenant("acme")
        policies: Any = policy_pb2_grpc.PolicyServiceStub(t.mesh.channel)
        for method, request in (
            ("Get", policy_pb2.GetPolicyRequest()),
            ("Set", policy_pb2.SetPolicyRequest(document="routes: []")),
        ):
            call = getattr(policies, method)
            error = await refused(call(request, metadata=[("x-api-key", boss.key)]))
            assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_MISSING")
            await call(request, metadata=[("x-api-key", t.root.key)])


async def test_a_key_for_calls_does_not_administer_whoever_has_it(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        boss = await t.tenant("acme")
        caller = t.admin((await boss.CreateKey(member="boss", name="app", may=["call"])).secret)
        error = await refused(caller.CreateMember(member="ann"))
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_MISSING")
        assert "whose key may not `admin`" in error.message
        mine = (await boss.GetKey()).key.key
        assert (await refused(caller.RotateKey(key=mine))).reason == "ROLE_MISSING"
        assert (await caller.GetMember()).member.member == "boss"
        assert len((await caller.ListKeys()).keys) == 2
        await caller.RevokeKey(key=(await caller.GetKey()).key.key)
        assert (await refused(caller.WhoAmI())).code == "UNAUTHENTICATED"


async def test_without_a_database_everything_says_so(tmp_path: Path) -> None:
    async with mesh() as m:
        anybody = Admin(m.channel)
        assert (await anybody.WhoAmI()).role == "platform_admin"
        for method in NAMES:
            if method != "WhoAmI":
                fields = FOREIGN[method][0]
                error = await refused(getattr(anybody, method)(**fields))
                assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NO_STORAGE"), method
                assert "storage: {url:" in error.message


async def test_a_stranger_gets_no_further_than_applying(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        for key, reason in (("", "KEY_INVALID"), ("aif_00000000_" + "A" * 43, "KEY_INVALID")):
            stranger = t.admin(key)
            for method in NAMES:
                error = await refused(getattr(stranger, method)(**FOREIGN[method][0]))
                expected = "PERMISSION_DENIED" if method in NEEDS else "UNAUTHENTICATED"
                assert error.code == expected, method
                if method not in NEEDS:
                    assert error.reason == reason


async def test_somebody_comes_in_by_a_code_without_any_key(tmp_path: Path) -> None:
    required = f"auth: {{mode: required, admin_key_file: '{tmp_path / 'admin.key'}'}}\n"
    async with town(tmp_path, required) as t, backend() as server:
        await t.register(server.address)
        boss = await t.tenant("acme")
        stranger = t.admin("")
        code = (await boss.Invite(role="member")).code
        applied = await stranger.Apply(code=code, member="ann", note="Ann")
        assert (await refused(stranger.TakeKey(secret=applied.secret))).reason == "NOT_APPROVED"
        (waiting,) = (await boss.ListApplications(state="waiting")).applications
        assert (waiting.member, waiting.note) == ("ann", "Ann")
        await boss.Approve(application=waiting.application)
        told = await stranger.GetApplication(secret=applied.secret)
        assert (told.application.state, told.application.decided_by[:9]) == (
            "approved",
            "acme/boss",
        )
        key = await stranger.TakeKey(secret=applied.secret)
        assert await t.echo(key.secret) == "OK"
        assert (await t.admin(key.secret).WhoAmI()).member == "ann"
        assert (await refused(stranger.TakeKey(secret=applied.secret))).reason == "KEY_TAKEN"


async def test_who_guesses_codes_is_slowed_down_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knocks, "RATE_PER_S", 1 / 60)  # None comes back while it asks.
    async with town(tmp_path) as t:
        boss = await t.tenant("acme")
        stranger = t.admin("")
        reasons = [
            (await refused(stranger.Apply(code=CODE, member="eve"))).reason
            for _ in range(int(BURST) + 2)
        ]
        assert reasons == [*["CODE_INVALID"] * int(BURST), *["RATE_LIMITED"] * 2]
        error = await refused(stranger.GetApplication(secret=CODE))
        assert isinstance(error, errors.RateLimitedError)
        assert error.retry_after_s is not None
        assert 0 < error.retry_after_s <= 60
        await boss.CreateMember(member="ann")


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("CreateTenant", {"tenant": "two words"}, "tenant"),
        ("CreateTenant", {"tenant": "anonymous"}, "tenant"),
        ("CreateTenant", {"tenant": "x", "weight": -1.0}, "weight"),
        ("CreateTenant", {"tenant": "x", "pays_first": "nobody"}, "pays_first"),
        ("CreateMember", {"tenant": "acme", "member": ""}, "member"),
        ("CreateMember", {"tenant": "acme", "member": "x", "role": "boss"}, "role"),
        ("CreateKey", {"tenant": "acme", "name": "k"}, "member"),
        ("CreateKey", {"tenant": "acme", "member": "boss"}, "name"),
        (
            "CreateKey",
            {"tenant": "acme", "member": "boss", "name": "k", "lives_ms": -5},
            "lives_ms",
        ),
        ("UpdateKey", {"name": "k"}, "key"),
        ("UpdateKey", {"key": "aif_00000000", "name": ""}, "name"),
        (
            "UpdateKey",
            {"key": "aif_00000000", "methods": pb.Patterns(patterns=["a.Echo/*"])},
            "methods",
        ),
        ("RotateKey", {"overlap_ms": -1}, "overlap_ms"),
        ("RotateKey", {"overlap_ms": 2**62}, "overlap_ms"),
        ("RevokeKey", {}, "key"),
        ("Invite", {"tenant": "acme", "uses": 10**9}, "uses"),
        ("Invite", {"tenant": "acme", "lives_ms": -1}, "lives_ms"),
        ("Approve", {}, "application"),
        ("ListMembers", {"tenant": "acme", "page_size": -1}, "page_size"),
        ("ListChanges", {"page_token": "9" * 100}, "page_token"),
    ],
)
async def test_bad_input_names_its_field(
    tmp_path: Path, method: str, fields: dict[str, Any], field: str
) -> None:
    async with town(tmp_path) as t:
        await t.tenant("acme")
        error = await refused(getattr(t.root, method)(**fields))
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "BAD_INPUT")
        assert field in error.violations


async def test_any_bytes_give_a_status(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        for method in NAMES:
            for body in (b"\xff", b"\x0a\x05ab", b"\x0a\x01\x00"):
                call = t.mesh.channel.unary_unary(f"/{SERVICE}/{method}")
                ended = call(body, metadata=[("x-api-key", t.root.key)], timeout=10)
                code = (await ended.code()).name
                assert code not in ("INTERNAL", "UNKNOWN"), (method, body)


async def ended(call: Any) -> tuple[str, str]:
    """Code and details."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


NASTY: dict[int, list[Any]] = {
    FieldDescriptor.TYPE_STRING: ["\0", "x" * 100_000, "\U0001f600", "' OR 1=1 --", "%", "acme"],
    FieldDescriptor.TYPE_INT32: [-1, 2**31 - 1, -(2**31)],
    FieldDescriptor.TYPE_INT64: [-1, 2**63 - 1, -(2**63)],
    FieldDescriptor.TYPE_DOUBLE: [math.nan, math.inf, -1.0, 1e308],
    FieldDescriptor.TYPE_BOOL: [False],
    FieldDescriptor.TYPE_MESSAGE: [
        pb.Patterns(patterns=patterns) for patterns in ([], [""], ["\0"], ["["], ["*" * 100_000])
    ],
}


async def test_any_value_of_any_field_gives_a_status(storage_url: str, tmp_path: Path) -> None:
    async with town(tmp_path, url=storage_url) as t:
        await t.tenant("acme")
        for method in NAMES:
            fields = FOREIGN[method][0]
            for field in getattr(pb, f"{method}Request").DESCRIPTOR.fields:
                for value in NASTY[field.type]:
                    asked = {**fields, field.name: [value] if field.is_repeated else value}
                    code, details = await ended(getattr(t.root, method)(**asked))
                    assert code not in ("INTERNAL", "UNKNOWN"), (method, asked)
                    assert len(details) < 2000, (method, asked)


async def test_an_operator_of_no_tenant_is_asked_which(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    config = (
        f"auth: {{admin_key_file: '{tmp_path / 'admin.key'}', keys: [{{name: op, tenant: ops, "
        f"sha256: {digest}, may: [admin]}}]}}\n"
    )
    async with town(tmp_path, config) as t:
        operator = t.admin("secret")
        error = await refused(operator.ListMembers())
        assert error.violations == {"tenant": "must be set"}
        await operator.CreateTenant(tenant="acme")
        assert (await operator.ListChanges()).changes[0].actor == "ops (op)"


async def test_while_the_database_is_away_calls_go_on_and_administration_says_so(
    tmp_path: Path, start_postgres: StartPostgres
) -> None:
    server = start_postgres()
    async with town(tmp_path, url=server.url()) as t, backend() as echoing:
        await t.register(echoing.address)
        boss = await t.tenant("acme")
        server.kill()
        error = await refused(boss.CreateMember(member="ann"))
        assert (error.code, error.reason) == ("UNAVAILABLE", "STORAGE_AWAY")
        assert (await refused(boss.GetMember())).reason == "STORAGE_AWAY"
        assert await t.echo(boss.key) == "OK"
        server.start()
        await boss.CreateMember(member="ann")


async def test_nothing_of_a_secret_is_in_the_log(tmp_path: Path) -> None:
    async with town(tmp_path) as t:
        boss = await t.tenant("acme")
        made = await boss.CreateKey(member="boss", name="k")
        await refused(t.admin(made.secret[:-1]).WhoAmI())
        secret = made.secret.removeprefix(f"{made.key.key}_")
        assert all(secret[:20].encode() not in line for line in t.mesh.log)
        assert secret[:20] not in str(await t.root.ListChanges())


def test_every_method_is_served() -> None:
    assert set(NAMES) == {
        name.removesuffix("Request")
        for name in pb.DESCRIPTOR.message_types_by_name
        if name.endswith("Request")
    }
