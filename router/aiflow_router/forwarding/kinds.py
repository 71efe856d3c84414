"""What kind of call a method is: asked of the endpoints that serve it, by server reflection.

A unary call is passed on for two thirds of what a stream costs, and one whose proto says that
repeating it does no harm may be repeated; nothing in the bytes of a call tells either. So every
endpoint is asked when it registers, in the background: until it has answered, and for ever where
it has no reflection, its methods are of unknown kind and go as streams, which is right for all.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from aiflow_router.catalog.endpoint import Endpoint, Key
from aiflow_router.catalog.snapshot import Change, Snapshot
from aiflow_router.forwarding.inquiry import Inquiry
from aiflow_router.forwarding.link import Link, Links
from aiflow_router.forwarding.written import written

_log = structlog.get_logger(__name__)

# The messages of both versions are the same on the wire.
REFLECTION = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")
)

ANSWER_WITHIN_S = 2.0
ENDPOINT_WITHIN_S = 30.0
# Parsing holds the event loop; real descriptors are some ten kilobytes.
MAX_ANSWER_BYTES = 1024 * 1024

_ASK_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a descriptor says of a method.

    Attributes:
        name: in full, "/package.Service/Method".
        unary: one request, one answer.
        repeatable: its proto says `option idempotency_level`.
    """

    name: str
    unary: bool
    repeatable: bool


Methods = tuple[Method, ...]


def described(service: str, files: Iterable[bytes]) -> Methods:
    """The methods of `service` as serialized FileDescriptorProtos have them; DecodeError."""
    for file in map(FileDescriptorProto.FromString, files):
        for found in file.service:
            if f"{file.package}.{found.name}".lstrip(".") == service:
                return tuple(
                    Method(
                        name=f"/{service}/{method.name}",
                        unary=not (method.client_streaming or method.server_streaming),
                        repeatable=method.options.idempotency_level
                        != MethodOptions.IDEMPOTENCY_UNKNOWN,
                    )
                    for method in found.method
                )
    return ()


def agreed(descriptions: Iterable[Methods]) -> Mapping[str, Method]:
    """The methods by name; what not all descriptions say of one is not said of it."""
    found: dict[str, Method] = {}
    for method in (method for methods in descriptions for method in methods):
        other = found.get(method.name, method)
        found[method.name] = Method(
            name=method.name,
            unary=method.unary and other.unary,
            repeatable=method.repeatable and other.repeatable,
        )
    return found


class Kinds:
    """The kinds of the methods in the catalog. Lives in one event loop."""

    def __init__(
        self,
        *,
        links: Links,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._links = links
        self._changed: Callable[[], None] = lambda: None
        self._inquiry = Inquiry(ask=self._ask, take=self._take, rng=rng, sleep=sleep)
        self._said_by: dict[Key, Mapping[str, Methods]] = {}
        # Thousands of endpoints say the same, so what they say is counted.
        self._said: dict[str, Counter[Methods]] = {}
        self._methods: dict[str, Mapping[str, Method]] = {}

    def get(self, service: str, method: str) -> Method | None:
        """The kind of `method` ("/package.Service/Method"); None where it is not known."""
        methods = self._methods.get(service)
        return None if methods is None else methods.get(method)

    def on_change(self, changed: Callable[[], None]) -> None:
        """Calls `changed` whenever a kind is learned or lost."""
        self._changed = changed

    def pending(self) -> int:
        """Endpoints that have not answered yet."""
        return self._inquiry.pending()

    def follow(self, _snapshot: Snapshot, change: Change) -> None:
        """Asks each endpoint that is new or registered again, and forgets those that left."""
        for key in change.gone:
            self._inquiry.forget(key)
        for key, entry in change.put.items():
            if entry.endpoint.services:
                self._inquiry.ask(entry.endpoint)
            else:
                self._inquiry.forget(key)

    async def close(self) -> None:
        await self._inquiry.close()

    async def _ask(self, endpoint: Endpoint) -> Mapping[str, Methods] | None:
        """What the endpoint says, nothing where it has no reflection; None: to be asked again."""
        link = self._links[endpoint.address]
        link.calls += 1
        try:
            if not (link.ready() or await link.connect(timeout_s=ANSWER_WITHIN_S)):
                return None
            for reflection in REFLECTION:
                try:
                    return await _descriptions(link, reflection, endpoint.services)
                except TimeoutError:
                    return None
                except grpc.aio.AioRpcError as failure:
                    if failure.code() in _ASK_AGAIN:
                        return None
                except DecodeError as error:
                    _log.warning(
                        "an endpoint describes its services in a form that cannot be read",
                        address=endpoint.address,
                        error=str(error),
                    )
                    return {}
        finally:
            link.call_ended()
        _log.info(
            "endpoint has no server reflection: its calls go as streams, which costs more",
            address=endpoint.address,
            services=endpoint.services,
        )
        return {}

    def _take(self, endpoint: Endpoint, answer: Mapping[str, Methods] | None) -> None:
        """Replaces what the endpoint said, and tells when that changes a method's kind."""
        before, said = self._said_by.pop(endpoint.key, {}), answer or {}
        if said:
            self._said_by[endpoint.key] = said
        changed = False
        for service in before.keys() | said.keys():
            counts = self._said.setdefault(service, Counter())
            if methods := before.get(service):
                counts[methods] -= 1
            if methods := said.get(service):
                counts[methods] += 1
            self._said[service] = +counts
            now = agreed(self._said[service])
            changed = changed or now != self._methods.get(service, {})
            self._methods[service] = now
            if not now:
                del self._methods[service], self._said[service]
        if changed:
            self._changed()


async def _descriptions(
    link: Link, reflection: str, services: Sequence[str]
) -> Mapping[str, Methods]:
    """Raises AioRpcError, TimeoutError, DecodeError."""
    rpc = link.stream(reflection)(timeout=ENDPOINT_WITHIN_S)
    found: dict[str, Methods] = {}
    try:
        for service in services:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
                await written(rpc, request.SerializeToString())
                raw = await rpc.read()
            if not isinstance(raw, bytes) or len(raw) > MAX_ANSWER_BYTES:
                raise DecodeError(f"no answer, or one of more than {MAX_ANSWER_BYTES} bytes")
            answer = reflection_pb2.ServerReflectionResponse.FromString(raw)
            files = answer.file_descriptor_response.file_descriptor_proto
            found[service] = described(service, files)
    finally:
        rpc.cancel()
    return found
