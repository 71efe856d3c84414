"""What the tables of tenancy say, as plain records. Times are Unix time, None for never."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Row

from aiflow_router.identity.caller import Role

R = TypeVar("R")

KeyState = Literal["live", "expired", "revoked"]
Decision = Literal["waiting", "approved", "refused", "taken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    tenant: str
    weight: float
    pays_first: str
    when_out: str
    created_s: float
    disabled_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Department:
    tenant: str
    department: str
    created_s: float
    disabled_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """`department` is None for who is in none."""

    tenant: str
    member: str
    department: str | None
    role: Role
    created_s: float
    disabled_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """`models` and `methods` are patterns, None for all."""

    key: str
    name: str
    tenant: str
    member: str
    models: Sequence[str] | None
    methods: Sequence[str] | None
    may: Sequence[str]
    created_s: float
    expires_s: float | None
    revoked_s: float | None
    instead_of: str | None
    last_used_s: float | None

    def state(self, now_s: float) -> KeyState:
        if self.revoked_s is not None:
            return "revoked"
        if self.expires_s is not None and self.expires_s <= now_s:
            return "expired"
        return "live"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    invitation: str
    tenant: str
    department: str | None
    role: Role
    uses_left: int
    created_s: float
    expires_s: float
    revoked_s: float | None

    def live(self, now_s: float) -> bool:
        """Whether somebody may still apply by it."""
        return self.revoked_s is None and self.expires_s > now_s and self.uses_left > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """`department` and `role` are those of its invitation."""

    application: str
    invitation: str
    tenant: str
    department: str | None
    role: Role
    member: str
    note: str
    state: Decision
    created_s: float
    decided_s: float | None
    decided_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A row of the audit log; `details` are never secret."""

    number: int
    at_s: float
    actor: str
    action: str
    tenant: str
    kind: str
    subject: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[R]):
    """Part of a list; `next` is what to ask for the rest with, "" at the end."""

    items: tuple[R, ...]
    next: str


def record(kind: type[R], row: Row[Any]) -> R:
    """The record that a row of its columns says; a row may have more of them."""
    found = row._mapping  # noqa: SLF001 - SQLAlchemy's name for what is public
    return kind(**{one.name: found[one.name] for one in fields(kind)})  # type: ignore[arg-type]
