"""Members and their departments, on both databases: who may make and change whom."""

from __future__ import annotations

from typing import Any

import pytest
from integration.tenancy.desk import ALL, NOW_S, ROOT, Desk, caller

from aiflow_router.identity.caller import Caller
from aiflow_sdk import errors


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
