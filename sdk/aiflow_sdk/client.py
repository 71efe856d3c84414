"""The synchronous client: one connection to the router, shared by every thread of a program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2_grpc

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_sdk import _catalog, tensors
from aiflow_sdk._catalog import Endpoint
from aiflow_sdk._methods import METHOD_NEEDED, resolve
from aiflow_sdk._plan import Priority, Reply, call_metadata
from aiflow_sdk._settings import TLS, Retry, Settings, checked_timeout
from aiflow_sdk._sync_channel import CallingChannel, UnaryMethod
from aiflow_sdk.errors import AiflowError, BadInputError, NotFoundError, UnavailableError
from aiflow_sdk.tensors import InferResult, Parameter, TensorValue

if TYPE_CHECKING:
    from google.protobuf.message import Message

Q = TypeVar("Q")
R = TypeVar("R")
S = TypeVar("S")

_POLL_S = 0.1


class Client:
    """Calls models and typed services through the router.

    Connects with the first call and again by itself; may be shared by threads. Every method
    raises an `AiflowError` of the class that fits, within its timeout.

        with Client() as client:
            found = client.infer("detector", {"image": Path("cup.jpg").read_bytes()})
            print(found["boxes"])
    """

    def __init__(
        self,
        router: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        tls: TLS | None = None,
        retry: Retry | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            router: "host:port"; None takes AIFLOW_ROUTER, or else 127.0.0.1:7600.
            api_key: None takes AIFLOW_API_KEY, or else sends none.
            timeout_s: deadline of a call that has none of its own, repetitions included.
            tls: None for AIFLOW_TLS_CA, AIFLOW_TLS_CERT and AIFLOW_TLS_KEY; without these all is
                sent unencrypted, the key too.
            retry: None means three attempts, 25 to 250 ms apart.
        """
        self._settings = Settings.resolve(
            router=router, api_key=api_key, timeout_s=timeout_s, tls=tls, retry=retry
        )
        options = self._settings.channel_options()
        self._raw = (
            grpc.insecure_channel(self._settings.router, options)
            if self._settings.tls is None
            else grpc.secure_channel(
                self._settings.router, self._settings.tls.credentials(), options
            )
        )
        self._closed = False
        inference: Any = service_pb2_grpc.GRPCInferenceServiceStub
        self._inference = inference(self.channel(idempotent=True))
        self._health: Any = self.stub(health_pb2_grpc.HealthStub, idempotent=True)
        self._registry = self.stub(registry_pb2_grpc.RegistryServiceStub, idempotent=True)

    @property
    def router(self) -> str:
        return self._settings.router

    def infer(
        self,
        model: str,
        inputs: Mapping[str, TensorValue],
        *,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        session: str | None = None,
        priority: Priority | None = None,
    ) -> InferResult:
        """One inference; repeated where the router or the model is unavailable.

        Args:
            model: the name to ask for.
            inputs: by name, numpy arrays that include the batch dimension; bytes or text stand
                for BYTES [1,1] (one picture), a list of them for BYTES [n,1].
            outputs: names of the outputs wanted; None means all.
            parameters: passed on to the model.
            timeout_s: of the whole call; None means the client's.
            request_id: the id to log it under; None makes one.
            session: `x-aiflow-session`; calls of one go to one endpoint if the route balances so.
            priority: "high", "normal" or "low", sent as `x-aiflow-priority`; no effect on routing.
        """
        metadata = call_metadata(request_id=request_id, session=session, priority=priority)
        request = tensors.to_request(
            model, inputs, outputs=outputs, parameters=parameters, request_id=request_id or ""
        )
        reply = self._inference.ModelInfer.reply(request, timeout_s=timeout_s, metadata=metadata)
        return tensors.to_result(reply)

    def stream_infer(
        self,
        model: str,
        requests: Iterable[Mapping[str, TensorValue]],
        *,
        timeout_s: float | None = None,
        session: str | None = None,
        priority: Priority | None = None,
    ) -> Iterator[InferResult]:
        """Inferences over one stream, answers as they come; the first error ends the stream."""
        metadata = call_metadata(request_id=None, session=session, priority=priority)
        feed = tensors.Feed(model)
        call: Any = self._inference.ModelStreamInfer(
            map(feed.request, requests), timeout=timeout_s, metadata=metadata
        )
        try:
            for answer in call:
                yield tensors.to_streamed_result(model, answer, plan=call.plan)
        except AiflowError as error:
            raise feed.error or error from None
        finally:
            call.cancel()  # the caller may stop listening early

    def stub(self, stub_type: Callable[[grpc.Channel], S], *, idempotent: bool = False) -> S:
        """A generated stub whose calls are made by this client.

        They carry key, request id and deadline (`timeout=` for another one), raise AiflowError,
        and a unary call is repeated where nothing was done for it yet. With `idempotent`, or
        `option idempotency_level` in the proto, it is repeated whenever it was UNAVAILABLE.
        """
        return stub_type(self.channel(idempotent=idempotent))

    def channel(self, *, idempotent: bool = False) -> grpc.Channel:
        """The channel below `stub`, for code that takes a `grpc.Channel`."""
        return CallingChannel(self._raw, self._settings, idempotent=idempotent)

    @overload
    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Q, R],
        request: Q,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        session: str | None = None,
        priority: Priority | None = None,
        idempotent: bool = False,
    ) -> Reply[R]: ...
    @overload
    def call(
        self,
        method: str,
        request: Message,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        session: str | None = None,
        priority: Priority | None = None,
        idempotent: bool = False,
    ) -> Reply[Any]: ...
    def call(
        self,
        method: Any,
        request: Any,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        session: str | None = None,
        priority: Priority | None = None,
        idempotent: bool = False,
    ) -> Reply[Any]:
        """One unary call, answered with who served it and how.

        Args:
            method: of a stub of this client, `client.stub(ImagingServiceStub).ComposeMainImage`,
                or a name such as "aiflow.imaging.v1.ImagingService/ComposeMainImage".
            request: the method's request message.
            timeout_s: of the whole call; None means the client's.
            request_id: the id to log it under; None makes one.
            session: `x-aiflow-session`; calls of one go to one endpoint if the route balances so.
            priority: "high", "normal" or "low", sent as `x-aiflow-priority`; no effect on routing.
            idempotent: repeating it does no harm.
        """
        if isinstance(method, str):
            found = resolve(method, request)
            if found.client_streaming or found.server_streaming:
                raise BadInputError(f"{method} is a streaming method; call it through a stub")
            method = self.channel().unary_unary(
                found.path, type(request).SerializeToString, found.reply_type.FromString
            )
        if not isinstance(method, UnaryMethod):
            raise BadInputError(METHOD_NEEDED)
        return method.reply(
            request,
            timeout_s=timeout_s,
            metadata=call_metadata(request_id=request_id, session=session, priority=priority),
            idempotent=idempotent,
        )

    def endpoints(self, *, timeout_s: float | None = None) -> tuple[Endpoint, ...]:
        """Every endpoint the router knows, by backend and address."""
        request = registry_pb2.ListEndpointsRequest()
        return _catalog.to_endpoints(self._registry.ListEndpoints(request, timeout=timeout_s))

    def models(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """Names of the models that can be asked for now, sorted."""
        return _catalog.ready_models(self.endpoints(timeout_s=timeout_s))

    def health(self, name: str = "", *, timeout_s: float | None = None) -> str:
        """Of a model, a service, or "" the router: "SERVING", "NOT_SERVING" or "UNKNOWN".

        Raises:
            NotFoundError: the router knows no such name.
        """
        request = health_pb2.HealthCheckRequest(service=name)
        answer = self._health.Check(request, timeout=timeout_s)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def ready(self, name: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether a model, a service, or "" the router can take calls now."""
        try:
            return self.health(name, timeout_s=timeout_s) == "SERVING"
        except (NotFoundError, UnavailableError):
            return False

    def wait_ready(
        self,
        *,
        models: Sequence[str] = (),
        services: Sequence[str] = (),
        timeout_s: float = 60.0,
    ) -> None:
        """Returns once the router and everything named can take calls.

        Raises:
            DeadlineExceededError: reason NOT_READY, naming what is missing.
        """
        deadline = time.monotonic() + checked_timeout(timeout_s)
        missing = ["", *models, *services]
        while missing:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise _catalog.not_ready(missing, router=self.router, timeout_s=timeout_s)
            if self.ready(missing[0], timeout_s=max(left_s, _POLL_S)):
                missing.pop(0)
            else:
                time.sleep(min(_POLL_S, left_s))

    def close(self) -> None:
        """Ends calls under way as CANCELLED and closes the connection; may be repeated."""
        if not self._closed:
            self._closed = True
            self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()
