"""`aiflow.admin.v1.PolicyService`: how an operator sees the policy and changes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc
from aiflow_router.config.policy import PolicyDocument
from aiflow_router.forwarding.metadata import Pair
from aiflow_router.identity.caller import NOBODY
from aiflow_router.policy.desk import Desk, Outcome
from aiflow_router.policy.edition import Edition, Source, edition
from aiflow_router.policy.policies import Refusal
from aiflow_router.rpc.asker import Asker, decoded
from aiflow_router.rpc.front import Front, Stream, Unary
from aiflow_router.rpc.registry import Handlers
from aiflow_router.rpc.visit import Context, Visit
from aiflow_router.rpc.watch import Relays, leaving
from aiflow_sdk import status

SERVICE = "aiflow.admin.v1.PolicyService"
WATCH = f"/{SERVICE}/Watch"
# The owner may have to ask Consul, and waits for every worker.
RELAY_WITHIN_S = 15.0

_SOURCES: Mapping[str, Source] = {"file": "file", "consul": "consul", "admin": "admin"}

Work = Callable[[Any, str], Awaitable[Message]]
"""Answers a request of the tenant."""


def handlers(front: Front, *, service: Service) -> Handlers:
    """The handlers by full method, of a router that has the policy itself."""

    def typed(kind: type[Message], work: Work) -> Unary:
        async def raw(visit: Visit, request: bytes, context: Context) -> bytes:
            answer = await work(decoded(kind, request), visit.tenant)
            visit.policy = front.table.stamp  # It may be another one now.
            context.set_trailing_metadata(visit.trailers())
            return answer.SerializeToString()

        return raw

    works = {name: typed(kind, work) for name, (kind, work) in service.works().items()}
    return _handlers(front, works, service.handle)


def relayed(front: Front, *, owner: grpc.aio.Channel, relays: Relays) -> Handlers:
    """The same for a router that follows another process, which decides and answers."""

    def relay(name: str) -> Unary:
        # Raw bytes; the stubs infer Never from the missing serializers.
        ask: Any = owner.unary_unary(f"/{SERVICE}/{name}")

        async def raw(visit: Visit, request: bytes, context: Context) -> bytes:
            told = (Asker(caller=visit.caller).told(),)
            answer: bytes = await ask(request, timeout=RELAY_WITHIN_S, metadata=told)
            visit.policy = front.table.stamp  # It may be another one now.
            context.set_trailing_metadata(visit.trailers())
            return answer

        return raw

    names = ("Get", "Set", "List", "Rollback")
    return _handlers(front, {name: relay(name) for name in names}, relays.handle)


def _handlers(front: Front, works: Mapping[str, Unary], watch: Stream) -> Handlers:
    found = {
        f"/{SERVICE}/{name}": front.unary(
            f"/{SERVICE}/{name}", work, right="admin", label=SERVICE, quiet=True
        )
        for name, work in works.items()
    }
    found[WATCH] = front.stream(WATCH, watch, right="admin", label=SERVICE, quiet=True)
    return found


class OwnersDesk:
    """The desk of the process that has the policy, for one that follows it."""

    def __init__(self, owner: grpc.aio.Channel) -> None:
        stub = policy_pb2_grpc.PolicyServiceStub(owner)
        self._get, self._set = stub.Get, stub.Set

    async def current(self) -> tuple[str, str]:
        request = policy_pb2.GetPolicyRequest()
        answer = await _asked(self._get(request, timeout=RELAY_WITHIN_S))
        return answer.policy.version, answer.policy.document

    async def replace(self, text: str, *, by: str, expected: str) -> None:
        request = policy_pb2.SetPolicyRequest(document=text, expected_version=expected)
        told = (Asker(caller=replace(NOBODY, tenant=by)).told(),)
        await _asked(self._set(request, timeout=RELAY_WITHIN_S, metadata=told))


async def _asked(call: Awaitable[Any]) -> Any:
    """Raises AiflowError."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error) from None


class Service:
    """What each call does.

    Args:
        everywhere: returns when the change of this number is in force in every process.
    """

    def __init__(
        self, desk: Desk, *, everywhere: Callable[[int], Awaitable[None]] | None = None
    ) -> None:
        self._desk = desk
        self._policies = desk.policies
        self._everywhere = everywhere
        self._closed = False

    def works(self) -> Mapping[str, tuple[type[Message], Work]]:
        """What takes which request, by name of method."""
        return {
            "Get": (policy_pb2.GetPolicyRequest, self.get),
            "Set": (policy_pb2.SetPolicyRequest, self.set),
            "List": (policy_pb2.ListPoliciesRequest, self.list),
            "Rollback": (policy_pb2.RollbackPolicyRequest, self.rollback),
        }

    async def get(
        self, request: policy_pb2.GetPolicyRequest, _by: str
    ) -> policy_pb2.GetPolicyResponse:
        found = await self._desk.get(request.version)
        return policy_pb2.GetPolicyResponse(
            policy=_policy(found), refusal=_refusal(self._policies.refusal)
        )

    async def set(
        self, request: policy_pb2.SetPolicyRequest, by: str
    ) -> policy_pb2.SetPolicyResponse:
        outcome = await self._desk.set(
            request.document,
            name=request.name,
            by=by,
            expected=request.expected_version,
            dry_run=request.dry_run,
        )
        await self._in_force()
        return policy_pb2.SetPolicyResponse(**_said(outcome))

    async def list(
        self, _request: policy_pb2.ListPoliciesRequest, _by: str
    ) -> policy_pb2.ListPoliciesResponse:
        return policy_pb2.ListPoliciesResponse(
            policies=[_policy(found, whole=False) for found in self._policies.history],
            refusal=_refusal(self._policies.refusal),
        )

    async def rollback(
        self, request: policy_pb2.RollbackPolicyRequest, by: str
    ) -> policy_pb2.RollbackPolicyResponse:
        outcome = await self._desk.rollback(
            request.version, by=by, expected=request.expected_version
        )
        await self._in_force()
        return policy_pb2.RollbackPolicyResponse(**_said(outcome))

    async def changes(self) -> AsyncIterator[bytes]:
        """Serialized WatchPolicyResponses. Raises DrainingError when the router leaves."""
        number = -1
        while not self._closed:
            if number == self._policies.number:
                await self._policies.stirred()
                continue
            number = self._policies.number
            told = policy_pb2.WatchPolicyResponse(
                policy=_policy(self._policies.current), number=number
            )
            yield told.SerializeToString()
        raise leaving()

    async def handle(self, _: Visit, context: Context) -> Iterable[Pair]:
        """The work of a public handler; what the request says is not read, for it says nothing."""
        async for change in self.changes():
            await context.write(change)
        return ()

    def close(self) -> None:
        """Ends every watch: it would hold up a shutdown for ever."""
        self._closed = True
        self._policies.stir()

    async def _in_force(self) -> None:
        if self._everywhere is not None:
            await self._everywhere(self._policies.number)


def _said(outcome: Outcome) -> dict[str, Any]:
    return {
        "policy": _policy(outcome.edition),
        "replaced": _policy(outcome.replaced),
        "holds": outcome.holds,
    }


def _policy(found: Edition, *, whole: bool = True) -> policy_pb2.Policy:
    return policy_pb2.Policy(
        version=found.version,
        source=found.source,
        origin=found.origin,
        since_unix_ms=round(found.since_s * 1000),
        document=found.text if whole else "",
    )


def edition_from_proto(told: policy_pb2.Policy) -> Edition:
    """Raises pydantic.ValidationError where its routes say what this program does not know."""
    document = PolicyDocument.model_validate_json(told.document)
    found = edition(
        document,
        source=_SOURCES.get(told.source, "admin"),
        origin=told.origin,
        since_s=told.since_unix_ms / 1000,
    )
    # By the owner's reckoning, whatever else this program may know of a route.
    policies = replace(found.policies, version=told.version)
    return replace(found, version=told.version, text=told.document, policies=policies)


def _refusal(found: Refusal | None) -> policy_pb2.Refusal | None:
    if found is None:
        return None
    return policy_pb2.Refusal(
        source=found.source,
        origin=found.origin,
        at_unix_ms=round(found.at_s * 1000),
        problems=found.problems,
    )
