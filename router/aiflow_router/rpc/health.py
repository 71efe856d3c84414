"""`grpc.health.v1`: the router itself under "", and each model and service as the catalog has it.

Nothing is stored by name: a status is read when it is asked for, and watchers are woken by changes.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aiflow_router.catalog.fields import OWN_SERVICES
from aiflow_router.catalog.snapshot import Change, Snapshot
from aiflow_router.routing.table import Table
from aiflow_sdk import errors, status

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the stubs only

SERVICE = "grpc.health.v1.Health"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    def __init__(self, *, table: Table) -> None:
        self._table = table
        self._snapshot = Snapshot()
        self._draining = False
        self._closed = False
        self._changed = asyncio.Event()

    def follow(self, snapshot: Snapshot, change: Change) -> None:
        self._snapshot = snapshot
        if change.models or change.services:
            self._wake()

    def policy_changed(self) -> None:
        """Routes may name what nothing serves, or not any more."""
        self._wake()

    def drain(self) -> None:
        """From here on nothing is served."""
        self._draining = True
        self._wake()

    def close(self) -> None:
        """Ends every watch, so that it is begun anew with another process."""
        self._closed = True
        self._wake()

    def status(self, name: str) -> int:
        if not name or name in OWN_SERVICES:
            return _NOT_SERVING if self._draining else _SERVING
        if self._snapshot.models.get(name) or self._snapshot.services.get(name):
            return _NOT_SERVING if self._draining else _SERVING
        known = self._table.knows_model(name) or self._table.knows_service(name)
        return _NOT_SERVING if known else _UNKNOWN

    async def Check(  # noqa: N802 - the protocol's name
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        found = self.status(request.service)
        if found == _UNKNOWN:
            error = errors.NotFoundError(
                f'the router knows no model or service "{request.service[:256]}": '
                "`aiflow status` lists them all"
            )
            await self.refuse(error, context)
        context.set_trailing_metadata((self._table.stamp,))
        return health_pb2.HealthCheckResponse(status=found)

    async def refuse(self, error: errors.AiflowError, context: Context) -> None:
        trailers = (*status.to_trailers(error), self._table.stamp)
        await context.abort(status.status_code(error), error.message, trailers)

    async def Watch(  # noqa: N802 - the protocol's name
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        told: int | None = None
        while not self._closed:
            changed = self._changed
            now = self.status(request.service)
            if now != told:
                await context.write(health_pb2.HealthCheckResponse(status=now))
                told = now
            await changed.wait()
        await self.refuse(errors.DrainingError("this process leaves: watch again"), context)

    def _wake(self) -> None:
        """Each change has an event of its own, so a watcher that is busy writing misses none."""
        self._changed.set()
        self._changed = asyncio.Event()


def handler(health: Health) -> grpc.GenericRpcHandler:
    """Its methods for a server.

    Requests are decoded here: what gRPC cannot decode it answers with a traceback in the log, and a
    call without a request never.
    """

    async def check(_: object, context: Context) -> Any:
        return await health.Check(await _request(health, context), context)

    async def watch(_: object, context: Context) -> None:
        await health.Watch(await _request(health, context), context)

    encoded: Any = {"response_serializer": health_pb2.HealthCheckResponse.SerializeToString}
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Check": grpc.stream_unary_rpc_method_handler(check, **encoded),
            "Watch": grpc.stream_stream_rpc_method_handler(watch, **encoded),
        },
    )


async def _request(health: Health, context: Context) -> health_pb2.HealthCheckRequest:
    message = await context.read()
    try:
        if isinstance(message, bytes):
            return health_pb2.HealthCheckRequest.FromString(message)
        why = "there is none"
    except DecodeError as failure:
        why = str(failure)
    error = errors.BadInputError(f"the request is not a valid HealthCheckRequest: {why}")
    await health.refuse(error, context)
    raise error  # Never reached: abort raises.
