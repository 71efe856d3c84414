"""One CPU server: its services behind gRPC, with all that the mesh expects around them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from aiflow.registry.v1 import registry_pb2
from aiflow_servers.runtime import address as addresses
from aiflow_servers.runtime._worker import WorkerStartError
from aiflow_servers.runtime.calls import Calls
from aiflow_servers.runtime.metrics import Metrics
from aiflow_servers.runtime.registrar import Registrar
from aiflow_servers.runtime.registration import Registration
from aiflow_servers.runtime.web import serving_http
from aiflow_servers.runtime.workers import Workers

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_HEALTH_PERIOD_S = 0.5

_log = structlog.get_logger(__name__)


class StartError(Exception):
    """The server cannot start; the text is one line that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What `aiflow serve NAME` runs; the entry-point group "aiflow.servers" names it."""

    # Backend name, such as "imaging".
    name: str
    # Full gRPC service names that `add` adds.
    services: tuple[str, ...]
    # Adds the servicers; called once, inside the running event loop. Worker processes import the
    # module that it is in before their first job.
    add: Callable[[grpc.aio.Server, Workers], None]
    # Picklable top-level function that each worker process then calls, to load models and tables.
    initialize: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that takes calls."""

    # "host:port" of its gRPC, with the port that it got.
    address: str
    # "host:port" of its /healthz, /readyz and /metrics.
    http_address: str
    workers: Workers
    # None where it registers nowhere.
    registration: Registration | None


@asynccontextmanager
async def serving(
    server: Server,
    *,
    address: str = "127.0.0.1:0",
    http: str = "127.0.0.1:0",
    advertise: str | None = None,
    registrar: Registrar | None = None,
    zone: str = "",
    version: str = "",
    device: str = "cpu",
    weight: int = 1,
    workers: int | None = None,
    max_queue: int = 64,
    recycle_after_jobs: int = 0,
    max_call_s: float = 60.0,
    grace_s: float = 0.5,
    drain_s: float = 30.0,
) -> AsyncIterator[Running]:
    """Serves until the block ends, then drains.

    Args:
        server: what to serve.
        address: where gRPC listens; port 0 takes a free one.
        http: where health pages and metrics listen.
        advertise: "host:port" under which the router reaches it, where that differs.
        registrar: where to register; None for nowhere.
        zone: failure zone told to the router.
        version: of the server, told to the router.
        device: what it computes on, told to the router.
        weight: relative share of calls told to the router.
        workers: number of worker processes; one per core by default.
        max_queue: jobs that may wait for a worker before one is refused.
        recycle_after_jobs: a worker process is replaced after this many jobs; 0 for never.
        max_call_s: cap on any call, and the deadline of one that came without.
        grace_s: after saying that it drains, how long calls on their way may still arrive.
        drain_s: how long calls in flight may take to finish.

    Raises:
        StartError: an address is taken, or the worker processes do not start.
        AddressError: an address that cannot be read or advertised.
    """
    metrics = Metrics()
    calls = Calls(metrics=metrics, services=server.services, max_call_s=max_call_s)
    pool = Workers(
        size=workers,
        max_queue=max_queue,
        modules=(server.add.__module__,),
        initialize=server.initialize,
        recycle_after_jobs=recycle_after_jobs,
        observe_wait=metrics.queue_wait.observe,
    )
    async with contextlib.AsyncExitStack() as stack:
        grpc_server, bound = await stack.enter_async_context(_bound(address, calls))
        healths = _Healths(server, pool)
        server.add(grpc_server, pool)
        health_pb2_grpc.add_HealthServicer_to_server(healths.servicer, grpc_server)
        _add_reflection(grpc_server, server.services)
        # Before the workers are there, so that health can say NOT_SERVING; early calls wait.
        await healths.tell()
        await grpc_server.start()
        registration = None
        if registrar is not None:
            endpoint = registry_pb2.Endpoint(
                backend=server.name,
                address=_advertised(bound, advertise, registrar),
                protocol=registry_pb2.PROTOCOL_GRPC,
                services=server.services,
                weight=weight,
                zone=zone,
                version=version,
                device=device,
            )
            registration = Registration(registrar=registrar, endpoint=endpoint)
        metrics.observe(pool, registration)
        _check_free(http)
        http_address = await stack.enter_async_context(
            serving_http(http, metrics=metrics, ready=lambda: healths.ready)
        )
        await stack.enter_async_context(_started(pool))
        await stack.enter_async_context(healths.kept())
        if registration is not None:
            await registration.start()
        try:
            yield Running(
                address=bound, http_address=http_address, workers=pool, registration=registration
            )
        finally:
            await healths.drain()
            if registration is not None:
                # Shown as draining for as long as calls may be on their way here.
                await registration.drain()
                await asyncio.sleep(grace_s)
                await registration.close()
            await _drain(grpc_server, calls, drain_s)


@asynccontextmanager
async def _bound(address: str, calls: Calls) -> AsyncIterator[tuple[grpc.aio.Server, str]]:
    """A gRPC server that listens at `address` and is not started yet, with the port it got."""
    _check_free(address)
    host, _ = addresses.split(address)
    server = grpc.aio.server(
        interceptors=[calls],
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # Two servers on one port would each get half of the calls, unnoticed.
            ("grpc.so_reuseport", 0),
        ],
    )
    port = server.add_insecure_port(address)
    try:
        yield server, addresses.join(host, port)
    finally:
        await server.stop(0)


def _check_free(address: str) -> None:
    """Says in a line why nothing can listen there, which gRPC and aiohttp bury in many."""
    host, port = addresses.split(address)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As they do: connections that linger from an earlier run are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(f"cannot listen on {address}: {error.strerror}") from error


def _advertised(bound: str, advertise: str | None, registrar: Registrar) -> str:
    if advertise is not None:
        addresses.split(advertise)
        return advertise
    host, port = addresses.split(bound)
    return addresses.advertised(host=host, port=port, caller=registrar.caller)


@asynccontextmanager
async def _started(workers: Workers) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(workers)
        except WorkerStartError as error:
            _log.error("worker_start_failed", problem=str(error))
            last_line = str(error).strip().rpartition("\n")[2]
            raise StartError(f"the worker processes do not start: {last_line}") from error
        yield


async def _drain(server: grpc.aio.Server, calls: Calls, drain_s: float) -> None:
    """Takes no new calls, lets those in flight finish, and closes.

    Health streams stay open as long as their callers like, so they are not waited for.
    """
    stopping = asyncio.create_task(server.stop(drain_s))
    finished = asyncio.create_task(calls.none_running.wait())
    await asyncio.wait({stopping, finished}, return_when=asyncio.FIRST_COMPLETED)
    finished.cancel()
    await server.stop(0)
    await stopping


class _Healths:
    """grpc.health.v1 for "" and each service: SERVING while the workers are ready."""

    def __init__(self, server: Server, workers: Workers) -> None:
        self.servicer = health.aio.HealthServicer()
        self._names = ("", *server.services)
        self._workers = workers
        self._draining = False

    @property
    def ready(self) -> bool:
        return self._workers.ready and not self._draining

    async def drain(self) -> None:
        self._draining = True
        await self.servicer.enter_graceful_shutdown()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keeps the statuses true for the length of the block."""
        await self.tell()
        keeping = asyncio.create_task(self._keep(), name="health")
        try:
            yield
        finally:
            keeping.cancel()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_PERIOD_S)
            await self.tell()

    async def tell(self) -> None:
        status = health_pb2.HealthCheckResponse
        for name in self._names:
            await self.servicer.set(name, status.SERVING if self.ready else status.NOT_SERVING)


def _add_reflection(server: grpc.aio.Server, services: tuple[str, ...]) -> None:
    """Adds reflection under both of its names; the messages are the same on the wire."""
    both = (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection")
    servicer = reflection.aio.ReflectionServicer((*services, health.SERVICE_NAME, *both))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
            for name in both
        ]
    )
