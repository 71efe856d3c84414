"""What can be administered, on both databases: each change and its line in the audit log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from integration.tenancy.desk import ALL, DAY_S, NOW_S, ROOT, Desk, caller

from aiflow_router.identity.caller import Caller, Role
from aiflow_router.tenancy.book import PageOf
from aiflow_sdk import errors


async def test_a_tenant_is_made_seen_changed_and_disabled(desk: Desk) -> None:
    tenants = desk.office.tenants
    await desk.tenant()
    await desk.tenant("rival")
    with pytest.raises(errors.AlreadyExistsError) as there:
        await desk.tenant()
    assert there.value.reason == "TENANT_EXISTS"
    nothing: dict[str, Any] = dict.fromkeys(("weight", "pays_first", "when_out", "disabled"))
    changed = await tenants.update(ROOT, "acme", **{**nothing, "weight": 2.5, "when_out": "refuse"})
    assert (changed.weight, changed.when_out, changed.pays_first) == (2.5, "refuse", "member")
    disabled = await tenants.update(ROOT, "acme", **{**nothing, "disabled": True})
    assert disabled.disabled_s == NOW_S
    again = await tenants.update(ROOT, "acme", **{**nothing, "disabled": True})
    assert again == disabled
    page = await tenants.list(ROOT, ALL)
    assert [one.tenant for one in page.items] == ["acme", "rival"]
    admin = caller("boss", "tenant_admin")
    assert [one.tenant for one in (await tenants.list(admin, ALL)).items] == ["acme"]
    with pytest.raises(errors.NotFoundError, match="did you mean acme"):
        await tenants.get(ROOT, "acmee")
    with pytest.raises(errors.PermissionDeniedError):
        await tenants.get(admin, "rival")
    with pytest.raises(errors.PermissionDeniedError, match=r"tenant\.weigh"):
        await tenants.update(admin, "acme", **{**nothing, "weight": 9.0})
    with pytest.raises(errors.BadInputError, match="your own tenant"):
        await tenants.update(
            Caller(name="", tenant="acme", member="r", role="platform_admin", may=ROOT.may),
            "acme",
            **{**nothing, "disabled": True},
        )
    assert await desk.changes() == [
        ("tenant.create", "acme", "ops (ops)"),
        ("tenant.create", "rival", "ops (ops)"),
        ("tenant.update", "acme", "ops (ops)"),
        ("tenant.update", "acme", "ops (ops)"),
    ]
    log = await desk.office.changes.list(ROOT, "acme", PageOf(size=1), kind="", subject="")
    assert log.items[0].details == {"disabled_s": [None, NOW_S]}
    assert desk.told == sorted(set(desk.told)), "each change was told, and nothing else"
    assert len(desk.told) == 4


async def test_departments_and_members_belong_together(desk: Desk) -> None:
    office = desk.office
    await desk.tenant()
    boss = await desk.member("boss", "tenant_admin")
    await office.tenants.create_department(boss, "acme", "sales")
    await office.tenants.create_department(boss, "acme", "lab")
    with pytest.raises(errors.AlreadyExistsError):
        await office.tenants.create_department(boss, "acme", "lab")
    with pytest.raises(errors.NotFoundError, match="did you mean sales"):
        await office.members.create(boss, "acme", "ann", department="sale", role="member")
    with pytest.raises(errors.BadInputError, match="must be set for a department_admin"):
        await office.members.create(boss, "acme", "dana", department="", role="department_admin")
    dana = await desk.member("dana", "department_admin", "sales")
    made = await office.members.create(dana, "acme", "ann", department="", role="member")
    assert made.department == "sales", "a department's admin makes members of it"
    for department, role in (("lab", "member"), ("sales", "tenant_admin")):
        with pytest.raises(errors.PermissionDeniedError):
            await office.members.create(dana, "acme", "eve", department=department, role=role)
    await desk.member("cid", department="lab")
    seen = await office.members.list(dana, "acme", ALL, department="")
    assert [one.member for one in seen.items] == ["ann", "dana"]
    seen = await office.members.list(boss, "acme", ALL, department="lab")
    assert [one.member for one in seen.items] == ["cid"]
    seen = await office.members.list(caller("cid", department="lab"), "acme", ALL, department="")
    assert [one.member for one in seen.items] == ["cid"]
    with pytest.raises(errors.PermissionDeniedError):
        await office.members.list(dana, "acme", ALL, department="lab")
    listed = await office.tenants.departments(dana, "acme", ALL)
    assert [one.department for one in listed.items] == ["sales"]
    closed = await office.tenants.update_department(boss, "acme", "lab", disabled=True)
    assert closed.disabled_s == NOW_S


async def test_a_member_is_changed_only_to_what_is_in_reach(desk: Desk) -> None:
    office = desk.office
    await desk.tenant()
    for name in ("sales", "lab"):
        await office.tenants.create_department(ROOT, "acme", name)
    boss = await desk.member("boss", "tenant_admin")
    dana = await desk.member("dana", "department_admin", "sales")
    await desk.member("ann", department="sales")

    async def change(by: Caller, member: str, **values: Any) -> Any:
        stays = dict.fromkeys(("department", "role", "disabled"))
        return await office.members.update(by, "acme", member, **{**stays, **values})

    assert (await change(dana, "ann", role="department_admin")).role == "department_admin"
    for by, member, values in (
        (dana, "ann", {"role": "tenant_admin"}),
        (dana, "ann", {"department": "lab"}),
        (dana, "boss", {"disabled": True}),
        (boss, "ann", {"role": "platform_admin"}),
        (caller("ann"), "ann", {"department": "lab"}),
    ):
        with pytest.raises(errors.PermissionDeniedError):
            await change(by, member, **values)
    with pytest.raises(errors.BadInputError, match="nobody changes their own"):
        await change(boss, "boss", role="member")
    with pytest.raises(errors.BadInputError, match="it is you"):
        await change(boss, "boss", disabled=True)
    with pytest.raises(errors.BadInputError, match="must be set for a department_admin"):
        await change(boss, "ann", department="")
    with pytest.raises(errors.NotFoundError, match="did you mean ann"):
        await change(boss, "annn", disabled=True)
    with pytest.raises(errors.PermissionDeniedError):
        await change(caller("ann", department="sales"), "nobody", disabled=True)
    assert (await change(boss, "ann", disabled=True, department="lab")).disabled_s == NOW_S
    assert (await change(boss, "ann", disabled=False)).disabled_s is None


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


async def test_lists_come_in_pages(desk: Desk) -> None:
    await desk.tenant()
    for number in range(7):
        await desk.member(f"m{number}")
    token, found = "", []
    while True:
        part = PageOf(size=3, token=token)
        page = await desk.office.members.list(ROOT, "acme", part, department="")
        found.append([one.member for one in page.items])
        token = page.next
        if not token:
            break
    assert found == [["m0", "m1", "m2"], ["m3", "m4", "m5"], ["m6"]]
    log = await desk.office.changes.list(ROOT, "acme", PageOf(size=7), kind="", subject="")
    rest = await desk.office.changes.list(
        ROOT, "acme", PageOf(size=7, token=log.next), kind="", subject=""
    )
    assert [one.subject for one in rest.items] == ["acme"]
    assert rest.next == ""
    for size in (-1, 1001):
        with pytest.raises(errors.BadInputError, match="page_size"):
            await desk.office.members.list(ROOT, "acme", PageOf(size=size), department="")
    with pytest.raises(errors.BadInputError, match="page_token"):
        await desk.office.changes.list(ROOT, "", PageOf(token="x"), kind="", subject="")
    with pytest.raises(errors.BadInputError, match="did you mean key"):
        await desk.office.changes.list(ROOT, "", ALL, kind="keys", subject="")


async def test_of_many_who_use_one_code_at_once_as_many_get_in_as_it_has_uses(desk: Desk) -> None:
    await desk.tenant()
    boss = await desk.member("boss", "tenant_admin")
    invited = await desk.office.invitations.create(
        boss, "acme", department="", role="member", uses=3, lives_s=DAY_S
    )
    tries = (desk.office.applications.create(invited.code, f"m{n}", note="") for n in range(8))
    ends = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(end, errors.PermissionDeniedError) for end in ends) == 5


async def test_what_is_refused_changes_nothing(desk: Desk) -> None:
    await desk.tenant()
    before = await desk.changes()
    with pytest.raises(errors.NotFoundError):
        await desk.office.members.create(ROOT, "acme", "ann", department="no", role="member")
    assert await desk.changes() == before
    assert len(desk.told) == 1


async def test_what_no_database_takes_is_bad_input_or_not_there(desk: Desk) -> None:
    with pytest.raises((errors.BadInputError, errors.NotFoundError)):
        await desk.office.tenants.get(ROOT, "nul\0")
    with pytest.raises((errors.BadInputError, errors.NotFoundError)):
        await desk.office.keys.get(ROOT, "\0")
