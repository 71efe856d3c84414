"""Who may what: every role against every operation, at every distance."""

from __future__ import annotations

from typing import get_args

import pytest

from aiflow_router.identity.caller import ANONYMOUS, ANYBODY, Caller, Right, Role
from aiflow_router.tenancy.roles import (
    LEAST,
    RANKS,
    Operation,
    Reach,
    Whose,
    denied,
    grantable,
    may,
    reach,
)

ROLES: tuple[Role, ...] = get_args(Role)
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

OWN = Whose(tenant="acme", department="sales", member="ann", key="aif_1")
OWN_OTHER_KEY = Whose(tenant="acme", department="sales", member="ann", key="aif_2")
DEPARTMENT = Whose(tenant="acme", department="sales", member="bob", key="aif_3")
TENANT = Whose(tenant="acme", department="lab", member="cid", key="aif_4")
NO_DEPARTMENT = Whose(tenant="acme", member="dot", key="aif_5")
FOREIGN = Whose(tenant="rival", department="sales", member="ann", key="aif_6")
PLACES = {
    "itself": OWN,
    "another key of its own": OWN_OTHER_KEY,
    "its department": DEPARTMENT,
    "another department": TENANT,
    "no department": NO_DEPARTMENT,
    "another tenant": FOREIGN,
}
WITHIN_TENANT = [place for place in PLACES if place != "another tenant"]
WITHIN_DEPARTMENT = ["itself", "another key of its own", "its department"]
OWN_PLACES = ["itself", "another key of its own"]

# The spec: where each role may do each operation, with a key that may `admin`.
TENANTS_OWN: dict[Role, list[str]] = {
    "member": [],
    "department_admin": [],
    "tenant_admin": WITHIN_TENANT,
    "platform_admin": list(PLACES),
}
PLATFORMS_OWN: dict[Role, list[str]] = {**TENANTS_OWN, "tenant_admin": []}
DEPARTMENTS_OWN: dict[Role, list[str]] = {**TENANTS_OWN, "department_admin": WITHIN_DEPARTMENT}
ALSO_ONES_OWN: dict[Role, list[str]] = {**DEPARTMENTS_OWN, "member": OWN_PLACES}
SPEC: dict[Operation, dict[Role, list[str]]] = {
    "tenant.create": PLATFORMS_OWN,
    "tenant.read": TENANTS_OWN,
    "tenant.change": TENANTS_OWN,
    "tenant.weigh": PLATFORMS_OWN,
    "department.create": TENANTS_OWN,
    "department.read": DEPARTMENTS_OWN,
    "department.change": TENANTS_OWN,
    "member.create": DEPARTMENTS_OWN,
    "member.read": ALSO_ONES_OWN,
    "member.change": DEPARTMENTS_OWN,
    "key.create": DEPARTMENTS_OWN,
    "key.read": ALSO_ONES_OWN,
    "key.change": DEPARTMENTS_OWN,
    "key.rotate": ALSO_ONES_OWN,
    "key.revoke": ALSO_ONES_OWN,
    "invitation.create": DEPARTMENTS_OWN,
    "invitation.read": DEPARTMENTS_OWN,
    "invitation.revoke": DEPARTMENTS_OWN,
    "application.read": DEPARTMENTS_OWN,
    "application.decide": DEPARTMENTS_OWN,
    "audit.read": TENANTS_OWN,
    "credits.give": PLATFORMS_OWN,
    "credits.allocate": DEPARTMENTS_OWN,
    "credits.read": ALSO_ONES_OWN,
    "usage.read": ALSO_ONES_OWN,
}


def caller(role: Role, *rights: Right, department: str = "sales") -> Caller:
    return Caller(
        name="laptop",
        tenant="acme",
        department=department,
        member="ann",
        key="aif_1",
        role=role,
        may=frozenset(rights or ("call", "admin")),
    )


def test_the_spec_has_every_operation_and_role() -> None:
    assert set(SPEC) == set(OPERATIONS) == set(LEAST)
    assert all(set(by_role) == set(ROLES) for by_role in SPEC.values())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_what_the_spec_says_and_nowhere_else(role: Role, operation: Operation) -> None:
    allowed = [name for name, whose in PLACES.items() if may(caller(role), operation, whose)]
    assert allowed == [name for name in PLACES if name in SPEC[operation][role]]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("role", ROLES)
def test_a_key_that_may_only_call_sees_and_ends_what_is_its_own(
    role: Role, operation: Operation
) -> None:
    allowed = [
        name for name, whose in PLACES.items() if may(caller(role, "call"), operation, whose)
    ]
    expected = {
        "member.read": OWN_PLACES,
        "key.read": OWN_PLACES,
        "credits.read": OWN_PLACES,
        "usage.read": OWN_PLACES,
        "key.rotate": ["itself"],
        "key.revoke": ["itself"],
    }
    assert allowed == expected.get(operation, [])


@pytest.mark.parametrize("given", ROLES)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "operation", ["member.create", "member.change", "key.create", "invitation.create"]
)
def test_nobody_gives_or_governs_a_role_above_their_own(
    operation: Operation, role: Role, given: Role
) -> None:
    whose = Whose(tenant="acme", department="sales", member="bob", role=given)
    allowed = RANKS[role] >= RANKS["department_admin"] and RANKS[given] <= RANKS[role]
    assert may(caller(role), operation, whose) is allowed


def test_who_is_above_can_still_be_seen() -> None:
    boss = Whose(tenant="acme", department="sales", member="boss", role="tenant_admin")
    assert may(caller("department_admin"), "member.read", boss)
    assert not may(caller("department_admin"), "key.revoke", boss)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_department_admin_of_no_department_administers_nothing(operation: Operation) -> None:
    lost = caller("department_admin", department="")
    own = SPEC[operation] is ALSO_ONES_OWN
    assert [name for name, whose in PLACES.items() if may(lost, operation, whose)] == (
        OWN_PLACES if own else []
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_who_has_no_key_owns_nothing_that_is_nobodys(operation: Operation) -> None:
    assert not may(ANONYMOUS, operation, Whose(tenant="anonymous"))
    assert may(ANYBODY, operation, FOREIGN), "where there are no keys, anybody is the operator"


@pytest.mark.parametrize(
    ("who", "operation", "tenant", "seen"),
    [
        pytest.param("platform_admin", "key.read", "", Reach(), id="the platform sees all"),
        pytest.param(
            "platform_admin", "key.read", "rival", Reach(tenant="rival"), id="or one tenant"
        ),
        pytest.param(
            "tenant_admin", "key.read", "acme", Reach(tenant="acme"), id="a tenant its own"
        ),
        pytest.param("tenant_admin", "key.read", "rival", None, id="a tenant no other's"),
        pytest.param("tenant_admin", "key.read", "", None, id="a tenant not all"),
        pytest.param(
            "department_admin",
            "application.read",
            "acme",
            Reach(tenant="acme", department="sales"),
            id="a department its own",
        ),
        pytest.param("department_admin", "audit.read", "acme", None, id="but not the audit log"),
        pytest.param("department_admin", "key.read", "rival", None, id="a department no other's"),
        pytest.param(
            "member", "key.read", "acme", Reach(tenant="acme", member="ann"), id="a member itself"
        ),
        pytest.param("member", "key.read", "rival", None, id="not its namesake elsewhere"),
        pytest.param("member", "application.read", "acme", None, id="a member no applications"),
    ],
)
def test_lists_show_what_is_in_reach(
    who: Role, operation: Operation, tenant: str, seen: Reach | None
) -> None:
    assert reach(caller(who), operation, tenant) == seen


def test_lists_of_a_key_that_may_only_call_show_its_member() -> None:
    own = Reach(tenant="acme", member="ann")
    assert reach(caller("tenant_admin", "call"), "key.read", "acme") == own


@pytest.mark.parametrize("role", ROLES)
def test_only_the_platform_lets_others_register_servers(role: Role) -> None:
    assert ("register" in grantable(caller(role))) is (role == "platform_admin")


def test_a_refusal_says_what_would_be_needed_and_not_what_is_there() -> None:
    whose = Whose(tenant="x" * 1000, department="lab", member="cid", role="tenant_admin")
    refusal = denied(caller("member", "call"), "key.create", whose)
    assert refusal.reason == "ROLE_MISSING"
    assert "of a tenant_admin there or above" in refusal.message
    assert "whose key may not `admin`" in refusal.message
    assert len(refusal.message) < 300
