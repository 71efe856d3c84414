"""`aiflow.admin.v1.TenancyService`: how tenants, members and keys are administered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc.aio
from sqlalchemy.ext.asyncio import AsyncEngine

from aiflow.admin.v1 import tenancy_pb2 as pb
from aiflow_router.identity.caller import Caller, Needs
from aiflow_router.rpc import asker, tenancy_records
from aiflow_router.rpc.asker import Asker, Works
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.registry import Handlers
from aiflow_router.tenancy.applications import FIRST
from aiflow_router.tenancy.book import Everywhere, PageOf
from aiflow_router.tenancy.invitations import LIVES_S
from aiflow_router.tenancy.keys import OVERLAP_S
from aiflow_router.tenancy.office import Office
from aiflow_router.tenancy.records import Key
from aiflow_sdk import errors

SERVICE = "aiflow.admin.v1.TenancyService"
# Whoever has a code, or the secret of an application, has no key yet.
NEEDS: Mapping[str, Needs] = dict.fromkeys(("Apply", "GetApplication", "TakeKey"), "nothing")
NAMES = tuple(method.name for method in pb.DESCRIPTOR.services_by_name["TenancyService"].methods)


def handlers(front: Front, *, service: Service) -> Handlers:
    """The handlers by full method, of a router that has the database to itself."""
    return asker.handlers(front, SERVICE, service.works(), needs=NEEDS)


def relayed(front: Front, *, owner: grpc.aio.Channel) -> Handlers:
    """The same for one of several workers: their supervisor decides and answers."""
    return asker.relayed(front, SERVICE, NAMES, owner=owner, needs=NEEDS)


def service(engine: AsyncEngine | None, *, everywhere: Everywhere | None = None) -> Service:
    """Over the database where there is one; `everywhere` is awaited after each change."""
    return Service(None if engine is None else Office(engine, everywhere=everywhere))


class Service:
    """What each call does; `office` is None where there is no database."""

    def __init__(self, office: Office | None) -> None:
        self._given = office

    def works(self) -> Works:
        """What takes which request, by name of method."""
        return {
            "WhoAmI": (pb.WhoAmIRequest, self.who_am_i),
            "CreateTenant": (pb.CreateTenantRequest, self.create_tenant),
            "GetTenant": (pb.GetTenantRequest, self.get_tenant),
            "ListTenants": (pb.ListTenantsRequest, self.list_tenants),
            "UpdateTenant": (pb.UpdateTenantRequest, self.update_tenant),
            "CreateDepartment": (pb.CreateDepartmentRequest, self.create_department),
            "ListDepartments": (pb.ListDepartmentsRequest, self.list_departments),
            "UpdateDepartment": (pb.UpdateDepartmentRequest, self.update_department),
            "CreateMember": (pb.CreateMemberRequest, self.create_member),
            "GetMember": (pb.GetMemberRequest, self.get_member),
            "ListMembers": (pb.ListMembersRequest, self.list_members),
            "UpdateMember": (pb.UpdateMemberRequest, self.update_member),
            "CreateKey": (pb.CreateKeyRequest, self.create_key),
            "GetKey": (pb.GetKeyRequest, self.get_key),
            "ListKeys": (pb.ListKeysRequest, self.list_keys),
            "UpdateKey": (pb.UpdateKeyRequest, self.update_key),
            "RotateKey": (pb.RotateKeyRequest, self.rotate_key),
            "RevokeKey": (pb.RevokeKeyRequest, self.revoke_key),
            "Invite": (pb.InviteRequest, self.invite),
            "ListInvitations": (pb.ListInvitationsRequest, self.list_invitations),
            "RevokeInvitation": (pb.RevokeInvitationRequest, self.revoke_invitation),
            "Apply": (pb.ApplyRequest, self.apply),
            "GetApplication": (pb.GetApplicationRequest, self.get_application),
            "TakeKey": (pb.TakeKeyRequest, self.take_key),
            "ListApplications": (pb.ListApplicationsRequest, self.list_applications),
            "Approve": (pb.ApproveRequest, self.approve),
            "Refuse": (pb.RefuseRequest, self.refuse),
            "ListChanges": (pb.ListChangesRequest, self.list_changes),
        }

    async def who_am_i(self, _request: pb.WhoAmIRequest, by: Asker) -> pb.WhoAmIResponse:
        caller = by.caller
        return pb.WhoAmIResponse(
            tenant=caller.tenant,
            department=caller.department,
            member=caller.member,
            role=caller.role,
            key=caller.key,
            name=caller.name,
            may=sorted(caller.may),
        )

    async def create_tenant(
        self, request: pb.CreateTenantRequest, by: Asker
    ) -> pb.CreateTenantResponse:
        made = await self._office.tenants.create(
            by.caller,
            request.tenant,
            weight=request.weight or 1.0,
            pays_first=request.pays_first or "member",
            when_out=request.when_out or "pool",
        )
        return pb.CreateTenantResponse(tenant=tenancy_records.tenant(made))

    async def get_tenant(self, request: pb.GetTenantRequest, by: Asker) -> pb.GetTenantResponse:
        found = await self._office.tenants.get(by.caller, _tenant(request, by.caller))
        return pb.GetTenantResponse(tenant=tenancy_records.tenant(found))

    async def list_tenants(
        self, request: pb.ListTenantsRequest, by: Asker
    ) -> pb.ListTenantsResponse:
        page = await self._office.tenants.list(by.caller, _part(request))
        return pb.ListTenantsResponse(
            tenants=map(tenancy_records.tenant, page.items), next_page_token=page.next
        )

    async def update_tenant(
        self, request: pb.UpdateTenantRequest, by: Asker
    ) -> pb.UpdateTenantResponse:
        changed = await self._office.tenants.update(
            by.caller,
            _tenant(request, by.caller),
            **_given(request, "weight", "pays_first", "when_out", "disabled"),
        )
        return pb.UpdateTenantResponse(tenant=tenancy_records.tenant(changed))

    async def create_department(
        self, request: pb.CreateDepartmentRequest, by: Asker
    ) -> pb.CreateDepartmentResponse:
        made = await self._office.tenants.create_department(
            by.caller, _tenant(request, by.caller), request.department
        )
        return pb.CreateDepartmentResponse(department=tenancy_records.department(made))

    async def list_departments(
        self, request: pb.ListDepartmentsRequest, by: Asker
    ) -> pb.ListDepartmentsResponse:
        page = await self._office.tenants.departments(
            by.caller, _tenant(request, by.caller), _part(request)
        )
        return pb.ListDepartmentsResponse(
            departments=map(tenancy_records.department, page.items), next_page_token=page.next
        )

    async def update_department(
        self, request: pb.UpdateDepartmentRequest, by: Asker
    ) -> pb.UpdateDepartmentResponse:
        changed = await self._office.tenants.update_department(
            by.caller,
            _tenant(request, by.caller),
            _needed(request, "department"),
            **_given(request, "disabled"),
        )
        return pb.UpdateDepartmentResponse(department=tenancy_records.department(changed))

    async def create_member(
        self, request: pb.CreateMemberRequest, by: Asker
    ) -> pb.CreateMemberResponse:
        made = await self._office.members.create(
            by.caller,
            _tenant(request, by.caller),
            request.member,
            department=request.department,
            role=request.role or "member",
        )
        return pb.CreateMemberResponse(member=tenancy_records.member(made))

    async def get_member(self, request: pb.GetMemberRequest, by: Asker) -> pb.GetMemberResponse:
        oneself = "" if request.tenant else by.caller.member
        found = await self._office.members.get(
            by.caller,
            _tenant(request, by.caller),
            request.member or oneself or _needed(request, "member"),
        )
        return pb.GetMemberResponse(member=tenancy_records.member(found))

    async def list_members(
        self, request: pb.ListMembersRequest, by: Asker
    ) -> pb.ListMembersResponse:
        page = await self._office.members.list(
            by.caller,
            _tenant(request, by.caller),
            _part(request),
            department=request.department,
        )
        return pb.ListMembersResponse(
            members=map(tenancy_records.member, page.items), next_page_token=page.next
        )

    async def update_member(
        self, request: pb.UpdateMemberRequest, by: Asker
    ) -> pb.UpdateMemberResponse:
        changed = await self._office.members.update(
            by.caller,
            _tenant(request, by.caller),
            _needed(request, "member"),
            **_given(request, "department", "role", "disabled"),
        )
        return pb.UpdateMemberResponse(member=tenancy_records.member(changed))

    async def create_key(self, request: pb.CreateKeyRequest, by: Asker) -> pb.CreateKeyResponse:
        made = await self._office.keys.create(
            by.caller,
            _tenant(request, by.caller),
            _needed(request, "member"),
            name=request.name,
            models=request.models,
            methods=request.methods,
            rights=request.may,
            lives_s=request.lives_ms / 1000,
        )
        return pb.CreateKeyResponse(key=self._key(made.key), secret=made.secret)

    async def get_key(self, request: pb.GetKeyRequest, by: Asker) -> pb.GetKeyResponse:
        found = await self._office.keys.get(by.caller, request.key or by.caller.key)
        return pb.GetKeyResponse(key=self._key(found))

    async def list_keys(self, request: pb.ListKeysRequest, by: Asker) -> pb.ListKeysResponse:
        page = await self._office.keys.list(
            by.caller,
            _tenant(request, by.caller),
            _part(request),
            member=request.member,
            ended=request.ended,
        )
        return pb.ListKeysResponse(keys=map(self._key, page.items), next_page_token=page.next)

    async def update_key(self, request: pb.UpdateKeyRequest, by: Asker) -> pb.UpdateKeyResponse:
        changed = await self._office.keys.update(
            by.caller,
            _needed(request, "key"),
            name=request.name if request.HasField("name") else None,
            models=request.models.patterns if request.HasField("models") else None,
            methods=request.methods.patterns if request.HasField("methods") else None,
        )
        return pb.UpdateKeyResponse(key=self._key(changed))

    async def rotate_key(self, request: pb.RotateKeyRequest, by: Asker) -> pb.RotateKeyResponse:
        overlap_s = request.overlap_ms / 1000 if request.HasField("overlap_ms") else OVERLAP_S
        made = await self._office.keys.rotate(
            by.caller,
            request.key or by.caller.key,
            overlap_s=overlap_s,
            lives_s=request.lives_ms / 1000 if request.HasField("lives_ms") else None,
        )
        replaced = None if made.replaced is None else self._key(made.replaced)
        return pb.RotateKeyResponse(key=self._key(made.key), secret=made.secret, replaced=replaced)

    async def revoke_key(self, request: pb.RevokeKeyRequest, by: Asker) -> pb.RevokeKeyResponse:
        ended = await self._office.keys.revoke(by.caller, _needed(request, "key"))
        return pb.RevokeKeyResponse(key=self._key(ended))

    async def invite(self, request: pb.InviteRequest, by: Asker) -> pb.InviteResponse:
        made = await self._office.invitations.create(
            by.caller,
            _tenant(request, by.caller),
            department=request.department,
            role=request.role or "member",
            uses=request.uses or 1,
            lives_s=request.lives_ms / 1000 or LIVES_S,
        )
        invitation = tenancy_records.invitation(made.invitation)
        return pb.InviteResponse(invitation=invitation, code=made.code)

    async def list_invitations(
        self, request: pb.ListInvitationsRequest, by: Asker
    ) -> pb.ListInvitationsResponse:
        page = await self._office.invitations.list(
            by.caller, _tenant(request, by.caller), _part(request), ended=request.ended
        )
        return pb.ListInvitationsResponse(
            invitations=map(tenancy_records.invitation, page.items), next_page_token=page.next
        )

    async def revoke_invitation(
        self, request: pb.RevokeInvitationRequest, by: Asker
    ) -> pb.RevokeInvitationResponse:
        ended = await self._office.invitations.revoke(by.caller, _needed(request, "invitation"))
        return pb.RevokeInvitationResponse(invitation=tenancy_records.invitation(ended))

    async def apply(self, request: pb.ApplyRequest, by: Asker) -> pb.ApplyResponse:
        office = self._knocked(by)
        made = await office.applications.create(request.code, request.member, note=request.note)
        application = tenancy_records.application(made.application)
        return pb.ApplyResponse(application=application, secret=made.secret)

    async def get_application(
        self, request: pb.GetApplicationRequest, by: Asker
    ) -> pb.GetApplicationResponse:
        found = await self._knocked(by).applications.get(request.secret)
        return pb.GetApplicationResponse(application=tenancy_records.application(found))

    async def take_key(self, request: pb.TakeKeyRequest, by: Asker) -> pb.TakeKeyResponse:
        office = self._knocked(by)
        made = await office.applications.take_key(request.secret, name=request.name or FIRST)
        return pb.TakeKeyResponse(key=self._key(made.key), secret=made.secret)

    async def list_applications(
        self, request: pb.ListApplicationsRequest, by: Asker
    ) -> pb.ListApplicationsResponse:
        page = await self._office.applications.list(
            by.caller, _tenant(request, by.caller), _part(request), state=request.state
        )
        return pb.ListApplicationsResponse(
            applications=map(tenancy_records.application, page.items), next_page_token=page.next
        )

    async def approve(self, request: pb.ApproveRequest, by: Asker) -> pb.ApproveResponse:
        found = await self._office.applications.approve(by.caller, _needed(request, "application"))
        return pb.ApproveResponse(application=tenancy_records.application(found))

    async def refuse(self, request: pb.RefuseRequest, by: Asker) -> pb.RefuseResponse:
        found = await self._office.applications.refuse(by.caller, _needed(request, "application"))
        return pb.RefuseResponse(application=tenancy_records.application(found))

    async def list_changes(
        self, request: pb.ListChangesRequest, by: Asker
    ) -> pb.ListChangesResponse:
        everything = not request.tenant and by.caller.role == "platform_admin"
        page = await self._office.changes.list(
            by.caller,
            "" if everything else _tenant(request, by.caller),
            _part(request),
            kind=request.kind,
            subject=request.subject,
        )
        return pb.ListChangesResponse(
            changes=map(tenancy_records.change, page.items), next_page_token=page.next
        )

    @property
    def _office(self) -> Office:
        if self._given is None:
            raise errors.RefusedError(
                "this router has no database, and knows only the keys in its aiflow.yaml: add "
                "`storage: {url: sqlite:///aiflow.db}` there and restart it",
                reason="NO_STORAGE",
            )
        return self._given

    def _knocked(self, by: Asker) -> Office:
        """Raises RateLimitedError."""
        office = self._office
        office.knocks.check(by.peer)
        return office

    def _key(self, found: Key) -> pb.Key:
        return tenancy_records.key(found, now_s=self._office.wall())


def _tenant(request: Any, caller: Caller) -> str:
    """The one asked for, else the caller's own. Raises BadInputError where that is none."""
    if request.tenant:
        return str(request.tenant)
    if not caller.member:
        raise errors.BadInputError(
            "say of which tenant: the key of this call is no member's, so it has none of its own",
            violations={"tenant": "must be set"},
        )
    return caller.tenant


def _needed(request: Any, field: str) -> str:
    """Raises BadInputError."""
    value = str(getattr(request, field))
    if not value:
        raise errors.BadInputError(f"{field} must be set", violations={field: "must be set"})
    return value


def _given(request: Any, *fields: str) -> dict[str, Any]:
    """None for what is not set."""
    return {field: getattr(request, field) if request.HasField(field) else None for field in fields}


def _part(request: Any) -> PageOf:
    return PageOf(size=request.page_size, token=request.page_token)
