"""The least a Python proxy can do: bytes in, bytes on, no name read, no policy, no metadata.

What the router costs beyond this is what the router does; the rest is grpc.aio's price.

    python benchmarks/passthrough.py BACKEND [BACKEND ...]     # prints its address

Calls go to the backends in turn, each over a connection of its own, streams to the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import sys
from collections.abc import Sequence
from typing import Any

import grpc.aio
from load import MESSAGE_LIMIT

OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.so_reuseport", 0),
]


class _EveryMethod(grpc.GenericRpcHandler):
    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = channels
        self._handlers: dict[str, Any] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method
        if method not in self._handlers:
            calls: Any = itertools.cycle([each.unary_unary(method) for each in self._channels])

            async def forward(request: bytes, _: object) -> Any:
                return await next(calls)(request)

            self._handlers[method] = (
                self._stream(method)
                if method.endswith("/ModelStreamInfer")
                else grpc.unary_unary_rpc_method_handler(forward)
            )
        return self._handlers[method]

    def _stream(self, method: str) -> Any:
        call: Any = self._channels[0].stream_stream(method)

        async def forward(_: object, context: Any) -> None:
            onward = call()

            async def pump() -> None:
                while (message := await context.read()) is not grpc.aio.EOF:
                    await onward.write(message)
                await onward.done_writing()

            pumping = asyncio.create_task(pump())
            while (message := await onward.read()) is not grpc.aio.EOF:
                await context.write(message)
            await pumping

        return grpc.stream_stream_rpc_method_handler(forward)


async def main() -> None:
    # Each backend has a connection.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(backend, options=OPTIONS))
            for backend in sys.argv[1:]
        ]
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((_EveryMethod(channels),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
