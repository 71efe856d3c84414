"""The one handler of every gRPC method: the router's own by name, any other by its service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import grpc

from aiflow_router.forwarding.metadata import Pair
from aiflow_router.forwarding.stream import forward_stream
from aiflow_router.rpc.visit import Context, Front, Visit

MAX_CACHED_METHODS = 4096

Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"  # generic in the stubs only


class Door(grpc.GenericRpcHandler):
    """Hands out handlers: `own` ones, and none for services that are answered `elsewhere`."""

    def __init__(
        self, front: Front, own: Mapping[str, Handler], *, elsewhere: frozenset[str]
    ) -> None:
        self._front = front
        self._own_services = frozenset(_service(method) for method in own)
        self._elsewhere = elsewhere
        self._own = dict(own)
        self._handlers = dict(own)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is not None:
            return handler
        service = _service(method)
        if service in self._elsewhere or service in self._own_services:
            return None  # gRPC answers "Method not found!".
        handler = self._front.stream(method, self._forward)
        # Methods of unknown services are made up by callers and not worth remembering.
        if self._front.table.knows_service(service):
            if len(self._handlers) >= MAX_CACHED_METHODS:
                self._handlers = dict(self._own)
            self._handlers[method] = handler
        return handler

    async def _forward(self, visit: Visit, context: Context) -> Iterable[Pair]:
        service = visit.asked = _service(visit.method)
        if self._front.table.knows_service(service):
            visit.label = service
        plan = self._front.table.service(service)
        call = self._front.call(visit, plan, context)
        return await forward_stream(
            self._front.sender, call, context, first=None, check=self._front.check_size
        )


def _service(method: str) -> str:
    return method[1:].rpartition("/")[0]
