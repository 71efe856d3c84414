"""What streams cost: 1,000 open at once, messages both ways as fast as it goes; their memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import router_load
from router_unary import message
from router_ways import KEY, Way

METHOD = "inference.GRPCInferenceService/ModelStreamInfer"
STREAMS = 1000
CONNECTIONS = 4
MESSAGES = 20  # Of a stream, each way.
SIZE = 100
WAYS = ("bare", "full")


def one_round(ways: Mapping[str, Way], h2load: Path, folder: Path) -> dict[str, float]:
    seen: dict[str, float] = {}
    for name in WAYS:
        before_s, began_s = ways[name].cpu_s(), time.monotonic()
        router_load.calls(
            h2load,
            f"http://{ways[name].address}/{METHOD}",
            [message(SIZE)] * MESSAGES,
            count=STREAMS,
            in_flight=STREAMS,
            key=KEY,
            folder=folder,
        )
        passed = STREAMS * MESSAGES
        seen[f"{name}_stream_messages_per_s"] = passed / (time.monotonic() - began_s)
        # Each message is passed on twice: there, and as its echo back.
        seen[f"{name}_stream_cpu_us"] = (ways[name].cpu_s() - before_s) / passed / 2 * 1e6
    return seen


def memory(ways: Mapping[str, Way]) -> dict[str, float]:
    """What one more open stream takes, in KB; measured once, for freed memory is used again."""
    return {f"{name}_kb_a_stream": asyncio.run(_kb_a_stream(ways[name])) for name in WAYS}


async def _kb_a_stream(way: Way) -> float:
    """Of `STREAMS` that are open, each after one message there and back."""
    metadata = (("authorization", f"Bearer {KEY}"),)
    channels = [
        grpc.aio.insecure_channel(way.address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CONNECTIONS)
    ]
    opened: list[Any] = []
    request = message(SIZE)

    async def open_one(number: int) -> None:
        call: Any = channels[number % CONNECTIONS].stream_stream(f"/{METHOD}")
        rpc = call(metadata=metadata)
        opened.append(rpc)
        await rpc.write(request)
        if await rpc.read() != request:
            raise SystemExit(f"a stream through {way.address} was not answered")

    await open_one(0)
    before = way.memory_bytes()
    async with asyncio.timeout(60):
        for start in range(1, STREAMS, 50):
            numbers = range(start, min(start + 50, STREAMS))
            await asyncio.gather(*(open_one(number) for number in numbers))
    taken = way.memory_bytes() - before
    for rpc in opened:
        rpc.cancel()
    for channel in channels:
        await channel.close()
    return taken / (STREAMS - 1) / 1000
