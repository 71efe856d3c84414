"""The least a Python proxy can do: bytes in, bytes on, no name read, no policy, no metadata.

What the router costs beyond this is what the router does; the rest is grpc.aio's price.

    python benchmarks/passthrough.py BACKEND     # prints its address
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc.aio
from load import MESSAGE_LIMIT

OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.so_reuseport", 0),
]


class _EveryMethod(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._handlers: dict[str, Any] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method
        if method not in self._handlers:
            call: Any = self._channel.unary_unary(method)

            async def forward(request: bytes, _: object) -> Any:
                return await call(request)

            self._handlers[method] = (
                self._stream(method)
                if method.endswith("/ModelStreamInfer")
                else grpc.unary_unary_rpc_method_handler(forward)
            )
        return self._handlers[method]

    def _stream(self, method: str) -> Any:
        call: Any = self._channel.stream_stream(method)

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
    async with grpc.aio.insecure_channel(sys.argv[1], options=OPTIONS) as channel:
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((_EveryMethod(channel),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
