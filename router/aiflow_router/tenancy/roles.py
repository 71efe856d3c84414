"""Who may do what to whom, by role; pure functions of callers.

A key administers only where it may `admin`: one that is used for calls alone, and is lost, gives
nobody its member's powers. What is a member's own can be seen with any key of the member, and a key
can always rotate and revoke itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aiflow_router.identity.caller import Caller, Right, Role
from aiflow_sdk import errors

Operation = Literal[
    "tenant.create",
    "tenant.read",
    "tenant.change",
    "tenant.weigh",
    "department.create",
    "department.read",
    "department.change",
    "member.create",
    "member.read",
    "member.change",
    "key.create",
    "key.read",
    "key.change",
    "key.rotate",
    "key.revoke",
    "invitation.create",
    "invitation.read",
    "invitation.revoke",
    "application.read",
    "application.decide",
    "audit.read",
    "credits.give",
    "credits.allocate",
    "credits.read",
    "usage.read",
]

RANKS: Mapping[Role, int] = {
    "member": 0,
    "department_admin": 1,
    "tenant_admin": 2,
    "platform_admin": 3,
}
# The lowest role that may do it to others, as far as the role reaches.
LEAST: Mapping[Operation, Role] = {
    "tenant.create": "platform_admin",
    "tenant.read": "tenant_admin",
    # How it pays. Its weight is what others lose, and so is the platform's.
    "tenant.change": "tenant_admin",
    "tenant.weigh": "platform_admin",
    "department.create": "tenant_admin",
    "department.read": "department_admin",
    "department.change": "tenant_admin",
    "member.create": "department_admin",
    "member.read": "department_admin",
    "member.change": "department_admin",
    "key.create": "department_admin",
    "key.read": "department_admin",
    # Whoever has it could widen what it is for.
    "key.change": "department_admin",
    "key.rotate": "department_admin",
    "key.revoke": "department_admin",
    "invitation.create": "department_admin",
    "invitation.read": "department_admin",
    "invitation.revoke": "department_admin",
    "application.read": "department_admin",
    "application.decide": "department_admin",
    "audit.read": "tenant_admin",
    # Where credits come from; a department's admin moves those of the department.
    "credits.give": "platform_admin",
    "credits.allocate": "department_admin",
    "credits.read": "department_admin",
    "usage.read": "department_admin",
}
# What everybody may do to what is their own.
OWN_TO_SEE = frozenset[Operation]({"member.read", "key.read", "credits.read", "usage.read"})
OWN_TO_CHANGE = frozenset[Operation]({"key.rotate", "key.revoke"})
# What one only looks at may be of somebody with a higher role.
_READS = frozenset(operation for operation in LEAST if operation.endswith(".read"))
# Of what the caller wrote, in an error.
_SHOWN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """What an operation is about.

    Attributes:
        department: "" for what is of none; a department's admin does not reach it.
        member: "" for what is nobody's.
        role: of the member, or the one that is to be given.
        key: the key's id, where it is about one.
    """

    tenant: str
    department: str = ""
    member: str = ""
    role: Role = "member"
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What of a list a caller sees; None for any."""

    tenant: str | None = None
    department: str | None = None
    member: str | None = None


def may(caller: Caller, operation: Operation, whose: Whose) -> bool:
    """Whether `caller` may do it."""
    return _owns(caller, operation, whose) or administers(caller, operation, whose)


def administers(caller: Caller, operation: Operation, whose: Whose) -> bool:
    """Whether `caller` may do it as an administrator, to whomever."""
    if "admin" not in caller.may or RANKS[caller.role] < RANKS[LEAST[operation]]:
        return False
    if caller.role != "platform_admin" and whose.tenant != caller.tenant:
        return False
    if caller.role == "department_admin" and (
        not caller.department or whose.department != caller.department
    ):
        return False
    return operation in _READS or RANKS[whose.role] <= RANKS[caller.role]


def require(caller: Caller, operation: Operation, whose: Whose) -> None:
    """Raises PermissionDeniedError, with what would be needed."""
    if not may(caller, operation, whose):
        raise denied(caller, operation, whose)


def reach(caller: Caller, operation: Operation, tenant: str) -> Reach | None:
    """What `caller` sees of what `tenant` has, or where that is "" every tenant; None for nothing.

    `operation` is one that reads.
    """
    everything = Reach(tenant=tenant or None)
    if "admin" in caller.may and RANKS[caller.role] >= RANKS[LEAST[operation]]:
        if caller.role == "platform_admin":
            return everything
        if tenant == caller.tenant:
            if caller.role == "tenant_admin":
                return everything
            if caller.department:
                return Reach(tenant=tenant, department=caller.department)
    if operation in OWN_TO_SEE and caller.member and tenant == caller.tenant:
        return Reach(tenant=tenant, member=caller.member)
    return None


def grantable(caller: Caller) -> frozenset[Right]:
    """What a key that `caller` makes may at most.

    Who registers servers gets other tenants' calls, so only a platform admin lets others do it.
    """
    if caller.role == "platform_admin":
        return frozenset({"call", "register", "admin"})
    return frozenset({"call", "admin"})


def denied(caller: Caller, operation: Operation, whose: Whose) -> errors.PermissionDeniedError:
    """The refusal, which says nothing about what is there and what is not."""
    least = LEAST[operation]
    needed = max((least, "member" if operation in _READS else whose.role), key=RANKS.__getitem__)
    who = f"a {caller.role} of {caller.tenant}"
    if caller.role == "department_admin":
        who += f", department {caller.department or 'none'}"
    lacks = "" if "admin" in caller.may else " and whose key may not `admin`"
    where = f"tenant {whose.tenant[:_SHOWN]}" if whose.tenant else "all tenants"
    if needed == "department_admin":
        where += f", department {whose.department[:_SHOWN] or 'none'}"
    return errors.PermissionDeniedError(
        f"{operation} in {where} needs a key that may `admin`, of a {needed} there or above; this "
        f"one is of {who}{lacks}",
        reason="ROLE_MISSING",
        metadata={"operation": operation, "role": caller.role},
    )


def _owns(caller: Caller, operation: Operation, whose: Whose) -> bool:
    if not caller.member or (whose.tenant, whose.member) != (caller.tenant, caller.member):
        return False
    if operation in OWN_TO_SEE:
        return True
    if operation in OWN_TO_CHANGE:
        return "admin" in caller.may or (bool(caller.key) and whose.key == caller.key)
    return False
