"""What the types of the public API are; mypy reads this, nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from aiflow.geometry.v1 import geometry_pb2 as pb
from aiflow.geometry.v1.geometry_pb2_grpc import GeometryServiceStub
from aiflow_sdk import AsyncClient, Client, Endpoint, InferResult, Reply


def of_client(client: Client, request: pb.AnnotateDimensionsRequest) -> None:
    stub = client.stub(GeometryServiceStub)
    assert_type(stub, GeometryServiceStub)
    assert_type(stub.AnnotateDimensions(request), pb.AnnotateDimensionsResponse)
    reply = client.call(stub.AnnotateDimensions, request)
    assert_type(reply, Reply[pb.AnnotateDimensionsResponse])
    assert_type(reply.message.svg, str)
    assert_type(reply.served_by, str)
    client.call(stub.AnnotateDimensions, pb.Point())  # type: ignore[misc]
    assert_type(client.infer("m", {"image": b"", "box": [b"a", "b"]}), InferResult)
    assert_type(client.stream_infer("m", []), Iterator[InferResult])
    assert_type(client.endpoints(), tuple[Endpoint, ...])
    assert_type(client.models(), tuple[str, ...])
    client.infer("m", {"image": 3})  # type: ignore[dict-item]
    client.infer("m", {}, priority="urgent")  # type: ignore[arg-type]
    with client as same:
        assert_type(same, Client)


async def of_async_client(client: AsyncClient, request: pb.AnnotateDimensionsRequest) -> None:
    stub = client.stub(GeometryServiceStub)
    assert_type(await stub.AnnotateDimensions(request), pb.AnnotateDimensionsResponse)
    reply = await client.call(stub.AnnotateDimensions, request)
    assert_type(reply, Reply[pb.AnnotateDimensionsResponse])
    assert_type(await client.infer("m", {"image": b""}), InferResult)
    assert_type(client.stream_infer("m", []), AsyncIterator[InferResult])
    async with client as same:
        assert_type(same, AsyncClient)
