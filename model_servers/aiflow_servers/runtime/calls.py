"""What happens around every call: its id, its deadline, its error, its log line and its metrics."""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from aiflow_sdk import errors, status
from aiflow_servers.runtime.metrics import Metrics

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_ID_LENGTH = 128
# A caller's own clock ends its call a little before the deadline here, which counts from when its
# headers were read.
_LATE_WITHIN_S = 0.05

_log = structlog.get_logger("aiflow_servers.access")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is known of a call before it runs."""

    service: str
    method: str
    request_id: str
    trace_id: str  # of the W3C traceparent; empty where the caller sent none


def request_id_of(sent: str | bytes | None) -> str:
    """The caller's id where it can be logged and sent back, or a new one."""
    fine = isinstance(sent, str) and 0 < len(sent) <= _MAX_ID_LENGTH and sent.isprintable()
    return str(sent) if fine else uuid.uuid4().hex


def trace_id_of(traceparent: str | bytes | None) -> str:
    parts = traceparent.split("-") if isinstance(traceparent, str) else []
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""


class Calls(grpc.aio.ServerInterceptor):
    """Wraps the handlers of every service on a server.

    Args:
        metrics: counts and times the calls.
        services: the server's own services. Health and reflection streams stay open for as long
            as their callers like, and are not worth a log line when they go well.
        max_call_s: cap on calls of those services; a caller's shorter deadline comes first.
    """

    def __init__(self, *, metrics: Metrics, services: tuple[str, ...], max_call_s: float) -> None:
        self._metrics = metrics
        self._services = services
        self._max_call_s = max_call_s
        self._running = 0  # calls of the server's own services
        # A call runs until its answer has gone out, which takes as long as its caller is slow.
        self.none_running = asyncio.Event()
        self.none_running.set()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler: Any = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        metadata = dict(handler_call_details.invocation_metadata or ())
        if handler is None:
            # The name is the caller's own invention: as a label it could grow without end.
            call = _call("unknown", "unknown", metadata)
            return grpc.stream_stream_rpc_method_handler(self._unknown(call, service, method))
        call = _call(service, method, metadata)
        return self._wrapped(call, handler)

    def _wrapped(self, call: Call, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        run = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        async def answer_once(request: Any, context: Context) -> Any:
            async with self._around(call, context):
                return await run(request, context)

        async def answer_many(request: Any, context: Context) -> None:
            async with self._around(call, context):
                if inspect.isasyncgenfunction(run):
                    async with aclosing(run(request, context)) as answers:
                        async for answer in answers:
                            await context.write(answer)
                else:
                    await run(request, context)

        if handler.unary_unary:
            make, wrapper = grpc.unary_unary_rpc_method_handler, answer_once
        elif handler.unary_stream:
            make, wrapper = grpc.unary_stream_rpc_method_handler, answer_many
        elif handler.stream_unary:
            make, wrapper = grpc.stream_unary_rpc_method_handler, answer_once
        else:
            make, wrapper = grpc.stream_stream_rpc_method_handler, answer_many
        return make(wrapper, handler.request_deserializer, handler.response_serializer)

    def _unknown(
        self, call: Call, service: str, method: str
    ) -> Callable[[Any, Context], Awaitable[None]]:
        async def refuse(_requests: Any, context: Context) -> None:
            async with self._around(call, context):
                if service in self._services:
                    raise errors.ServiceNotFoundError(
                        f"{service} has no method {method!r}", reason="METHOD_NOT_FOUND"
                    )
                raise errors.ServiceNotFoundError(
                    f"no service {service!r} here; this server has {', '.join(self._services)}"
                )

        return refuse

    @asynccontextmanager
    async def _around(self, call: Call, context: Context) -> AsyncIterator[None]:
        own = call.service in self._services
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        structlog.contextvars.bind_contextvars(request_id=call.request_id, trace_id=call.trace_id)
        self._metrics.inflight.inc()
        self._count(own)
        gone_out: Any = lambda _: self._count(-own)  # noqa: E731 - no function to the stubs
        context.add_done_callback(gone_out)
        cap = asyncio.timeout(self._max_call_s if own else None)
        try:
            async with cap:
                yield
            _add_request_id(context, call)
            code = _own_code(context) or code
        except grpc.aio.AbortError:
            code = _own_code(context) or grpc.StatusCode.UNKNOWN
            raise
        except asyncio.CancelledError:
            left_s = context.time_remaining()
            late = left_s is not None and left_s < _LATE_WITHIN_S
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        except Exception as problem:  # noqa: BLE001 - logged, counted and answered
            error = self._told(problem, late=cap.expired())
            code = status.status_code(error)
            trailers = (*status.to_trailers(error), (status.REQUEST_ID_KEY, call.request_id))
            await context.abort(code, error.message, trailers)
        finally:
            self._metrics.inflight.dec()
            self._record(call, code, time.perf_counter() - started, own=own)

    def _count(self, change: int) -> None:
        self._running += change
        if self._running:
            self.none_running.clear()
        else:
            self.none_running.set()

    def _told(self, problem: Exception, *, late: bool) -> errors.AiflowError:
        """What the caller is told: never the text of an exception that was not meant for it."""
        if late:
            return errors.DeadlineExceededError(
                f"took longer than the {self._max_call_s:g} s that this server gives a call"
            )
        if isinstance(problem, errors.AiflowError) and problem.code in grpc.StatusCode.__members__:
            return problem
        _log.error("unexpected", exc_info=problem)
        return errors.AiflowError(
            "an internal error; the server's log has it under this request id",
            code="INTERNAL",
            reason="INTERNAL",
        )

    def _record(self, call: Call, code: grpc.StatusCode, duration_s: float, *, own: bool) -> None:
        self._metrics.requests.labels(call.service, call.method, code.name).inc()
        self._metrics.duration.labels(call.service, call.method).observe(duration_s)
        if own or code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
            _log.info(
                "call",
                service=call.service,
                method=call.method,
                code=code.name,
                duration_ms=round(duration_s * 1000, 3),
            )


def _call(service: str, method: str, metadata: dict[str, str | bytes]) -> Call:
    return Call(
        service=service,
        method=method,
        request_id=request_id_of(metadata.get(status.REQUEST_ID_KEY)),
        trace_id=trace_id_of(metadata.get("traceparent")),
    )


def _own_code(context: Context) -> grpc.StatusCode | None:
    """The status that the servicer set by itself, if it did."""
    code: Any = context.code()  # a number, whatever the type hints say; 0 when it set none
    return _CODE_BY_NUMBER.get(code, code) if code else None


_CODE_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def _add_request_id(context: Context, call: Call) -> None:
    own = tuple(context.trailing_metadata() or ())
    context.set_trailing_metadata((*own, (status.REQUEST_ID_KEY, call.request_id)))
