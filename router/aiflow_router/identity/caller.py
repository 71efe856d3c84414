"""Who calls, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aiflow_router.identity.scope import Scope

Right = Literal["call", "register", "admin"]
# What a method asks of its caller: a right, where "admin" is the operator's and takes a platform
# admin; "key", any key that is known, for the method itself decides by role; or nothing.
Needs = Literal["call", "register", "admin", "key", "nothing"]
Role = Literal["platform_admin", "tenant_admin", "department_admin", "member"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Made once, when the key behind it is read; a call only carries it.

    Attributes:
        name: of the key, for people; empty without one.
        may: what the key is for.
        key: its id, which is no secret; empty without one.
        department: empty for who is in none, as `member` is for a key of a tenant as a whole.
        role: what its member may administer.
        weight: the tenant's share where several wait for the same.
        scope: what of it all the key is for; None where it has no limits of its own.
        expires_s: Unix time from which it is not good any more; None for never.
        barred: why it is not good now, such as "it was revoked"; empty where it is.
    """

    name: str
    tenant: str
    may: frozenset[Right]
    key: str = ""
    department: str = ""
    member: str = ""
    role: Role = "member"
    weight: float = 1.0
    scope: Scope | None = None
    expires_s: float | None = None
    barred: str = ""


ANONYMOUS = Caller(name="", tenant="anonymous", may=frozenset({"call", "register"}))
# Where there are no keys at all, whoever reaches the port is the operator.
ANYBODY = Caller(
    name="",
    tenant="anonymous",
    may=frozenset({"call", "register", "admin"}),
    role="platform_admin",
)
# Of a call that has not said yet who it is from.
NOBODY = Caller(name="", tenant="unknown", may=frozenset())
