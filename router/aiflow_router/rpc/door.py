"""The one handler of every gRPC method: the router's own by name, any other by its service.

A method that is known to be unary gets a unary handler, any other one that is right for all kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import grpc

from aiflow_router.forwarding.kinds import Kinds
from aiflow_router.forwarding.metadata import Pair
from aiflow_router.forwarding.sender import always, never
from aiflow_router.forwarding.stream import forward_stream
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.visit import ARRIVING, Context, Visit
from aiflow_router.telemetry.metrics import UNKNOWN

MAX_CACHED_METHODS = 4096

Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"  # generic in the stubs only


class Door(grpc.GenericRpcHandler):
    """Hands out handlers: `own` ones, and none for services that are answered `elsewhere`."""

    def __init__(
        self,
        front: Front,
        own: Mapping[str, Handler],
        *,
        kinds: Kinds,
        elsewhere: frozenset[str],
    ) -> None:
        self._front = front
        self._kinds = kinds
        self._own_services = frozenset(_service(method) for method in own)
        self._elsewhere = elsewhere
        self._own = dict(own)
        self._handlers: dict[str, Handler] = {}
        self._forget()
        kinds.on_change(self._forget)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        ARRIVING.set(handler_call_details.invocation_metadata)
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is not None:
            return handler
        service = _service(method)
        if service in self._elsewhere or service in self._own_services:
            return None  # gRPC answers "Method not found!".
        known = self._front.table.knows_service(service)
        handler = self._handler(service, method, label=service if known else UNKNOWN)
        # Methods of unknown services are made up by callers and not worth remembering.
        if known:
            if len(self._handlers) >= MAX_CACHED_METHODS:
                self._forget()
            self._handlers[method] = handler
        return handler

    def _handler(self, service: str, method: str, *, label: str) -> Handler:
        """A handler with everything decided that does not depend on the call."""
        front = self._front
        kind = self._kinds.get(service, method)

        async def unary(visit: Visit, request: bytes, context: Context) -> bytes:
            visit.asked = service
            _check_scope(visit, service)
            plan = front.table.service(service)
            if front.admission.limited:
                await front.admission.admit(
                    visit, "service", service, context, size_bytes=len(request)
                )
                plan = front.table.service(service)  # It may have waited for long.
            return await front.forward(
                visit, plan, request, context, may_repeat=may_repeat, gate=plan.gates.unary
            )

        async def stream(visit: Visit, context: Context) -> Iterable[Pair]:
            visit.asked = service
            _check_scope(visit, service)
            plan = front.table.service(service)
            if front.admission.limited:
                await front.admission.admit(visit, "service", service, context, size_bytes=0)
                plan = front.table.service(service)
            call = front.call(visit, plan, context)
            async with front.place(visit, plan):
                return await forward_stream(
                    front.sender,
                    call,
                    context,
                    first=None,
                    take=front.check_size,
                    # It may be a unary call: then its one answer is due as a known one's is.
                    answer_within_s=plan.timeout_s if kind is None else None,
                )

        if kind is None or not kind.unary:
            return front.stream(method, stream, label=label)
        may_repeat = always if kind.repeatable else never
        return front.unary(method, unary, label=label)

    def _forget(self) -> None:
        self._handlers = dict(self._own)


def _check_scope(visit: Visit, service: str) -> None:
    """Raises PermissionDeniedError."""
    caller = visit.caller
    if caller.scope is not None:
        caller.scope.check_service(service, caller.key)


def _service(method: str) -> str:
    return method[1:].rpartition("/")[0]
