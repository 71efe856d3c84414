"""Tenants, members and keys, administered by a program: see aiflow.admin.v1.TenancyService.

with Client() as client:
    admin = TenancyAdmin(client)
    admin.create_tenant("acme")
    admin.create_member("ann", tenant="acme", role="tenant_admin")
    print(admin.create_key("ann", tenant="acme", name="laptop").secret)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from aiflow.admin.v1 import tenancy_pb2 as pb
from aiflow.admin.v1 import tenancy_pb2_grpc
from aiflow_sdk import tenancy_records as records
from aiflow_sdk.client import Client
from aiflow_sdk.tenancy_records import (
    Application,
    Caller,
    Change,
    Department,
    Invitation,
    Key,
    Member,
    NewApplication,
    NewInvitation,
    NewKey,
    Tenant,
)

__all__ = [
    "Application",
    "Caller",
    "Change",
    "Department",
    "Invitation",
    "Key",
    "Member",
    "NewApplication",
    "NewInvitation",
    "NewKey",
    "TenancyAdmin",
    "Tenant",
]

R = TypeVar("R")

PAGE = 500


class TenancyAdmin:
    """Every method raises an `AiflowError` of the class that fits.

    Where `tenant` is empty it is the caller's own. Lists ask for the next page when it is needed.
    """

    def __init__(self, client: Client) -> None:
        self._stub = client.stub(tenancy_pb2_grpc.TenancyServiceStub)

    def who_am_i(self) -> Caller:
        """Whom the router takes the caller for."""
        return records.caller(self._stub.WhoAmI(pb.WhoAmIRequest()))

    def create_tenant(
        self,
        tenant: str,
        *,
        weight: float = 1.0,
        pays_first: str = "member",
        when_out: str = "pool",
    ) -> Tenant:
        """Makes a tenant.

        Args:
            tenant: its name.
            weight: its share where tenants wait for the same.
            pays_first: the account that pays first, "member" or "pool".
            when_out: what happens when a member's is empty, "refuse" or "pool".
        """
        request = pb.CreateTenantRequest(
            tenant=tenant, weight=weight, pays_first=pays_first, when_out=when_out
        )
        return records.tenant(self._stub.CreateTenant(request).tenant)

    def tenant(self, tenant: str = "") -> Tenant:
        return records.tenant(self._stub.GetTenant(pb.GetTenantRequest(tenant=tenant)).tenant)

    def tenants(self) -> Iterator[Tenant]:
        """All that the caller may see."""
        return _pages(self._stub.ListTenants, pb.ListTenantsRequest(), "tenants", records.tenant)

    def update_tenant(
        self,
        tenant: str = "",
        *,
        weight: float | None = None,
        pays_first: str | None = None,
        when_out: str | None = None,
        disabled: bool | None = None,
    ) -> Tenant:
        """Changes what is not None."""
        request = pb.UpdateTenantRequest(
            tenant=tenant,
            weight=weight,
            pays_first=pays_first,
            when_out=when_out,
            disabled=disabled,
        )
        return records.tenant(self._stub.UpdateTenant(request).tenant)

    def create_department(self, department: str, *, tenant: str = "") -> Department:
        request = pb.CreateDepartmentRequest(tenant=tenant, department=department)
        return records.department(self._stub.CreateDepartment(request).department)

    def departments(self, tenant: str = "") -> Iterator[Department]:
        request = pb.ListDepartmentsRequest(tenant=tenant)
        return _pages(self._stub.ListDepartments, request, "departments", records.department)

    def update_department(
        self, department: str, *, tenant: str = "", disabled: bool | None = None
    ) -> Department:
        request = pb.UpdateDepartmentRequest(
            tenant=tenant, department=department, disabled=disabled
        )
        return records.department(self._stub.UpdateDepartment(request).department)

    def create_member(
        self, member: str, *, tenant: str = "", department: str = "", role: str = "member"
    ) -> Member:
        request = pb.CreateMemberRequest(
            tenant=tenant, member=member, department=department, role=role
        )
        return records.member(self._stub.CreateMember(request).member)

    def member(self, member: str = "", *, tenant: str = "") -> Member:
        """Oneself, where neither is given."""
        request = pb.GetMemberRequest(tenant=tenant, member=member)
        return records.member(self._stub.GetMember(request).member)

    def members(self, tenant: str = "", *, department: str = "") -> Iterator[Member]:
        """Those of one department, or of all."""
        request = pb.ListMembersRequest(tenant=tenant, department=department)
        return _pages(self._stub.ListMembers, request, "members", records.member)

    def update_member(
        self,
        member: str,
        *,
        tenant: str = "",
        department: str | None = None,
        role: str | None = None,
        disabled: bool | None = None,
    ) -> Member:
        """Changes what is not None."""
        request = pb.UpdateMemberRequest(
            tenant=tenant, member=member, department=department, role=role, disabled=disabled
        )
        return records.member(self._stub.UpdateMember(request).member)

    def create_key(
        self,
        member: str,
        *,
        name: str,
        tenant: str = "",
        models: Sequence[str] = (),
        methods: Sequence[str] = (),
        may: Sequence[str] = (),
        lives_s: float = 0.0,
    ) -> NewKey:
        """Makes a key, which is shown this once.

        Args:
            member: whose it will be.
            name: what its owner will call it.
            tenant: the member's.
            models: patterns of models that it is for, such as "gpt-*"; empty for all.
            methods: patterns of methods that it is for; empty for all.
            may: of "call", "register" and "admin"; empty for what fits the member's role.
            lives_s: 0 for ever.
        """
        request = pb.CreateKeyRequest(
            tenant=tenant,
            member=member,
            name=name,
            models=models,
            methods=methods,
            may=may,
            lives_ms=_ms(lives_s),
        )
        answer = self._stub.CreateKey(request)
        return NewKey(key=records.key(answer.key), secret=answer.secret)

    def key(self, key: str = "") -> Key:
        """By its visible beginning; the one that calls where there is none."""
        return records.key(self._stub.GetKey(pb.GetKeyRequest(key=key)).key)

    def keys(self, tenant: str = "", *, member: str = "", ended: bool = False) -> Iterator[Key]:
        """Those of one member, or all that the caller may see; with `ended` not only live ones."""
        request = pb.ListKeysRequest(tenant=tenant, member=member, ended=ended)
        return _pages(self._stub.ListKeys, request, "keys", records.key)

    def update_key(
        self,
        key: str,
        *,
        name: str | None = None,
        models: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Key:
        """Changes what is not None, of the key with this visible beginning; empty is for all."""
        request = pb.UpdateKeyRequest(
            key=key,
            name=name,
            models=None if models is None else pb.Patterns(patterns=models),
            methods=None if methods is None else pb.Patterns(patterns=methods),
        )
        return records.key(self._stub.UpdateKey(request).key)

    def rotate_key(
        self, key: str = "", *, overlap_s: float | None = None, lives_s: float | None = None
    ) -> NewKey:
        """Makes a key in place of another, which works on for the overlap.

        Args:
            key: its visible beginning; the one that calls where there is none.
            overlap_s: None for a day.
            lives_s: of the new one; None until the old one would have ended, 0 for ever.
        """
        request = pb.RotateKeyRequest(
            key=key,
            overlap_ms=None if overlap_s is None else _ms(overlap_s),
            lives_ms=None if lives_s is None else _ms(lives_s),
        )
        answer = self._stub.RotateKey(request)
        return NewKey(
            key=records.key(answer.key),
            secret=answer.secret,
            replaced=records.key(answer.replaced),
        )

    def revoke_key(self, key: str) -> Key:
        """Ends a key: no call that begins after this gets through with it."""
        return records.key(self._stub.RevokeKey(pb.RevokeKeyRequest(key=key)).key)

    def invite(
        self,
        *,
        tenant: str = "",
        department: str = "",
        role: str = "member",
        uses: int = 1,
        lives_s: float = 0.0,
    ) -> NewInvitation:
        """Makes a code by which somebody may apply; `lives_s` 0 means 7 days."""
        request = pb.InviteRequest(
            tenant=tenant, department=department, role=role, uses=uses, lives_ms=_ms(lives_s)
        )
        answer = self._stub.Invite(request)
        return NewInvitation(invitation=records.invitation(answer.invitation), code=answer.code)

    def invitations(self, tenant: str = "", *, ended: bool = False) -> Iterator[Invitation]:
        """With `ended` not only those by which somebody may still apply."""
        request = pb.ListInvitationsRequest(tenant=tenant, ended=ended)
        return _pages(self._stub.ListInvitations, request, "invitations", records.invitation)

    def revoke_invitation(self, invitation: str) -> Invitation:
        """By its visible beginning; what was applied for by it stays."""
        request = pb.RevokeInvitationRequest(invitation=invitation)
        return records.invitation(self._stub.RevokeInvitation(request).invitation)

    def apply(self, code: str, member: str, *, note: str = "") -> NewApplication:
        """Asks to become a member; needs no key."""
        answer = self._stub.Apply(pb.ApplyRequest(code=code, member=member, note=note))
        return NewApplication(
            application=records.application(answer.application), secret=answer.secret
        )

    def application(self, secret: str) -> Application:
        """What was decided; needs no key but the application's secret."""
        request = pb.GetApplicationRequest(secret=secret)
        return records.application(self._stub.GetApplication(request).application)

    def take_key(self, secret: str, *, name: str = "") -> NewKey:
        """Makes the key of an application that was approved; needs no key but its secret."""
        answer = self._stub.TakeKey(pb.TakeKeyRequest(secret=secret, name=name))
        return NewKey(key=records.key(answer.key), secret=answer.secret)

    def applications(self, tenant: str = "", *, state: str = "") -> Iterator[Application]:
        """Those in one state, or all."""
        request = pb.ListApplicationsRequest(tenant=tenant, state=state)
        return _pages(self._stub.ListApplications, request, "applications", records.application)

    def approve(self, application: str) -> Application:
        """Makes the applicant a member."""
        request = pb.ApproveRequest(application=application)
        return records.application(self._stub.Approve(request).application)

    def refuse(self, application: str) -> Application:
        request = pb.RefuseRequest(application=application)
        return records.application(self._stub.Refuse(request).application)

    def changes(self, tenant: str = "", *, kind: str = "", subject: str = "") -> Iterator[Change]:
        """The audit log, the latest first; of all tenants where a platform admin names none."""
        request = pb.ListChangesRequest(tenant=tenant, kind=kind, subject=subject)
        return _pages(self._stub.ListChanges, request, "changes", records.change)


def _pages(
    ask: Callable[[Any], Any], request: Any, field: str, record: Callable[[Any], R]
) -> Iterator[R]:
    request.page_size = PAGE
    while True:
        answer = ask(request)
        yield from map(record, getattr(answer, field))
        request.page_token = answer.next_page_token
        if not request.page_token:
            return


def _ms(value_s: float) -> int:
    return round(value_s * 1000)
