"""Keys as an office makes, changes, rotates and revokes them, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from integration.tenancy.desk import ALL, DAY_S, NOW_S, ROOT, Desk, caller

from aiflow_router.identity.caller import Caller
from aiflow_router.tenancy.records import Key
from aiflow_sdk import errors


async def test_a_key_is_shown_once_listed_and_revoked(desk: Desk) -> None:
    keys = desk.office.keys
    await desk.tenant()
    boss = await desk.member("boss", "tenant_admin")
    await desk.member("ann")
    made = await desk.key(boss, "ann", models=["gpt-*"], methods=["/a.Echo/*"], lives_s=DAY_S)
    assert made.secret.startswith(f"{made.key.key}_")
    assert (made.key.models, made.key.methods) == (["gpt-*"], ["/a.Echo/*"])
    assert (made.key.may, made.key.expires_s) == (["call"], NOW_S + DAY_S)
    admins = await desk.key(boss, "boss")
    assert admins.key.may == ["admin", "call"], "who administers can do it with the key"
    listed = await keys.list(boss, "acme", ALL, member="ann", ended=False)
    assert listed.items == (made.key,)
    ann = caller("ann", "member", "call", key=made.key.key)
    assert (await keys.list(ann, "acme", ALL, member="", ended=False)).items == (made.key,)
    for stranger in (ann, Caller(name="", tenant="rival", role="tenant_admin", may=boss.may)):
        with pytest.raises(errors.NotFoundError) as unseen:
            await keys.get(stranger, admins.key.key)
        assert unseen.value.reason == "KEY_NOT_FOUND"
    with pytest.raises(errors.NotFoundError, match=f"did you mean.* {made.key.key}"):
        await keys.get(boss, made.key.key + "0")
    assert (await keys.revoke(boss, made.key.key)).state(NOW_S) == "revoked"
    await keys.revoke(boss, made.key.key)
    assert (await keys.list(ann, "acme", ALL, member="", ended=False)).items == ()
    assert len((await keys.list(ann, "acme", ALL, member="", ended=True)).items) == 1
    log = await desk.changes()
    assert [one for one in log if one[1] == made.key.key] == [
        ("key.create", made.key.key, "acme/boss"),
        ("key.revoke", made.key.key, "acme/boss"),
    ]
    assert all(made.secret not in str(one) for one in log)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        pytest.param({"rights": ["cal"]}, "did you mean call", id="a right that there is not"),
        pytest.param({"name": ""}, "name must be", id="no name"),
        pytest.param({"models": ["a\nb"]}, "models must be patterns", id="a pattern of two lines"),
        pytest.param({"models": ["*a*a*a*a*"]}, "more than 4 stars", id="a pattern of many stars"),
        pytest.param({"methods": ["a.Echo/*"]}, "/a.Echo/", id="a method that can never match"),
        pytest.param({"lives_s": -1.0}, "lives_ms must be", id="a life below zero"),
        pytest.param({"lives_s": 1e15}, "lives_ms must be", id="a life of ages"),
    ],
)
async def test_a_wrong_key_is_not_made(desk: Desk, options: dict[str, Any], what: str) -> None:
    await desk.tenant()
    await desk.member("ann")
    with pytest.raises(errors.BadInputError, match=what):
        await desk.key(ROOT, "ann", **options)


async def test_only_the_platform_hands_out_keys_that_may_register(desk: Desk) -> None:
    await desk.tenant()
    boss = await desk.member("boss", "tenant_admin")
    await desk.member("ann")
    with pytest.raises(errors.PermissionDeniedError, match="only a platform_admin"):
        await desk.key(boss, "ann", rights=["register"])
    made = await desk.key(ROOT, "ann", rights=["register"])
    with pytest.raises(errors.PermissionDeniedError, match="only a platform_admin"):
        await desk.office.keys.rotate(boss, made.key.key, overlap_s=0.0, lives_s=None)
    itself = caller("ann", "member", "register", key=made.key.key)
    rotated = await desk.office.keys.rotate(itself, made.key.key, overlap_s=0.0, lives_s=None)
    assert rotated.key.may == ["register"]


async def test_a_key_is_changed_by_who_could_have_made_it(desk: Desk) -> None:
    keys = desk.office.keys
    await desk.tenant()
    boss = await desk.member("boss", "tenant_admin")
    await desk.member("ann")
    made = (await desk.key(boss, "ann", models=["gpt-*"], lives_s=DAY_S)).key
    ann = caller("ann", "member", "call", key=made.key)

    async def change(by: Caller, key: str = made.key, **given: Any) -> Key:
        return await keys.update(by, key, **{"name": None, "models": None, "methods": None} | given)

    changed = await change(boss, name="phone", models=["m", "m"], methods=["/a.Echo/*"])
    assert (changed.name, changed.models, changed.methods) == ("phone", ["m"], ["/a.Echo/*"])
    assert (changed.key, changed.expires_s, changed.may) == (made.key, made.expires_s, made.may)
    assert (await change(boss, models=[])).models is None
    lines = len(await desk.changes())
    assert await change(boss, name="phone", methods=["/a.Echo/*"]) == await change(boss)
    assert len(await desk.changes()) == lines, "what stays is no change"
    with pytest.raises(errors.PermissionDeniedError, match=r"key\.change"):
        await change(ann, models=[])
    registers = await desk.key(ROOT, "ann", rights=["register"], methods=["/a.Echo/*"])
    with pytest.raises(errors.PermissionDeniedError, match="only a platform_admin"):
        await change(boss, registers.key.key, methods=[])
    await keys.revoke(boss, made.key)
    with pytest.raises(errors.RefusedError) as ended:
        await change(boss, name="again")
    assert ended.value.reason == "KEY_ENDED"


async def test_a_disabled_member_gets_no_key(desk: Desk) -> None:
    await desk.tenant()
    await desk.member("ann")
    await desk.office.members.update(ROOT, "acme", "ann", department=None, role=None, disabled=True)
    with pytest.raises(errors.RefusedError) as refused:
        await desk.key(ROOT, "ann")
    assert refused.value.reason == "MEMBER_DISABLED"


async def test_a_key_is_rotated_with_an_overlap(desk: Desk) -> None:
    keys = desk.office.keys
    await desk.tenant()
    boss = await desk.member("boss", "tenant_admin")
    await desk.member("ann")
    old = await desk.key(boss, "ann", models=["gpt-*"], lives_s=30 * DAY_S)
    ann = caller("ann", "member", "call", key=old.key.key)
    with pytest.raises(errors.PermissionDeniedError):
        await keys.rotate(ann, old.key.key, overlap_s=60.0, lives_s=0.0)
    new = await keys.rotate(ann, old.key.key, overlap_s=60.0, lives_s=None)
    assert new.replaced is not None
    assert new.replaced.expires_s == NOW_S + 60.0
    assert new.key.expires_s == old.key.expires_s, "it lives no longer than the old one would have"
    assert (new.key.models, new.key.instead_of) == (["gpt-*"], old.key.key)
    with pytest.raises(errors.RefusedError) as twice:
        await keys.rotate(ann, old.key.key, overlap_s=60.0, lives_s=None)
    assert twice.value.reason == "KEY_ROTATED"
    assert new.key.key in twice.value.message
    desk.wall.now_s += 61.0
    assert (await keys.get(boss, old.key.key)).state(desk.wall()) == "expired"
    with pytest.raises(errors.RefusedError) as ended:
        await keys.rotate(boss, old.key.key, overlap_s=60.0, lives_s=None)
    assert ended.value.reason == "KEY_ENDED"
    for_ever = await keys.rotate(boss, new.key.key, overlap_s=0.0, lives_s=0.0)
    assert for_ever.key.expires_s is None
    with pytest.raises(errors.BadInputError, match="overlap_ms"):
        await keys.rotate(boss, for_ever.key.key, overlap_s=91 * DAY_S, lives_s=None)
    assert [action for action, _, _ in await desk.changes()][-4:] == [
        "key.expire",
        "key.rotate",
        "key.expire",
        "key.rotate",
    ]
