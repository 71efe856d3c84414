"""Records of tenancy as messages of `aiflow.admin.v1`."""

from __future__ import annotations

import json

from aiflow.admin.v1 import tenancy_pb2 as pb
from aiflow_router.tenancy.records import (
    Application,
    Change,
    Department,
    Invitation,
    Key,
    Member,
    Tenant,
)


def tenant(found: Tenant) -> pb.Tenant:
    return pb.Tenant(
        tenant=found.tenant,
        weight=found.weight,
        pays_first=found.pays_first,
        when_out=found.when_out,
        created_unix_ms=_ms(found.created_s),
        disabled_unix_ms=_ms(found.disabled_s),
    )


def department(found: Department) -> pb.Department:
    return pb.Department(
        tenant=found.tenant,
        department=found.department,
        created_unix_ms=_ms(found.created_s),
        disabled_unix_ms=_ms(found.disabled_s),
    )


def member(found: Member) -> pb.Member:
    return pb.Member(
        tenant=found.tenant,
        member=found.member,
        department=found.department or "",
        role=found.role,
        created_unix_ms=_ms(found.created_s),
        disabled_unix_ms=_ms(found.disabled_s),
    )


def key(found: Key, *, now_s: float) -> pb.Key:
    return pb.Key(
        key=found.key,
        name=found.name,
        tenant=found.tenant,
        member=found.member,
        models=found.models or (),
        methods=found.methods or (),
        may=found.may,
        created_unix_ms=_ms(found.created_s),
        expires_unix_ms=_ms(found.expires_s),
        revoked_unix_ms=_ms(found.revoked_s),
        instead_of=found.instead_of or "",
        last_used_unix_ms=_ms(found.last_used_s),
        state=found.state(now_s),
    )


def invitation(found: Invitation) -> pb.Invitation:
    return pb.Invitation(
        invitation=found.invitation,
        tenant=found.tenant,
        department=found.department or "",
        role=found.role,
        uses_left=found.uses_left,
        created_unix_ms=_ms(found.created_s),
        expires_unix_ms=_ms(found.expires_s),
        revoked_unix_ms=_ms(found.revoked_s),
    )


def application(found: Application) -> pb.Application:
    return pb.Application(
        application=found.application,
        invitation=found.invitation,
        tenant=found.tenant,
        department=found.department or "",
        role=found.role,
        member=found.member,
        note=found.note,
        state=found.state,
        created_unix_ms=_ms(found.created_s),
        decided_unix_ms=_ms(found.decided_s),
        decided_by=found.decided_by or "",
    )


def change(found: Change) -> pb.Change:
    return pb.Change(
        number=found.number,
        at_unix_ms=_ms(found.at_s),
        actor=found.actor,
        action=found.action,
        tenant=found.tenant,
        kind=found.kind,
        subject=found.subject,
        details=json.dumps(found.details),
    )


def _ms(at_s: float | None) -> int:
    return 0 if at_s is None else round(at_s * 1000)
