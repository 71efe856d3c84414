"""A small CPU server with all four kinds of calls, for the tests of the runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from integration.runtime import jobs

from aiflow_sdk import errors
from aiflow_servers.runtime.server import Server
from aiflow_servers.runtime.workers import Workers

SERVICE = "aiflow.test.v1.EchoService"
Context = grpc.aio.ServicerContext[Any, Any]


def add(server: grpc.aio.Server, workers: Workers) -> None:  # noqa: C901 - one handler a method
    async def echo(request: bytes, context: Context) -> bytes:
        return await workers.run(jobs.echo, request)

    async def compute(request: bytes, context: Context) -> bytes:
        return str(await workers.run(jobs.compute, float(request))).encode()

    async def wait(request: bytes, context: Context) -> bytes:
        return str(await workers.run(jobs.wait, float(request))).encode()

    async def fetch(request: bytes, context: Context) -> bytes:
        return await workers.run(jobs.fetch, request.decode())

    async def refuse(request: bytes, context: Context) -> bytes:
        await workers.run(jobs.refuse)
        return b""

    async def fail(request: bytes, context: Context) -> bytes:
        await workers.run(jobs.fail)
        return b""

    async def die(request: bytes, context: Context) -> bytes:
        await workers.run(jobs.die, int(request))
        return b""

    async def abort(request: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "beyond the end")

    async def count(request: bytes, context: Context) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            if number == 3:
                raise errors.RefusedError("three is enough")
            yield str(number).encode()

    async def join(requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b",".join([request async for request in requests])

    async def chat(requests: AsyncIterator[bytes], context: Context) -> None:
        async for request in requests:
            await context.write(request.upper())

    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        function.__name__.title(): grpc.unary_unary_rpc_method_handler(function)
        for function in (echo, compute, wait, fetch, refuse, fail, die, abort)
    }
    methods["Count"] = grpc.unary_stream_rpc_method_handler(count)
    methods["Join"] = grpc.stream_unary_rpc_method_handler(join)
    methods["Chat"] = grpc.stream_stream_rpc_method_handler(chat)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])


SERVER = Server(name="echo", services=(SERVICE,), add=add, initialize=jobs.initialize)
