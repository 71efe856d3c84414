"""Tenants, on both databases: each change and its line in the audit log."""

from __future__ import annotations

from typing import Any

import pytest
from integration.tenancy.desk import ALL, NOW_S, ROOT, Desk, caller

from aiflow_router.identity.caller import Caller
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
