"""A backend that answers unary calls with their own bytes, and reflection for `TYPED`.

python benchmarks/router_backend.py     # prints its address
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from grpc_reflection.v1alpha import reflection
from passthrough import OPTIONS

from aiflow.geometry.v1 import geometry_pb2

TYPED = geometry_pb2.DESCRIPTOR.services_by_name["GeometryService"].full_name


class _Echo(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        async def echo(request: bytes, _: object) -> bytes:
            return request

        self._handler: Any = grpc.unary_unary_rpc_method_handler(echo)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        own = details.method.startswith("/grpc.")  # A version of reflection that is not there.
        return None if own else self._handler


async def main() -> None:
    server = grpc.aio.server(options=OPTIONS)
    reflection.enable_server_reflection((TYPED,), server)
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
