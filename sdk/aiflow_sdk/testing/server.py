"""A real gRPC server in the test's process, with models that are Python functions."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_sdk import status, tensors
from aiflow_sdk._plan import Pair
from aiflow_sdk._settings import MAX_MESSAGE_BYTES
from aiflow_sdk.errors import (
    AiflowError,
    AuthenticationError,
    BackendError,
    CallCancelledError,
    ModelNotFoundError,
)
from aiflow_sdk.tensors import Array, TensorValue
from aiflow_sdk.testing.relay import Relay

Model = Callable[[Mapping[str, Array]], Mapping[str, TensorValue]]
Servicer = tuple[Callable[[Any, grpc.Server], None], Any]

_INFERENCE = "inference.GRPCInferenceService"
_REGISTRY = "aiflow.registry.v1.RegistryService"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What happens to one call instead of, or before, its answer."""

    error: AiflowError | None = None
    """The status it ends with, details and push-back included."""
    delay_s: float = 0.0
    """Waits this long first, or until the caller gives up."""
    drop: bool = False
    """Cuts the connection in the middle of the call, as a killed server does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedCall:
    method: str
    """"/package.Service/Method"."""
    metadata: Mapping[str, str | bytes]
    time_remaining_s: float | None
    """Of the caller's deadline, when the call came in; None without one."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once the call is over, however it ended."""


class Server:
    """What `serving` gives: an address to call, calls to look at, failures to order."""

    def __init__(self, address: str, relay: Relay) -> None:
        self.address = address
        self.calls: list[ReceivedCall] = []
        """Calls of models and services, health and catalog left out, oldest first."""
        self._relay = relay
        self._failures: queue.SimpleQueue[Failure] = queue.SimpleQueue()

    def fail_next(self, failure: Failure, *, times: int = 1) -> None:
        """Orders a failure for the next calls to come in, behind those ordered before."""
        for _ in range(times):
            self._failures.put(failure)

    def drop_connections(self) -> None:
        """Cuts every connection now."""
        self._relay.cut()

    def _next_failure(self) -> Failure | None:
        try:
            return self._failures.get_nowait()
        except queue.Empty:
            return None


@contextlib.contextmanager
def serving(
    models: Mapping[str, Model] | None = None,
    *,
    servicers: Iterable[Servicer] = (),
    api_key: str | None = None,
    credentials: grpc.ServerCredentials | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> Iterator[Server]:
    """Serves until the block ends, on a free port of 127.0.0.1, what a router would.

    Args:
        models: functions by model name, from input arrays to outputs (arrays, bytes or lists of
            bytes). What they raise as AiflowError is what the caller gets.
        servicers: pairs of `add_XServicer_to_server` and an object with the service's methods,
            which may raise AiflowError too.
        api_key: when given, calls without it are refused.
        credentials: for TLS.
        max_message_bytes: the largest request or answer.
    """
    served = dict(models or {})
    gate = _Gate(api_key)
    workers = futures.ThreadPoolExecutor(max_workers=32, thread_name_prefix="aiflow-testing")
    server = grpc.server(
        workers,
        interceptors=[gate],
        options=[
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.so_reuseport", 0),
        ],
    )
    port = (
        server.add_insecure_port("127.0.0.1:0")
        if credentials is None
        else server.add_secure_port("127.0.0.1:0", credentials)
    )
    relay = Relay(port)
    try:
        running = gate.server = Server(f"127.0.0.1:{relay.port}", relay)
        _add_all(server, served, servicers, running.address)
        server.start()
        yield running
    finally:
        server.stop(grace=None).wait()
        relay.close()
        workers.shutdown(cancel_futures=True)


def _add_all(
    server: grpc.Server, models: Mapping[str, Model], servicers: Iterable[Servicer], address: str
) -> None:
    registered = _Names(server)
    for add, servicer in servicers:
        add(servicer, registered)  # type: ignore[arg-type]  # as much of a server as it needs
    inference: Any = service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
    inference(_Inference(models, address), server)
    catalog: Any = _Catalog(address, sorted(models), registered.names)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(catalog, server)
    healthy = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    for name in ("", _INFERENCE, *models, *registered.names):
        healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        (*registered.names, _INFERENCE, _REGISTRY, reflection.SERVICE_NAME), server
    )


class _Names:
    """Passes servicers on to a server and remembers the names of their services."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        handlers = tuple(handlers)
        self.names += [handler.service_name() for handler in handlers]
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        self._server.add_registered_method_handlers(service, handlers)


class _Gate(grpc.ServerInterceptor):
    """Lets every call through as a router does: key, request id, ordered failures, errors."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key
        self.server: Server

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        quiet = details.method.startswith(("/grpc.", f"/{_REGISTRY}/"))
        if handler is None or quiet:
            return handler
        # A handler has one behaviour, under one of four names by what streams.
        for name in ("unary_unary", "stream_unary", "unary_stream", "stream_stream"):
            behaviour = getattr(handler, name)
            if behaviour is not None:
                wrap = self._streaming if handler.response_streaming else self._single
                return handler._replace(**{name: wrap(details.method, behaviour)})
        return handler

    def _single(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            with self._typed_errors(method, context):
                return behaviour(request, context)

        return handle

    def _streaming(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def handle(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._typed_errors(method, context):
                yield from behaviour(request, context)

        return handle

    @contextlib.contextmanager
    def _typed_errors(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        metadata: dict[str, str | bytes] = dict(context.invocation_metadata())
        call = ReceivedCall(
            method=method, metadata=metadata, time_remaining_s=_time_remaining(context)
        )
        if not context.add_callback(call.ended.set):
            call.ended.set()
        told: tuple[Pair, ...] = (
            (status.REQUEST_ID_KEY, metadata.get(status.REQUEST_ID_KEY, "")),
            ("x-aiflow-served-by", f"{method.split('/')[1]}@{self.server.address}"),
            ("x-aiflow-attempts", "1"),
        )
        context.set_trailing_metadata(told)
        self.server.calls.append(call)
        try:
            self._check_key(metadata)
            self._fail(call)
            yield
        except AiflowError as error:
            context.set_trailing_metadata((told[0], *status.to_trailers(error)))
            context.abort(status.status_code(error), error.message)

    def _check_key(self, metadata: Mapping[str, str | bytes]) -> None:
        given = metadata.get("x-api-key") or str(metadata.get("authorization", ""))[7:]
        if self._api_key is not None and given != self._api_key:
            raise AuthenticationError("the key is missing or unknown; set AIFLOW_API_KEY")

    def _fail(self, call: ReceivedCall) -> None:
        failure = self.server._next_failure()  # noqa: SLF001 - the gate is the server's other half
        if failure is None:
            return
        if failure.delay_s and call.ended.wait(failure.delay_s):
            raise CallCancelledError("the caller gave up")
        if failure.drop:
            self.server.drop_connections()
            call.ended.wait(5)  # until gRPC has noticed; nothing is answered any more
            raise CallCancelledError("the connection was cut")
        if failure.error is not None:
            raise failure.error


class _Partial:
    """A servicer that says so where it is asked for more than it does."""

    def __getattr__(self, name: str) -> Any:
        def unimplemented(_: Any, context: grpc.ServicerContext) -> None:
            context.abort(
                grpc.StatusCode.UNIMPLEMENTED, f"aiflow_sdk.testing does not serve {name}"
            )

        return unimplemented


class _Inference(_Partial):
    """The Open Inference Protocol over functions."""

    def __init__(self, models: Mapping[str, Model], address: str) -> None:
        self._models = models
        self._address = address

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        answer = self._infer(request)
        context.set_trailing_metadata(
            (
                (status.REQUEST_ID_KEY, dict(context.invocation_metadata())[status.REQUEST_ID_KEY]),
                ("x-aiflow-served-by", f"{request.model_name}@{self._address}"),
                ("x-aiflow-attempts", "1"),
            )
        )
        return answer

    def ModelStreamInfer(self, requests: Iterator[Any], _: Any) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            try:
                yield service_pb2.ModelStreamInferResponse(infer_response=self._infer(request))
            except AiflowError as error:
                yield service_pb2.ModelStreamInferResponse(error_message=error.message)

    def ModelReady(self, request: Any, _: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in self._models)

    def ServerLive(self, _: Any, __: Any) -> Any:  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, _: Any, __: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    def _infer(self, request: Any) -> Any:
        model = self._models.get(request.model_name)
        if model is None:
            raise ModelNotFoundError(
                f"no model {request.model_name!r}; there are: {', '.join(sorted(self._models))}",
                metadata={"model": request.model_name},
            )
        inputs = tensors.from_request(request)
        try:
            outputs = model(inputs)
        except AiflowError:
            raise
        except Exception as error:
            raise BackendError(f"{type(error).__name__}: {error}", code="INTERNAL") from error
        return tensors.to_response(request.model_name, outputs, request_id=request.id)


class _Catalog(_Partial):
    """The catalog of a router that knows this server only; nothing can register."""

    def __init__(self, address: str, models: list[str], services: list[str]) -> None:
        self._response = registry_pb2.ListEndpointsResponse(version=1)
        oip = registry_pb2.Endpoint(protocol=registry_pb2.PROTOCOL_OIP, models=models)
        typed = registry_pb2.Endpoint(protocol=registry_pb2.PROTOCOL_GRPC, services=services)
        for endpoint in (oip, typed):
            if endpoint.models or endpoint.services:
                endpoint.backend, endpoint.address, endpoint.weight = "testing", address, 1
                self._response.entries.add(
                    endpoint=endpoint,
                    state=registry_pb2.ENDPOINT_STATE_READY,
                    expires_in_ms=2000,
                )

    def ListEndpoints(self, _: Any, __: Any) -> registry_pb2.ListEndpointsResponse:  # noqa: N802
        return self._response


def _time_remaining(context: grpc.ServicerContext) -> float | None:
    left_s = context.time_remaining()
    # gRPC says "no deadline" as a number of years.
    return None if left_s is None or left_s > 10 * 365 * 86400 else left_s
