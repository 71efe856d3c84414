"""The router's own registry: a lease on a place in its catalog."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import grpc

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_sdk import TLS, status
from aiflow_sdk.errors import NotFoundError

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class LeaseRegistrar:
    """Registers at a router.

    Args:
        router: "host:port" of the router's gRPC.
        api_key: sent as a bearer token; None where the router asks for none.
        tls: None where the router takes plain text.
        ttl_s: how long the router keeps the endpoint without hearing of it.
    """

    def __init__(
        self,
        *,
        router: str,
        api_key: str | None = None,
        tls: TLS | None = None,
        ttl_s: float = 2.0,
    ) -> None:
        self._router = router
        self._credentials = None if tls is None else tls.credentials()
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._ttl_ms = round(ttl_s * 1000)
        self._timeout_s = ttl_s / 3  # a lost reply leaves time for two more tries
        self._registry: registry_pb2_grpc.RegistryServiceAsyncStub
        self._lease_id = ""

    @property
    def address(self) -> str:
        return self._router

    @property
    def caller(self) -> str:
        return self._router

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        # The channel's own backoff would otherwise grow to two minutes.
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._lease_id = ""
        channel = (
            grpc.aio.insecure_channel(self._router, options)
            if self._credentials is None
            else grpc.aio.secure_channel(self._router, self._credentials, options)
        )
        async with channel:
            self._registry = registry_pb2_grpc.RegistryServiceStub(channel)
            yield

    async def register(self, endpoint: registry_pb2.Endpoint, *, anew: bool) -> float:
        del anew  # the router finds what it holds by (backend, address)
        with _told_as_ours():
            reply = await self._registry.Register(
                registry_pb2.RegisterRequest(endpoint=endpoint, ttl_ms=self._ttl_ms),
                timeout=self._timeout_s,
                metadata=self._metadata,
            )
        self._lease_id = reply.lease_id
        return reply.ttl_ms / 3000

    async def renew(self, *, draining: bool) -> float | None:
        state = (
            registry_pb2.ENDPOINT_STATE_DRAINING if draining else registry_pb2.ENDPOINT_STATE_READY
        )
        try:
            with _told_as_ours():
                reply = await self._registry.Renew(
                    registry_pb2.RenewRequest(lease_id=self._lease_id, state=state),
                    timeout=self._timeout_s,
                    metadata=self._metadata,
                )
        except NotFoundError:
            return None
        return reply.ttl_ms / 3000

    async def deregister(self) -> None:
        with _told_as_ours():
            await self._registry.Deregister(
                registry_pb2.DeregisterRequest(lease_id=self._lease_id),
                timeout=self._timeout_s,
                metadata=self._metadata,
            )


@contextlib.contextmanager
def _told_as_ours() -> Iterator[None]:
    """Raises what gRPC raises as the AiflowError that it stands for."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error) from error
