"""The Open Inference Protocol (`inference.GRPCInferenceService`), Triton's calls included.

By model, on the model's course where it has one:
    ModelInfer, ModelStreamInfer, ModelReady, ModelMetadata, ModelConfig, ModelStatistics.
Answered here: ServerLive, ServerReady, ServerMetadata.
Asked of every endpoint and merged: RepositoryIndex, ModelStatistics without a name.
Refused: what changes the state of one Triton (its repository, shared memory, trace and log).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from importlib.metadata import version

import grpc
import grpc.aio
import structlog
from tritonclient.grpc import service_pb2

from aiflow_router.forwarding.call import Call
from aiflow_router.forwarding.metadata import Pair
from aiflow_router.forwarding.sender import always, outside_a_sequence
from aiflow_router.forwarding.stream import forward_stream
from aiflow_router.routing.course import Course
from aiflow_router.routing.name import model_name, renamed
from aiflow_router.routing.table import GatedPlan
from aiflow_router.rpc.chain import forward_by, stream_by
from aiflow_router.rpc.front import Front
from aiflow_router.rpc.inference import infer
from aiflow_router.rpc.visit import Context, Visit
from aiflow_sdk import errors

_log = structlog.get_logger(__name__)

SERVICE = "inference.GRPCInferenceService"
_READS = ("ModelMetadata", "ModelConfig")
_REFUSED = {
    "RepositoryModelLoad": "loads a model into one Triton",
    "RepositoryModelUnload": "unloads a model from one Triton",
    "SystemSharedMemoryStatus": "is about the memory of one machine",
    "SystemSharedMemoryRegister": "is about the memory of one machine",
    "SystemSharedMemoryUnregister": "is about the memory of one machine",
    "CudaSharedMemoryStatus": "is about the memory of one GPU",
    "CudaSharedMemoryRegister": "is about the memory of one GPU",
    "CudaSharedMemoryUnregister": "is about the memory of one GPU",
    "TraceSetting": "changes the settings of one Triton",
    "LogSettings": "changes the settings of one Triton",
}

Handlers = Mapping[str, "grpc.RpcMethodHandler[bytes, bytes]"]


def handlers(front: Front) -> Handlers:
    """The handlers by full method."""
    oip = _Oip(front)
    works = {
        "ModelInfer": oip.model_infer,
        **dict.fromkeys(_READS, oip.read),
        **dict.fromkeys(_REFUSED, oip.refused),
        "ModelReady": oip.model_ready,
        "ModelStatistics": oip.model_statistics,
        "RepositoryIndex": oip.merged,
        "ServerLive": oip.server_live,
        "ServerReady": oip.server_ready,
        "ServerMetadata": oip.server_metadata,
    }
    found = {
        f"/{SERVICE}/{name}": front.unary(f"/{SERVICE}/{name}", work)
        for name, work in works.items()
    }
    stream = f"/{SERVICE}/ModelStreamInfer"
    found[stream] = front.stream(stream, oip.model_stream_infer)
    return found


class _Oip:
    def __init__(self, front: Front) -> None:
        self._front = front
        self._table = front.table
        self._sender = front.sender

    async def model_infer(self, visit: Visit, request: bytes, context: Context) -> bytes:
        name = self._asked(visit, request)
        way = self._way(name)
        if (admission := self._front.admission).limited:
            await admission.admit(visit, "model", name, context, size_bytes=len(request))
            way = self._way(name)  # It may have waited for long.
        if isinstance(way, Course):
            return await self._by(visit, way, request, context, inference=True)
        plan = way
        if plan.cache is not None or plan.shadow is not None:
            call = self._front.call(visit, plan, context, timeout_s=plan.timeout_s)
            answer = await infer(self._front, visit, call, plan, request)
            return await self._front.reply(visit, context, answer)
        return await self._front.forward(
            visit, plan, request, context, may_repeat=outside_a_sequence, gate=plan.gates.unary
        )

    def _way(self, name: str) -> Course | GatedPlan:
        """How calls to a model go now. Raises ModelNotFoundError, NoEndpointError."""
        course = self._table.courses.get(name)
        return self._table.model(name) if course is None else course

    async def read(self, visit: Visit, request: bytes, context: Context) -> bytes:
        """About a model, not of it: passes the gate by, as a health check must."""
        name = self._asked(visit, request)
        if (course := self._table.courses.get(name)) is not None:
            return await self._by(visit, course, request, context, inference=False)
        plan = self._table.model(name)
        return await self._front.forward(
            visit, plan, request, context, may_repeat=outside_a_sequence
        )

    async def _by(
        self, visit: Visit, course: Course, request: bytes, context: Context, *, inference: bool
    ) -> bytes:
        return await forward_by(
            self._front,
            visit,
            course,
            request,
            context,
            may_repeat=outside_a_sequence,
            inference=inference,
        )

    async def model_ready(self, visit: Visit, request: bytes, context: Context) -> bytes:
        """As Triton: a model that is not there is not ready, which is no error."""
        try:
            return await self.read(visit, request, context)
        except (errors.ModelNotFoundError, errors.NoEndpointError):
            context.set_trailing_metadata(visit.trailers())
            return service_pb2.ModelReadyResponse(ready=False).SerializeToString()  # type: ignore[no-any-return]

    async def model_statistics(self, visit: Visit, request: bytes, context: Context) -> bytes:
        if not model_name(request):
            _check_scope(visit, "")  # Of all models: not for a key that is for some.
            return await self.merged(visit, request, context)
        return await self.read(visit, request, context)

    async def merged(self, visit: Visit, request: bytes, context: Context) -> bytes:
        """Serialized messages joined end to end are the message with their lists joined."""
        calls = [
            self._front.call(visit, plan, context, timeout_s=plan.timeout_s)
            for plan in self._table.every_oip()
        ]
        visit.call, visit.label, visit.asked = None, SERVICE, ""
        answers = await asyncio.gather(
            *(self._sender.unary(call, request, may_repeat=always) for call in calls),
            return_exceptions=True,
        )
        parts: list[bytes] = []
        failure: BaseException | None = None
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, grpc.aio.AioRpcError | errors.AiflowError):
                failure = answer
                _log.warning(
                    "left out of a merged answer",
                    method=visit.method,
                    endpoint=call.served_by(),
                    error=str(answer),
                )
            elif isinstance(answer, BaseException):
                raise answer
            else:
                parts.append(answer.message)
        if failure is not None and not parts:
            raise failure
        context.set_trailing_metadata(visit.trailers())
        return b"".join(parts)

    async def model_stream_infer(self, visit: Visit, context: Context) -> Iterable[Pair]:
        """The whole stream goes to the endpoint that its first message chose."""
        first = await self._first(context)
        if first is None:
            return ()
        self._front.check_size(first)
        asked = self._asked(visit, first)

        def take(message: bytes, call: Call) -> bytes:
            name = model_name(self._front.check_size(message))
            if name != asked:
                _check_scope(visit, name)
                if self._front.admission.limited:
                    self._front.admission.check_as_one(visit, asked, name)
            if name == asked != call.plan.name:
                return renamed(message, call.plan.name)
            if name != call.plan.name:
                _served_by_the_pinned(name, call)
            return message

        way = self._way(asked)
        if (admission := self._front.admission).limited:
            await admission.admit(visit, "model", asked, context, size_bytes=len(first))
            way = self._way(asked)
        if isinstance(way, Course):
            return await stream_by(self._front, visit, way, first, context, take=take)
        plan = way
        call = self._front.call(visit, plan, context)
        async with self._front.place(visit, plan):
            return await forward_stream(
                self._sender, call, context, first=first, take=lambda message: take(message, call)
            )

    async def _first(self, context: Context) -> bytes | None:
        limit_s = self._table.default.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                message = await context.read()
        except TimeoutError:
            raise errors.DeadlineExceededError(
                f"no request came on this stream within {limit_s:g} s: send the first one at once, "
                "its model decides where the stream goes"
            ) from None
        return None if message is grpc.aio.EOF else message

    async def refused(self, visit: Visit, _request: bytes, _context: Context) -> bytes:
        name = visit.method.rpartition("/")[2]
        visit.label = SERVICE
        raise errors.RefusedError(
            f"{name} {_REFUSED[name]} and is not routed: send it to that Triton directly "
            "(`aiflow status` lists addresses)",
            code="UNIMPLEMENTED",
            reason="NOT_ROUTED",
        )

    async def server_live(self, visit: Visit, _request: bytes, context: Context) -> bytes:
        return self._own(visit, context, service_pb2.ServerLiveResponse(live=True))

    async def server_ready(self, visit: Visit, _request: bytes, context: Context) -> bytes:
        ready = not self._front.leaving
        return self._own(visit, context, service_pb2.ServerReadyResponse(ready=ready))

    async def server_metadata(self, visit: Visit, _request: bytes, context: Context) -> bytes:
        answer = service_pb2.ServerMetadataResponse(
            name="aiflow",
            version=version("aiflow"),
            extensions=["model_configuration", "model_repository", "statistics"],
        )
        return self._own(visit, context, answer)

    def _own(self, visit: Visit, context: Context, answer: service_pb2.ServerLiveResponse) -> bytes:
        visit.label = SERVICE
        context.set_trailing_metadata(visit.trailers())
        return answer.SerializeToString()  # type: ignore[no-any-return]

    def _asked(self, visit: Visit, request: bytes) -> str:
        name = visit.asked = model_name(request)
        if self._table.knows_model(name):
            visit.label = name
        _check_scope(visit, name)
        return name


def _check_scope(visit: Visit, model: str) -> None:
    """Raises PermissionDeniedError."""
    caller = visit.caller
    if caller.scope is not None:
        caller.scope.check_model(model, caller.key)


def _served_by_the_pinned(name: str, call: Call) -> None:
    if call.load is None or name not in call.load.endpoint.models:
        raise errors.BadInputError(
            f'this stream goes to {call.served_by()}, which does not serve "{name}": open another '
            "stream for it",
            violations={"model_name": "is not served by the endpoint of the first message"},
        )
