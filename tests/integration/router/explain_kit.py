"""What Explain and Replay tell of a model `m`, and its calls."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from integration.router.kit import Backend, Handle, Mesh, Seen, backend, infer

from aiflow.admin.v1 import explain_pb2, explain_pb2_grpc

INFER = "/inference.GRPCInferenceService/ModelInfer"


def route(policy: str) -> str:
    return f"routes: [{{match: {{model: m}}, {policy}}}]\n"


def stub(m: Mesh) -> explain_pb2_grpc.ExplainServiceAsyncStub:
    made: explain_pb2_grpc.ExplainServiceAsyncStub = explain_pb2_grpc.ExplainServiceStub(m.channel)
    return made


async def explained(m: Mesh, model: str = "m", **asked: Any) -> explain_pb2.ExplainResponse:
    return await stub(m).Explain(explain_pb2.ExplainRequest(model=model, **asked))


async def endpoint(m: Mesh, address: str, **asked: Any) -> explain_pb2.CandidateEndpoint:
    told = await explained(m, **asked)
    return next(one for one in told.candidates[0].endpoints if one.address == address)


async def replayed(m: Mesh, request_id: str) -> explain_pb2.Trace:
    answer = await stub(m).Replay(explain_pb2.ReplayRequest(request_id=request_id))
    return answer.traces[0]


async def found_trace(m: Mesh, which: Callable[[explain_pb2.Trace], object]) -> explain_pb2.Trace:
    """Of the first call that is such a one; so many are made as that takes."""
    for number in itertools.count():
        await call(m, f"r{number}")
        trace = await replayed(m, f"r{number}")
        if which(trace):
            return trace
    raise AssertionError


async def call(m: Mesh, request_id: str, *, priority: str = "", timeout_s: float = 10.0) -> None:
    metadata = [("x-request-id", request_id), ("x-aiflow-priority", priority or "normal")]
    with contextlib.suppress(grpc.aio.AioRpcError):
        await m.channel.unary_unary(INFER)(infer("m"), metadata=metadata, timeout=timeout_s)


@asynccontextmanager
async def serving(m: Mesh, handle: Handle | None = None, **register: Any) -> AsyncIterator[Backend]:
    """A backend of model `m` that is registered."""
    methods = {} if handle is None else {"ModelInfer": handle, "ModelStreamInfer": handle}
    async with backend(**methods) as server:
        await m.register(server.address, models=("m",), services=(), **register)
        yield server


async def broken(_: Seen, context: Any) -> None:
    await context.abort(grpc.StatusCode.INTERNAL, "out of order")
