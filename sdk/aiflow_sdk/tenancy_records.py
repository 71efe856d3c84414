"""Tenants, members, keys and what else `aiflow_sdk.tenancy` answers with. Times are Unix time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from aiflow.admin.v1 import tenancy_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom the router takes the caller for."""

    tenant: str
    department: str
    """Empty for none."""
    member: str
    """Empty for a key that is no member's, such as one of aiflow.yaml."""
    role: str
    """"platform_admin", "tenant_admin", "department_admin" or "member"."""
    key: str
    """Its visible beginning, or its name in aiflow.yaml."""
    name: str
    may: tuple[str, ...]
    """Of "call", "register" and "admin"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who shares the models with others."""

    tenant: str
    weight: float
    """Its share where tenants wait for the same."""
    pays_first: str
    """"member" or "pool"."""
    when_out: str
    """What happens when a member's account is empty: "refuse" or "pool"."""
    created_s: float
    disabled_s: float | None
    """Since when none of its keys works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Department:
    """A part of a tenant."""

    tenant: str
    department: str
    created_s: float
    disabled_s: float | None
    """Since when none of its members' keys works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A person or a program of a tenant."""

    tenant: str
    member: str
    department: str
    """Empty for none."""
    role: str
    created_s: float
    disabled_s: float | None
    """Since when none of its keys works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, of which only the beginning can be seen."""

    key: str
    """Its visible beginning."""
    name: str
    tenant: str
    member: str
    models: tuple[str, ...]
    """Patterns of models that it is for; empty for all."""
    methods: tuple[str, ...]
    may: tuple[str, ...]
    state: str
    """"live", "expired" or "revoked"."""
    created_s: float
    expires_s: float | None
    revoked_s: float | None
    instead_of: str
    """The key that it replaces; empty for none."""
    last_used_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key and the whole of it, which is shown this once."""

    key: Key
    secret: str = field(repr=False)
    replaced: Key | None = None
    """The one that it is in place of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A code by which somebody may apply, of which only the beginning can be seen."""

    invitation: str
    tenant: str
    department: str
    role: str
    uses_left: int
    created_s: float
    expires_s: float | None
    revoked_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInvitation:
    """An invitation and its code, which is shown this once."""

    invitation: Invitation
    code: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """Somebody who asks to become a member."""

    application: str
    invitation: str
    tenant: str
    department: str
    role: str
    member: str
    note: str
    state: str
    """"waiting", "approved", "refused" or "taken": its key was handed out."""
    created_s: float
    decided_s: float | None
    decided_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApplication:
    """An application and its secret, which is shown this once."""

    application: Application
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A line of the audit log."""

    number: int
    at_s: float
    actor: str
    """"tenant/member (key)"."""
    action: str
    """Such as "key.revoke"."""
    tenant: str
    kind: str
    subject: str
    details: dict[str, Any]


def caller(told: pb.WhoAmIResponse) -> Caller:
    return Caller(
        tenant=told.tenant,
        department=told.department,
        member=told.member,
        role=told.role,
        key=told.key,
        name=told.name,
        may=tuple(told.may),
    )


def tenant(told: pb.Tenant) -> Tenant:
    return Tenant(
        tenant=told.tenant,
        weight=told.weight,
        pays_first=told.pays_first,
        when_out=told.when_out,
        created_s=told.created_unix_ms / 1000,
        disabled_s=_at(told.disabled_unix_ms),
    )


def department(told: pb.Department) -> Department:
    return Department(
        tenant=told.tenant,
        department=told.department,
        created_s=told.created_unix_ms / 1000,
        disabled_s=_at(told.disabled_unix_ms),
    )


def member(told: pb.Member) -> Member:
    return Member(
        tenant=told.tenant,
        member=told.member,
        department=told.department,
        role=told.role,
        created_s=told.created_unix_ms / 1000,
        disabled_s=_at(told.disabled_unix_ms),
    )


def key(told: pb.Key) -> Key:
    return Key(
        key=told.key,
        name=told.name,
        tenant=told.tenant,
        member=told.member,
        models=tuple(told.models),
        methods=tuple(told.methods),
        may=tuple(told.may),
        state=told.state,
        created_s=told.created_unix_ms / 1000,
        expires_s=_at(told.expires_unix_ms),
        revoked_s=_at(told.revoked_unix_ms),
        instead_of=told.instead_of,
        last_used_s=_at(told.last_used_unix_ms),
    )


def invitation(told: pb.Invitation) -> Invitation:
    return Invitation(
        invitation=told.invitation,
        tenant=told.tenant,
        department=told.department,
        role=told.role,
        uses_left=told.uses_left,
        created_s=told.created_unix_ms / 1000,
        expires_s=_at(told.expires_unix_ms),
        revoked_s=_at(told.revoked_unix_ms),
    )


def application(told: pb.Application) -> Application:
    return Application(
        application=told.application,
        invitation=told.invitation,
        tenant=told.tenant,
        department=told.department,
        role=told.role,
        member=told.member,
        note=told.note,
        state=told.state,
        created_s=told.created_unix_ms / 1000,
        decided_s=_at(told.decided_unix_ms),
        decided_by=told.decided_by,
    )


def change(told: pb.Change) -> Change:
    return Change(
        number=told.number,
        at_s=told.at_unix_ms / 1000,
        actor=told.actor,
        action=told.action,
        tenant=told.tenant,
        kind=told.kind,
        subject=told.subject,
        details=json.loads(told.details or "{}"),
    )


def _at(unix_ms: int) -> float | None:
    """None for never."""
    return unix_ms / 1000 if unix_ms else None
