"""What is changed holds with the answer, and is in the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from integration.router.kit import backend
from integration.tenancy.kit import refused, town

from aiflow.admin.v1 import tenancy_pb2 as pb


async def test_what_a_key_is_for_changes_with_the_answer(tmp_path: Path) -> None:
    async with town(tmp_path) as t, backend() as server:
        await t.register(server.address)
        boss = await t.tenant("acme")
        await boss.CreateMember(member="ann")
        made = await boss.CreateKey(member="ann", name="laptop", models=["gpt-*"])
        key = made.key.key
        assert await t.echo(made.secret) == "PERMISSION_DENIED"
        for methods, ends in (
            (["/a.Echo/*"], "OK"),
            (["/a.Other/*"], "PERMISSION_DENIED"),
            (["/a.Other/*", "/a.Echo/Echo"], "OK"),
            ([], "PERMISSION_DENIED"),  # Of models alone again.
        ):
            changed = await boss.UpdateKey(key=key, methods=pb.Patterns(patterns=methods))
            assert (changed.key.methods, changed.key.models) == (methods, ["gpt-*"])
            assert await t.echo(made.secret) == ends
        changed = await boss.UpdateKey(key=key, name="phone", models=pb.Patterns())
        assert (changed.key.name, changed.key.models) == ("phone", [])
        assert await t.echo(made.secret) == "OK"
        error = await refused(
            t.admin(made.secret).UpdateKey(key=key, models=pb.Patterns(patterns=["*"]))
        )
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_MISSING")


# What each method that changes something is asked, in this order, with what an earlier one answered
# in brackets; and the lines that it adds to the audit log.
CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "CreateTenant": ({"tenant": "acme"}, ["tenant.create"]),
    "UpdateTenant": ({"tenant": "acme", "weight": 2.0}, ["tenant.update"]),
    "CreateDepartment": ({"tenant": "acme", "department": "ml"}, ["department.create"]),
    "UpdateDepartment": (
        {"tenant": "acme", "department": "ml", "disabled": True},
        ["department.update"],
    ),
    "CreateMember": ({"tenant": "acme", "member": "ann"}, ["member.create"]),
    "UpdateMember": (
        {"tenant": "acme", "member": "ann", "role": "tenant_admin"},
        ["member.update"],
    ),
    "CreateKey": ({"tenant": "acme", "member": "ann", "name": "k"}, ["key.create"]),
    "UpdateKey": ({"key": "[key]", "name": "n"}, ["key.update"]),
    "RotateKey": ({"key": "[key]"}, ["key.expire", "key.rotate"]),
    "RevokeKey": ({"key": "[key]"}, ["key.revoke"]),
    "Invite": ({"tenant": "acme", "uses": 2}, ["invitation.create"]),
    "Apply": ({"code": "[code]", "member": "bob"}, ["application.create"]),
    "Approve": ({"application": "[application]"}, ["member.create", "application.approve"]),
    "TakeKey": ({"secret": "[secret]"}, ["key.create", "application.take"]),
    "Refuse": ({"application": "[refused]"}, ["application.refuse"]),
    "RevokeInvitation": ({"invitation": "[invitation]"}, ["invitation.revoke"]),
}


async def test_every_change_is_in_the_audit_log(tmp_path: Path) -> None:
    reads = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    methods = pb.DESCRIPTOR.services_by_name["TenancyService"].methods
    assert set(CHANGES) == {
        one.name for one in methods if one.GetOptions().idempotency_level != reads
    }
    async with town(tmp_path) as t:
        told: dict[str, str] = {}
        before = len((await t.root.ListChanges()).changes)
        for method, (fields, actions) in CHANGES.items():
            if method == "Refuse":
                second = await t.root.Apply(code=told["code"], member="eve")
                told["refused"] = second.application.application
                before += 1
            asked = {
                name: told[value[1:-1]] if str(value).startswith("[") else value
                for name, value in fields.items()
            }
            answer = await getattr(t.root, method)(**asked)
            for name in ("key", "invitation", "application"):
                if answer.DESCRIPTOR.fields_by_name.get(name) and name not in told:
                    told[name] = getattr(getattr(answer, name), name)
            for name in ("code", "secret"):
                if answer.DESCRIPTOR.fields_by_name.get(name):
                    told[name] = getattr(answer, name)
            log = (await t.root.ListChanges()).changes
            added = log[: len(log) - before]
            assert sorted(one.action for one in added) == sorted(actions), method
            assert all(one.actor and one.tenant == "acme" and one.subject for one in added), method
            before = len(log)
