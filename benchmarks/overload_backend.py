"""Backends that take 50 ms for a call, so many at once, and work on after a caller has gone.

    python benchmarks/overload_backend.py COUNT     # prints their addresses, as JSON

The rest waits in a queue without end, first come, first served, as it does in most servers.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc.aio

SERVICE_S = 0.05
SLOTS = 8
CAPACITY = SLOTS / SERVICE_S


class _Work(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        slots = asyncio.Semaphore(SLOTS)
        running: set[asyncio.Task[None]] = set()

        async def one() -> None:
            async with slots:
                await asyncio.sleep(SERVICE_S)

        async def work(request: bytes, _: object) -> bytes:
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.shield(task)
            return request

        self._handler: Any = grpc.unary_unary_rpc_method_handler(work)

    def service(self, _: grpc.HandlerCallDetails) -> Any:
        return self._handler


async def main() -> None:
    addresses = []
    servers = []  # Kept, or they would stop.
    for _ in range(int(sys.argv[1])):
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_Work(),))
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    print(json.dumps(addresses), flush=True)
    await asyncio.gather(*(server.wait_for_termination() for server in servers))


if __name__ == "__main__":
    asyncio.run(main())
