"""The mixture that a soak sends: calls of every kind, and endpoints that come and go meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from router_backend import SLOW, TYPED
from router_unary import INFER, message
from router_ways import KEY

from aiflow.registry.v1 import registry_pb2, registry_pb2_grpc

METADATA = (("authorization", f"Bearer {KEY}"),)
CALLERS = 32
MESSAGES = 10  # Of a stream, each way.
SERVICE = "soak.Soak"  # Has no reflection, so the router does not know the kind of its methods.
JOINS_EVERY_S = 0.2
LEASE_MS = 60_000
MODELS = 5
PASSING = 8  # Endpoints that come and go; beside them there is one for each model that stays.

_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_LATE = grpc.StatusCode.DEADLINE_EXCEEDED

Kind = Callable[["Traffic"], Awaitable[None]]


class Traffic:
    """Sends calls through one router.

    Attributes:
        sent: calls by kind.
        wrong: what came out otherwise than it must, by kind and status.
        registered: there are endpoints to call.
    """

    def __init__(self, *, router: str, backend: str) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
        ]
        self.channel = grpc.aio.insecure_channel(router, options=options)
        self.registry: Any = registry_pb2_grpc.RegistryServiceStub(self.channel)
        self.backend_port = backend.rpartition(":")[2]
        self.sent: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.registered = asyncio.Event()
        self.rng = random.Random(1)  # noqa: S311 - picks calls, guards nothing
        self.small = [message(100, model=f"m{number}") for number in range(MODELS)]
        self.slow = message(100, model=SLOW)
        self.large = [message(600_000, model=f"m{number}") for number in range(MODELS)]

    async def run(self, *, seconds: float, per_second: float | None) -> float:
        """Sends for so long, and so fast (None: as fast as goes); how fast that was."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        tickets = itertools.count()
        before = self.sent.total()

        async def caller() -> None:
            while loop.time() < begun_s + seconds:
                number = next(tickets)
                if per_second is not None:
                    # Due by the clock and not by the last answer: who is late stays late.
                    await asyncio.sleep(begun_s + number / per_second - loop.time())
                await self.one()

        passing = asyncio.create_task(self.passing())
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(caller())
        passing.cancel()
        await asyncio.wait([passing])
        return (self.sent.total() - before) / (loop.time() - begun_s)

    async def one(self) -> None:
        (name,) = self.rng.choices(list(KINDS), [share for share, _, _ in KINDS.values()])
        _, wanted, kind = KINDS[name]
        self.sent[name] += 1
        found: grpc.StatusCode | str = grpc.StatusCode.OK
        try:
            await kind(self)
        except grpc.aio.AioRpcError as failure:
            found = failure.code()
        if found is not wanted:
            self.wrong[f"{name}: {found}"] += 1

    async def unary(self, method: str, request: bytes, *, timeout_s: float = 20.0) -> None:
        call: Any = self.channel.unary_unary(f"/{method}")
        if await call(request, metadata=METADATA, timeout=timeout_s) != request:
            self.wrong[f"{method}: another answer"] += 1

    async def stream(self) -> None:
        call: Any = self.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        rpc = call(metadata=METADATA, timeout=20)
        request = self.rng.choice(self.small)
        for _ in range(MESSAGES):
            await rpc.write(request)
            if await rpc.read() != request:
                self.wrong["stream: another answer"] += 1
        await rpc.done_writing()
        await rpc.code()

    async def cancelled(self) -> None:
        call: Any = self.channel.unary_unary(f"/{INFER}")
        rpc = call(self.slow, metadata=METADATA, timeout=20)
        await asyncio.sleep(0.02)
        rpc.cancel()

    async def cancelled_stream(self) -> None:
        """After its first answer.

        One that is cancelled before keeps 80 B in grpc.aio for ever (grpc/grpc#43360), which would
        be all that a soak sees.
        """
        call: Any = self.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        rpc = call(metadata=METADATA, timeout=20)
        await rpc.write(self.small[0])
        await rpc.read()
        rpc.cancel()

    async def passing(self) -> None:
        """Endpoints join and leave in turn; the server behind them all stays."""
        held: list[str] = []
        for number in itertools.count():
            host = f"127.0.1.{1 + number % (2 * PASSING)}"
            held.append(await self.join(host, model=f"m{number % MODELS}"))
            if len(held) > PASSING:
                await self.leave(held.pop(0))
            await asyncio.sleep(JOINS_EVERY_S)

    async def join(self, host: str, *, model: str = "", service: str = "") -> str:
        endpoint = registry_pb2.Endpoint(
            backend=f"of-{model or service}",
            address=f"{host}:{self.backend_port}",
            protocol=registry_pb2.PROTOCOL_OIP if model else registry_pb2.PROTOCOL_GRPC,
            models=[model] if model else [],
            services=[service] if service else [],
        )
        request = registry_pb2.RegisterRequest(endpoint=endpoint, ttl_ms=LEASE_MS)
        answer = await self.registry.Register(request, metadata=METADATA)
        return str(answer.lease_id)

    async def leave(self, lease_id: str) -> None:
        request = registry_pb2.DeregisterRequest(lease_id=lease_id)
        await self.registry.Deregister(request, metadata=METADATA)

    async def clear(self) -> None:
        """Who still passes leaves."""
        listed = await self.registry.ListEndpoints(
            registry_pb2.ListEndpointsRequest(), metadata=METADATA
        )
        for entry in listed.entries:
            if entry.endpoint.address.startswith("127.0.1."):
                host = entry.endpoint.address.partition(":")[0]
                await self.leave(await self.join(host, model=entry.endpoint.models[0]))


async def _small(traffic: Traffic) -> None:
    await traffic.unary(INFER, traffic.rng.choice(traffic.small))


async def _large(traffic: Traffic) -> None:
    await traffic.unary(INFER, traffic.rng.choice(traffic.large))


async def _typed(traffic: Traffic) -> None:
    await traffic.unary(f"{TYPED}/AnnotateDimensions", traffic.small[0])


async def _unknown_kind(traffic: Traffic) -> None:
    await traffic.unary(f"{SERVICE}/Echo", traffic.small[0])


async def _late(traffic: Traffic) -> None:
    await traffic.unary(INFER, traffic.slow, timeout_s=0.05)


async def _failing(traffic: Traffic) -> None:
    await traffic.unary(f"{SERVICE}/Fail", b"")


# By name: its share, the status it must end with, and the call.
KINDS: Mapping[str, tuple[float, grpc.StatusCode, Kind]] = {
    "small": (50, grpc.StatusCode.OK, _small),
    "large": (4, grpc.StatusCode.OK, _large),
    "typed": (20, grpc.StatusCode.OK, _typed),
    "unknown kind": (8, grpc.StatusCode.OK, _unknown_kind),
    "stream": (7, grpc.StatusCode.OK, Traffic.stream),
    "cancelled stream": (1, grpc.StatusCode.OK, Traffic.cancelled_stream),
    "cancelled": (3, grpc.StatusCode.OK, Traffic.cancelled),
    "late": (3, _LATE, _late),
    "failing": (4, _INVALID, _failing),
}
