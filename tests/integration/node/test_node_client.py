"""A client of grpc-js, the gRPC of Node, through the router to a Python backend."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fixtures.node import InstallNode
from google.protobuf import descriptor_pool, wrappers_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection
from integration.router.kit import mesh, until

HERE = Path(__file__).parent
SERVICE = "kinds.v1.Kinds"
KINDS = {"One": (False, False), "Down": (False, True), "Up": (True, False), "Both": (True, True)}
DETAILS = b"\x08\x09\x12\x02no"  # google.rpc.Status
CANCELLED, DEADLINE_EXCEEDED, FAILED_PRECONDITION = 1, 4, 9

Value = wrappers_pb2.BytesValue


class Backend:
    """Attributes: cancelled: calls whose caller went away or was late."""

    def __init__(self) -> None:
        self.cancelled = 0

    async def _obey(self, request: Any, context: Any) -> None:
        if request.value == b"hang":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if request.value == b"fail":
            trailing = (("grpc-status-details-bin", DETAILS), ("t", "1"))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nicht schön: 不行", trailing)

    async def _annotate(self, context: Any) -> None:
        sent = [pair for pair in context.invocation_metadata() if pair[0] in {"k", "k-bin"}]
        await context.send_initial_metadata(tuple(sent))
        context.set_trailing_metadata((*sent, ("t", "1")))

    async def one(self, request: Any, context: Any) -> Any:
        await self._obey(request, context)
        await self._annotate(context)
        return request

    async def down(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._obey(request, context)
        await self._annotate(context)
        for _ in range(3):
            yield request

    async def up(self, requests: Any, context: Any) -> Any:
        await self._annotate(context)
        received = []
        async for request in requests:
            await self._obey(request, context)
            received.append(request.value)
        return Value(value=b"".join(received))

    async def both(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        await self._annotate(context)
        async for request in requests:
            await self._obey(request, context)
            yield request


def _pool() -> descriptor_pool.DescriptorPool:
    wrappers = FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    file = FileDescriptorProto(
        name="kinds.proto", package="kinds.v1", dependency=[wrappers.name], syntax="proto3"
    )
    service = file.service.add(name="Kinds")
    for name, (client_streaming, server_streaming) in KINDS.items():
        service.method.add(
            name=name,
            input_type=".google.protobuf.BytesValue",
            output_type=".google.protobuf.BytesValue",
            client_streaming=client_streaming,
            server_streaming=server_streaming,
        )
    found = descriptor_pool.DescriptorPool()
    found.Add(wrappers)
    found.Add(file)
    return found


@asynccontextmanager
async def kinds(*, reflect: bool) -> AsyncIterator[tuple[str, Backend]]:
    """A running service and its address."""
    found = Backend()
    coder: Any = {
        "request_deserializer": Value.FromString,
        "response_serializer": Value.SerializeToString,
    }
    limit = [("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(options=limit)
    handlers = {
        "One": grpc.unary_unary_rpc_method_handler(found.one, **coder),
        "Down": grpc.unary_stream_rpc_method_handler(found.down, **coder),
        "Up": grpc.stream_unary_rpc_method_handler(found.up, **coder),
        "Both": grpc.stream_stream_rpc_method_handler(found.both, **coder),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if reflect:
        reflection.enable_server_reflection((SERVICE,), server, _pool())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", found
    finally:
        await server.stop(None)


@pytest.mark.parametrize("reflect", [True, False], ids=["known kinds", "unknown kinds"])
async def test_every_kind_of_call_from_node(
    node: Path, install_node: InstallNode, reflect: bool
) -> None:
    modules = await asyncio.to_thread(install_node, HERE)
    async with kinds(reflect=reflect) as (address, backend), mesh() as m:
        await m.register(address, services=(SERVICE,))
        await until(lambda: m.router.kinds.pending() == 0)
        client = await asyncio.create_subprocess_exec(
            *(str(node), str(HERE / "client.js"), m.router.grpc_address, str(HERE / "kinds.proto")),
            env={**os.environ, "NODE_PATH": str(modules)},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(client.communicate(), 60)
        found = json.loads(out)
        assert found.pop("large") == 30 * 1024 * 1024
        for method, seen in found.items():
            passed = seen["passed"]
            assert "failure" not in passed
            answers = {"One": ["a"], "Down": ["a"] * 3, "Up": ["ab"], "Both": ["a", "b"]}
            assert passed["messages"] == answers[method]
            for metadata in (passed["initial"], passed["trailing"]):
                assert metadata["k"] == ["first", "second"] or metadata["k"] == ["first, second"]
                assert metadata["k-bin"] == ["00ff"]
            assert passed["trailing"]["t"] == ["1"]
            assert passed["trailing"]["x-aiflow-attempts"] == ["1"]
            assert seen["packed"] == (300_000 if method == "Down" else 100_000)
            failed = seen["failed"]["failure"]
            assert failed["code"] == FAILED_PRECONDITION
            assert failed["details"] == "nicht schön: 不行"
            assert failed["metadata"]["grpc-status-details-bin"] == [DETAILS.hex()]
            assert failed["metadata"]["t"] == ["1"]
            assert seen["late"]["failure"]["code"] == DEADLINE_EXCEEDED
            assert seen["cancelled"]["failure"]["code"] == CANCELLED
        await until(lambda: backend.cancelled == 2 * len(KINDS))
        await until(lambda: m.inflight() == 0)
