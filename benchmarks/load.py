"""A closed-loop gRPC load: each caller sends its next call when the last one is answered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

MESSAGE_LIMIT = 64 * 1024 * 1024


@dataclass(slots=True, kw_only=True)
class Result:
    """What one run of the load saw.

    Attributes:
        seconds: from the first call to the last answer.
        latencies_ms: of the calls that succeeded.
        failed: calls that did not.
    """

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def per_second(self) -> float:
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def in_turn(
    address: str, method: str, requests: Iterator[bytes], *, callers: int, count: int
) -> Result:
    """Sends the next `count` of these serialized unary `requests`, `callers` of them at a time."""
    result = Result()
    started = time.perf_counter()
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(method)

        async def caller() -> None:
            for request in itertools.islice(requests, count // callers):
                try:
                    await call(request, timeout=30)
                except grpc.RpcError:
                    result.failed += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
    result.seconds = time.perf_counter() - started
    return result


async def closed_loop(
    address: str, method: str, request: bytes, *, callers: int, seconds: float
) -> Result:
    """Sends the same unary `request`, already serialized, for `seconds`.

    Args:
        address: host:port, plaintext.
        method: "/package.Service/Method".
        request: serialized message.
        callers: calls in flight at any time.
        seconds: how long new calls are started.
    """
    result = Result()
    options = [
        ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        call: Any = channel.unary_unary(method)
        started = time.perf_counter()
        end = started + seconds

        async def caller() -> None:
            while (begun := time.perf_counter()) < end:
                try:
                    await call(request, timeout=30)
                except grpc.RpcError:
                    result.failed += 1
                else:
                    result.latencies_ms.append((time.perf_counter() - begun) * 1000)

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
        result.seconds = time.perf_counter() - started
    return result
