"""A backend that answers calls with their own bytes, and reflection for `TYPED`.

python benchmarks/router_backend.py [HOST]     # prints its address
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc.aio
from grpc_reflection.v1alpha import reflection
from passthrough import OPTIONS

from aiflow.geometry.v1 import geometry_pb2

TYPED = geometry_pb2.DESCRIPTOR.services_by_name["GeometryService"].full_name
SLOW_S = 5.0
SLOW = "slow"
_TO_SLOW = b"\n\x04" + SLOW.encode()  # How a request begins that names it.


class Echo(grpc.GenericRpcHandler):
    """Answers with what it gets; method Slow and model SLOW late, method Fail with an error."""

    def __init__(self) -> None:
        async def echo(request: bytes, _: object) -> bytes:
            if request.startswith(_TO_SLOW):
                await asyncio.sleep(SLOW_S)
            return request

        async def stream(_: object, context: Any) -> None:
            while (message := await context.read()) is not grpc.aio.EOF:
                await context.write(message)

        async def slow(request: bytes, _: object) -> bytes:
            await asyncio.sleep(SLOW_S)
            return request

        async def fail(_: bytes, context: Any) -> None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "asked to fail")

        unary: Any = grpc.unary_unary_rpc_method_handler
        self._echo = unary(echo)
        self._special = {
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream),
            "Slow": unary(slow),
            "Fail": unary(fail),
        }

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        own = details.method.startswith("/grpc.")  # A version of reflection that is not there.
        name = details.method.rpartition("/")[2]
        return None if own else self._special.get(name, self._echo)


async def main() -> None:
    server = grpc.aio.server(options=OPTIONS)
    reflection.enable_server_reflection((TYPED,), server)
    server.add_generic_rpc_handlers((Echo(),))
    host = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
    port = server.add_insecure_port(f"{host}:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
