"""A backend that echoes each call, after as long as its caller says in metadata `x-work-s`.

python benchmarks/fairness_backend.py     # prints its address
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

WORK = "x-work-s"


class _Echo(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if not details.method.startswith("/inference."):
            return None  # Health and reflection, which it does not have.
        work_s = float(dict(details.invocation_metadata)[WORK])

        async def echo(request: bytes, _: object) -> bytes:
            await asyncio.sleep(work_s)
            return request

        return grpc.unary_unary_rpc_method_handler(echo)


async def main() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
