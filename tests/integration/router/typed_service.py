"""A typed service with a method of each kind and server reflection; also a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, wrappers_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from grpc_reflection.v1alpha import reflection

SERVICE = "shop.v1.Shop"

KINDS = {
    "Get": (False, False),
    "Put": (False, False),
    "Watch": (False, True),
    "Upload": (True, False),
    "Chat": (True, True),
}


def pool(*, unary_get: bool = True) -> descriptor_pool.DescriptorPool:
    """Descriptors of the service: `Get` has no side effects, `Put` has."""
    wrappers = FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    file = FileDescriptorProto(
        name="shop/v1/shop.proto",
        package="shop.v1",
        dependency=[wrappers.name],
        syntax="proto3",
    )
    service = file.service.add(name="Shop")
    for name, (client_streaming, server_streaming) in KINDS.items():
        method = service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=client_streaming,
            server_streaming=server_streaming or (name == "Get" and not unary_get),
        )
        if name == "Get":
            method.options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    found = descriptor_pool.DescriptorPool()
    found.Add(wrappers)
    found.Add(file)
    return found


class Shop:
    """Answers with what it got and who it is.

    Attributes:
        mortal: "die" ends its process; else it is answered.
        seen: the requests of unary calls.
        cancelled: how many of them were cancelled.
    """

    def __init__(self, *, mortal: bool) -> None:
        self.mortal = mortal
        self.seen: list[str] = []
        self.cancelled = 0

    async def one(self, request: wrappers_pb2.StringValue, context: Any) -> Any:
        self.seen.append(request.value)
        if request.value == "fail":
            await context.abort(grpc.StatusCode.ABORTED, "no", (("t-bin", b"\x01"),))
        if request.value == "die" and self.mortal:
            os._exit(1)
        if request.value == "away":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        if request.value == "hang":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        await context.send_initial_metadata((("i", "1"),))
        context.set_trailing_metadata((("t-bin", b"\x00"),))
        return request

    async def watch(self, request: wrappers_pb2.StringValue, context: Any) -> AsyncIterator[Any]:
        yield request
        await asyncio.sleep(float(request.value))
        yield request

    async def upload(self, requests: AsyncIterator[Any], context: Any) -> Any:
        return wrappers_pb2.StringValue(value="".join([part.value async for part in requests]))

    async def chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request


@asynccontextmanager
async def shop(
    *,
    reflect: bool = True,
    unary_get: bool = True,
    mortal: bool = False,
    address: str = "127.0.0.1:0",
) -> AsyncIterator[tuple[str, Shop]]:
    """A running shop and its address."""
    found = Shop(mortal=mortal)
    coder: Any = {
        "request_deserializer": wrappers_pb2.StringValue.FromString,
        "response_serializer": wrappers_pb2.StringValue.SerializeToString,
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                SERVICE,
                {
                    "Get": grpc.unary_unary_rpc_method_handler(found.one, **coder),
                    "Put": grpc.unary_unary_rpc_method_handler(found.one, **coder),
                    "Watch": grpc.unary_stream_rpc_method_handler(found.watch, **coder),
                    "Upload": grpc.stream_unary_rpc_method_handler(found.upload, **coder),
                    "Chat": grpc.stream_stream_rpc_method_handler(found.chat, **coder),
                },
            ),
        )
    )
    if reflect:
        reflection.enable_server_reflection((SERVICE,), server, pool(unary_get=unary_get))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", found
    finally:
        await server.stop(None)


async def main() -> None:
    async with shop(mortal=True) as (address, _):
        print(address, flush=True)  # noqa: T201 - read by the test
        await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
