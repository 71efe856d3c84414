"""Server reflection, under its v1 and v1alpha names (the messages are the same on the wire).

Lists the router's services and the catalog's. A descriptor of the router's own services comes from
here; any other is asked of an endpoint, the one whose services share most of the name first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from aiflow_router.catalog.fields import OWN_SERVICES
from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.kinds import REFLECTION
from aiflow_router.forwarding.metadata import Pair
from aiflow_router.forwarding.plan import Plan
from aiflow_router.forwarding.retry import RetryPolicy
from aiflow_router.forwarding.written import asked
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.visit import Context, Visit
from aiflow_sdk import errors

# An endpoint that does not answer a descriptor soon is passed over for the next.
ASK_TIMEOUT_S = 2.0
MAX_ASKED = 8

Request = reflection_pb2.ServerReflectionRequest
Response = reflection_pb2.ServerReflectionResponse


def handlers(
    front: Front,
) -> Mapping[str, grpc.RpcMethodHandler[bytes, bytes]]:
    """The handlers by full method."""
    reflection = _Reflection(front)
    return {
        method: front.stream(method, reflection.info, label=method[1:].partition("/")[0])
        for method in REFLECTION
    }


class _Reflection:
    def __init__(self, front: Front) -> None:
        self._front = front
        self._own = reflection_aio.ReflectionServicer(sorted(OWN_SERVICES))

    async def info(self, visit: Visit, context: Context) -> Iterable[Pair]:
        while (raw := await context.read()) is not grpc.aio.EOF:
            try:
                request = Request.FromString(raw)
            except DecodeError as error:
                raise errors.BadInputError(
                    f"the request is not a valid ServerReflectionRequest: {error}"
                ) from None
            await context.write(await self._answer(visit, request))
        return ()

    async def _answer(self, visit: Visit, request: reflection_pb2.ServerReflectionRequest) -> bytes:
        if request.HasField("list_services"):
            return self._list(request).SerializeToString()
        name = request.file_containing_symbol or request.file_by_filename.removesuffix(".proto")
        name = name.replace("/", ".") or request.file_containing_extension.containing_type
        name = name or request.all_extension_numbers_of_type
        own = await self._own_answer(request)
        if not own.HasField("error_response"):
            return own.SerializeToString()
        for plan in self._front.table.nearest_services(name)[:MAX_ASKED]:
            for method in REFLECTION:
                answer = await self._ask(visit, plan, method, request)
                if answer and not Response.FromString(answer).HasField("error_response"):
                    return answer
        return own.SerializeToString()

    def _list(
        self, request: reflection_pb2.ServerReflectionRequest
    ) -> reflection_pb2.ServerReflectionResponse:
        names = OWN_SERVICES | self._front.table.services()
        return Response(
            original_request=request,
            list_services_response=reflection_pb2.ListServiceResponse(
                service=[reflection_pb2.ServiceResponse(name=name) for name in sorted(names)]
            ),
        )

    async def _own_answer(
        self, request: reflection_pb2.ServerReflectionRequest
    ) -> reflection_pb2.ServerReflectionResponse:
        answers = cast("AsyncIterator[Any]", self._own.ServerReflectionInfo(_one(request), None))
        async for answer in answers:
            return cast("reflection_pb2.ServerReflectionResponse", answer)
        raise errors.AiflowError("reflection gave no answer", code="INTERNAL")

    async def _ask(
        self,
        visit: Visit,
        plan: Plan,
        method: str,
        request: reflection_pb2.ServerReflectionRequest,
    ) -> bytes:
        """The endpoint's answer; empty when it gives none and the next one is to be asked."""
        sender = self._front.sender
        call = Call(
            method=method,
            plan=replace(plan, retry=RetryPolicy(attempts=1)),
            onward=visit.head.onward,
            deadline_s=sender.clock() + ASK_TIMEOUT_S,
        )
        outcome = "CANCELLED"
        try:
            link = await sender.acquire(call)
        except errors.AiflowError:
            return b""
        rpc = link.stream(method)(timeout=ASK_TIMEOUT_S, metadata=call.onward)
        try:
            await asked(rpc, request.SerializeToString())
            answer = await rpc.read()
            outcome = "OK"
        except grpc.aio.AioRpcError as failure:
            outcome = failure.code().name
            return b""
        else:
            return answer if isinstance(answer, bytes) else b""
        finally:
            rpc.cancel()
            sender.release(call, link, outcome=outcome)


async def _one(
    request: reflection_pb2.ServerReflectionRequest,
) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    yield request
