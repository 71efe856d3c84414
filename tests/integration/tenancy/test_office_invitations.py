"""Invitations and applications, on both databases: who gets in by a code."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from integration.tenancy.desk import ALL, DAY_S, ROOT, Desk

from aiflow_router.identity.caller import Role
from aiflow_sdk import errors


async def test_who_is_invited_applies_is_approved_and_gets_a_key_once(desk: Desk) -> None:
    office = desk.office
    await desk.tenant()
    await office.tenants.create_department(ROOT, "acme", "sales")
    await desk.member("boss", "tenant_admin")
    dana = await desk.member("dana", "department_admin", "sales")
    invited = await office.invitations.create(
        dana, "acme", department="", role="member", uses=2, lives_s=DAY_S
    )
    assert invited.invitation.department == "sales"
    applied = await office.applications.create(invited.code, "ann", note="Ann,\nfrom sales")
    secret = applied.secret
    assert applied.application.state == "waiting"
    with pytest.raises(errors.RefusedError) as early:
        await office.applications.take_key(secret, name="first")
    assert early.value.reason == "NOT_APPROVED"
    with pytest.raises(errors.AlreadyExistsError):
        await office.applications.create(invited.code, "ann", note="")
    with pytest.raises(errors.AlreadyExistsError):
        await office.applications.create(invited.code, "boss", note="")
    waiting = await office.applications.list(dana, "acme", ALL, state="waiting")
    (seen,) = waiting.items
    approved = await office.applications.approve(dana, seen.application)
    assert (approved.state, approved.decided_by) == ("approved", "acme/dana")
    assert await office.applications.approve(dana, seen.application) == approved
    with pytest.raises(errors.RefusedError, match="is approved already, by acme/dana"):
        await office.applications.refuse(dana, seen.application)
    assert (await office.applications.get(secret)).state == "approved"
    given = await office.applications.take_key(secret, name="first")
    assert (given.key.member, given.key.may) == ("ann", ["call"])
    with pytest.raises(errors.RefusedError) as twice:
        await office.applications.take_key(secret, name="first")
    assert twice.value.reason == "KEY_TAKEN"
    log = await desk.changes()
    assert [(action, actor) for action, _, actor in log][-6:] == [
        ("invitation.create", "acme/dana"),
        ("application.create", f"applicant by {invited.invitation.invitation}"),
        ("member.create", "acme/dana"),
        ("application.approve", "acme/dana"),
        ("key.create", "acme/ann"),
        ("application.take", "acme/ann"),
    ]
    assert all(word not in str(log) for word in (secret, invited.code, given.secret))


async def test_a_code_is_good_for_its_uses_and_its_time(desk: Desk) -> None:
    office = desk.office
    await desk.tenant()
    boss = await desk.member("boss", "tenant_admin")

    async def invite(**options: Any) -> Any:
        given: dict[str, Any] = {"department": "", "role": "member", "uses": 1, "lives_s": DAY_S}
        return await office.invitations.create(boss, "acme", **{**given, **options})

    async def refused(code: str) -> None:
        with pytest.raises(errors.PermissionDeniedError) as error:
            await office.applications.create(code, "eve", note="")
        assert error.value.reason == "CODE_INVALID"

    used = await invite()
    first = await office.applications.create(used.code, "ann", note="")
    await refused(used.code)
    revoked = await invite()
    await office.invitations.revoke(boss, revoked.invitation.invitation)
    await refused(revoked.code)
    await refused(revoked.code[:-1])
    await refused("inv_00000000_" + "A" * 22)
    await refused("")
    expired = await invite()
    desk.wall.now_s += DAY_S
    await refused(expired.code)
    assert (await office.invitations.list(boss, "acme", ALL, ended=False)).items == ()
    assert len((await office.invitations.list(boss, "acme", ALL, ended=True)).items) == 3
    refusal = await office.applications.refuse(boss, first.application.application)
    assert refusal.state == "refused"
    with pytest.raises(errors.RefusedError, match="was refused"):
        await office.applications.take_key(first.secret, name="first")
    with pytest.raises(errors.PermissionDeniedError) as wrong:
        await office.applications.get("app_00000000_" + "A" * 43)
    assert wrong.value.reason == "SECRET_INVALID"


@pytest.mark.parametrize(
    ("role", "department"),
    [
        pytest.param("tenant_admin", "", id="into a role above the own"),
        pytest.param("member", "lab", id="into another department"),
    ],
)
async def test_nobody_invites_beyond_their_reach(desk: Desk, role: Role, department: str) -> None:
    await desk.tenant()
    for name in ("sales", "lab"):
        await desk.office.tenants.create_department(ROOT, "acme", name)
    dana = await desk.member("dana", "department_admin", "sales")
    with pytest.raises(errors.PermissionDeniedError):
        await desk.office.invitations.create(
            dana, "acme", department=department, role=role, uses=1, lives_s=DAY_S
        )
    other = await desk.office.invitations.create(
        ROOT, "acme", department=department, role=role, uses=1, lives_s=DAY_S
    )
    applied = await desk.office.applications.create(other.code, "eve", note="")
    with pytest.raises(errors.NotFoundError):
        await desk.office.applications.approve(dana, applied.application.application)
    with pytest.raises(errors.NotFoundError):
        await desk.office.invitations.revoke(dana, other.invitation.invitation)
    seen = await desk.office.applications.list(dana, "acme", ALL, state="")
    assert seen.items == ()


async def test_of_many_who_use_one_code_at_once_as_many_get_in_as_it_has_uses(desk: Desk) -> None:
    await desk.tenant()
    boss = await desk.member("boss", "tenant_admin")
    invited = await desk.office.invitations.create(
        boss, "acme", department="", role="member", uses=3, lives_s=DAY_S
    )
    tries = (desk.office.applications.create(invited.code, f"m{n}", note="") for n in range(8))
    ends = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(end, errors.PermissionDeniedError) for end in ends) == 5
