"""Keeps one endpoint registered at a router, for as long as it serves.

One background task owns the lease: it registers, renews three times within the lease, registers
anew when the router no longer knows the lease, and goes on trying while the router is away. The
public methods only change what the task is to tell the router and wake it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from enum import StrEnum

import grpc
import structlog

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc
from aiflow_sdk import status

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 1.0
# How long a caller of ours waits for the router to hear of a change before it goes on without.
_TELL_S = 1.0

_log = structlog.get_logger(__name__)


class RegistrationState(StrEnum):
    """What the router knows of the endpoint, as far as we know."""

    IDLE = "idle"  # nothing to register: no models yet
    REGISTERED = "registered"
    DRAINING = "draining"
    FAILING = "failing"  # the router is away or refuses the endpoint
    CLOSED = "closed"


def backoff_s(failures: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds before the next try after `failures` failed ones in a row, at most 1 s.

    Half of it is random, so that a fleet does not fall upon a router that has just come back.
    """
    whole = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(failures - 1, 10))
    return uniform(whole / 2, whole)


class Registration:
    """One endpoint's place in a router's catalog.

    Args:
        router: "host:port" of the router's gRPC.
        api_key: sent as a bearer token; None where the router asks for none.
        backend: name of the group of endpoints that serve the same.
        address: "host:port" that the router can connect to.
        protocol: what the endpoint speaks.
        models: model names it serves.
        services: full gRPC service names it serves.
        weight: relative share of calls.
        zone: failure zone, free text.
        ttl_s: how long the router keeps the endpoint without hearing of it.
    """

    def __init__(
        self,
        *,
        router: str,
        api_key: str | None,
        backend: str,
        address: str,
        protocol: registry_pb2.Protocol.ValueType,
        models: Sequence[str] = (),
        services: Sequence[str] = (),
        weight: int = 1,
        zone: str = "",
        ttl_s: float = 2.0,
    ) -> None:
        self._router = router
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._endpoint = registry_pb2.Endpoint(
            backend=backend,
            address=address,
            protocol=protocol,
            models=models,
            services=services,
            weight=weight,
            zone=zone,
        )
        self._ttl_ms = round(ttl_s * 1000)
        self._lease_id = ""
        self._stale = True  # the router has not heard the endpoint as it is now
        self._draining = False
        self._closing = False
        self._wake = asyncio.Event()
        self._told = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._problem = ""
        self.state = RegistrationState.IDLE
        self.failures_total = 0

    async def start(self) -> None:
        """Starts the background task and returns at once, router or no router."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name="registration")

    async def set_models(self, models: Sequence[str]) -> None:
        """Replaces the models served; none at all takes the endpoint out until there are some.

        Returns when the router has heard of it, or after a second: the task goes on telling it.
        """
        if list(models) != list(self._endpoint.models):
            self._endpoint.models[:] = models
            self._stale = True
            await self._tell()

    async def drain(self) -> None:
        """Tells the router to send nothing new; returns as `set_models` does."""
        self._draining = True
        await self._tell()

    async def close(self) -> None:
        """Takes the endpoint out (best effort, 1 s) and ends the task."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_TELL_S)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.state = RegistrationState.CLOSED

    async def _tell(self) -> None:
        self._told.clear()
        self._wake.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), _TELL_S)

    async def _keep(self) -> None:
        # The channel's own backoff would otherwise grow to two minutes.
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        failures = 0
        async with grpc.aio.insecure_channel(self._router, options) as channel:
            registry = registry_pb2_grpc.RegistryServiceStub(channel)
            while not self._closing:
                self._wake.clear()
                try:
                    pause_s = await self._step(registry)
                except grpc.aio.AioRpcError as error:
                    failures += 1
                    pause_s = backoff_s(failures)
                    self._failed(error)
                else:
                    failures = 0
                    if not self._wake.is_set():
                        self._told.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause_s)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._deregister(registry)

    async def _step(self, registry: registry_pb2_grpc.RegistryServiceAsyncStub) -> float | None:
        """Brings the router up to date; seconds until it must hear from us again, if ever."""
        serves_something = bool(self._endpoint.models or self._endpoint.services)
        if not serves_something:
            await self._deregister(registry)
            self._reached(RegistrationState.IDLE)
            return None
        if self._lease_id and not self._stale:
            try:
                return await self._renew(registry)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                self._lease_id = ""
        if self._draining and not self._lease_id:
            self._reached(RegistrationState.DRAINING)
            return None  # a place that is being given up is not taken anew
        return await self._register(registry)

    async def _register(self, registry: registry_pb2_grpc.RegistryServiceAsyncStub) -> float:
        self._stale = False  # set again by whoever changes the endpoint while the call is out
        try:
            reply = await registry.Register(
                registry_pb2.RegisterRequest(endpoint=self._endpoint, ttl_ms=self._ttl_ms),
                timeout=self._timeout_s,
                metadata=self._metadata,
            )
        except BaseException:
            self._stale = True
            raise
        self._lease_id = reply.lease_id
        if self._draining:
            return await self._renew(registry)
        self._reached(RegistrationState.REGISTERED)
        return reply.ttl_ms / 3000

    async def _renew(self, registry: registry_pb2_grpc.RegistryServiceAsyncStub) -> float:
        draining = self._draining
        reply = await registry.Renew(
            registry_pb2.RenewRequest(
                lease_id=self._lease_id,
                state=registry_pb2.ENDPOINT_STATE_DRAINING
                if draining
                else registry_pb2.ENDPOINT_STATE_READY,
            ),
            timeout=self._timeout_s,
            metadata=self._metadata,
        )
        self._reached(RegistrationState.DRAINING if draining else RegistrationState.REGISTERED)
        return reply.ttl_ms / 3000

    async def _deregister(self, registry: registry_pb2_grpc.RegistryServiceAsyncStub) -> None:
        if self._lease_id:
            await registry.Deregister(
                registry_pb2.DeregisterRequest(lease_id=self._lease_id),
                timeout=self._timeout_s,
                metadata=self._metadata,
            )
            self._lease_id = ""

    @property
    def _timeout_s(self) -> float:
        return self._ttl_ms / 3000  # a lost reply leaves time for two more tries

    def _reached(self, state: RegistrationState) -> None:
        if state is not self.state:
            _log.info("registration", state=state.value, **self._names())
        self.state, self._problem = state, ""

    def _failed(self, error: grpc.aio.AioRpcError) -> None:
        self.failures_total += 1
        problem = str(status.from_rpc_error(error))
        # The text differs from try to try; the cause is what a reader wants to see change.
        cause = problem.partition(":")[0]
        if cause != self._problem:
            _log.warning("registration", state="failing", problem=problem, **self._names())
        self.state, self._problem = RegistrationState.FAILING, cause

    def _names(self) -> dict[str, str]:
        return {
            "router": self._router,
            "backend": self._endpoint.backend,
            "address": self._endpoint.address,
        }
